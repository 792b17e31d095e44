"""Reads what lanes of `lslm_stacks.py` said and when they would stop, and compares the arms.

    python benchmarks/lslm_scores.py LANES... --rows ROWS --words 40 --out RESULT.json

LANES are folders with a folder for each lane; ROWS is the folder of the trials. The threshold of
each lane is chosen on its tuning trials. Values of an arm are over all its seeds and trials, and
intervals are over seeds and trials. Word errors are those of Whisper tiny.en, cached in each lane.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from bench_interruptions import PROBABILITIES
from jaxtyping import Float
from record import finish

from counterpoint.evaluate.duplex.interruptions import (
    StopResult,
    StopScores,
    StopTrial,
    best_threshold,
    judge_stops,
    stop_outcomes,
    stops_at,
)
from counterpoint.evaluate.statistics import Interval, bootstrap_difference, bootstrap_ratio
from counterpoint.evaluate.word_errors import count_word_errors, plain_words
from counterpoint.formats import open_codec
from counterpoint.speech.codec import Codec
from counterpoint.speech.transcriber import Transcriber

FRAME_S = 0.04
CONDITIONS = ("clean", "noisy", "backchannel")
HEARD = ("clean", "noisy")  # conditions whose words are recognised
SAID = {"": "codes", ", cool": "cool"}  # sampled as published, and at half the temperature
FINER = tuple(float(f"{1 / (1 + np.exp(-x)):.4g}") for x in np.linspace(-9, 9, 37))
LEAST_RATE = 0.01
Table = Float[np.ndarray, "S N"]


class Lane(NamedTuple):
    """What one trained model did.

    Attributes:
        facts: Its arm, seed, rate, curve and held-out bits.
        threshold: The best threshold of its tuning trials.
        trials: Trials of each condition; a trial lasts as long as the model spoke.
        scores: Stop scores of each trial.
        drawn_s: Times at which a stop was drawn.
        entries: What was written about each trial.
    """

    folder: Path
    facts: dict[str, Any]
    threshold: float
    trials: dict[str, list[StopTrial]]
    scores: dict[str, list[StopScores]]
    drawn_s: dict[str, list[float | None]]
    entries: dict[str, list[dict[str, Any]]]


def read_lane(folder: Path) -> Lane:
    """Read the folder of a lane."""
    facts = json.loads((folder / "lane.json").read_text())
    entries = json.loads((folder / "trials.json").read_text())
    scores = torch.from_numpy(np.load(folder / "scores.npz")["scores"]).float()
    in_order = sorted((e for some in entries.values() for e in some), key=lambda e: e["number"])
    pieces = dict(
        zip(
            (entry["number"] for entry in in_order),
            scores.split([entry["frames"] for entry in in_order]),
            strict=True,
        )
    )
    found = Lane(folder, facts, 0.0, {}, {}, {}, entries)
    for name, some in entries.items():
        found.trials[name] = [StopTrial(e["onset_s"], e["frames"] * FRAME_S) for e in some]
        found.scores[name] = [
            StopScores(FRAME_S * torch.arange(e["frames"]), pieces[e["number"]]) for e in some
        ]
        found.drawn_s[name] = [e["drawn_s"] for e in some]
    if "tuning" not in found.trials:  # it hears nothing
        return found
    tuned = best_threshold(found.trials["tuning"], found.scores["tuning"], PROBABILITIES)
    return found._replace(threshold=tuned)


# Stops


class ArmStops(NamedTuple):
    """Outcomes of all seeds of an arm in one condition, (S, N) each, and the results by seed."""

    hits: Table
    misses: Table
    false_alarms: Table
    results: list[StopResult]

    def f1(self) -> tuple[Table, Table]:
        """Numerators and denominators of F1."""
        return 2 * self.hits, 2 * self.hits + self.misses + self.false_alarms


def arm_stops(lanes: Sequence[Lane], name: str, *, drawn: bool = False) -> ArmStops:
    """Stops of all lanes in a condition, at their thresholds or as they were drawn."""
    outcomes = []
    results = []
    for lane in lanes:
        stops: Sequence[float | None] = lane.drawn_s[name]
        if not drawn:
            stops = stops_at(lane.trials[name], lane.scores[name], lane.threshold)
        outcomes.append(stop_outcomes(lane.trials[name], stops))
        results.append(judge_stops(lane.trials[name], stops))
    tables = [np.stack(table) for table in zip(*outcomes, strict=True)]
    return ArmStops(tables[0], tables[1], tables[2], results)


def summary(stops: ArmStops) -> dict[str, Any]:
    """What a row of the table needs."""
    hits, misses, false_alarms = stops[:3]
    means = {
        name: rounded(float(np.mean([getattr(one, name) for one in stops.results])))
        for name in ("delay_p50_s", "delay_p95_s", "false_stops_a_minute", "penalty_s")
    }
    return {
        "precision": interval(bootstrap_ratio(hits, hits + false_alarms)),
        "recall": interval(bootstrap_ratio(hits, hits + misses)),
        "f1": interval(bootstrap_ratio(*stops.f1())),
        **means,
        "f1_by_seed": [rounded(one.f1.value) for one in stops.results],
        "false_stops_by_seed": [rounded(one.false_stops_a_minute) for one in stops.results],
        "void": [one.num_void for one in stops.results],
        "trials": hits.shape[1],
    }


def curve(lanes: Sequence[Lane], name: str) -> list[dict[str, float]]:
    """Operating points, as means over seeds."""
    points = []
    for threshold in FINER:
        results = [
            judge_stops(
                lane.trials[name], stops_at(lane.trials[name], lane.scores[name], threshold)
            )
            for lane in lanes
        ]
        points.append(
            {
                "threshold": threshold,
                "recall": rounded(float(np.mean([one.recall.value for one in results]))),
                "false_stops_a_minute": rounded(
                    float(np.mean([one.false_stops_a_minute for one in results]))
                ),
                "delay_p50_s": rounded(float(np.nanmean([one.delay_p50_s for one in results]))),
            }
        )
    return points


# Words


class Recogniser:
    """Counts the word errors of codes."""

    def __init__(self) -> None:
        self.codec: Codec = open_codec("codec2", 4)
        self.transcriber = Transcriber(num_threads=1)

    def count(self, text: str, codes: Sequence[Sequence[int]]) -> tuple[int, int, str]:
        """Errors, words that should be said, and what was heard."""
        said = plain_words(text)
        heard = list[str]()
        if len(codes):
            sound = self.codec.decode(torch.tensor(codes)[None])[0]
            words = self.transcriber.words(sound, self.codec.sample_rate)
            heard = plain_words(" ".join(word.text for word in words))
        return count_word_errors(said, heard), len(said), " ".join(heard)


def lane_words(
    lane: Lane, recogniser: Recogniser | None, count: int, heard: Sequence[str]
) -> dict[str, list[list[Any]]]:
    """Errors and words of the first utterances of a lane; without a recogniser, of its cache.

    ``heard`` are the conditions.
    """
    cache = lane.folder / f"words{count}.json"
    found = dict(json.loads(cache.read_text())) if cache.exists() else {}
    if recogniser is None:
        return found
    for name in heard:
        some = [entry for entry in lane.entries.get(name, []) if "codes" in entry][:count]
        for key, kind in SAID.items():
            if some and name + key not in found:
                counted = [[*recogniser.count(e["words"], e[kind]), e["words"]] for e in some]
                found[name + key] = counted
    cache.write_text(json.dumps(found))
    return found


def floor(
    rows: Path, recogniser: Recogniser | None, count: int, heard: Sequence[str]
) -> dict[str, list[list[Any]]]:
    """Errors of copied codes of the same utterances."""
    cache = rows / f"floor{count}.json"
    if cache.exists() or recogniser is None:
        return dict(json.loads(cache.read_text()))
    trials = torch.load(rows / "trials.pt", weights_only=False)
    found = {}
    for name in heard:
        some = [one for key, one in trials if key == name and one["onset_s"] is None][:count]
        found[name] = [
            [*recogniser.count(one["words"], one["planned"].tolist()), one["words"]] for one in some
        ]
    cache.write_text(json.dumps(found))
    return found


def errors(some: Sequence[dict[str, list[list[Any]]]], name: str) -> tuple[Table, Table]:
    """Errors and words of all seeds in one condition."""
    wrong = np.array([[one[0] for one in lane[name]] for lane in some], dtype=float)
    words = np.array([[one[1] for one in lane[name]] for lane in some], dtype=float)
    return wrong, words


def word_table(
    arms: dict[str, list[Lane]],
    rows: Path,
    count: int,
    recogniser: Recogniser | None,
    heard: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Word error rates of all arms, and their differences from the arm that hears nothing."""
    copied = floor(rows, recogniser, count, heard)
    said = {
        arm: [lane_words(lane, recogniser, count, heard) for lane in lanes]
        for arm, lanes in arms.items()
    }
    rates = {name: interval(bootstrap_ratio(*errors([copied], name))) for name in copied}
    found: dict[str, dict[str, Any]] = {"copied codes": rates}
    for arm, every in said.items():
        found[arm] = {}
        for name in (name + key for name in heard for key in SAID):
            some = [lane for lane in every if name in lane]
            if not some:
                continue
            pair = errors(some, name)
            found[arm][name] = interval(bootstrap_ratio(*pair))
            found[arm][f"{name}, by seed"] = [
                rounded(float(wrong.sum() / words.sum()))
                for wrong, words in zip(*pair, strict=True)
            ]
            found[arm][f"{name}, examples"] = [[one[3], one[2]] for one in some[0][name][:6]]
            silent = [lane for lane in said.get("silent", []) if name in lane]
            if silent and arm != "silent":
                cost, p_value = bootstrap_difference(pair, errors(silent, name))
                found[arm][f"{name}, above silent"] = {**interval(cost), "p": rounded(p_value)}
    return found


