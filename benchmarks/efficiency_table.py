"""How many bytes and FLOPs does each arm take to reach a loss? Tables from stored learning curves.

    python benchmarks/efficiency_table.py benchmarks/results/part_whole_logbook.parquet \
        --bytes-per-step 4864 --losses 3.6 3.3 3.0

A seed that does not reach a loss within its run is counted, not averaged: a cell says how many of
the seeds have reached it, and the medians are over those. Losses are bits a trained symbol.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from counterpoint.evaluate.efficiency import Reached, reached
from counterpoint.recipes.cells import read_records


def reached_by(record: dict[str, Any], loss: float, bytes_per_step: float) -> Reached | None:
    """Return when a record's learning curve reaches a loss."""
    last = record["curve"][-1]
    if last.get("flops"):
        flops = last["flops"] / last["step"]
    else:
        flops = record["flops_per_tick"] * bytes_per_step
    return reached(record["curve"], loss, bytes_per_step=bytes_per_step, flops_per_step=flops)


def table(
    records: Sequence[dict[str, Any]], losses: Sequence[float], bytes_per_step: float
) -> Iterator[str]:
    """Yield the lines of a Markdown table: for each arm and loss, MB and TFLOPs."""
    heads = " | ".join(f"{loss:g} bits: seeds, MB, TFLOPs" for loss in losses)
    yield f"| arm | {heads} |"
    yield "|---" * (len(losses) + 1) + "|"
    for arm in dict.fromkeys(record["arm"] for record in records):
        own = [record for record in records if record["arm"] == arm]
        cells = []
        for loss in losses:
            found = [reached_by(record, loss, bytes_per_step) for record in own]
            there = [one for one in found if one is not None]
            text = f"{len(there)} of {len(own)}"
            if there:
                text += f", {median(one.num_bytes for one in there) / 1e6:.2f}"
                text += f", {median(one.flops for one in there) / 1e12:.1f}"
            cells.append(text)
        yield f"| {arm} | {' | '.join(cells)} |"


def main() -> None:
    """Print a table for each task of a Parquet file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--bytes-per-step", type=float, required=True, help="rows x ticks")
    parser.add_argument("--losses", nargs="+", type=float, required=True)
    parser.add_argument("--tasks", nargs="+", help="all tasks of the file by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    records = [one for one in read_records(args.results) if one["seed"] in args.seeds]
    tasks = dict.fromkeys(record["task"] for record in records)
    for task in args.tasks or tasks:
        own = [record for record in records if record["task"] == task]
        print(task, *table(own, args.losses, args.bytes_per_step), sep="\n")


if __name__ == "__main__":
    main()
