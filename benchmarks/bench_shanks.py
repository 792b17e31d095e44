"""How well do models that think while they listen find the errors of a speaker?

The protocol is docs/results/shanks.md. Every model listens to the same held-out problems, deciding
by itself. Where it interrupts, it listens again without interrupting, which gives the decisions
under every threshold. The maker of the problems (what can be found in time at all) and constant
policies are rows too. Models are folders of runs, or of results of shanks_stacks.py.

    python benchmarks/bench_shanks.py runs/shanks_small --problems 150 --out results.json
    python benchmarks/bench_shanks.py runs/shanks_small_sound --noise 10 --bank sampled.safetensors
    python benchmarks/bench_shanks.py --read results.json --figure shanks.png
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from record import finish
from safetensors.torch import load_file
from shanks_stacks import file_name, run_of

from counterpoint.data.tasks.spoken_maths.bank import FRAME_HZ, sound_frames
from counterpoint.data.tasks.spoken_maths.hearing import Heard, heard_ticks, spoken_by, spoken_ticks
from counterpoint.data.tasks.spoken_maths.noise import NoiseConfig, voiced_samples
from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData
from counterpoint.data.tasks.spoken_maths.thoughts import WRONG
from counterpoint.evaluate.duplex.spoken_maths import clock_of, floors, listen, made_by_program
from counterpoint.evaluate.duplex.thinking import Attempt, rises, score_interruptions
from counterpoint.evaluate.duplex.thought_kinds import KindScorer
from counterpoint.evaluate.report.figures import PALETTE, STYLE, new_figure
from counterpoint.evaluate.statistics import Interval, bootstrap_difference, bootstrap_ratio
from counterpoint.packages import optional_module
from counterpoint.processes import work_in_processes
from counterpoint.runtime.load import load
from counterpoint.speech.mels import LogMels
from counterpoint.speech.voices import Synthesizer, available_voices
from counterpoint.systems import build_system
from counterpoint.systems.contract import System

FRESH = 100_000_000
"""Number of the first fresh problem; those of training have lower numbers."""

MOST_ALARMS = 0.05
COLOURS = {"thinking": 1, "silent": 0, "parallel": 2, "thinking, hears sound": 3}
LEAST_SHARE = 0.1
LEAST_CHANCE = 0.001
"""Chances below it are not stored."""

QUESTION = "How well do models that think while they listen find the errors of a speaker?"
ARMS = {
    "interleaved": "thinking",
    "silent": "silent",
    "parallel": "parallel",
    "sound": "thinking, hears sound",
}


class Listener(NamedTuple):
    """A model that listens.

    Attributes:
        folder: Folder of its run, or of results of shanks_stacks.py.
        name: Name of its arrangement there; empty for a run.
        seed: Its seed, for results; a run knows its own.
        rate: Its learning rate, for results.
        speaks: Whether it hears problems that are spoken sentence by sentence, not joined words.
    """

    folder: Path
    name: str
    seed: int
    rate: float = 0.0
    speaks: bool = False

    def opened(self, bank: str) -> tuple[System, SpokenMathsData, int]:
        """Return the model, its data and its seed; sound of results needs the bank of words."""
        if not self.name:
            loaded = load(self.folder)
            if loaded.run is None or not isinstance(loaded.run.data, SpokenMathsData):
                raise SystemExit(f"{self.folder} must be a run on spoken maths, or hold results.")
            return loaded.system, loaded.run.data, loaded.run.train.seed
        run = run_of(self.name, bank)
        system = build_system(run.system, 0)
        weights = load_file(self.folder / file_name(self.name, self.seed, self.rate))
        system.load_state_dict({key: value.float() for key, value in weights.items()})
        return system.eval(), cast("SpokenMathsData", run.data), self.seed


def main(argv: Sequence[str] | None = None) -> None:
    """Let all models listen, or read what came of it; print and draw the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--problems", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/shanks.json"))
    parser.add_argument("--bank", default="", help="file of spoken words; with noise, of samples")
    parser.add_argument("--noise", type=float, default=None, help="SNR in dB; without it, none")
    parser.add_argument("--noises", default="", help="folder with noise.jsonl; else pink noise")
    parser.add_argument("--speech", action="store_true", help="also speak problems with Piper")
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="new problems with the sentences and pairs of operands of training",
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--read", nargs="+", type=Path, default=None)
    parser.add_argument("--figure", type=Path, default=None)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = measured(options) if options.read is None else together(options.read)
    summary = summarised(found)
    finish(QUESTION, {**found, "summary": plain_json(summary)}, str(options.out))
    for line in table(summary):
        print(line)
    if options.figure is not None:
        draw(found, summary, options.figure)


# ------------------------------------------------------------------------------------ listening