def interval(one: Interval) -> dict[str, float]:
    return {name: rounded(value) for name, value in asdict(one).items()}


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def compared(stops: dict[str, dict[str, ArmStops]]) -> dict[str, Any]:
    """Differences of F1 between all pairs of arms, in the order of the arms."""
    found: dict[str, Any] = {}
    for one, other in combinations(stops, 2):
        found[f"{one} less {other}"] = {}
        for name in CONDITIONS:
            pair = [stops[arm][name] for arm in (one, other)]
            if pair[0].hits.shape[1] == pair[1].hits.shape[1]:
                less, p_value = bootstrap_difference(pair[0].f1(), pair[1].f1())
                found[f"{one} less {other}"][name] = {**interval(less), "p": rounded(p_value)}
    return found


def draw(arms: dict[str, Any], path: Path) -> None:
    """Draw the operating curves of all arms in noise and with backchannels."""
    pyplot: Any = import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.3), sharey=True)
    for axis, name in zip(axes, ("noisy", "backchannel"), strict=True):
        for arm, own in arms.items():
            points = own.get(f"{name}, curve", [])
            rates = [max(one["false_stops_a_minute"], LEAST_RATE) for one in points]
            label = f"{arm}, {own['steps'][0]} steps, {len(own['seeds'])} seeds"
            if points:
                recalls = [100 * one["recall"] for one in points]
                axis.plot(rates, recalls, marker=".", lw=1.2, label=label)
        axis.set(xscale="log", xlim=(LEAST_RATE, 100), ylim=(60, 100), title=name)
        axis.set_xlabel(f"false stops a minute (less than {LEAST_RATE} is drawn there)")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("interruptions hit within 1 s, %")
    axes[1].legend(fontsize=7, loc="lower center")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lanes", type=Path, nargs="+")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--words", type=int, default=0, help="utterances of a lane and condition")
    parser.add_argument(
        "--heard", nargs="+", default=list(HEARD), choices=HEARD, help="when words are recognised"
    )
    parser.add_argument("--cached", action="store_true", help="recognise no more words")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--out")
    options = parser.parse_args()
    arms: dict[str, list[Lane]] = {}
    for folder in sorted(
        path.parent for root in options.lanes for path in root.rglob("trials.json")
    ):
        lane = read_lane(folder)
        arms.setdefault(lane.facts["arm"], []).append(lane)
    found: dict[str, Any] = {"arms": {}}
    stops: dict[str, dict[str, ArmStops]] = {}
    for arm, lanes in arms.items():
        bits = [lane.facts["held_out_bits"]["all"] for lane in lanes]
        found["arms"][arm] = {
            "seeds": [lane.facts["seed"] for lane in lanes],
            "steps": [lane.facts["steps"] for lane in lanes],
            "thresholds": [lane.threshold for lane in lanes],
            "held_out_bits": [rounded(one) for one in bits],
            "with_shuffled_text": [
                rounded(lane.facts["with_shuffled_text"]["all"]) for lane in lanes
            ],
        }
        print(arm, found["arms"][arm])
        if arm == "silent":
            continue
        stops[arm] = {name: arm_stops(lanes, name) for name in CONDITIONS}
        for name in CONDITIONS:
            one = summary(stops[arm][name])
            drawn = summary(arm_stops(lanes, name, drawn=True))
            found["arms"][arm][name] = one
            found["arms"][arm][f"{name}, sampled"] = drawn
            found["arms"][arm][f"{name}, curve"] = curve(lanes, name)
            print(
                f"  {name:12} F1 {one['f1']} P {one['precision']['value']} "
                f"R {one['recall']['value']} delay {one['delay_p50_s']}/{one['delay_p95_s']} "
                f"false/min {one['false_stops_a_minute']} sampled F1 {drawn['f1']['value']}",
                flush=True,
            )
    found["f1_differences"] = compared(stops)
    if options.words:
        recogniser = None if options.cached else Recogniser()
        found["word_errors"] = word_table(
            arms, options.rows, options.words, recogniser, options.heard
        )
        for arm, own in found["word_errors"].items():
            print(arm, {name: value for name, value in own.items() if "examples" not in name})
    if options.figure:
        draw(found["arms"], options.figure)
    finish("What does it cost an LSLM to listen, and which fusion stops best?", found, options.out)


if __name__ == "__main__":
    main()
