"""The verb ``info``: the parts and costs of a checkpoint, a recipe or a preset."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from counterpoint.errors import UserError, nearest_file
from counterpoint.evaluate.report.system_tables import show_memory, show_system
from counterpoint.recipes.has_runs import HasRuns
from counterpoint.recipes.loading import load_recipe, recipe_names
from counterpoint.recipes.options import Field
from counterpoint.recipes.overrides import parse, shown_once
from counterpoint.recipes.study import Study
from counterpoint.runtime.hub import is_on_hub
from counterpoint.runtime.load import shape_of
from counterpoint.runtime.shipped import shipped_names
from counterpoint.streams.spec import Layout
from counterpoint.systems import SystemConfig, sketch
from counterpoint.systems.presets import load_preset, module_names
from counterpoint.train.memory import training_memory
from counterpoint.train.run import Run

_VERB_HELP = """Show layout, parameters, FLOPs a tick and state bytes a tick; for a recipe also the
memory that training needs.

Example: counterpoint info two_stream.small
"""
_HELP = f"""usage: counterpoint info CKPT|RECIPE|SYSTEM.PRESET [--num-ticks N] [overrides]

{_VERB_HELP}
`counterpoint info RECIPE --help-all` lists the overrides.
"""
_DEFAULT_TICKS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class InfoOptions:
    """Options of ``info``.

    Attributes:
        num_ticks: Ticks of the context over which costs are averaged; by default a row of the data.
    """

    num_ticks: int | None = None


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words after it."""
    target, *rest = arguments or ["--help"]
    if target in ("-h", "--help", "--help-all"):
        print(_HELP, end="")
        return 0
    fields: list[Field] = [("options", InfoOptions, InfoOptions())]
    command = f"info {target}"
    if _is_model(target):
        value: Any = shape_of(Path(target))
        chosen = parse(fields, rest, command, _VERB_HELP)
    elif target.partition(".")[0] in module_names():
        value = load_preset(target)
        chosen = parse(fields, rest, command, _VERB_HELP)
    elif "/" in target and ".py" not in target:
        raise UserError(
            f"The folder of a checkpoint or a run must exist: {target!r} does not. "
            f"{nearest_file(target)}"
        )
    else:
        recipe = load_recipe(target)
        shown = recipe
        if isinstance(recipe, Study):
            shown = shown_once(recipe)
        chosen = parse(
            [*fields, ("recipe", type(recipe), recipe)],
            rest,
            command,
            _VERB_HELP,
            main=("num-ticks", "data.source", "data.row-ticks"),
            shown=[*fields, ("recipe", type(shown), shown)],
            num_arms=len(recipe.arms) if isinstance(recipe, Study) else 0,
        )
        value = chosen.recipe
    num_ticks = chosen.options.num_ticks
    if num_ticks is not None and num_ticks < 1:
        raise UserError(f"`--num-ticks` must be >= 1, got {num_ticks}.")
    console = Console(file=sys.stdout, markup=False, emoji=False)
    for name, config, run in _systems(value, target):
        system = sketch(config)  # it has shapes, but no memory
        show_system(console, name, system, num_ticks or _row_ticks(run, system.layout))
        if run is not None:
            show_memory(console, training_memory(run), run)
    return 0


def _is_model(target: str) -> bool:
    """Whether a checkpoint is named: by its path, on the hub, or because it comes with the package.

    A recipe goes before the model of the same name that it trained.
    """
    if Path(target).exists() and not target.endswith(".py") or is_on_hub(target):
        return True
    return target in shipped_names() and target not in recipe_names()


def _systems(value: Any, name: str) -> list[tuple[str, SystemConfig, Run | None]]:
    """Return every system that was named: its name, its config and its run, if it has one."""
    if isinstance(value, HasRuns):
        return [(run.name, run.system, run) for run in value.described_runs()]
    if isinstance(value, Run):
        return [(value.name, value.system, value)]
    if isinstance(value, SystemConfig):
        return [(name, value, None)]
    raise UserError(
        f"{name!r} must give a `Run`, or a recipe of runs such as a `Study`: got "
        f"{type(value).__name__}. A `Grid` has no single system: name the preset of an arm."
    )


def _row_ticks(run: Run | None, layout: Layout) -> int:
    """Return the ticks in a row of the run's batches."""
    return _DEFAULT_TICKS if run is None else run.data.num_ticks(layout)
