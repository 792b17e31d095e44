"""Does a speaker stop when it is interrupted, and can its words be understood?

    python benchmarks/bench_interruptions.py runs/lslm_small --sounds FOLDER --out RESULT.json

The published protocol (LSLM, arXiv:2408.02622, section 5.3): 500 utterances with an interruption at
a random time and 500 without one, in clean and in noisy listening; a stop within 1 s is a hit. The
threshold of the model and of each detector is chosen on trials of the split "tuning", for all kinds
together. Word errors are those of Whisper tiny.en on utterances without interruption.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from record import finish
from torch import Tensor

from counterpoint.data.making.heard_scene import HeardConfig
from counterpoint.data.making.interrupted import (
    InterruptedSpeech,
    Items,
    PreparedUtterances,
)
from counterpoint.data.making.sounds import RATE
from counterpoint.data.source import Preparation
from counterpoint.errors import UserError
from counterpoint.evaluate.duplex.detectors import (
    always_stop,
    energy_gate,
    never_stop,
    voice_detector,
)
from counterpoint.evaluate.duplex.interruptions import (
    StopResult,
    StopScores,
    StopTrial,
    best_threshold,
    judge_stops,
    operating_curve,
    stops_at,
)
from counterpoint.evaluate.duplex.speaking import Spoke, ToSpeak, TrialSpeaker, speak_and_listen
from counterpoint.evaluate.statistics import bootstrap_ratio
from counterpoint.evaluate.word_errors import count_word_errors, plain_words
from counterpoint.runtime.load import load
from counterpoint.speech.audio import resample
from counterpoint.speech.augment import echo
from counterpoint.speech.transcriber import Transcriber, installed_judge

LONGEST_S = 5.0
ROOM_S = 1.2  # an interruption leaves the published second, and a frame or two
AT_A_TIME = 100
PUBLISHED = ("clean", "noisy")  # the other conditions have a fifth of the trials
PROBABILITIES = tuple(float(f"{1 / (1 + np.exp(-x)):.4g}") for x in np.linspace(-9, 9, 73))
LEVELS_DB = tuple(float(x) for x in range(-70, -5))
PLAIN = HeardConfig(noise=0, interruption=0, backchannel=0, echo=0)
CONDITIONS = {
    "clean": PLAIN,
    "noisy": replace(PLAIN, noise=1),
    "backchannel": replace(PLAIN, backchannel=1),
    "echo": replace(PLAIN, echo=1),
    "all": replace(PLAIN, noise=0.5, backchannel=0.5, echo=0.5),
}


def wake_word(heard: Tensor) -> StopScores:
    """Scores of the outside peer, a detector of the word "alexa" of `pymicro-wakeword`.

    They are the means of its newest probabilities, as the package computes them, at the ends of
    the 10 ms in which they become known.
    """
    package: Any = import_module("pymicro_wakeword")
    model = package.MicroWakeWord.from_builtin(package.Model.ALEXA)
    features = package.MicroWakeWordFeatures()
    levels = (heard.clamp(-1, 1) * (2**15 - 1)).to(torch.int16).numpy()
    times = [0.0]
    scores = [0.0]
    size = RATE // 100
    for first in range(0, len(levels) - size + 1, size):
        for frame in features.process_streaming(levels[first : first + size].tobytes()):
            times.append((first + size) / RATE)
            scores.append(float(model.process_streaming_prob(frame) or 0.0))
    model.close()
    return StopScores(torch.tensor(times), torch.tensor(scores))


class Case(NamedTuple):
    """One trial: the row that a model speaks, and the trial if it speaks as planned."""

    row: ToSpeak
    trial: StopTrial
    text: str
    planned: Tensor
    own: Tensor


def cases(
    prepared: PreparedUtterances, items: Items, numbers: range, heard: HeardConfig
) -> list[Case]:
    """Trials, a function of their numbers."""
    found = []
    for number in numbers:
        item = items.utterance(number)
        seconds = prepared.seconds(item)
        scene = items.scene(number, seconds - ROOM_S + heard.stop_after_s, heard)
        row = ToSpeak(
            prompt=prepared.prompt(item.text),
            heard=scene.heard(round(LONGEST_S * prepared.mels.sample_rate)),
            echo_gain=scene.echo_gain,
            echo_delay_s=scene.echo_delay_s,
            seed=number,
        )
        onset = None if scene.interruption is None else scene.interruption.start_s
        found.append(Case(row, StopTrial(onset, seconds), item.text, item.codes, item.audio))
    return found


def both(
    prepared: PreparedUtterances, items: Items, first: int, count: int, heard: HeardConfig
) -> list[Case]:
    """As many trials with an interruption as without one."""
    numbers = range(first, first + count)
    others = range(first + count, first + 2 * count)
    interrupted = replace(heard, interruption=1.0)
    return cases(prepared, items, numbers, interrupted) + cases(prepared, items, others, heard)


class Measured(NamedTuple):
    """What a speaker did in some trials."""

    trials: list[StopTrial]
    scores: list[StopScores]
    drawn_s: list[float | None]


def by_model(speaker: TrialSpeaker, some: Sequence[Case]) -> tuple[Measured, list[Spoke]]:
    """Let the model speak all trials."""
    spoke = list[Spoke]()
    for first in range(0, len(some), AT_A_TIME):
        rows = [case.row for case in some[first : first + AT_A_TIME]]
        spoke += speak_and_listen(speaker, rows, LONGEST_S)
    frame_s = 1 / speaker.codec.frame_rate_hz
    trials = [
        case.trial._replace(duration_s=len(own.codes) * frame_s)
        for case, own in zip(some, spoke, strict=True)
    ]
    return Measured(trials, [own.stops for own in spoke], [own.drawn_s for own in spoke]), spoke


def by_detector(
    detect: Callable[[Tensor], StopScores], some: Sequence[Case], own_rate: int
) -> Measured:
    """Let a detector hear all trials; the speech has its planned length."""
    found = []
    for case in some:
        samples = round(case.trial.duration_s * RATE)
        heard = case.row.heard[:samples]
        if case.row.echo_gain:
            own = resample(case.own[None], own_rate, RATE)[0]
            own = F.pad(own, (0, samples - len(own)))[:samples]
            heard = heard + echo(own, case.row.echo_gain, round(case.row.echo_delay_s * RATE))
        found.append(detect(heard))
    return Measured([case.trial for case in some], found, [])


def number_of(condition: str, count: int) -> int:
    """Number of trials of each half of a condition."""
    return count if condition in PUBLISHED else max(count // 5, 1)


def thinned(some: Sequence[Case], most: int) -> list[Case]:
    """At most so many trials of each half, for detectors that take long."""
    half = len(some) // 2
    return [*some[:half][:most], *some[half:][:most]]


def at_threshold(
    measured: dict[str, Measured], tuned: Measured, thresholds: Sequence[float]
) -> dict[str, Any]:
    """Results of every condition at the threshold that is best on the tuning trials."""
    threshold = best_threshold(tuned.trials, tuned.scores, thresholds)
    found: dict[str, Any] = {"threshold": threshold}
    for name, own in measured.items():
        stops = stops_at(own.trials, own.scores, threshold)
        found[name] = as_json(judge_stops(own.trials, stops))
    return found


def as_json(result: StopResult) -> dict[str, Any]:
    """Numbers with four digits."""
    return json.loads(json.dumps(asdict(result)), parse_float=lambda x: float(f"{float(x):.4g}"))


def curve(measured: Measured, thresholds: Sequence[float]) -> list[dict[str, float]]:
    """Operating points."""
    points = operating_curve(measured.trials, measured.scores, thresholds)
    return [
        {
            "threshold": threshold,
            "recall": round(one.recall.value, 4),
            "false_stops_a_minute": round(one.false_stops_a_minute, 3),
            "delay_p50_s": round(one.delay_p50_s, 3),
            "f1": round(one.f1.value, 4),
        }
        for threshold, one in points.items()
    ]


def detectors() -> dict[str, tuple[Callable[[Tensor], StopScores], Sequence[float]]]:
    """Controls that are installed, each with the thresholds that are tried."""
    found: dict[str, tuple[Callable[[Tensor], StopScores], Sequence[float]]] = {
        "always stop": (always_stop, (0.5,)),
        "never stop": (never_stop, (0.5,)),
        "energy gate": (energy_gate, LEVELS_DB),
    }
    for name, detect in (("Silero VAD", voice_detector), ("micro wake word", wake_word)):
        try:
            detect(torch.zeros(RATE))
        except (UserError, ImportError) as missing:
            print(f"{name} is left out: {missing}")
            continue
        found[name] = (detect, PROBABILITIES)
    return found


def word_errors(
    prepared: PreparedUtterances, sets: dict[str, list[tuple[str, Tensor]]], judge: str
) -> Any:
    """Word error rates of codes, by name, by a model of Whisper."""
    transcriber = Transcriber(judge, num_threads=1, language="en")
    rate = prepared.codec.sample_rate
    found = {}
    for name, some in sets.items():
        wrong, words, examples = [], [], []
        for text, codes in some:
            said = plain_words(text)
            heard = list[str]()
            if len(codes):
                sound = prepared.codec.decode(codes[None])[0]
                heard = plain_words(" ".join(w.text for w in transcriber.words(sound, rate)))
            wrong.append(count_word_errors(said, heard))
            words.append(len(said))
            examples.append([text, " ".join(heard)])
        share = bootstrap_ratio(np.array(wrong, float), np.array(words, float))
        found[name] = {**asdict(share), "utterances": len(some), "examples": examples[:10]}
        print(
            f"word errors, {name}: {share.value:.3f} [{share.low:.3f}, {share.high:.3f}]",
            flush=True,
        )
    return found


def words_of(
    prepared: PreparedUtterances,
    held_out: dict[str, list[Case]],
    spoke: dict[str, list[Spoke]],
    count: int,
    judge: str,
) -> Any:
    """Word errors of copied codes, and of what the model says in clean and noisy listening."""
    quiet = [n for n, case in enumerate(held_out["clean"]) if case.trial.onset_s is None]
    chosen = random.Random(0).sample(quiet, min(count, len(quiet)))
    sets = {
        "copied codes": [(held_out["clean"][n].text, held_out["clean"][n].planned) for n in chosen]
    }
    for name in PUBLISHED:
        sets[name] = [(held_out[name][n].text, spoke[name][n].codes) for n in chosen]
    return word_errors(prepared, sets, judge)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Hold all trials."""
    loaded = load(options.run)
    data = loaded.trained_by.data
    assert isinstance(data, InterruptedSpeech)
    data = replace(data, sounds=replace(data.sounds, folder=options.sounds))
    system = loaded.system.eval()
    prepared = data.prepare(system, Preparation(held_out_only=True))
    ends = prepared.ends
    speaker = TrialSpeaker(system, prepared.codec, prepared.mels, ends.end, ends.interrupted)
    rate = prepared.codec.sample_rate
    tuned_cases = [
        case
        for number, name in enumerate(("clean", "noisy", "all"))
        for case in both(
            prepared,
            prepared.items("tuning"),
            1000 * number,
            max(options.count // 8, 1),
            CONDITIONS[name],
        )
    ]
    held_out = {
        name: both(
            prepared,
            prepared.items("held_out"),
            10_000 * number,
            number_of(name, options.count),
            heard,
        )
        for number, (name, heard) in enumerate(CONDITIONS.items())
    }
    tuned, _ = by_model(speaker, tuned_cases)
    spoke = {name: by_model(speaker, some) for name, some in held_out.items()}
    measured = {name: own for name, (own, _) in spoke.items()}
    results: dict[str, Any] = {
        "model": at_threshold(measured, tuned, PROBABILITIES),
        "model, sampled": {
            name: as_json(judge_stops(own.trials, own.drawn_s)) for name, own in measured.items()
        },
    }
    show(results)
    for name, (detect, thresholds) in (detectors() if options.detected else {}).items():
        of_held_out = {
            key: by_detector(detect, thinned(some, options.detected), rate)
            for key, some in held_out.items()
        }
        of_tuning = by_detector(detect, tuned_cases, rate)
        results[name] = at_threshold(of_held_out, of_tuning, thresholds)
        show({name: results[name]})
    found: dict[str, Any] = {
        "results": results,
        "curve": {name: curve(own, PROBABILITIES) for name, own in measured.items()},
    }
    if options.words:
        codes = {name: said for name, (_, said) in spoke.items()}
        found["judge"] = options.judge
        found["word_errors"] = words_of(prepared, held_out, codes, options.words, options.judge)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sounds", default="", help="folder of recordings")
    parser.add_argument("--count", type=int, default=500, help="trials of each half")
    parser.add_argument("--detected", type=int, default=500, help="of these, for detectors")
    parser.add_argument("--words", type=int, default=100, help="utterances that are transcribed")
    parser.add_argument("--judge", default=installed_judge(), help="model of Whisper")
    parser.add_argument("--out")
    options = parser.parse_args()
    begin = time.perf_counter()
    found = measure(options)
    found["counts"] = {name: getattr(options, name) for name in ("count", "detected", "words")}
    found["seconds"] = round(time.perf_counter() - begin)
    finish("Does the speaker stop when it is interrupted?", found, options.out)


def show(results: dict[str, Any]) -> None:
    """A line for each speaker and condition."""
    for speaker, conditions in results.items():
        for name, one in conditions.items():
            if name == "threshold":
                print(f"{speaker}: threshold {one}")
                continue
            print(
                f"{speaker:16} {name:12} P {one['precision']['value']:.3f} "
                f"R {one['recall']['value']:.3f} F1 {one['f1']['value']:.3f} "
                f"delay {one['delay_p50_s']:.2f}/{one['delay_p95_s']:.2f} "
                f"false/min {one['false_stops_a_minute']:.2f} penalty {one['penalty_s']:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
