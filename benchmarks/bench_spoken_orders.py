"""Does a trained SHANKS have its tool called before a spoken order is over?

Protocol: docs/results/spoken_orders_declared.json. Every model hears the same held-out orders with
three counters. What a folder gave is kept beside ``--out``; take another name after a new training.
By ear a call is early if it succeeds before the recording ends, with its silence. Models are runs
of `shanks_tools_small`; those that call after listening are the same recipe with `--data.chunk-s
60`.

    python benchmarks/bench_spoken_orders.py --listening runs/tools-0 runs/tools-1 \
        --after runs/after-0 runs/after-1 --orders 500 --out results.json
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import finish, resumed
from torch import Tensor

from counterpoint.data.tasks.spoken_orders.source import SpokenOrdersData
from counterpoint.data.tasks.spoken_orders.words import in_order_words
from counterpoint.data.tasks.spoken_tools import ToolRequest, score_requests
from counterpoint.evaluate.duplex.spoken_orders import (
    OrderCounter,
    Served,
    order_floors,
    order_scores,
    serve,
    serve_by_maker,
    serve_parts,
)
from counterpoint.evaluate.statistics import Interval, bootstrap_difference, bootstrap_ratio
from counterpoint.progress import Progress
from counterpoint.recipes.cells import write_records
from counterpoint.runtime.cascade.ear import EAR_HZ
from counterpoint.runtime.clocked import Part
from counterpoint.runtime.heard_words import ChunkedWords
from counterpoint.runtime.load import load
from counterpoint.runtime.thinker import SystemThinker
from counterpoint.speech.partials import PartialTranscriber
from counterpoint.speech.voices import Synthesizer, Voice
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
    parser.add_argument("--by-ear", type=int, default=0, help="orders spoken and recognised")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    arms = {"while listening": options.listening, "after listening": options.after}
    data = SpokenOrdersData()
    sounds = spoken(data, range(100, 100 + options.by_ear)) if options.by_ear else []
    kept = options.out.with_suffix(".rows.json")
    found: dict[str, Any] = {}
    for counter in (*COUNTERS, *(["by ear"] if sounds else [])):
        for arm, folders in arms.items():
            work = partial(heard, counter=counter, number=options.orders, sounds=sounds)
            number = len(sounds) if counter == "by ear" else options.orders
            items = {f"{one}, {counter}, {number} orders": one for one in folders}
            rows = resumed(work, items, kept)
            if rows:
                found[f"{arm}, {counter}"] = {name: [row[name] for row in rows] for name in rows[0]}
    summary = {name: summarised(rows) for name, rows in found.items()}
    for counter in (*COUNTERS, "by ear"):
        ours, theirs = (found.get(f"{arm}, {counter}") for arm in arms)
        if ours and theirs:
            summary[f"right, while less after listening, {counter}"] = difference(ours, theirs)
    numbers = range(options.orders)
    makers = {
        counter: plain(order_scores([serve_by_maker(data, number, own) for number in numbers]))
        for counter, own in COUNTERS.items()
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


def opened(folder: Path) -> tuple[System, SpokenOrdersData]:
    """Return a model and its data."""
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


Sound = tuple[ToolRequest, Tensor]


def spoken(data: SpokenOrdersData, numbers: Sequence[int]) -> list[Sound]:
    """Return held-out orders as Piper says them, with the times at which the speech ends."""
    voice = Synthesizer()
    found = []
    for number in numbers:
        request = data.request(number, held_out=True)
        audio = voice.speak(request.text, Voice(formant=1.0), EAR_HZ).audio
        found.append((replace(request, stop_s=len(audio) / EAR_HZ), audio))
    return found


def heard(
    folder: Path, counter: str, number: int, sounds: Sequence[Sound]
) -> dict[str, list[float]]:
    """Return what came of every order at a counter, or by ear, as numbers."""
    system, data = opened(folder)
    title = f"{folder.name}, {counter}"
    if counter == "by ear":
        served = by_ear(system, data, Progress().over(title, sounds, len(sounds)))
    else:
        places = Progress().over(title, range(number), number)
        served = [serve(system, data, place, COUNTERS[counter]) for place in places]
    return counted(served)


def by_ear(system: System, data: SpokenOrdersData, sounds: Iterable[Sound]) -> list[Served]:
    """Return what comes of orders that a recogniser hears for a model."""
    recognise = PartialTranscriber()
    served = []
    for request, audio in sounds:
        ear = ChunkedWords(recognise, data.chunk_s, in_order_words)
        chunks = [*ear.push(audio), ear.finish()]
        parts = [Part(one.content, one.start_s, one.end_s, one.text) for one in chunks]
        thinker = SystemThinker(system, data.words, data.marks)
        served.append(serve_parts(thinker, data, request, parts))
    return served


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
    }


def summarised(rows: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Return means over seeds with intervals over seeds and orders, and each seed's own."""
    found: dict[str, Any] = {}
    for name, column in SHARES.items():
        counts = np.array(rows[column])
        of = np.array(rows["corrected"]) if name == "stale" else np.ones_like(counts)
        found[name] = as_list(bootstrap_ratio(counts, of))
        found[f"{name} by seed"] = (counts.sum(1) / of.sum(1)).round(4).tolist()
    found["lead_s by seed"] = np.median(np.array(rows["lead_s"]), 1).round(3).tolist()
    return found


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Return the difference of right orders on the same items."""
    right, theirs_right = (np.array(one["success"]) for one in (ours, theirs))
    ones = np.ones_like(right)
    interval, p = bootstrap_difference((right, ones), (theirs_right, np.ones_like(theirs_right)))
    return {"points": as_list(interval), "p": p}


def plain(scores: dict[str, Interval]) -> dict[str, list[float]]:
    """Return scores as JSON can hold them."""
    return {name: as_list(one) for name, one in scores.items()}


def as_list(one: Interval) -> list[float]:
    """Return value, low and high."""
    return [round(number, 4) for number in (one.value, one.low, one.high)]


if __name__ == "__main__":
    main()
