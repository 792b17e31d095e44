"""partwhole: do explicit streams help with questions that need the whole and the detail?"""

from dataclasses import replace

from counterpoint.blocks.boundaries import BoundariesConfig
from counterpoint.blocks.far_attention import FarAttentionConfig
from counterpoint.blocks.notes import NotesConfig
from counterpoint.blocks.recall import RecallConfig
from counterpoint.blocks.stage import StageConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.recipes.grid import Grid, GridArm, Limits
from counterpoint.systems.hdlm import HdLMConfig
from counterpoint.systems.hnet import HNetConfig
from counterpoint.systems.hrt import HRTConfig
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.systems.two_stream import WORDS, TwoStreamConfig
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig

WINDOW = 8
"""Number of steps that a layer of a limited arm reads at its finest level."""
TRAINED_SHARE = 1 / 76
"""Share of the ticks of `logbook` that carry a loss, which is a mean over all ticks.

Auxiliary losses have this weight beside what their papers say, so that they do not drown the
answers.
"""
SLOW_WHOLE = tuple((name, 0.1) for name in ("block_norm", "compressor", "merge", "whole"))
"""Factors of the learning rate with which the compressor and the whole tower learn slowly."""
LABELS = NotesConfig(depth=4, vocab_size=128, padding_id=0)
"""Text that has room for the labels of every task, which are ASCII."""


def part_whole() -> Grid:
    """Return a grid of arms with equal training FLOPs and the same short convolution.

    Parameters cannot be equal at the same time, because a coarse tower takes one step for many
    ticks. The grid therefore also has a control with equal parameters and more FLOPs.
    """
    return Grid(
        name="part_whole",
        purpose=(
            "Which arrangement of levels answers questions that need the whole and the detail of a "
            "text, at equal training FLOPs?"
        ),
        arms=arms(TRAINED_SHARE),
        tasks=("navon", "sections", "logbook", "audit", "acrostic"),
        train=TrainConfig(
            num_steps=3000,
            batch_rows=32,
            precision="float32",  # "auto" would measure the machine
            optimizer=OptimizerConfig(),
            schedule=ScheduleConfig(warmup_steps=100),
            log_every=100,
            checkpoint_every=500,
        ),
        learning_rates=(1e-3, 2e-3, 4e-3),
        limits=Limits(parameters=None, flops=0.05),
        smaller="part_whole_small",
    )


def arms(share: float) -> tuple[GridArm, ...]:
    """Return the arms for tasks of whose ticks about this share carries a loss."""
    return (
        GridArm(name="two_stream", system=two_stream()),
        GridArm(name="two_stream_fixed", system=_fixed_blocks()),
        GridArm(name="two_stream_slots", system=_slots()),
        GridArm(name="two_stream_recall", system=_recall()),
        GridArm(name="same_rate", system=_same_rate()),
        GridArm(name="shared_levels", system=shared_levels()),
        GridArm(name="two_stream_learned", system=_learned(share)),
        GridArm(name="two_stream_rebuild", system=_rebuild()),
        GridArm(name="shuffled_whole", system=replace(two_stream(), whole_control="shuffled")),
        GridArm(name="rebuild_shuffled", system=replace(_rebuild(), whole_control="shuffled")),
        GridArm(name="shared_rebuild", system=_shared_rebuild()),
        GridArm(name="deep", system=_deep()),
        GridArm(name="deep_shuffled", system=replace(_deep(), whole_control="shuffled")),
        GridArm(name="shared_deep", system=_shared_deep()),
        GridArm(name="untied_deep", system=replace(_shared_deep(), shared_layers=False)),
        GridArm(name="slow_whole", system=two_stream(), lr_factors=SLOW_WHOLE),
        GridArm(name="frozen_pool", system=replace(two_stream(), whole_control="frozen")),
        GridArm(name="unread_whole", system=_unread()),
        GridArm(name="hrt", system=_hrt()),
        GridArm(name="hrt_words", system=hrt_words()),
        GridArm(name="hrt_words_plain", system=_hrt_words_plain()),
        GridArm(name="hrt_learned", system=_hrt_learned(share)),
        GridArm(name="hnet", system=_hnet(share)),
        GridArm(name="window", system=_single(tower(64, 5, WINDOW, 188))),
        GridArm(name="window_summary", system=_window_summary()),
        GridArm(name="strided", system=_strided()),
        GridArm(
            name="window_as_large",
            system=_single(tower(72, 5, WINDOW, 200)),
            unmatched="as many parameters as two_stream",
        ),
        GridArm(
            name="full",
            system=_single(tower(64, 5, 512)),
            unmatched="a ceiling: it attends to everything",
        ),
        GridArm(
            name="two_stream_text",
            system=_text(share),
            unmatched="it learns from coarse labels too",
        ),
        GridArm(
            name="hdlm",
            system=_hdlm(share),
            unmatched="it attends to everything, and learns from coarse labels too",
        ),
        GridArm(
            name="hdlm_last",
            system=replace(_hdlm(share), coarse_layer=5),
            unmatched="hdlm with its coarse head at the last layer, beside the other head",
        ),
    )