def listeners(folder: Path, *, speech: bool) -> list[Listener]:
    """Return the models of a folder."""
    found = []
    for path in sorted(folder.glob("*.json")):
        if path.stem.partition("-")[0] in ARMS:
            for lane in json.loads(path.read_text())["lanes"]:
                one = Listener(folder, path.stem, lane["seed"], lane["rate"])
                found += [one, one._replace(speaks=True)] if speech else [one]
    return found or [Listener(folder, "", 0)]


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Return what came of every problem with every model; write it as it comes."""
    plain = SpokenMathsData()
    problems = chosen(plain, options.problems, fresh=options.fresh)
    clock = clock_of(plain)
    made = {"maker, interleaved": [made_by_program(one, clock) for one in problems]}
    made |= floors(problems, clock, plain.task.max_steps)
    found: dict[str, Any] = {
        "noise": {"snr_db": options.noise, "recorded": bool(options.noises)},
        "problems": [one.wrong_s for one in problems],
        "floors": {name: numbers(own) for name, own in made.items()},
        "models": [],
    }
    models = [one for folder in options.folders for one in listeners(folder, speech=options.speech)]
    noise = NoiseConfig(snr_db=options.noise, folder=options.noises)
    work = partial(evaluated, options.bank, options.problems, options.fresh, noise)
    with closing(work_in_processes(work, models, options.processes)) as done:
        for model in done:
            found["models"].append(model)
            options.out.write_text(json.dumps(found) + "\n")
            print(model["arm"], model["seed"], len(model["rows"]), flush=True)
    return found


def chosen(data: SpokenMathsData, number: int, *, fresh: bool) -> list[Heard]:
    """Return problems on which models are measured."""
    first = FRESH if fresh else 0
    return [data.heard(first + place, held_out=not fresh) for place in range(number)]


def in_noise(data: SpokenMathsData, bank: str, noise: NoiseConfig) -> SpokenMathsData:
    """Return data that are heard in noise, of a bank that has samples if one is named."""
    if noise.snr_db is None:
        return data
    if data.sound is None:
        raise SystemExit("A model must hear sound to hear it in noise: leave `--noise` out.")
    return replace(data, bank=replace(data.sound, file=bank or data.sound.file, noise=noise))


def evaluated(
    bank: str, num_problems: int, fresh: bool, noise: NoiseConfig, one: Listener
) -> dict[str, Any]:
    """Let a model listen to all problems."""
    torch.set_num_threads(1)
    system, data, seed = one.opened(bank)
    data = in_noise(data, bank, noise)
    problems = chosen(data, num_problems, fresh=fresh)
    arm = ARMS["sound" if data.sound is not None else data.arrangement]
    if one.speaks:
        arm += ", spoken"
        problems = [in_speech(own, data.held_out_voice, noise, n) for n, own in enumerate(problems)]
    scores = {} if one.speaks else KindScorer(system.layout, data, problems).score(system)
    return {
        "arm": arm,
        "seed": seed,
        "rows": [heard_by(system, data, own) for own in problems],
        "kinds": {kind: score._asdict() for kind, score in scores.items()},
        "ceiling": ceiling(data, problems),
    }


def ceiling(data: SpokenMathsData, problems: Sequence[Heard]) -> float:
    """Return the share of wrong speakers whom the maker of the problems interrupts in time."""
    if data.arrangement != "parallel":
        made = [made_by_program(own, clock_of(data), data.held_back) for own in problems]
        return score_interruptions(made).found.value
    in_time = []
    for own in problems:
        if own.problem.fault is not None:
            _, thought = spoken_ticks(own, data.tick_hz, data.marks)
            in_time.append(
                thought.index(WRONG) + 1 < len(heard_ticks(own, data.tick_hz, data.marks))
            )
    return sum(in_time) / len(in_time)


def in_speech(heard: Heard, label: str, noise: NoiseConfig, number: int) -> Heard:
    """Return a problem as it is spoken by the voice with a label, in held-out noise."""
    voice = next(voice for voice in available_voices() if voice.label == label)
    audio, spoken = spoken_by(heard.problem, Synthesizer(), voice, LogMels.sample_rate)
    voiced = voiced_samples(spoken.words, len(audio))
    beside = noise.beside(audio, voiced, 0, number, held_out=True)
    return spoken._replace(frames=sound_frames(audio + beside), frame_hz=FRAME_HZ)


def heard_by(system: System, data: SpokenMathsData, problem: Heard) -> dict[str, Any]:
    """Return what a model did with a problem."""
    free = listen(system, data, problem)
    at_s = free.interrupted_s
    never = free if at_s is None else listen(system, data, problem, threshold=2.0)
    answers = [event.text for event in free.timeline.where(kind="answer")]
    return {
        "wrong_s": problem.wrong_s,
        "interrupted_s": at_s,
        "named": free.named,
        "corrected": free.corrected,
        "agreed": at_s is None and bool(answers) and answers[-1].startswith("yes"),
        "rises": [
            [float(f"{chance:.9g}"), round(at_s, 3)]
            for chance, at_s in rises(never.timeline, clock_of(data).tokens_per_s)
            if chance >= LEAST_CHANCE
        ],
    }


def numbers(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Return a score as JSON; shares as value, low and high."""
    score = score_interruptions(attempts)
    names = ("right", "wrong", "valid", "found", "corrected")
    shares = {name: getattr(score, name) for name in names}
    found: dict[str, Any] = {n: [one.value, one.low, one.high] for n, one in shares.items()}
    return found | {f"latency_p{q}": score.latency(q / 100) for q in (5, 50, 95)}


