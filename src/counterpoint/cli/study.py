"""The verb ``study``: run a grid of arms, tasks, learning rates and seeds, and write its tables."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from counterpoint.cli.running import Running
from counterpoint.errors import UserError
from counterpoint.evaluate.report.grid_table import grid_markdown, grid_rows
from counterpoint.files import write_text
from counterpoint.recipes.grid import Grid, costs
from counterpoint.recipes.grid_run import run_grid
from counterpoint.recipes.loading import load_recipe, recipe_names
from counterpoint.recipes.options import Field
from counterpoint.recipes.overrides import parse
from counterpoint.train.distributed import pick_device

_HELP = """usage: counterpoint study NAME [options]

Run a grid cell by cell; one that was stopped goes on where it was.

Example: counterpoint study part_whole --workers 2

NAME is a recipe that returns a `Grid`, such as part_whole, or path/to/file.py:function.
`counterpoint study NAME --help` shows what matters most of it, `--help-all` every field.
"""
_GRID_HELP = """Run the grid {name} cell by cell; one that was stopped goes on where it was.

Example: counterpoint study {name} --workers 2
"""
_MAIN = (
    *("folder", "workers", "ray", "device", "quiet", "json"),
    *("tasks", "seeds", "learning-rates", "num-items"),
    *("train.num-steps", "train.batch-rows", "train.precision"),
)
"""Options that the short help shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyOptions(Running):
    """How a grid is run.

    Attributes:
        quiet: Show no progress.
        json: Print the results as one JSON object and nothing else.
        device: Where cells are trained; "auto" takes a CUDA GPU where there is one, else the CPU.
        folder: Where everything is kept; runs/NAME by default.
        workers: Processes, each with one cell at a time; one, or on Ray one for each core.
        ray: Run cells on the Ray cluster at this address, such as auto; local starts one.
    """

    folder: Path | None = None
    workers: int | None = None
    ray: str | None = None


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words that follow it."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help", "--help-all"):
        print(_HELP, end="")
        return 0
    grid = load_recipe(name)
    if not isinstance(grid, Grid):
        raise UserError(
            f"A study must be a recipe that returns a `Grid`: {name!r} returned "
            f"{type(grid).__name__}. Recipes: {', '.join(recipe_names())}."
        )
    own: Field = ("options", StudyOptions, StudyOptions())
    fields: list[Field] = [own, ("recipe", Grid, grid)]
    chosen = parse(fields, rest, f"study {name}", _GRID_HELP.format(name=name), main=_MAIN)
    options = chosen.options
    grid = chosen.recipe
    if options.workers is not None and options.workers < 1:
        raise UserError(f"`--workers` must be >= 1: got {options.workers}. Take 1 or more.")
    folder = options.folder or Path("runs") / grid.name
    with options.results() as tell:
        records = run_grid(
            grid,
            folder,
            num_processes=options.workers,
            ray=options.ray,
            device=str(pick_device(options.device)),
            progress=options.progress(),
        )
        subject = grid.arms[0].name
        rows = grid_rows(records, subject)
        table = grid_markdown(rows, {task: costs(grid, task) for task in grid.tasks}, subject)
        write_text(folder / "report.md", f"# {grid.name}\n\n{grid.purpose}\n\n{table}")
        print(table)
        print(folder / "report.md")
        print(folder / "results.parquet")
        tell([asdict(row) for row in rows])
    return 0