def tower(width: int, layers: int, window: int, mlp_hidden: int | None = None) -> TowerConfig:
    """Return layers with four heads, and with usual feed-forward layers unless given."""
    return TowerConfig(
        width=width,
        num_layers=layers,
        num_heads=4,
        mlp_hidden=mlp_hidden or width * 8 // 3 // 4 * 4,
        window=window,
    )


def _single(tower: TowerConfig) -> SingleStreamConfig:
    return SingleStreamConfig(tower=tower)


def _window_summary() -> SingleStreamConfig:
    """Return an arm with a window and as many summary steps a block as two_stream has slots."""
    mixer = FarAttentionConfig(block_ticks=8, kept_blocks=64, num_summaries=2)
    return _single(replace(tower(64, 4, WINDOW, 164), mixer=mixer))


def _strided() -> SingleStreamConfig:
    """Return an arm with a window and every third older tick, with the state size of two_stream."""
    mixer = FarAttentionConfig(block_ticks=3, kept_blocks=97)
    return _single(replace(tower(56, 5, WINDOW, 200), mixer=mixer))


def two_stream() -> TwoStreamConfig:
    """Return the arm whose blocks are words, of at most eight ticks.

    No loss asks the plan alone for answers, because a plan comes from the newest block and most
    answers need all of them: with that loss the whole is learned much later (docs/log.md).
    """
    return TwoStreamConfig(
        part=tower(64, 4, WINDOW, 160),
        whole=tower(48, 2, 72),
        lower_layers=1,
        block_ticks=8,
        boundary_ids=WORDS,
        usual_block_ticks=3.0,  # of logbook, whose words are the shortest
        num_links=2,
        whole_dropout=0.0,
        predict_weight=0.0,
    )


def _unread() -> TwoStreamConfig:
    """Return the control of two towers of which the part reads nothing of the whole.

    Each tower has a loss of its own: that of the whole asks its plan for the next symbols. What
    the whole learns can help the part only through the lower layer, which both share.
    """
    part = tower(64, 4, WINDOW, 188)
    unread = replace(two_stream(), num_links=0, whole_control="unread")
    return replace(unread, part=part, predict_weight=0.1)


def _fixed_blocks() -> TwoStreamConfig:
    """Return the control whose blocks have eight ticks wherever words end."""
    return TwoStreamConfig(
        part=tower(64, 4, WINDOW, 200),
        whole=tower(64, 2, 64),
        lower_layers=1,
        block_ticks=8,
        num_links=2,
        whole_dropout=0.0,
        predict_weight=0.0,
    )


def _learned(share: float) -> TwoStreamConfig:
    """Return the arm whose blocks end where a router finds an end."""
    return replace(
        two_stream(),
        part=tower(64, 4, WINDOW, 120),
        boundary_ids=(),
        learned_ends=_ends(share),
        usual_block_ticks=None,
    )


def _rebuild() -> TwoStreamConfig:
    """Return the arm that rebuilds its blocks as HRT does, and is narrower for it."""
    part = tower(64, 4, WINDOW, 128)
    return replace(two_stream(), part=part, reconstruct_weight=0.1)


def shared_levels() -> TwoStreamConfig:
    """Return the control of two levels without two towers: one stack of layers serves both."""
    layers = tower(56, 4, WINDOW, 152)
    whole = replace(layers, window=72)
    return replace(two_stream(), part=layers, whole=whole, shared_layers=True)


def _shared_rebuild() -> TwoStreamConfig:
    """Return the control of one stack for both levels that rebuilds its blocks as HRT does."""
    shared = shared_levels()
    part = replace(shared.part, mlp_hidden=136)
    whole = replace(shared.whole, mlp_hidden=136)
    return replace(shared, part=part, whole=whole, reconstruct_weight=0.1)


def _deep() -> TwoStreamConfig:
    """Return the arm that reads late: three layers see a tick before it reads the whole.

    Blocks are also rebuilt from what the part reads, the states of the whole, and not from what the
    whole reads.
    """
    return replace(
        two_stream(),
        part=tower(64, 4, WINDOW, 128),
        whole=tower(64, 2, 72),
        lower_layers=3,
        compressor="mean",
        num_links=1,
        reconstruct_weight=0.1,
        reconstruct_from="whole",
    )


