"""What was measured of one model, as named intervals and as a table for a terminal."""

from collections.abc import Mapping, Set

import numpy as np
from rich.table import Table

from counterpoint.evaluate.report.summary import by_stream, use_of_whole
from counterpoint.evaluate.results import Evaluation
from counterpoint.evaluate.statistics import Interval, bootstrap_ratio

SWAP_DELTA = "swap-delta: bits/byte lost under another's whole"
"""Name of the cost of another document's whole."""


def measures_of(found: Evaluation, predicted: Set[str]) -> dict[str, Interval]:
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
    measures[SWAP_DELTA] = use["swap_delta"]
    if use["none_delta"] is not None:
        measures["bits/byte lost without any whole"] = use["none_delta"]
    rank = f"effective rank of the whole, at most {found.whole.width}"
    for name, value in (
        ("attention on the null key", use["null_share"]),
        (rank, use["effective_rank"]),
    ):
        measures[name] = Interval(value=value, low=value, high=value)
    return measures


def measures_table(title: str, measures: Mapping[str, Interval]) -> Table:
    """Return the measurements as a table; a single unit gives no interval."""
    table = Table("measure", "value", "95 % interval", title=title)
    for name, value in measures.items():
        ends = f"{value.low:.4f} to {value.high:.4f}" if value.low < value.high else ""
        table.add_row(name, f"{value.value:.4f}", ends)
    return table
