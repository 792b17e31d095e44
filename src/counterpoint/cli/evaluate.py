"""The verb ``evaluate``: bits of held-out text or speech, and the use of the whole."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from counterpoint.cli.running import Running
from counterpoint.data.source import Preparation
from counterpoint.errors import UserError
from counterpoint.evaluate.report.summary import by_stream, use_of_whole
from counterpoint.evaluate.report.verdict import use_sentence
from counterpoint.evaluate.results import Evaluation, EvaluationConfig, evaluate
from counterpoint.evaluate.statistics import Interval, bootstrap_ratio
from counterpoint.evaluate.whole import has_whole
from counterpoint.files import shown
from counterpoint.recipes.learned import check_learned
from counterpoint.recipes.options import REQUIRED
from counterpoint.recipes.overrides import parse
from counterpoint.runtime.load import load

_HELP = """Score a checkpoint on the text or the recordings that were held out from its training.

Example: counterpoint evaluate runs/first_run/two_stream --max-units 20
"""

_SWAP_DELTA = "swap-delta: bits/byte lost under another's whole"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateOptions:
    """Options of ``evaluate``.

    Attributes:
        checkpoint: A checkpoint or run folder, or a folder of a published Moshi or PersonaPlex.
        recordings: List of recordings (.jsonl) on which a speech model is scored, instead of the
            held-out recordings of its run; a published model needs it.
        max_units: Number of held-out units (for speech: rows) that are scored, spread evenly, or 0
            for all.
        whole_units: Number of units on which the whole is replaced, spread evenly, or 0 for all.
        precision: Type of the computation; "auto" takes the one that is faster on this machine.
    """

    checkpoint: tyro.conf.Positional[Path]
    recordings: str = ""
    max_units: int = 0
    whole_units: int = 32
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words after it."""
    fields = [("options", EvaluateOptions, REQUIRED), ("running", Running, Running())]
    chosen = parse(fields, arguments, "evaluate", _HELP)
    running: Running = chosen.running
    with running.results() as tell:
        tell(_evaluate(chosen.options, running))
    return 0


def _evaluate(options: EvaluateOptions, running: Running) -> dict[str, Any]:
    """Measure, show the results, and return them as a JSON value."""
    loaded = load(options.checkpoint, running.device)
    system = loaded.system
    progress = running.progress()
    source = loaded.measured_on(options.recordings)
    data = source.prepare(system, Preparation(progress=progress, held_out_only=True))
    if data.held_out_units() is None:
        raise UserError(
            f"Something must be held out to be scored: {shown(loaded.path)} has nothing. Train "
            "with `data.held_out`, or give `--recordings` for a speech model."
        )
    if not options.recordings:
        folder = loaded.path.parent.parent  # of the run, unless the checkpoint was moved
        check_learned(source, data.fingerprint, folder)
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
    measures = _measures(found, {stream.name for stream in system.layout.predicted})
    noun = "rows" if found.unit == "frame" else "units"
    title = f"{loaded.path}, {len(found.bits)} {noun}, {sum(found.sizes):,} {found.unit}s"
    table = _table(title, measures)
    if found.whole is None and has_whole(system):
        table.caption = (
            "swap-delta: not measured, it needs held-out units of at least two documents"
        )
    console = Console(file=sys.stdout, markup=False, emoji=False)
    console.print(table)
    swap_delta = measures.get(_SWAP_DELTA)
    verdict = None
    if swap_delta is not None and swap_delta.low < swap_delta.high:
        verdict = use_sentence(shown(loaded.path), swap_delta)
        console.print(verdict, soft_wrap=True, highlight=False)
    return {
        "checkpoint": loaded.path,
        "precision": found.precision,
        "unit": found.unit,
        "num_units": len(found.bits),
        "size": sum(found.sizes),
        "verdict": verdict,
        "measures": {name: asdict(value) for name, value in measures.items()},
    }


def _measures(found: Evaluation, predicted: set[str]) -> dict[str, Interval]:
    """Return the measurements by name, with 95 % intervals over units."""
    name = f"held-out bits/{found.unit}"
    if found.streams:
        scored = "all streams" if predicted == {*found.streams} else ", ".join(found.streams)
        name += f", {scored}"
    sizes = np.array(found.sizes, dtype=np.float64)
    measures = {name: bootstrap_ratio(np.array(found.bits), sizes)}
    for stream, cost in by_stream([found]).items():
        measures[f"nats/{found.unit} of {stream}"] = cost
    if found.whole is None:
        return measures
    use = use_of_whole([found])
    measures[_SWAP_DELTA] = use["swap_delta"]
    if use["none_delta"] is not None:
        measures["bits/byte lost without any whole"] = use["none_delta"]
    rank = f"effective rank of the whole, at most {found.whole.width}"
    for name, value in (
        ("attention on the null key", use["null_share"]),
        (rank, use["effective_rank"]),
    ):
        measures[name] = Interval(value=value, low=value, high=value)
    return measures


def _table(title: str, measures: dict[str, Interval]) -> Table:
    """Return the measurements as a table; a single unit gives no interval."""
    table = Table("measure", "value", "95 % interval", title=title)
    for name, value in measures.items():
        ends = f"{value.low:.4f} to {value.high:.4f}" if value.low < value.high else ""
        table.add_row(name, f"{value.value:.4f}", ends)
    return table
