"""The verb ``study``: run a grid of arms, tasks, learning rates and seeds, and write its tables."""

import json
from collections.abc import Sequence
from pathlib import Path

from counterpoint.errors import UserError
from counterpoint.evaluate.report.grid_table import grid_markdown, grid_rows
from counterpoint.files import write_text
from counterpoint.progress import Progress
from counterpoint.recipes.grid import Grid, costs, run_grid
from counterpoint.recipes.loading import load_recipe, recipe_names
from counterpoint.recipes.overrides import parse

_HELP = """usage: counterpoint study NAME [options]

Run a grid cell by cell; one that was stopped goes on where it was.

Example: counterpoint study part_whole --workers 2

NAME is a recipe that returns a `Grid`, such as part_whole, or path/to/file.py:function.
`counterpoint study NAME --help` lists the options.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words that follow it."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(_HELP, end="")
        return 0
    grid = load_recipe(name)
    if not isinstance(grid, Grid):
        raise UserError(
            f"A study must be a recipe that returns a `Grid`: {name!r} returned "
            f"{type(grid).__name__}. Recipes: {', '.join(recipe_names())}."
        )
    chosen = parse(
        [
            ("recipe", Grid, grid),
            ("folder", Path | None, None),
            ("workers", int, 1),
            ("quiet", bool, False),
            ("json", bool, False),
        ],
        rest,
        f"study {name}",
        _HELP,
    )
    grid = chosen.recipe
    if chosen.workers < 1:
        raise UserError(f"`--workers` must be >= 1: got {chosen.workers}.")
    folder = chosen.folder or Path("runs") / grid.name
    progress = Progress(quiet=chosen.quiet)
    records = run_grid(grid, folder, num_processes=chosen.workers, progress=progress)
    subject = grid.arms[0].name
    rows = grid_rows(records, subject)
    table = grid_markdown(rows, {task: costs(grid, task) for task in grid.tasks}, subject)
    write_text(folder / "report.md", f"# {grid.name}\n\n{grid.purpose}\n\n{table}")
    if chosen.json:
        print(json.dumps([_plain(record) for record in records]))
    else:
        print(table)
        print(folder / "report.md")
        print(folder / "results.parquet")
    return 0


def _plain(record: dict[str, object]) -> dict[str, object]:
    """A record without what each item got."""
    return {k: v for k, v in record.items() if k not in ("numerators", "denominators")}
