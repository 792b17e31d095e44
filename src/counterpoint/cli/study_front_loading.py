"""The verb ``study`` for front-loading: train its chains, and show which claims hold."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from counterpoint.cli.running import plain_console
from counterpoint.cli.study_options import StudyOptions
from counterpoint.evaluate.report.front_loading_page import PairRow
from counterpoint.files import write_json
from counterpoint.packages import check_modules
from counterpoint.recipes.front_loading import FrontLoading
from counterpoint.recipes.front_loading_budget import fit_front_loading
from counterpoint.recipes.front_loading_report import (
    FINDINGS,
    REPORT,
    declared,
    report_front_loading,
)
from counterpoint.recipes.front_loading_run import run_front_loading
from counterpoint.train.distributed import pick_device

HELP = """Train the chains of {name} and write its report; it is continued after a stop.

Example: counterpoint study {name} --device cuda
"""
MAIN = (
    *("prepare", "report", "declare", "groups", "pretrain-tokens", "tuning-tokens"),
    *("train.batch-rows", "train.precision", "train.optimizer.lr"),
)
"""Options that the short help shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainOptions(StudyOptions):
    """Options that say how the study is run.

    Attributes:
        quiet: Show no progress.
        json: Print the comparisons as one JSON object and nothing else.
        device: Device on which models are trained; "auto" takes a CUDA GPU if there is one, else
            the CPU.
        folder: Folder of all results; runs/NAME by default, or runs/NAME_N_minutes.
        minutes: Run the largest declared size that this machine finishes in this time, and begin no
            further models after it. A GPU runs the whole size until then.
        prepare: Only record the batches of training, with all cores.
        report: Only write the report of what is finished.
        declare: Only write what is declared before the study to this file.
    """

    prepare: bool = False
    report: bool = False
    declare: Path | None = None


def run(
    study: FrontLoading, options: ChainOptions, folder: Path, command: str
) -> list[dict[str, Any]]:
    """Run the study, write and show its report, and return its comparisons."""
    if options.declare is not None:
        write_json(options.declare, declared(study))
        return []
    check_modules("pyarrow", "matplotlib")  # needed at the end
    begin = time.time()
    device = str(pick_device(options.device))
    progress = options.progress()
    minutes = None if options.prepare else options.minutes
    may_time = not (options.report or options.prepare)
    study, left_out = fit_front_loading(study, minutes, folder, device, progress, may_time=may_time)
    if not options.report:
        run_front_loading(
            study,
            folder,
            device=device,
            batches_only=options.prepare,
            stop_at=float("inf") if minutes is None else begin + 60 * minutes,
            progress=progress,
        )
    if options.prepare:
        return []
    rows = report_front_loading(study, folder, left_out)
    _show(rows)
    if left_out:
        print(left_out)
    for file in (REPORT, FINDINGS):
        print(folder / file)
    return [asdict(row) for row in rows]


def _show(rows: Sequence[PairRow]) -> None:
    """Print how many comparisons of each claim hold, fail or stay undecided."""
    table = Table()
    for head in ("claim", "holds", "fails", "undecided"):
        table.add_column(head)
    for claim in dict.fromkeys(row.claim for row in rows):
        verdicts = [row.verdict for row in rows if row.claim == claim]
        counted = (str(verdicts.count(one)) for one in ("holds", "fails", "undecided"))
        table.add_row(claim, *counted)
    plain_console().print(table)
