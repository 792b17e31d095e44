"""The verb ``report``: write the report of a run or a study again from its folder."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from counterpoint.cli.study_grid import show as show_grid
from counterpoint.errors import UserError, nearest_file
from counterpoint.evaluate.report.grid_findings import is_grid
from counterpoint.evaluate.report.grid_page import write_grid_report
from counterpoint.evaluate.report.report import write_report
from counterpoint.evaluate.report.run_report import write_run_report
from counterpoint.recipes.overrides import parse_options
from counterpoint.recipes.study import show

_HELP = """Write the report of a run again, or report, pictures and summary of a study.

Example: counterpoint report runs/first_run
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportOptions:
    """Options of ``report``.

    Attributes:
        run: Folder of a run or a study that was written by `train` or `study`.
    """

    run: tyro.conf.Positional[Path]


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words after it."""
    options = parse_options(ReportOptions, arguments, "report", _HELP)
    if not options.run.is_dir():
        raise UserError(
            f"The folder of a run or a study must exist: {str(options.run)!r} does not. "
            f"{nearest_file(options.run)}"
        )
    if is_grid(options.run):
        show_grid(write_grid_report(options.run), options.run)
    elif (options.run / "checkpoints").is_dir():
        print(write_run_report(options.run))
    else:
        show(write_report(options.run), options.run, sys.stdout)
    return 0
