"""Arms of `part_whole` on real texts: classes of questions, dialogues, and exchanged paragraphs."""

from dataclasses import replace

from counterpoint.blocks.far_attention import FarAttentionConfig
from counterpoint.recipes.grid import Grid, GridArm
from counterpoint.recipes.part_whole import (
    WINDOW,
    hrt_words,
    part_whole,
    shared_levels,
    tower,
    two_stream,
)
from counterpoint.systems.hrt import HRTConfig
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.systems.two_stream import TwoStreamConfig

WORD_TICKS = 4.8
"""Mean number of symbols of a word in all three tasks, if long words are cut after eight."""
WHOLE_STEPS = 160
"""Words that a layer of a whole reads: those of 768 symbols, more than any row has."""
SUMMARY_BLOCKS = 96
"""Blocks of eight symbols whose summaries are read: those of 768 symbols."""
ALL_TICKS = 1024
"""Window of the arm that attends to everything, longer than any passage that is scored."""


def part_whole_real() -> Grid:
    """Return the grid; it needs `--data FOLDER` with ``trec-qc`` and ``sgd-mini``.

    Without ``books`` in that folder the paragraphs are those of the Bible. FLOPs are equal on all
    three tasks, whose rows have 208 to 576 symbols.
    """
    grid = part_whole()
    return replace(
        grid,
        name="part_whole_real",
        purpose=(
            "Which arrangement of levels tells the kind of a question, the slots of a dialogue and "
            "the order of paragraphs in real texts, at equal training FLOPs?"
        ),
        arms=_arms(),
        tasks=("questions", "dialogues_small", "paragraphs_small"),
        train=replace(grid.train, num_steps=1500, batch_rows=8),
        learning_rates=(3e-3,),
        num_items=1000,
        smaller="",
    )


def _arms() -> tuple[GridArm, ...]:
    """Return arms of `part_whole` that reach to the beginning of the longest row."""
    ours = _two_stream()
    return (
        GridArm(name="two_stream", system=ours),
        GridArm(name="shared_levels", system=_shared_levels()),
        GridArm(name="shuffled_whole", system=replace(ours, whole_control="shuffled")),
        GridArm(name="hrt_words", system=_hrt_words()),
        GridArm(name="window_summary", system=_window_summary()),
        GridArm(
            name="window",
            system=SingleStreamConfig(tower=tower(64, 5, WINDOW, 204)),
            unmatched="its FLOPs do not grow with the text: it has as many as two_stream or more",
        ),
        GridArm(
            name="full",
            system=SingleStreamConfig(tower=tower(64, 5, ALL_TICKS)),
            unmatched="a ceiling: it attends to everything",
        ),
    )


def _two_stream() -> TwoStreamConfig:
    whole = tower(48, 2, WHOLE_STEPS)
    return replace(two_stream(), whole=whole, usual_block_ticks=WORD_TICKS)


def _shared_levels() -> TwoStreamConfig:
    layers = tower(56, 4, WINDOW, 172)
    whole = replace(layers, window=WHOLE_STEPS)
    return replace(shared_levels(), part=layers, whole=whole, usual_block_ticks=WORD_TICKS)


def _hrt_words() -> HRTConfig:
    levels = (tower(64, 4, WINDOW, 140), tower(56, 2, WHOLE_STEPS), tower(56, 2, 64))
    return replace(hrt_words(), levels=levels, num_keys=128, usual_block_ticks=WORD_TICKS)


def _window_summary() -> SingleStreamConfig:
    """Return an arm with a window and one summary step for every eight symbols."""
    mixer = FarAttentionConfig(block_ticks=8, kept_blocks=SUMMARY_BLOCKS, num_summaries=1)
    return SingleStreamConfig(tower=replace(tower(64, 4, WINDOW, 172), mixer=mixer))