def noise_of(results: dict[str, Any]) -> dict[str, Any] | None:
    """Return the noise of results, of which older ones say nothing; ``None`` if there was none."""
    noise = results.get("noise")
    return noise if noise and noise["snr_db"] is not None else None


def together(paths: Sequence[Path]) -> dict[str, Any]:
    """Return results of the same problems as one."""
    parts = [json.loads(path.read_text()) for path in paths]
    if any(
        part["problems"] != parts[0]["problems"] or noise_of(part) != noise_of(parts[0])
        for part in parts
    ):
        raise SystemExit("Results must be of the same problems and noise to be put together.")
    return {**parts[0], "models": [model for part in parts for model in part["models"]]}


# ------------------------------------------------------------------------------------ numbers


def crossing_s(row: dict[str, Any], threshold: float) -> float:
    """Return when a threshold is first reached; ``nan`` if it never is."""
    return next((at_s for chance, at_s in row["rises"] if chance >= threshold), math.nan)


def curve(rows: Sequence[dict[str, Any]]) -> list[tuple[float, ...]]:
    """Return thresholds, shares of right and of wrong speakers interrupted, and median seconds."""
    wrong_s = wrong_times(rows)
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


def calibrated(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Return when each problem is interrupted under a threshold from the other half of them.

    The threshold is the lowest with at most 5 % false alarms in that other half.
    """
    thresholds = [
        next((point[0] for point in curve(half) if point[1] <= MOST_ALARMS), 1.1)
        for half in (rows[1::2], rows[0::2])
    ]
    return [crossing_s(row, thresholds[number % 2]) for number, row in enumerate(rows)]


def outcomes(found: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Return what came of every problem, (S, N) for S seeds, by arm and kind of outcome."""
    arms: dict[str, dict[str, np.ndarray]] = {}
    for arm in dict.fromkeys(model["arm"] for model in found["models"]):
        own = [model["rows"] for model in found["models"] if model["arm"] == arm]
        free_s = np.array([[row["interrupted_s"] or math.nan for row in rows] for rows in own])
        chosen_s = np.array([calibrated(rows) for rows in own])
        named = np.array([[row["named"] for row in rows] for rows in own])
        wrong_s = np.array([wrong_times(rows) for rows in own])
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


def wrong_times(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return when the first wrong word had been said in each problem; ``nan`` if none is wrong."""
    return np.array([row["wrong_s"] or math.nan for row in rows])


def share(values: np.ndarray) -> Interval:
    """Return a share over seeds and problems with its interval."""
    return bootstrap_ratio(values.astype(float), np.ones(values.shape))


def summarised(found: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of all arms, and the differences that were declared."""
    arms = outcomes(found)
    is_wrong = np.array([one is not None for one in found["problems"]])
    ceilings = {model["arm"]: model["ceiling"] for model in found["models"]}
    rows: dict[str, Any] = {}
    for arm, own in arms.items():
        rows[arm] = {
            "seeds": len(own["found"]),
            "ceiling": ceilings[arm],
            "alarms": as_list(share(own["interrupted"][:, ~is_wrong])),
            "agreed": as_list(share(own["agreed"][:, ~is_wrong])),
            "interrupted": as_list(share(own["interrupted"][:, is_wrong])),
            "found": as_list(share(own["found"][:, is_wrong])),
            "corrected": as_list(share(own["corrected"][:, is_wrong])),
            "found of the ceiling": float(own["found"][:, is_wrong].mean()) / ceilings[arm],
            "area": area([model["rows"] for model in found["models"] if model["arm"] == arm]),
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


def area(models: Sequence[Sequence[dict[str, Any]]]) -> list[float]:
    """Return the area under the curve of each seed; 0.5 for who knows nothing."""
    areas = []
    for rows in models:
        points = sorted((point[1], point[2]) for point in [*curve(rows), (0.0, 1.0, 1.0, 0.0)])
        alarms, caught = np.array([(0.0, 0.0), *points]).T
        areas.append(float(np.trapezoid(caught, alarms)))
    return areas


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
    with optional_module("matplotlib").rc_context(STYLE):
        figure = new_figure(9.0, 4.0)
        caught, soon = figure.subplots(1, 2)
        for arm in summary["rows"]:
            colour = PALETTE[COLOURS.get(arm, 4)]
            models = [model["rows"] for model in found["models"] if model["arm"] == arm]
            for place, rows in enumerate(models):
                points = np.array(curve(rows))
                label = arm if place == 0 else None
                caught.step(points[:, 1], points[:, 2], color=colour, label=label, where="post")
                enough = points[:, 2] >= LEAST_SHARE  # a median of fewer says nothing
                soon.plot(points[enough, 1], points[enough, 3], color=colour)
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
