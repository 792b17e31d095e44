"""The verb ``evaluate``: what a model pays for held-out text or speech, and its whole is worth."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from counterpoint.data.progress import few_lines, recording_lines
from counterpoint.data.speech.rows import prepare_speech
from counterpoint.data.text.corpus import prepare
from counterpoint.evaluate.duplex.speech_model import score_rows
from counterpoint.evaluate.results import Evaluation, EvaluationConfig, evaluate
from counterpoint.evaluate.statistics import Interval, bootstrap_ratio
from counterpoint.recipes.learned import check_learned
from counterpoint.recipes.overrides import parse_options
from counterpoint.runtime.load import Loaded, load
from counterpoint.systems.contract import HasWhole

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
        precision: Of the computation.
    """

    checkpoint: tyro.conf.Positional[Path]
    max_units: int = 0
    whole_units: int = 32
    precision: Literal["float32", "bfloat16"] = "float32"


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words that follow it."""
    options = parse_options(EvaluateOptions, arguments, "evaluate", _HELP)
    loaded = load(options.checkpoint)
    table = _speech(loaded, options) if loaded.is_speech else _text(loaded, options)
    Console(file=sys.stdout, markup=False, emoji=False).print(table)
    return 0


def _text(loaded: Loaded, options: EvaluateOptions) -> Table:
    _ = loaded.tokenizer  # it must be the model's
    system, run = loaded.system, loaded.trained_by
    block_ticks = system.layout.block_ticks
    corpus = prepare(run.text_data, block_ticks)
    check_learned(run.data, corpus.fingerprint, loaded.path.parents[1])
    found = evaluate(
        system,
        corpus,
        EvaluationConfig(
            max_units=options.max_units,
            whole_units=options.whole_units,
            passage_ticks=0,
            num_prompts=0,
        ),
        block_ticks=block_ticks,
        precision=options.precision,
        note=lambda line: print(line, file=sys.stderr),
    )
    table = _table(found, loaded.path)
    if found.whole is None and isinstance(system, HasWhole):
        table.caption = (
            "swap-delta: not measured, it needs held-out units of at least two documents"
        )
    return table


def _speech(loaded: Loaded, options: EvaluateOptions) -> Table:
    """Nats of every stream on the held-out recordings, with 95 % intervals over rows."""
    model, run = loaded.system, loaded.trained_by
    data = run.speech_data
    if not data.held_out:
        raise ValueError(
            f"The run must have recordings that are held out: {run.name!r} has none. Train "
            "with `data.held_out`."
        )
    held_out = replace(
        data, train=data.held_out, held_out="", augmentation=None, copies=1, text=None
    )
    rows = prepare_speech(held_out, model, recording_lines(sys.stderr)).train
    say = few_lines(sys.stderr)
    with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
        scores = score_rows(
            model,
            rows,
            options.max_units,
            lambda done, total: say(f"scored {done} of {total} rows"),
        )
    num_frames = sum(score.num_frames for score in scores)
    title = f"{loaded.path}, {len(scores)} rows, {num_frames:,} frames"
    table = Table("measure", "value", "95 % interval", title=title)

    def add(name: str, paid: Sequence[float], frames: Sequence[float]) -> None:
        interval = bootstrap_ratio(np.array(paid, np.float64), np.array(frames, np.float64))
        _add(table, name, interval)

    scored = "text" if data.hearing else "all streams"
    frames = [float(score.num_frames) for score in scores]
    add(f"held-out bits/frame, {scored}", [score.bits for score in scores], frames)
    for name in scores[0].losses:
        losses = [score.losses[name] for score in scores]
        add(
            f"nats/frame of {name}",
            [float(loss.nats) for loss in losses],
            [float(loss.num_ticks) for loss in losses],
        )
    return table


def _table(found: Evaluation, path: Path) -> Table:
    """What was measured, with 95 % intervals over units."""
    table = Table("measure", "value", "95 % interval", title=f"{path}, {len(found.bits)} units")
    num_bytes = np.array(found.num_bytes, dtype=np.float64)
    _add(table, "held-out bits/byte", bootstrap_ratio(np.array(found.bits), num_bytes))
    if found.whole is None:
        return table
    own, scored = np.array(found.whole.own_bits), np.array(found.whole.num_bytes, np.float64)
    other = np.array(found.whole.other_bits)
    _add(
        table,
        "swap-delta: bits/byte lost under another's whole",
        bootstrap_ratio(other - own, scored),
    )
    if found.whole.none_bits:
        none = np.array(found.whole.none_bits)
        _add(table, "bits/byte lost without any whole", bootstrap_ratio(none - own, scored))
    table.add_row("attention on the null key", f"{found.whole.null_share:.3f}", "")
    rank = f"{found.whole.effective_rank:.1f} of {found.whole.width}"
    table.add_row("effective rank of the whole", rank, "")
    return table


def _add(table: Table, name: str, value: Interval) -> None:
    """A row; a single unit gives no interval."""
    ends = f"{value.low:.4f} to {value.high:.4f}" if value.low < value.high else ""
    table.add_row(name, f"{value.value:.4f}", ends)
