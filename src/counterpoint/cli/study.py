"""The verb ``study``: run a study of any kind and write its report."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from counterpoint.cli import study_front_loading, study_grid
from counterpoint.cli.study_options import StudyOptions
from counterpoint.errors import UserError
from counterpoint.recipes.front_loading import FrontLoading
from counterpoint.recipes.grid import Grid
from counterpoint.recipes.loading import load_recipe, recipe_names
from counterpoint.recipes.options import Field
from counterpoint.recipes.overrides import parse
from counterpoint.recipes.study import Study

_HELP = """usage: counterpoint study NAME [OPTIONS]

Run a study part by part and write its report; a study that was stopped is continued.

Example: counterpoint study part_whole --minutes 5

NAME is a recipe that returns a `Grid` or a `FrontLoading`, or path/to/file.py:function.
`--minutes N` runs the largest size that the study declares and this machine finishes in N minutes.
`counterpoint study --list` lists the studies of the library.
`counterpoint study NAME --help` shows the most important options, `--help-all` every field.
"""
_MAIN = ("minutes", "folder", "device", "quiet", "json", "seeds", "num-items")
"""Options that the short help of every study shows; `train` has options that are its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """A kind of study.

    Attributes:
        recipe: Class of its recipes.
        options: Options that say how it is run, with their defaults.
        main: Further options that the short help shows.
        help: First lines of the help, with a place for its name.
        run: Runs a recipe as the options say, given its folder and the command; returns the rows of
            its results.
    """

    recipe: type
    options: StudyOptions
    main: Sequence[str]
    help: str
    run: Callable[[Any, Any, Path, str], list[Any]]


_KINDS = (
    _Kind(
        recipe=Grid,
        options=study_grid.GridOptions(),
        main=study_grid.MAIN,
        help=study_grid.HELP,
        run=study_grid.run,
    ),
    _Kind(
        recipe=FrontLoading,
        options=study_front_loading.ChainOptions(),
        main=study_front_loading.MAIN,
        help=study_front_loading.HELP,
        run=study_front_loading.run,
    ),
)


def main(arguments: Sequence[str]) -> int:
    """Run the command ``study`` with the words that follow it."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help", "--help-all"):
        print(_HELP, end="")
        return 0
    if name == "--list":
        _list()
        return 0
    declared: Any = load_recipe(name)
    kind = _kind_of(name, declared)
    own: Field = ("options", type(kind.options), kind.options)
    fields: list[Field] = [own, ("recipe", kind.recipe, declared)]
    about = kind.help.format(name=name)
    chosen = parse(fields, rest, f"study {name}", about, main=(*_MAIN, *kind.main))
    study: Any = chosen.recipe
    if isinstance(study, Grid) and study != declared:
        study = replace(study, smaller="")  # the smaller sizes were not changed with it
    options: Any = chosen.options
    command = shlex.join(("counterpoint", "study", *arguments))
    with options.results() as tell:
        tell(kind.run(study, options, options.place(study.name), command))
    return 0


def _kind_of(name: str, study: Any) -> _Kind:
    for kind in _KINDS:
        if isinstance(study, kind.recipe):
            return kind
    known = _studies({name: load_recipe(name) for name in recipe_names()})
    other = f"`counterpoint train {name}` runs it. " if isinstance(study, Study) else ""
    raise UserError(
        "A study must be a recipe that returns a `Grid` or a `FrontLoading`: "
        f"{name!r} returned {type(study).__name__}. {other}Studies: {', '.join(known)}."
    )


def _studies(recipes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipes that this verb runs."""
    return {name: one for name, one in recipes.items() if isinstance(one, Grid | FrontLoading)}


def _list() -> None:
    recipes = {name: load_recipe(name) for name in recipe_names()}
    for name, study in _studies(recipes).items():
        print(f"{name}: {study.size}\n    {study.purpose}")
    others = [name for name, one in recipes.items() if isinstance(one, Study)]
    print(f"Run by `counterpoint train NAME --minutes N`: {', '.join(others)}")
