"""Systems of the arms of `bench_control.py`, by lane."""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from counterpoint.blocks.level_config import LevelConfig
from counterpoint.blocks.notes import NotesConfig
from counterpoint.data.tasks.items import Trained
from counterpoint.recipes.compression import compression_arms, compression_system
from counterpoint.recipes.part_whole import TRAINED_SHARE, arms, tower, two_stream
from counterpoint.recipes.part_whole_real import (
    ALL_TICKS,
    WHOLE_STEPS,
    WORD_TICKS,
    part_whole_real,
)
from counterpoint.systems.contract import SystemConfig
from counterpoint.systems.hdlm import HdLMConfig
from counterpoint.systems.two_stream import TwoStreamConfig
from counterpoint.train.config import TrainConfig

TWO_LEVELS = replace(
    two_stream(),
    levels=(LevelConfig(whole=tower(48, 1, 64), lower_layers=1, block_ticks=4, compressor="mean"),),
)
"""The arm two_stream with a second level above its whole: a step for four words."""
FAR_LAYERS = tower(64, 3, 8, 176)
FAR = next(
    compression_system(one) for one in compression_arms() if one.name == "fixed 8 attention 2"
)
FAR_SHARED = replace(
    FAR, part=FAR_LAYERS, whole=replace(FAR_LAYERS, window=FAR.whole.window), shared_layers=True
)
"""The arm that reaches furthest with one stack of layers for both levels, at equal FLOPs."""
FAR_FLAT_LAYERS = tower(56, 2, 8, 428)
FAR_SHARED_FLAT = replace(
    FAR,
    part=FAR_FLAT_LAYERS,
    whole=replace(FAR_FLAT_LAYERS, window=FAR.whole.window),
    shared_layers=True,
    num_links=1,
)
"""The same with two narrower layers: as many bytes of state as two towers, within 1 %."""
FAR_SHARED_SHORT = replace(FAR_SHARED, whole=replace(FAR_SHARED.whole, window=50))
"""The same with three layers and fewer blocks, for as many bytes."""
SHARES = {("acrostic", "all"): 1.0, ("dialogues", "answer"): 0.45}
"""Shares of ticks that carry a loss, to which the weight of labels is matched (`part_whole`)."""
LABEL_SYMBOLS = 24
"""Symbols of a label of `dialogues`, which a written whole has at every 24th tick or 8th."""
DIALOGUE_ROWS = 8
"""Rows of a step on `dialogues`, which are four times as long as those of other tasks."""


def system_of(arm: str, task: str = "", trained: Trained = "answer") -> SystemConfig:
    """Return the system of an arm of `part_whole`, `compression` or this file for a lane."""
    known = arms(SHARES.get((task, trained), TRAINED_SHARE))
    systems: dict[str, SystemConfig] = {one.name: one.system for one in known}
    systems["two_stream_text_wide"] = wide_part(cast("TwoStreamConfig", systems["two_stream_text"]))
    systems |= {one.name: compression_system(one) for one in compression_arms()}
    if task == "dialogues":
        systems |= dialogue_systems(systems)
    own = {
        "two_levels": TWO_LEVELS,
        "far_shared": FAR_SHARED,
        "far_shared_flat": FAR_SHARED_FLAT,
        "far_shared_short": FAR_SHARED_SHORT,
        "far_untied": replace(FAR_SHARED, shared_layers=False),
    }
    return (systems | own)[arm]


def wide_part(system: TwoStreamConfig) -> TwoStreamConfig:
    """Return the system whose part reads the whole row, so that it need not ask its whole."""
    return replace(system, part=replace(system.part, window=ALL_TICKS))


def dialogue_systems(systems: Mapping[str, SystemConfig]) -> dict[str, SystemConfig]:
    """Return the arms that reach to the beginning of a dialogue and have room for its labels."""
    deep = cast("TwoStreamConfig", systems["deep"])
    text = cast("TwoStreamConfig", systems["two_stream_text"])
    hdlm = cast("HdLMConfig", systems["hdlm"])
    notes = replace(cast("NotesConfig", text.text), depth=LABEL_SYMBOLS)
    return {one.name: one.system for one in part_whole_real().arms} | {
        "deep": replace(
            deep,
            whole=replace(deep.whole, window=WHOLE_STEPS),
            usual_block_ticks=WORD_TICKS,
        ),
        "two_stream_text": replace(text, text=notes),
        "hdlm": replace(
            hdlm,
            tower=replace(hdlm.tower, window=ALL_TICKS),
            coarse_depth=LABEL_SYMBOLS,
            turn_ticks=LABEL_SYMBOLS,
        ),
    }


def train_of(task: str, train: TrainConfig) -> TrainConfig:
    """Return the training of a task."""
    return replace(train, batch_rows=DIALOGUE_ROWS) if task == "dialogues" else train