def _shared_deep() -> TwoStreamConfig:
    """Return the control of `_deep` in which one stack of layers serves both levels.

    The arm `untied_deep` has the same shapes and FLOPs, and a stack of its own for each level.
    """
    layers = tower(56, 4, WINDOW, 160)
    whole = replace(layers, window=72)
    return replace(_deep(), part=layers, whole=whole, shared_layers=True)


def _same_rate() -> TwoStreamConfig:
    """Return the control of two towers without two levels: the whole takes a step every tick.

    Nothing is compressed. The attention of the whole is dilated, so that it reaches as far back as
    that of `_fixed_blocks` with as many keys: its window, and every eighth older step.
    """
    dilated = FarAttentionConfig(block_ticks=8, kept_blocks=64)
    return TwoStreamConfig(
        part=tower(64, 3, WINDOW, 216),
        whole=replace(tower(56, 1, WINDOW), mixer=dilated),
        lower_layers=1,
        block_ticks=1,
        compressor="last",
        num_links=1,
        whole_dropout=0.0,
        predict_weight=0.0,
    )


def _slots() -> TwoStreamConfig:
    """Return the arm in which two slots of a block are separate steps of the whole."""
    return replace(
        _fixed_blocks(),
        part=tower(64, 4, WINDOW, 184),
        whole=tower(48, 2, 128),
        compressor="attention",
        num_slots=2,
        slots_apart=True,
    )


def _recall() -> TwoStreamConfig:
    """Return the arm whose ticks also read the ticks of two old blocks again."""
    return replace(two_stream(), num_links=1, recall=RecallConfig(num_blocks=2))


def _text(share: float) -> TwoStreamConfig:
    """Return the arm whose whole also writes the labels of a task as text, and learns from them."""
    part = tower(64, 4, WINDOW, 184)
    return replace(
        _fixed_blocks(), part=part, whole=tower(48, 2, 64), text=replace(LABELS, loss_weight=share)
    )


def _hdlm(share: float) -> HdLMConfig:
    """Return the arm that writes labels after the third layer, in turns between the bytes."""
    return HdLMConfig(
        tower=tower(64, 5, 512),
        coarse_layer=3,
        coarse_depth=LABELS.depth,
        coarse_vocab_size=LABELS.vocab_size,
        turn_ticks=6,
        coarse_weight=share,
    )


def _hrt() -> HRTConfig:
    """Return the arm with levels of 1, 4 and 16 ticks, whose coarse levels have full attention."""
    return HRTConfig(
        levels=(
            tower(64, 4, WINDOW, 160),
            tower(56, 2, 64),
            tower(56, 2, 64),
        ),
        strides=(4, 4),
        num_rounds=1,
        num_keys=64,
    )


def hrt_words() -> HRTConfig:
    """Return the arm whose blocks of ticks are words, of at most eight ticks, as two_stream's."""
    return replace(
        _hrt(),
        levels=(tower(64, 4, WINDOW, 128), tower(56, 2, 72), tower(56, 2, 64)),
        strides=(8, 4),
        num_keys=72,
        compressor="mean",
        boundary_ids=WORDS,
        usual_block_ticks=3.0,
    )


def _hrt_words_plain() -> HRTConfig:
    """Return the arm of words without the loss of rebuilding, and wider for it."""
    words = hrt_words()
    levels = (replace(words.levels[0], mlp_hidden=160), *words.levels[1:])
    return replace(words, levels=levels, reconstruct_weight=0.0)


def _hrt_learned(share: float) -> HRTConfig:
    """Return the arm whose blocks of ticks end where a router finds an end."""
    words = hrt_words()
    return replace(
        words,
        levels=(
            replace(words.levels[0], mlp_hidden=112),
            tower(48, 2, 72),
            tower(48, 2, 64),
        ),
        boundary_ids=(),
        learned_ends=_ends(share),
        usual_block_ticks=None,
    )


def _ends(share: float) -> BoundariesConfig:
    """Return a router that may find as many ends as `logbook` has words."""
    return BoundariesConfig(ratio=3.0, loss_weight=0.03 * share, max_share=0.34)


def _hnet(share: float) -> HNetConfig:
    """Return the arm with one stage whose chunks are meant to have six ticks."""
    outer = tower(64, 2, WINDOW)
    return HNetConfig(
        stages=(StageConfig(encoder=outer, decoder=outer, ratio=6.0, max_share=1 / 3),),
        main=tower(64, 3, 64),
        ratio_weight=0.03 * share,
    )
