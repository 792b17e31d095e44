"""The verb ``evaluate``: what a model pays for held-out text or speech, and its whole is worth."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from counterpoint.errors import UserError
from counterpoint.evaluate.results import Evaluation, EvaluationConfig, evaluate
from counterpoint.evaluate.statistics import Interval, bootstrap_ratio
from counterpoint.evaluate.whole import WholeUse, has_whole
from counterpoint.progress import Progress
from counterpoint.recipes.learned import check_learned
from counterpoint.recipes.overrides import parse_options
from counterpoint.runtime.load import load

_HELP = """Score a checkpoint on the text or the recordings that were held out from its training.

Example: counterpoint evaluate runs/first_run/two_stream --max-units 20
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateOptions:
    """What ``evaluate`` does.

    Attributes:
        checkpoint: A checkpoint or a run folder.
        max_units: Held-out units (rows, of speech) that are scored, spread evenly; 0 scores all.
        whole_units: Units on which the whole is exchanged, spread evenly; 0 takes all.
        precision: Type of the computation; "auto" takes the one that is faster on this machine.
    """

    checkpoint: tyro.conf.Positional[Path]
    max_units: int = 0
    whole_units: int = 32
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words that follow it."""
    options = parse_options(EvaluateOptions, arguments, "evaluate", _HELP)
    loaded = load(options.checkpoint)
    run = loaded.trained_by
    system = loaded.system
    if not loaded.is_speech:
        _ = loaded.tokenizer  # it must be the model's
    progress = Progress()
    data = run.data.prepare(system, progress=progress, held_out_only=True)
    if data.held_out_units() is None:
        raise UserError(
            f"The run must have something that is held out: {run.name!r} has nothing. Train with "
            "`data.held_out`."
        )
    folder = loaded.path.parent.parent  # of the run, unless the checkpoint was moved
    check_learned(run.data, data.fingerprint, folder)
    found = evaluate(
        system,
        data,
        EvaluationConfig(
            max_units=options.max_units,
            whole_units=options.whole_units,
            passage_ticks=0,
            num_prompts=0,
        ),
        precision=options.precision,
        progress=progress,
    )
    predicted = {stream.name for stream in system.layout.predicted}
    scored = "all streams" if predicted == {*found.streams} else ", ".join(found.streams)
    table = _table(found, loaded.path, scored)
    if found.whole is None and has_whole(system):
        table.caption = (
            "swap-delta: not measured, it needs held-out units of at least two documents"
        )
    Console(file=sys.stdout, markup=False, emoji=False).print(table)
    return 0


def _table(found: Evaluation, path: Path, scored: str) -> Table:
    """What was measured, with 95 % intervals over units."""
    noun = "rows" if found.unit == "frame" else "units"
    title = f"{path}, {len(found.bits)} {noun}, {sum(found.sizes):,} {found.unit}s"
    table = Table("measure", "value", "95 % interval", title=title)
    sizes = np.array(found.sizes, dtype=np.float64)
    name = f"held-out bits/{found.unit}"
    if found.streams:
        name += f", {scored}"
    _add(table, name, bootstrap_ratio(np.array(found.bits), sizes))
    for stream, costs in found.streams.items():
        interval = bootstrap_ratio(np.array(costs.nats), np.array(costs.num_ticks))
        _add(table, f"nats/{found.unit} of {stream}", interval)
    if found.whole is not None:
        _add_whole(table, found.whole)
    return table


def _add_whole(table: Table, whole: WholeUse) -> None:
    """How the whole is used."""
    own = np.array(whole.own_bits)
    scored = np.array(whole.num_bytes, np.float64)
    _add(
        table,
        "swap-delta: bits/byte lost under another's whole",
        bootstrap_ratio(np.array(whole.other_bits) - own, scored),
    )
    if whole.none_bits:
        none = np.array(whole.none_bits)
        _add(table, "bits/byte lost without any whole", bootstrap_ratio(none - own, scored))
    table.add_row("attention on the null key", f"{whole.null_share:.3f}", "")
    table.add_row("effective rank of the whole", f"{whole.effective_rank:.1f} of {whole.width}", "")


def _add(table: Table, name: str, value: Interval) -> None:
    """A row; a single unit gives no interval."""
    ends = f"{value.low:.4f} to {value.high:.4f}" if value.low < value.high else ""
    table.add_row(name, f"{value.value:.4f}", ends)
