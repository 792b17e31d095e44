"""The verb ``evaluate``: bits of held-out text or speech, and the use of the whole."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from counterpoint.cli.running import Running
from counterpoint.data.source import Preparation
from counterpoint.errors import UserError
from counterpoint.evaluate.duplex.item_scores import item_scores
from counterpoint.evaluate.report.measures import SWAP_DELTA, measures_of, measures_table
from counterpoint.evaluate.report.verdict import use_sentence
from counterpoint.evaluate.results import EvaluationConfig, evaluate
from counterpoint.evaluate.whole import has_whole
from counterpoint.recipes.learned import check_learned
from counterpoint.recipes.options import REQUIRED
from counterpoint.recipes.overrides import parse

_HELP = """Score a checkpoint on what was held out from its training: text, recordings or a task.

Example: counterpoint evaluate runs/first_run/two_stream --max-units 20
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateOptions:
    """Options of ``evaluate``.

    Attributes:
        checkpoint: A checkpoint or run folder, or a folder of a published Moshi or PersonaPlex.
        recordings: List of recordings (.jsonl) on which a speech model is scored, instead of the
            held-out recordings of its run; a published model needs it.
        max_units: Number of held-out units (for speech: rows) that are scored, spread evenly, or 0
            for all; items of a task are answered at the same places.
        whole_units: Number of units on which the whole is replaced, spread evenly, or 0 for all.
        num_samples: Number of solutions sampled at temperature 1 for each held-out question that is
            solved in steps, for pass@1, 2, 4 and so on up to it, or 0 for none.
        precision: Type of the computation; "auto" takes the one that is faster on this machine.
    """

    checkpoint: tyro.conf.Positional[Path]
    recordings: str = ""
    max_units: int = 0
    whole_units: int = 32
    num_samples: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        if self.num_samples < 0:
            raise UserError(f"`--num-samples` must be >= 0: got {self.num_samples}.")


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
    loaded = running.load(options.checkpoint)
    system = loaded.system
    progress = running.progress()
    source = loaded.measured_on(options.recordings)
    data = source.prepare(system, Preparation(progress=progress, held_out_only=True))
    if data.held_out_units() is None:
        raise UserError(
            f"Something must be held out to be scored: {loaded.name} has nothing. Train "
            "with `data.held_out`, or give `--recordings` for a speech model."
        )
    if not options.recordings:
        folder = loaded.path.parent.parent  # of the run, unless the checkpoint was moved
        check_learned(source, data.fingerprint, folder)
    scores = item_scores(system, source, options.max_units, progress, options.num_samples)
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
    measures = measures_of(found, {stream.name for stream in system.layout.predicted})
    measures |= scores
    count = len(found.bits)
    noun = f"{'row' if found.unit == 'frame' else 'unit'}{'' if count == 1 else 's'}"
    title = f"{loaded.name}, {count} {noun}, {sum(found.sizes):,} {found.unit}s"
    table = measures_table(title, measures)
    if found.whole is None and has_whole(system):
        table.caption = (
            "swap-delta: not measured, it needs held-out units of at least two documents"
        )
    console = Console(file=sys.stdout, markup=False, emoji=False)
    console.print(table)
    swap_delta = measures.get(SWAP_DELTA)
    verdict = None
    if swap_delta is not None and swap_delta.low < swap_delta.high:
        verdict = use_sentence(loaded.name, swap_delta)
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
