"""Arms of `part_whole` with 7 to 15 million parameters, for minutes of one large GPU."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

from counterpoint.blocks.transformer import TowerConfig
from counterpoint.recipes.grid import Grid, GridArm
from counterpoint.recipes.part_whole import arms, part_whole
from counterpoint.systems import SystemConfig
from counterpoint.systems.hrt import HRTConfig
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.systems.two_stream import TwoStreamConfig

ARMS = (
    "two_stream",
    "two_stream_rebuild",
    "deep",
    "deep_shuffled",
    "shared_deep",
    "hrt_words",
    "hnet",
    "window",
    "window_summary",
    "full",
)
WIDER = 6
"""How many times as wide all towers are; they have twice as many heads, three times as wide."""
HIDDEN = {
    "two_stream_rebuild": 880,
    "deep": 864,
    "deep_shuffled": 864,
    "hrt_words": 880,
    "window": 1040,
}
"""Features of the finest feed-forward layers where six times as many would miss equal FLOPs."""
TRAINED_SHARE = 1 / 40
"""Share of the ticks that carry a loss: 1/61 of `sections`, 1/17 of `acrostic`."""
GRAPH_BLOCKS = 80
"""Room for words in a row that is trained as a graph; no text of these tasks has more."""


def part_whole_gpu() -> Grid:
    """Return the grid: its texts have 153 to 244 symbols, of which the window arm sees 40."""
    grid = part_whole()
    found = {arm.name: arm for arm in arms(TRAINED_SHARE)}
    return replace(
        grid,
        name="part_whole_gpu",
        purpose=(
            "Does what small arms show about questions that need the whole and the detail hold "
            "for models that are more than thirty times as large?"
        ),
        arms=tuple(_larger(found[name]) for name in ARMS),
        tasks=("sections", "acrostic"),
        train=replace(grid.train, num_steps=1500, batch_rows=16),
        learning_rates=(1e-3,),
        seeds=(0, 1, 2),
        smaller="",
    )


def _larger(arm: GridArm) -> GridArm:
    """Return an arm with wider towers, and with a bound for its words if it has any."""
    system: SystemConfig = _widened(arm.system)
    hidden = HIDDEN.get(arm.name)
    if isinstance(system, SingleStreamConfig) and hidden:
        system = replace(system, tower=replace(system.tower, mlp_hidden=hidden))
    elif isinstance(system, TwoStreamConfig):
        part = replace(system.part, mlp_hidden=hidden or system.part.mlp_hidden)
        system = replace(system, part=part, graph_blocks=GRAPH_BLOCKS)
    elif isinstance(system, HRTConfig):
        fine = replace(system.levels[0], mlp_hidden=hidden or system.levels[0].mlp_hidden)
        system = replace(system, levels=(fine, *system.levels[1:]), graph_blocks=GRAPH_BLOCKS)
    return replace(arm, system=system)


def _widened(value: Any) -> Any:
    """Return a config, or a part of one, whose towers are wider."""
    if isinstance(value, TowerConfig):
        return replace(
            value,
            width=WIDER * value.width,
            num_heads=2 * value.num_heads,
            mlp_hidden=WIDER * value.mlp_hidden,
        )
    if isinstance(value, tuple):
        return tuple(_widened(one) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {one.name: _widened(getattr(value, one.name)) for one in fields(value)}
        return replace(value, **parts)
    return value
