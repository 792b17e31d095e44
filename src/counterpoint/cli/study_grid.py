"""The verb ``study`` for grids: run their cells, and show the tables of the report."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from counterpoint.cli.running import plain_console
from counterpoint.cli.study_options import StudyOptions
from counterpoint.errors import UserError
from counterpoint.evaluate.report.grid_findings import RESULTS, GridFindings
from counterpoint.evaluate.report.grid_page import HTML, MARKDOWN
from counterpoint.evaluate.report.grid_table import TextTable, comparisons, overview, verdict
from counterpoint.packages import check_modules
from counterpoint.recipes.grid import Grid
from counterpoint.recipes.grid_budget import run_fitted
from counterpoint.recipes.grid_report import report_grid
from counterpoint.recipes.grid_workers import Workers
from counterpoint.train.distributed import pick_device

HELP = """Run the grid {name} cell by cell and write its report; a stopped one is continued.

Example: counterpoint study {name} --minutes 5 --workers 2
"""
MAIN = (
    *("workers", "ray", "arms", "tasks", "data", "learning-rates"),
    *("train.num-steps", "train.batch-rows", "train.precision"),
)
"""Options that the short help shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GridOptions(StudyOptions):
    """Options that say how a grid is run.

    Attributes:
        quiet: Show no progress.
        json: Print the results as one JSON object and nothing else.
        device: Device on which cells are trained; "auto" takes a CUDA GPU if there is one, else
            the CPU.
        folder: Folder of all results; runs/NAME by default, or runs/NAME_N_minutes.
        minutes: Run the largest declared size that this machine finishes in this time: a smaller
            recipe if there is one, then fewer seeds, then fewer steps. It is kept in the folder.
        workers: Number of processes, each with one cell at a time; by default one, or on Ray one
            for each core.
        arms: Names of the arms that are run, by default all; the first is compared with the others.
        ray: Address of a Ray cluster that runs the cells, such as auto; local starts one.
    """

    workers: int | None = None
    arms: tuple[str, ...] = ()
    ray: str | None = None


def run(grid: Grid, options: GridOptions, folder: Path, command: str) -> list[dict[str, Any]]:
    """Run a grid, write and show its report, and return its rows.

    Raises:
        UserError: The number of workers is too small, an arm is unknown, or the grid cannot be run
            in the folder.
    """
    if options.workers is not None and options.workers < 1:
        raise UserError(f"`--workers` must be >= 1: got {options.workers}. Take 1 or more.")
    check_modules("pyarrow", "matplotlib")  # needed when the first cell is done, and at the end
    device = str(pick_device(options.device))
    progress = options.progress()
    workers = Workers(count=options.workers, ray=options.ray, device=device)
    if options.arms:
        grid = replace(grid.only(options.arms), smaller="")  # which has other arms
    if grid.data:  # processes and the report may stand in another folder
        grid = replace(grid, data=str(Path(grid.data).resolve()))
    grid, left_out = run_fitted(grid, options.minutes, folder, workers, progress)
    found = report_grid(
        grid, folder, command=command, left_out=left_out, device=device, progress=progress
    )
    show(found, folder)
    return [asdict(row) for row in found.rows]


def show(found: GridFindings, folder: Path) -> None:
    """Print the scores, the verdict, what was left out, and the paths of the report."""
    console = plain_console()
    console.print(_drawn(overview(found, "{:.0f}"), f"{found.about.name}: scores in %"))
    compared = comparisons(found)
    if compared.cells:
        console.print(_drawn(compared, ""))
    for text in (verdict(found), found.about.left_out):
        if text:
            console.print(text, highlight=False)
    for name in (HTML, MARKDOWN, RESULTS):
        print(folder / name)


def _drawn(texts: TextTable, title: str) -> Table:
    table = Table(title=title or None)
    for head in texts.heads:
        table.add_column(head)
    for row in texts.cells:
        table.add_row(*row)
    return table
