"""The verb ``info``: what a checkpoint, a recipe or a preset is made of and what it costs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from counterpoint.errors import UserError, nearest_file
from counterpoint.evaluate.report.system_tables import show_memory, show_system
from counterpoint.recipes.fine_tuning import FineTuning
from counterpoint.recipes.loading import load_recipe
from counterpoint.recipes.overrides import parse, to_every_arm
from counterpoint.recipes.study import Study
from counterpoint.runtime.hub import is_on_hub
from counterpoint.runtime.load import shape_of
from counterpoint.streams.spec import Layout
from counterpoint.systems import SystemConfig, build_system
from counterpoint.systems.presets import load_preset, module_names
from counterpoint.train.memory import training_memory
from counterpoint.train.run import Run

_HELP = """usage: counterpoint info CKPT|RECIPE|SYSTEM.PRESET [--num-ticks N] [overrides]

Show layout, parameters, FLOPs a tick and state bytes a tick; of a recipe also the memory that
training needs.

Example: counterpoint info first_run
"""
_DEFAULT_TICKS = 1024


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words that follow it."""
    target, *rest = arguments or ["--help"]
    if target in ("-h", "--help"):
        print(_HELP, end="")
        return 0
    fields: list[tuple[str, Any, Any]] = [("num_ticks", int | None, None)]
    command = f"info {target}"
    if Path(target).exists() and not target.endswith(".py") or is_on_hub(target):
        value: Any = shape_of(Path(target))
        num_ticks = parse(fields, rest, command, _HELP).num_ticks
    elif target.partition(".")[0] in module_names():
        value = load_preset(target)
        num_ticks = parse(fields, rest, command, _HELP).num_ticks
    elif "/" in target and ".py" not in target:
        raise UserError(
            f"The folder of a checkpoint or a run must exist: {target!r} does not. "
            f"{nearest_file(target)}"
        )
    else:
        recipe = load_recipe(target)
        if isinstance(recipe, Study):
            rest = to_every_arm(rest, len(recipe.arms))
        chosen = parse([*fields, ("recipe", type(recipe), recipe)], rest, command, _HELP)
        value = chosen.recipe
        num_ticks = chosen.num_ticks
    if num_ticks is not None and num_ticks < 1:
        raise UserError(f"`--num-ticks` must be >= 1, got {num_ticks}.")
    console = Console(file=sys.stdout, markup=False, emoji=False)
    for name, config, run in _systems(value, target):
        with torch.device("meta"), torch.random.fork_rng(devices=[]):  # shapes without memory
            system = build_system(config, seed=0)
        show_system(console, name, system, num_ticks or _row_ticks(run, system.layout))
        if run is not None:
            show_memory(console, training_memory(run), run)
    return 0


def _systems(value: Any, name: str) -> list[tuple[str, SystemConfig, Run | None]]:
    """Every system of what was named: its name, its config and the run that trains it, if any."""
    if isinstance(value, Study):
        return [system for run in value.arms for system in _systems(run, run.name)]
    if isinstance(value, FineTuning):
        value = value.run()
    if isinstance(value, Run):
        return [(value.name, value.system, value)]
    if isinstance(value, SystemConfig):
        return [(name, value, None)]
    raise UserError(f"{name!r} must give a `Run` or a `Study`: got {type(value).__name__}.")


def _row_ticks(run: Run | None, layout: Layout) -> int:
    """Ticks in a row of the run's batches."""
    return _DEFAULT_TICKS if run is None else run.data.num_ticks(layout)
