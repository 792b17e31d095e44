"""Does a trained SHANKS have its tool called before a spoken order is over?

Protocol: docs/results/spoken_orders_declared.json. Every model hears the same held-out orders with
three counters. What a folder gave is kept beside ``--out``; take another name after a new training.
Models are runs of `shanks_tools_small`, `shanks_menu_small`, `shanks_retold_small` or
`shanks_checked_small`; those that call after listening are the same recipe with `--data.chunk-s
60`. The maker of the thoughts has the clock of the first run. By ear they are measured by
`orders_by_ear.py`.

    python benchmarks/bench_spoken_orders.py --listening runs/tools-0 runs/tools-1 \
        --after runs/after-0 runs/after-1 --orders 500 --out results.json
"""

import argparse
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import finish, resumed

from counterpoint.data.tasks.spoken_orders.source import SpokenOrdersData
from counterpoint.data.tasks.spoken_tools import score_requests
from counterpoint.evaluate.duplex.spoken_orders import (
    OrderCounter,
    Served,
    order_floors,
    order_scores,
    serve,
    serve_by_maker,
)
from counterpoint.evaluate.statistics import Interval, bootstrap_difference, bootstrap_ratio
from counterpoint.progress import Progress
from counterpoint.recipes.cells import write_records
from counterpoint.runtime.clocked import made_calls
from counterpoint.runtime.load import load
from counterpoint.systems.contract import System

QUESTION = "Does a trained SHANKS have its tool called before a spoken order is over?"
COUNTERS = {
    "at once": OrderCounter(),
    "2 s": OrderCounter(call_s=2.0),
    "fails once": OrderCounter(failures=1),
}
SHARES = {"right": "success", "early": "early", "stale": "stale", "said": "said"}


def main(argv: Sequence[str] | None = None) -> None:
    """Let all models hear the orders, and write what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--listening", nargs="+", type=Path, default=[])
    parser.add_argument("--after", nargs="*", type=Path, default=[])
    parser.add_argument("--orders", type=int, default=500)
    parser.add_argument("--counters", nargs="+", choices=COUNTERS, default=[*COUNTERS])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    arms = {"while listening": options.listening, "after listening": options.after}
    every = [opened(folder)[1] for folder in (*options.listening, *options.after)]
    if len({data.whole_menu for data in every}) > 1:
        raise SystemExit("All runs must have one menu.")
    data = every[0] if every else SpokenOrdersData()  # whose clock the maker has
    kept = options.out.with_suffix(".rows.json")
    found: dict[str, Any] = {}
    for counter in options.counters:
        for arm, folders in arms.items():
            work = partial(heard, counter=counter, number=options.orders)
            items = {f"{one}, {counter}, {options.orders} orders": one for one in folders}
            rows = resumed(work, items, kept)
            if rows:
                found[f"{arm}, {counter}"] = {name: [row[name] for row in rows] for name in rows[0]}
    summary = {name: summarised(rows) for name, rows in found.items()}
    for counter in options.counters:
        ours, theirs = (found.get(f"{arm}, {counter}") for arm in arms)
        if ours and theirs:
            summary[f"right, while less after listening, {counter}"] = difference(ours, theirs)
    numbers = range(options.orders)
    makers = {
        counter: plain(
            order_scores([serve_by_maker(data, number, COUNTERS[counter]) for number in numbers])
        )
        for counter in options.counters
    }
    result = {"summary": summary, "maker": makers, "floors": order_floors(data, numbers)}
    write_records(options.out.with_suffix(".parquet"), lines(found))
    finish(QUESTION, result, str(options.out))


def lines(found: dict[str, dict[str, list[list[float]]]]) -> list[dict[str, Any]]:
    """Return one record for every order, model and counter."""
    return [
        {"arm and counter": name, "model": model, "place": place}
        | {column: rows[column][model][place] for column in rows}
        for name, rows in found.items()
        for model in range(len(rows["success"]))
        for place in range(len(rows["success"][model]))
    ]


@cache
def opened(folder: Path) -> tuple[System, SpokenOrdersData]:
    """Return a model and its data; each is read once."""
    loaded = load(folder)
    if loaded.run is None or not isinstance(loaded.run.data, SpokenOrdersData):
        raise SystemExit(f"{folder} must be a run on spoken orders.")
    data = loaded.run.data
    usual = SpokenOrdersData()
    if (data.seed, data.words_per_s, data.pace_spread) != (
        usual.seed,
        usual.words_per_s,
        usual.pace_spread,
    ):
        raise SystemExit(f"{folder} must have the orders and the pace of the recipe.")
    return loaded.system, data


def heard(folder: Path, counter: str, number: int) -> dict[str, list[float]]:
    """Return what came of every order at a counter, as numbers."""
    system, data = opened(folder)
    places = Progress().over(f"{folder.name}, {counter}", range(number), number)
    return counted([serve(system, data, place, COUNTERS[counter]) for place in places])


def counted(served: Sequence[Served]) -> dict[str, list[float]]:
    """Return the counts of every order."""
    each = [score_requests([one.request], [one.outcome]) for one in served]
    alone = [order_scores([one]) for one in served]
    return {
        "success": [one["success"] for one in each],
        "early": [one["early"].value for one in alone],
        "stale": [one["stale"] for one in each],
        "said": [one["said"].value for one in alone],
        "lead_s": [one["lead_s"].value if one["right"].value else -1e9 for one in alone],
        "corrected": [float(bool(one.request.stale)) for one in served],
        "calls": [float(len(made_calls(one.timeline))) for one in served],
        "cancels": [float(len(one.timeline.where(kind="cancel"))) for one in served],
    }


def summarised(rows: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Return means over seeds with intervals over seeds and orders, and each seed's own."""
    found: dict[str, Any] = {}
    for name, column in SHARES.items():
        counts = np.array(rows[column])
        of = np.array(rows["corrected"]) if name == "stale" else np.ones_like(counts)
        if not of.any():  # recorded people correct nothing
            continue
        found[name] = as_list(bootstrap_ratio(counts, of))
        found[f"{name} by seed"] = (counts.sum(1) / of.sum(1)).round(4).tolist()
    for name in {"calls", "cancels"} & rows.keys():  # for each order; older rows have none
        found[name] = as_list(bootstrap_ratio(np.array(rows[name]), np.ones_like(rows[name])))
    found["lead_s by seed"] = np.median(np.array(rows["lead_s"]), 1).round(3).tolist()
    return found


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Return the differences of right orders, in "points", and early ones, on the same items."""
    found: dict[str, Any] = {}
    for name, column in (("points", "success"), ("early", "early")):
        own, other = (np.array(one[column]) for one in (ours, theirs))
        pairs = ((own, np.ones_like(own)), (other, np.ones_like(other)))
        interval, p = bootstrap_difference(*pairs)
        found |= {name: as_list(interval), "p" if column == "success" else "p of early": p}
    return found


def plain(scores: dict[str, Interval]) -> dict[str, list[float]]:
    """Return scores as JSON can hold them."""
    return {name: as_list(one) for name, one in scores.items()}


def as_list(one: Interval) -> list[float]:
    """Return value, low and high."""
    return [round(number, 4) for number in (one.value, one.low, one.high)]


if __name__ == "__main__":
    main()
