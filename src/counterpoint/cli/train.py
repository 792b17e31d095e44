"""The verb ``train``: train what a recipe describes."""

import shlex
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from counterpoint.cli.carry_out import Recipe, carry_out, check_vocabularies
from counterpoint.cli.running import Running
from counterpoint.errors import UserError
from counterpoint.processes import INTERRUPTED
from counterpoint.recipes.duplex_study import DuplexStudy
from counterpoint.recipes.fine_tuning import FineTuning
from counterpoint.recipes.loading import load_recipe, recipe_names, summary
from counterpoint.recipes.options import Field
from counterpoint.recipes.overrides import parse, shown_once
from counterpoint.recipes.study import Study
from counterpoint.train.checkpoint import checkpoint_paths
from counterpoint.train.distributed import process_group

_HELP = """usage: counterpoint train RECIPE [overrides]

Train what a recipe describes; a run that was stopped is continued.

Example: counterpoint train first_run --train.num-steps 100 --folder runs/short

RECIPE is one of these:

{names}

or path/to/file.py:function, a function that returns a `Run`, a `Study`, a `DuplexStudy` or a
`FineTuning`. A `Grid` is run by `counterpoint study`.
`counterpoint train RECIPE --help` shows the most important options, `--help-all` every field. On
several processes: torchrun -m counterpoint train RECIPE (a `Run`).
"""
_RECIPE_HELP = """Train the recipe {name}; a run that was stopped is continued.

Example: counterpoint train {name} {example} --folder runs/short
"""
_EXAMPLES = {
    DuplexStudy: "--workers 4 --run.train.num-steps 100",
    FineTuning: "--base moshiko --data calls other:0.5",
}
_ARMS_HELP = """
Options of train, data and system without `arms.N` go to every arm.
"""
_MAIN = (
    *("folder", "device", "quiet", "json", "minutes", "workers", "seeds", "base", "data"),
    *("data.source", "data.train", "data.held-out", "train.num-steps", "train.batch-rows"),
    *("train.optimizer.lr", "train.precision", "train.seed", "train.fine-tune.init-from"),
)
"""Options that the short help of a recipe shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions(Running):
    """Options of the folder, the device and the output of a training.

    Attributes:
        quiet: Show no progress.
        json: Print the results as one JSON object and nothing else.
        device: Device of the computation; "auto" takes a CUDA GPU if there is one, otherwise the
            CPU.
        folder: Folder of all results; runs/NAME by default.
    """

    folder: Path | None = None


def _listed(name: str) -> str:
    """Return the name of a recipe beside what it does."""
    return textwrap.fill(
        summary(name), 100, initial_indent=f"  {name:<15} ", subsequent_indent=" " * 18
    )


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words after it."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help", "--help-all"):
        names = [one for one in recipe_names() if isinstance(load_recipe(one), Recipe)]
        print(_HELP.format(names="\n".join(map(_listed, names))), end="")
        return 0
    recipe = load_recipe(name)
    if not isinstance(recipe, Recipe):
        raise UserError(
            "A recipe must return a `Run`, `Study`, `DuplexStudy` or `FineTuning` to be trained: "
            f"{name!r} returned {type(recipe).__name__}. A `Grid` is run by `counterpoint study`."
        )
    example = _EXAMPLES.get(type(recipe), "--minutes 2")
    text = _RECIPE_HELP.format(name=name, example=example)
    own: Field = ("options", TrainOptions, TrainOptions())
    fields = [own, ("recipe", type(recipe), recipe)]
    shown = fields
    if isinstance(recipe, Study):
        text = text + _ARMS_HELP
        once = shown_once(recipe)
        shown = [own, ("recipe", type(once), once)]
    num_arms = len(recipe.arms) if isinstance(recipe, Study) else 0
    chosen = parse(fields, rest, f"train {name}", text, main=_MAIN, shown=shown, num_arms=num_arms)
    options: TrainOptions = chosen.options
    recipe = _timed(chosen.recipe, rest)
    folder = options.folder or Path("runs") / recipe.name
    check_vocabularies(recipe)
    command = shlex.join(["counterpoint", "train", *arguments])
    with (
        options.results() as tell,
        process_group(options.device) as world,
        options.progress() as progress,
        _told_if_untrained(folder),
    ):
        found = carry_out(recipe, folder, command, world, progress)
        if found is not None and world.is_first:
            tell({"folder": folder, **found})
    return INTERRUPTED if found is None else 0


@contextmanager
def _told_if_untrained(folder: Path) -> Iterator[None]:
    """Let an interruption say that no run in the folder has a checkpoint yet, if that is so."""
    try:
        yield
    except KeyboardInterrupt:
        if any(checkpoint_paths(found.parent) for found in folder.rglob("checkpoints")):
            raise
        raise KeyboardInterrupt(
            f"Interrupted before the first checkpoint: nothing is kept in {folder} yet."
        ) from None


def _timed(recipe: Any, words: Sequence[str]) -> Any:
    """Return the recipe without its minutes if the number of steps is given."""
    options = [word.split("=", 1)[0].replace("_", "-") for word in words]
    if not any(option.endswith("train.num-steps") for option in options):
        return recipe
    if "--minutes" in options:
        raise UserError(
            "Give --minutes or --train.num-steps, not both: minutes choose the number of steps."
        )
    return replace(recipe, minutes=None) if hasattr(recipe, "minutes") else recipe
