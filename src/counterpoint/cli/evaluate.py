"""The verb ``evaluate``: bits/byte on held-out text, and what the whole is worth."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from counterpoint.cli.checkpoint import load_trained
from counterpoint.cli.overrides import REQUIRED, parse
from counterpoint.data.config import prepare
from counterpoint.evaluate.results import Evaluation, EvaluationConfig, evaluate
from counterpoint.evaluate.statistics import Interval, bootstrap_ratio
from counterpoint.systems.two_stream import TwoStream

_HELP = """Score a checkpoint on the text that was held out from its training.

Example: counterpoint evaluate runs/first_run/two_stream --max-units 20
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What ``evaluate`` does.

    Attributes:
        checkpoint: A checkpoint or a run folder.
        max_units: Held-out units that are scored, spread evenly; 0 scores all.
        whole_units: Units on which the whole is exchanged, spread evenly; 0 takes all.
        precision: Of the computation.
    """

    checkpoint: tyro.conf.Positional[Path]
    max_units: int = 0
    whole_units: int = 32
    precision: Literal["float32", "bfloat16"] = "float32"


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words that follow it."""
    options: Options = parse([("options", Options, REQUIRED)], arguments, "evaluate", _HELP).options
    trained = load_trained(options.checkpoint)
    block_ticks = trained.system.layout.block_ticks
    found = evaluate(
        trained.system,
        prepare(trained.run.data, block_ticks),
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
    Console(file=sys.stdout).print(_table(found, trained.path))
    if found.whole is None and isinstance(trained.system, TwoStream):
        print("swap-delta: not measured, it needs held-out units of at least two documents")
    return 0


def _table(found: Evaluation, path: Path) -> Table:
    """What was measured, with 95 % intervals over units."""
    table = Table("measure", "value", "95 % interval", title=f"{path}, {len(found.bits)} units")

    def add(name: str, value: Interval) -> None:
        table.add_row(name, f"{value.value:.4f}", f"{value.low:.4f} to {value.high:.4f}")

    num_bytes = np.array(found.num_bytes, dtype=np.float64)
    add("held-out bits/byte", bootstrap_ratio(np.array(found.bits), num_bytes))
    if found.whole is None:
        return table
    own, scored = np.array(found.whole.own_bits), np.array(found.whole.num_bytes, np.float64)
    other = np.array(found.whole.other_bits)
    add("swap-delta: bits/byte lost under another's whole", bootstrap_ratio(other - own, scored))
    if found.whole.none_bits:
        none = np.array(found.whole.none_bits)
        add("bits/byte lost without any whole", bootstrap_ratio(none - own, scored))
    table.add_row("attention on the null key", f"{found.whole.null_share:.3f}", "")
    rank = f"{found.whole.effective_rank:.1f} of {found.whole.width}"
    table.add_row("effective rank of the whole", rank, "")
    return table
