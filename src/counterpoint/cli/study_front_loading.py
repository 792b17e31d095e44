"""The verb ``study`` for the study of front-loading: train its chains and write its report."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from counterpoint.cli.running import Running, plain_console
from counterpoint.errors import UserError
from counterpoint.evaluate.report.front_loading_page import PairRow
from counterpoint.files import write_json
from counterpoint.packages import check_modules
from counterpoint.recipes.front_loading import FrontLoading, chains
from counterpoint.recipes.front_loading_report import (
    FINDINGS,
    REPORT,
    declared,
    report_front_loading,
)
from counterpoint.recipes.front_loading_run import run_front_loading
from counterpoint.recipes.options import Field
from counterpoint.recipes.overrides import parse
from counterpoint.train.distributed import pick_device

_HELP = """Train the chains of {name} and write its report; it is continued after a stop.

Example: counterpoint study {name} --device cuda
"""
_MAIN = (
    *("minutes", "folder", "device", "prepare", "report", "declare", "quiet", "json"),
    *("groups", "seeds", "pretrain-tokens", "tuning-tokens", "num-items"),
    *("train.batch-rows", "train.precision", "train.optimizer.lr"),
)
"""Options that the short help shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainOptions(Running):
    """Options that say how the study is run.

    Attributes:
        quiet: Show no progress.
        json: Print the comparisons as one JSON object and nothing else.
        device: Device on which models are trained; "auto" takes a CUDA GPU if there is one, else
            the CPU.
        folder: Folder of all results; runs/NAME by default.
        minutes: Begin no further stack of models after this time.
        prepare: Only record the batches of training, with all cores.
        report: Only write the report of what is finished.
        declare: Only write what is declared before the study to this file.
    """

    folder: Path | None = None
    minutes: float | None = None
    prepare: bool = False
    report: bool = False
    declare: Path | None = None


def main(name: str, study: FrontLoading, arguments: Sequence[str]) -> int:
    """Run the study with the words that follow its name."""
    own: Field = ("options", ChainOptions, ChainOptions())
    fields: list[Field] = [own, ("recipe", FrontLoading, study)]
    chosen = parse(fields, arguments, f"study {name}", _HELP.format(name=name), main=_MAIN)
    options: ChainOptions = chosen.options
    with options.results() as tell:
        tell([asdict(row) for row in _run(chosen.recipe, options)])
    return 0


def line(name: str, study: FrontLoading) -> str:
    """Return how the list of studies shows it."""
    count = len(chains(study.groups))
    return (
        f"{name}: {count} chains x {len(study.seeds)} seeds\n    Do reasoning data help more in "
        "pre-training than in fine-tuning?"
    )


def _run(study: FrontLoading, options: ChainOptions) -> list[PairRow]:
    if options.declare is not None:
        write_json(options.declare, declared(study))
        return []
    check_modules("pyarrow", "matplotlib")  # needed at the end
    if options.minutes is not None and not options.minutes > 0:
        raise UserError(f"`--minutes` must be > 0: got {options.minutes}. Leave it out to run all.")
    folder = options.folder or Path("runs") / study.name
    if not options.report:
        stop_at = float("inf") if options.minutes is None else time.time() + 60 * options.minutes
        run_front_loading(
            study,
            folder,
            device=str(pick_device(options.device)),
            batches_only=options.prepare,
            stop_at=stop_at,
            progress=options.progress(),
        )
    if options.prepare:
        return []
    rows = report_front_loading(study, folder)
    _show(rows)
    for file in (REPORT, FINDINGS):
        print(folder / file)
    return rows


def _show(rows: Sequence[PairRow]) -> None:
    """Print how many comparisons of each claim hold, fail or stay undecided."""
    console = plain_console()
    table = Table()
    for head in ("claim", "holds", "fails", "undecided"):
        table.add_column(head)
    for claim in dict.fromkeys(row.claim for row in rows):
        verdicts = [row.verdict for row in rows if row.claim == claim]
        counted = (str(verdicts.count(one)) for one in ("holds", "fails", "undecided"))
        table.add_row(claim, *counted)
    console.print(table)
