"""How well do models that think while they listen find the errors of a speaker?

The protocol is docs/results/shanks.md. Every model listens to the same held-out problems, deciding
by itself. Where it interrupts, it listens again without interrupting, which gives the decisions
under every threshold. The maker of the problems (what can be found in time at all) and constant
policies are rows too. Models are folders of runs, or of results of shanks_stacks.py.

    python benchmarks/bench_shanks.py runs/shanks_gpu --problems 150 --out results.json
    python benchmarks/bench_shanks.py --read results.json --figure shanks.png
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from record import finish
from safetensors.torch import load_file
from shanks_stacks import run_of

from counterpoint.data.tasks.spoken_maths.hearing import Heard
from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData
from counterpoint.evaluate.duplex.spoken_maths import clock_of, floors, listen, made_by_program
from counterpoint.evaluate.duplex.thinking import Attempt, rises, score_interruptions
from counterpoint.evaluate.duplex.thought_kinds import KindScorer
from counterpoint.evaluate.report.figures import PALETTE, STYLE, new_figure
from counterpoint.evaluate.statistics import Interval, bootstrap_difference, bootstrap_ratio
from counterpoint.packages import optional_module
from counterpoint.runtime.load import load
from counterpoint.systems import build_system
from counterpoint.systems.contract import System

MOST_ALARMS = 0.05
QUESTION = "How well do models that think while they listen find the errors of a speaker?"
ARMS = {"interleaved": "thinking", "silent": "silent", "parallel": "parallel"}


class Listener(NamedTuple):
    """A model that listens."""

    arm: str
    seed: int
    system: System
    data: SpokenMathsData


def main(argv: Sequence[str] | None = None) -> None:
    """Let all models listen, or read what came of it; print and draw the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--problems", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/shanks.json"))
    parser.add_argument("--read", type=Path, default=None)
    parser.add_argument("--figure", type=Path, default=None)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = measured(options) if options.read is None else json.loads(options.read.read_text())
    summary = summarised(found)
    finish(QUESTION, {**found, "summary": plain_json(summary)}, str(options.out))
    for line in table(summary):
        print(line)
    if options.figure is not None:
        draw(found, summary, options.figure)


# ------------------------------------------------------------------------------------ listening


def listeners(folder: Path) -> Iterator[Listener]:
    """Yield the models of a folder."""
    results = [
        path for path in sorted(folder.glob("*.json")) if path.stem.partition("-")[0] in ARMS
    ]
    for path in results:
        facts = json.loads(path.read_text())
        run = run_of(facts["arrangement"])
        for lane in facts["lanes"]:
            system = build_system(run.system, 0)
            name = f"{path.stem}-{lane['seed']}-{lane['rate']:g}.safetensors"
            weights = {key: value.float() for key, value in load_file(folder / name).items()}
            system.load_state_dict(weights)
            data = cast("SpokenMathsData", run.data)
            yield Listener(ARMS[data.arrangement], lane["seed"], system.eval(), data)
    if not results:
        loaded = load(folder)
        if loaded.run is None or not isinstance(loaded.run.data, SpokenMathsData):
            raise SystemExit(f"{folder} must be a run on spoken maths, or hold results.")
        data = loaded.run.data
        yield Listener(ARMS[data.arrangement], loaded.run.train.seed, loaded.system, data)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Return what came of every problem with every model; write it as it comes."""
    plain = SpokenMathsData()
    problems = [plain.heard(number, held_out=True) for number in range(options.problems)]
    clock = clock_of(plain)
    found: dict[str, Any] = {
        "problems": [
            {"wrong_s": one.wrong_s, "end_s": one.end_s, "fault": one.problem.fault}
            for one in problems
        ],
        "floors": {
            name: numbers(own)
            for name, own in floors(problems, clock, plain.task.max_steps).items()
        },
        "models": [],
    }
    made = {"maker, interleaved": [made_by_program(one, clock) for one in problems]}
    found["floors"] |= {name: numbers(own) for name, own in made.items()}
    for folder in options.folders:
        for one in listeners(folder):
            rows = [heard_by(one, problem) for problem in problems]
            scores = KindScorer(one.system.layout, one.data, problems).score(one.system)
            kinds = {kind: score._asdict() for kind, score in scores.items()}
            model = {"arm": one.arm, "seed": one.seed, "rows": rows, "kinds": kinds}
            found["models"].append(model)
            options.out.write_text(json.dumps(found) + "\n")
            print(one.arm, one.seed, len(rows), flush=True)
    return found


def heard_by(one: Listener, problem: Heard) -> dict[str, Any]:
    """Return what a model did with a problem."""
    free = listen(one.system, one.data, problem)
    at_s = free.interrupted_s
    never = free if at_s is None else listen(one.system, one.data, problem, threshold=2.0)
    answers = [event.text for event in free.timeline.where(kind="answer")]
    return {
        "interrupted_s": at_s,
        "named": free.named,
        "corrected": free.corrected,
        "agreed": at_s is None and bool(answers) and answers[-1].startswith("yes"),
        "rises": rises(never.timeline, clock_of(one.data).tokens_per_s),
    }


def numbers(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Return a score as JSON; shares as value, low and high."""
    score = score_interruptions(attempts)
    names = ("right", "wrong", "valid", "found", "corrected")
    shares = {name: getattr(score, name) for name in names}
    found: dict[str, Any] = {n: [one.value, one.low, one.high] for n, one in shares.items()}
    return found | {f"latency_p{q}": score.latency(q / 100) for q in (5, 50, 95)}


