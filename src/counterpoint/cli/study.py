"""The verb ``study``: run a grid, or the study of front-loading, and write its report."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from counterpoint.cli import study_front_loading
from counterpoint.cli.running import Running, plain_console
from counterpoint.errors import UserError
from counterpoint.evaluate.report.grid_findings import RESULTS, GridFindings
from counterpoint.evaluate.report.grid_page import HTML, MARKDOWN
from counterpoint.evaluate.report.grid_table import TextTable, comparisons, overview, verdict
from counterpoint.packages import check_modules
from counterpoint.recipes.front_loading import FrontLoading
from counterpoint.recipes.grid import Grid
from counterpoint.recipes.grid_budget import run_fitted
from counterpoint.recipes.grid_report import report_grid
from counterpoint.recipes.grid_workers import Workers
from counterpoint.recipes.loading import load_recipe, recipe_names
from counterpoint.recipes.options import Field
from counterpoint.recipes.overrides import parse
from counterpoint.train.distributed import pick_device

_HELP = """usage: counterpoint study NAME [OPTIONS]

Run a study part by part and write its report; a study that was stopped is continued.

Example: counterpoint study part_whole --workers 2

NAME is a recipe that returns a `Grid` or a `FrontLoading`, or path/to/file.py:function.
`counterpoint study --list` lists the studies of the library.
`counterpoint study NAME --help` shows the most important options, `--help-all` every field.
"""
_GRID_HELP = """Run the grid {name} cell by cell and write its report; a stopped one is continued.

Example: counterpoint study {name} --workers 2
"""
_MAIN = (
    *("minutes", "folder", "workers", "ray", "device", "quiet", "json"),
    *("tasks", "seeds", "learning-rates", "num-items"),
    *("train.num-steps", "train.batch-rows", "train.precision"),
)
"""Options that the short help shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyOptions(Running):
    """Options that say how a grid is run.

    Attributes:
        quiet: Show no progress.
        json: Print the results as one JSON object and nothing else.
        device: Device on which cells are trained; "auto" takes a CUDA GPU if there is one, else
            the CPU.
        folder: Folder of all results; runs/NAME by default.
        workers: Number of processes, each with one cell at a time; by default one, or on Ray one
            for each core.
        ray: Address of a Ray cluster that runs the cells, such as auto; local starts one.
        minutes: Run the largest size that this machine finishes in this time: fewer seeds first,
            then fewer steps. The size is kept in the folder.
    """

    folder: Path | None = None
    workers: int | None = None
    ray: str | None = None
    minutes: float | None = None


def main(arguments: Sequence[str]) -> int:
    """Run the command ``study`` with the words that follow it."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help", "--help-all"):
        print(_HELP, end="")
        return 0
    if name == "--list":
        _list()
        return 0
    grid = load_recipe(name)
    if isinstance(grid, FrontLoading):
        return study_front_loading.main(name, grid, rest)
    if not isinstance(grid, Grid):
        raise UserError(
            "A study must be a recipe that returns a `Grid` or a `FrontLoading`: "
            f"{name!r} returned {type(grid).__name__}. Studies: {', '.join(_studies())}."
        )
    own: Field = ("options", StudyOptions, StudyOptions())
    fields: list[Field] = [own, ("recipe", Grid, grid)]
    chosen = parse(fields, rest, f"study {name}", _GRID_HELP.format(name=name), main=_MAIN)
    options: StudyOptions = chosen.options
    if options.workers is not None and options.workers < 1:
        raise UserError(f"`--workers` must be >= 1: got {options.workers}. Take 1 or more.")
    command = shlex.join(("counterpoint", "study", *arguments))
    with options.results() as tell:
        found = _run(chosen.recipe, options, command)
        tell([asdict(row) for row in found.rows])
    return 0


def _run(grid: Grid, options: StudyOptions, command: str) -> GridFindings:
    check_modules("pyarrow", "matplotlib")  # needed when the first cell is done, and at the end
    folder = options.folder or Path("runs") / grid.name
    device = str(pick_device(options.device))
    progress = options.progress()
    workers = Workers(count=options.workers, ray=options.ray, device=device)
    grid, left_out = run_fitted(grid, options.minutes, folder, workers, progress)
    found = report_grid(
        grid, folder, command=command, left_out=left_out, device=device, progress=progress
    )
    show(found, folder)
    return found


def show(found: GridFindings, folder: Path) -> None:
    """Print the scores, the verdict, and the paths of the report."""
    console = plain_console()
    console.print(_drawn(overview(found, "{:.0f}"), f"{found.about.name}: scores in %"))
    console.print(_drawn(comparisons(found), ""))
    console.print(verdict(found), highlight=False)
    for name in (HTML, MARKDOWN, RESULTS):
        print(folder / name)


def _drawn(texts: TextTable, title: str) -> Table:
    table = Table(title=title or None)
    for head in texts.heads:
        table.add_column(head)
    for row in texts.cells:
        table.add_row(*row)
    return table


def _studies() -> dict[str, Grid | FrontLoading]:
    """Return the studies of the library."""
    recipes = {name: load_recipe(name) for name in recipe_names()}
    return {name: one for name, one in recipes.items() if isinstance(one, Grid | FrontLoading)}


def _list() -> None:
    for name, study in _studies().items():
        if isinstance(study, FrontLoading):
            print(study_front_loading.line(name, study))
        else:
            print(_line(name, study))


def _line(name: str, grid: Grid) -> str:
    rates = len(grid.learning_rates)
    tuned = rates * len(grid.tuning_seeds) if rates > 1 else 0
    cells = len(grid.arms) * len(grid.tasks) * (len(grid.seeds) + tuned)
    return (
        f"{name}: {len(grid.arms)} arms x {len(grid.tasks)} tasks x {len(grid.seeds)} seeds, "
        f"{rates} learning rate{'' if rates == 1 else 's'}, {cells} cells\n    {grid.purpose}"
    )