# ------------------------------------------------------------------------------------ numbers


def crossing_s(row: dict[str, Any], threshold: float) -> float:
    """Return when a threshold is first reached; ``nan`` if it never is."""
    return next((at_s for chance, at_s in row["rises"] if chance >= threshold), math.nan)


def curve(rows: Sequence[dict[str, Any]], wrong_s: np.ndarray) -> list[tuple[float, ...]]:
    """Return thresholds, shares of right and of wrong speakers interrupted, and median seconds."""
    chances = sorted({chance for row in rows for chance, _ in row["rises"]})
    picked = chances if len(chances) < 200 else chances[:: len(chances) // 200] + chances[-1:]
    points: list[tuple[float, ...]] = []
    is_wrong = ~np.isnan(wrong_s)
    for threshold in [*picked, 1.1]:
        at_s = np.array([crossing_s(row, threshold) for row in rows])
        made = ~np.isnan(at_s)
        late = (at_s - wrong_s)[made & is_wrong]
        middle = float(np.median(late)) if len(late) else math.nan
        points.append(
            (threshold, float(made[~is_wrong].mean()), float(made[is_wrong].mean()), middle)
        )
    return points


def calibrated(rows: Sequence[dict[str, Any]], wrong_s: np.ndarray) -> np.ndarray:
    """Return when each problem is interrupted under a threshold from the other half of them.

    The threshold is the lowest with at most 5 % false alarms in that other half.
    """
    at_s = np.full(len(rows), math.nan)
    for half in (0, 1):
        other = np.arange(len(rows)) % 2 != half
        points = curve(
            [row for row, is_in in zip(rows, other, strict=True) if is_in], wrong_s[other]
        )
        threshold = next((point[0] for point in points if point[1] <= MOST_ALARMS), 1.1)
        for number in np.flatnonzero(~other).tolist():
            at_s[number] = crossing_s(rows[number], threshold)
    return at_s


def outcomes(found: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Return what came of every problem, (S, N) for S seeds, by arm and kind of outcome."""
    wrong_s = wrong_times(found)
    arms: dict[str, dict[str, np.ndarray]] = {}
    for arm in dict.fromkeys(model["arm"] for model in found["models"]):
        own = [model["rows"] for model in found["models"] if model["arm"] == arm]
        free_s = np.array([[row["interrupted_s"] or math.nan for row in rows] for rows in own])
        chosen_s = np.array([calibrated(rows, wrong_s) for rows in own])
        named = np.array([[row["named"] for row in rows] for rows in own])
        arms[arm] = {
            "interrupted": ~np.isnan(free_s),
            "found": ~np.isnan(free_s) & named,
            "corrected": np.array([[row["corrected"] for row in rows] for rows in own]),
            "agreed": np.array([[row["agreed"] for row in rows] for rows in own]),
            "chosen": ~np.isnan(chosen_s),
            "latency_s": free_s - wrong_s,
            "chosen_latency_s": chosen_s - wrong_s,
        }
    return arms


def wrong_times(found: dict[str, Any]) -> np.ndarray:
    """Return when the first wrong word had been said in each problem; ``nan`` if none is wrong."""
    return np.array([one["wrong_s"] or math.nan for one in found["problems"]])


def share(values: np.ndarray) -> Interval:
    """Return a share over seeds and problems with its interval."""
    return bootstrap_ratio(values.astype(float), np.ones(values.shape))


def summarised(found: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of all arms, and the differences that were declared."""
    arms = outcomes(found)
    is_wrong = ~np.isnan(wrong_times(found))
    ceiling = found["floors"]["maker, interleaved"]["found"][0]
    rows: dict[str, Any] = {}
    for arm, own in arms.items():
        rows[arm] = {
            "alarms": as_list(share(own["interrupted"][:, ~is_wrong])),
            "agreed": as_list(share(own["agreed"][:, ~is_wrong])),
            "interrupted": as_list(share(own["interrupted"][:, is_wrong])),
            "found": as_list(share(own["found"][:, is_wrong])),
            "corrected": as_list(share(own["corrected"][:, is_wrong])),
            "found of the ceiling": float(own["found"][:, is_wrong].mean()) / ceiling,
            "latency": quantiles(own["latency_s"][:, is_wrong]),
            "alarms at 5 %": as_list(share(own["chosen"][:, ~is_wrong])),
            "interrupted at 5 %": as_list(share(own["chosen"][:, is_wrong])),
            "latency at 5 %": quantiles(own["chosen_latency_s"][:, is_wrong]),
        }
    differences = {}
    for ours, theirs in (("thinking", "silent"), ("parallel", "thinking"), ("parallel", "silent")):
        if ours not in arms or theirs not in arms:
            continue
        for kind in ("found", "chosen"):
            pair = [arms[arm][kind][:, is_wrong].astype(float) for arm in (ours, theirs)]
            first, second = ((one, np.ones(one.shape)) for one in pair)
            interval, p_value = bootstrap_difference(first, second)
            differences[f"{ours} - {theirs}, {kind}"] = [*as_list(interval), p_value]
    return {"rows": rows, "differences": differences}


def quantiles(values: np.ndarray) -> list[float]:
    """Return the 5th, 50th and 95th percentile of what was measured."""
    real = values[~np.isnan(values)]
    return [float(one) for one in np.quantile(real, (0.05, 0.5, 0.95))] if len(real) else []


def as_list(interval: Interval) -> list[float]:
    """Return an interval as JSON."""
    return [interval.value, interval.low, interval.high]


def plain_json(value: Any) -> Any:
    """Return the value with null for what could not be measured."""
    if isinstance(value, dict):
        return {name: plain_json(own) for name, own in value.items()}
    if isinstance(value, list):
        return [plain_json(own) for own in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def table(summary: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a table."""
    for arm, row in summary["rows"].items():
        for name, value in row.items():
            yield f"{arm}  {name}: {np.round(value, 3)}"
    for name, value in summary["differences"].items():
        yield f"{name}: {np.round(value, 4)}"


# ------------------------------------------------------------------------------------ picture


def draw(found: dict[str, Any], summary: dict[str, Any], path: Path) -> None:
    """Draw the share of wrong speakers interrupted, and how soon, against false alarms."""
    wrong_s = wrong_times(found)
    with optional_module("matplotlib").rc_context(STYLE):
        figure = new_figure(9.0, 4.0)
        caught, soon = figure.subplots(1, 2)
        for number, arm in enumerate(summary["rows"]):
            colour = PALETTE[(1, 0, 2)[number % 3]]
            models = [model["rows"] for model in found["models"] if model["arm"] == arm]
            for place, rows in enumerate(models):
                points = np.array(curve(rows, wrong_s))
                label = arm if place == 0 else None
                caught.step(points[:, 1], points[:, 2], color=colour, label=label, where="post")
                soon.plot(points[:, 1], points[:, 3], color=colour)
            own = summary["rows"][arm]
            caught.plot(own["alarms"][0], own["interrupted"][0], "o", color=colour)
        for name, floor in found["floors"].items():
            if name not in ("never", "maker, interleaved"):
                caught.plot(floor["right"][0], floor["wrong"][0], "x", color="#888888")
        ceiling = found["floors"]["maker, interleaved"]["wrong"][0]
        caught.axhline(ceiling, color="#888888", linestyle=":")
        caught.axvline(MOST_ALARMS, color="#cccccc")
        caught.set(xlabel="right speakers interrupted", ylabel="wrong speakers interrupted")
        caught.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.03))
        soon.set(xlabel="right speakers interrupted", ylabel="median latency in s")
        soon.set(xlim=(-0.02, 1.02))
        caught.legend(loc="lower right")
        figure.savefig(path)


if __name__ == "__main__":
    main()
