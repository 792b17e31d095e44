"""What does the small duplex model do in live trials, beside agents that have no model?

The protocol is docs/results/duplex-protocol.md. The padding bias is chosen first, with the first
checkpoint, on other wordings; then every checkpoint and every policy goes through the same trials.

    python benchmarks/bench_duplex_small.py runs/seed0 runs/seed1 runs/seed2 \
        --digits DATA/digits.jsonl --sound 50 --out benchmarks/results/duplex_small.json

Digits of real people (Free Spoken Digit Dataset), flite and the recogniser may be missing: their
rows are then left out. Answers of earlier calls are kept beside `--out` and not measured again.
"""

import argparse
import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import finish

from counterpoint.data.making.order_wordings import DIGITS
from counterpoint.data.making.orders import answers, bare_digit
from counterpoint.evaluate.duplex import policies
from counterpoint.evaluate.duplex.live import Agent, ModelAgent, run_trials
from counterpoint.evaluate.duplex.recogniser import Recogniser
from counterpoint.evaluate.duplex.trials import (
    ABILITIES,
    PAUSES,
    Outcome,
    Trial,
    order_trials,
    recorded_trials,
)
from counterpoint.evaluate.duplex.turns import percentile
from counterpoint.evaluate.statistics import wilson
from counterpoint.recipes.duplex_small import HELD_OUT_FORMANT, USER_PACES, duplex_small
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.load import load
from counterpoint.runtime.sampler import Sampling
from counterpoint.speech.audio import read_audio, write_audio
from counterpoint.speech.codec2 import Codec2
from counterpoint.speech.voices import Synthesizer, Voice

BIASES = (2.5, 3.0, 3.5, 4.0, 4.5)
TIMEOUTS = (0.3, 0.5, 0.7, 1.0, 1.3, 1.65, 2.0)
SOUND_ROWS = ("turn", "interruption")
_SHARES = (0.5, 0.95)
_TUNING_TRIALS, _TUNING_SEED = 50, 100
_FIXED_ANSWER = 6  # "you said six": any would do

Row = tuple[str, list[Trial]]


class Bench:
    """Rows of trials, who is measured, and what was measured before.

    Args:
        args: Of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.codec = Codec2()
        self.speaker = Synthesizer(args.utterances)
        self.voices = duplex_small().synthesis.user_voices
        self.answers = {
            phrases: policies.speak_answer(phrases, self.speaker, Voice(), self.codec)
            for phrases in answers()
        }
        self.recogniser = Recogniser(answers(), args.threads) if args.sound else None
        self.kept_file = Path(args.out).with_suffix(".partial.json")
        self.kept: dict[str, Any] = {}
        if self.kept_file.exists():
            self.kept = json.loads(self.kept_file.read_text())

    def rows(self) -> list[Row]:
        """All trials, by the name of their row."""
        num, rate = self.args.trials, self.codec.sample_rate
        draw = partial(order_trials, num_trials=num, speaker=self.speaker, sample_rate=rate)
        rows: list[Row] = [
            (ability, list(draw(ability, voices=self.voices))) for ability in ABILITIES
        ]
        new_voice = [Voice(formant=HELD_OUT_FORMANT, pace=pace) for pace in USER_PACES]
        rows += [
            ("turn, new pairs", list(draw("turn", voices=self.voices, pairs="held_out"))),
            ("turn, new voice", list(draw("turn", voices=new_voice))),
        ]
        if shutil.which("flite"):
            other = [Voice(engine="flite", name="slt")]
            rows.append(("turn, other engine", list(draw("turn", voices=other))))
        if self.args.digits:
            rows.append(("turn, real digits", real_digits(self.args.digits, num, rate)))
        return rows

    def measured(self, key: str, make: Callable[[], Any]) -> Any:
        """What was measured under a name, now or in an earlier call."""
        if key not in self.kept:
            begin = time.perf_counter()
            self.kept[key] = make()
            partial_file = self.kept_file.with_suffix(".tmp")
            partial_file.write_text(json.dumps(self.kept))
            partial_file.replace(self.kept_file)
            print(f"{time.perf_counter() - begin:6.0f} s  {key}", flush=True)
        return self.kept[key]

    def floors(self) -> dict[str, Agent]:
        """Agents without a model, by name."""
        codec, fixed = self.codec, self.answers[answers()[_FIXED_ANSWER]]
        arms: dict[str, Agent] = {
            "oracle": policies.oracle(codec, self.answers),
            "silent": policies.silent(codec),
            "talks": policies.talking(codec, fixed),
        }
        for seconds in (*TIMEOUTS, *self.args.timeouts):
            arms[f"timeout {seconds:g}"] = policies.timeout(codec, fixed, seconds)
        for seconds in (0.7, 1.65):
            arms[f"timeout {seconds:g}, short"] = policies.timeout(
                codec, fixed, seconds, longest_s=1.7
            )
            arms[f"timeout {seconds:g}, stops"] = policies.timeout(
                codec, fixed, seconds, stops_after_s=0.3
            )
        return arms

    def model(self, checkpoint: Path, bias: float) -> Agent:
        """A checkpoint that talks, text by its likeliest ids."""

        def sampling(number: int) -> FrameSampling:
            return FrameSampling(
                text=Sampling(temperature=0.0),
                audio=Sampling(temperature=0.7, top_k=50, seed=number),
                padding_bias=bias,
            )

        return ModelAgent(talker=load(checkpoint).talker, sampling=sampling)

    def tuned(self) -> dict[str, Any]:
        """The padding bias, chosen with the first checkpoint on wordings to choose by."""
        trials = {
            ability: list(
                order_trials(
                    ability,
                    _TUNING_TRIALS,
                    self.speaker,
                    self.voices,
                    self.codec.sample_rate,
                    seed=_TUNING_SEED,
                    split="tuning",
                )
            )
            for ability in ("pause", "interruption")
        }
        shares = {
            str(bias): {
                ability: sum(
                    one.said_right
                    for one in run_trials(self.model(self.args.checkpoints[0], bias), own)
                )
                / len(own)
                for ability, own in trials.items()
            }
            for bias in BIASES
        }
        best = max(BIASES, key=lambda bias: (min(shares[str(bias)].values()), -bias))
        return {"text_right": shares, "chosen": best}

    def codec_floor(self) -> dict[str, float]:
        """Share of the answers that the recogniser hears rightly, before and behind the codec."""
        if self.recogniser is None:
            return {}
        shares = {}
        for name, coded in (("synthesised", False), ("through the codec", True)):
            right = 0
            for phrases in answers():
                spoken = policies.speak_answer(
                    phrases, self.speaker, Voice(), self.codec, coded=coded
                )
                heard = self.recogniser.heard(spoken.audio, self.codec.sample_rate)
                right += heard == phrases
            shares[name] = right / len(answers())
        return shares

    def scored(self, arm: str, agent: Agent, row: Row) -> dict[str, Any]:
        """One row of one arm."""
        name, trials = row
        outcomes = run_trials(agent, trials)
        if self.args.audio:
            folder = Path(self.args.audio)
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"{arm} {name}.wav".replace(" ", "_").replace(",", "")
            write_audio(file, outcomes[0].audio, agent.sample_rate)
        return scores(outcomes)

    def heard(self, agent: Agent, row: Row) -> dict[str, float]:
        """Share of the first trials of a row whose answer the recogniser hears rightly."""
        outcomes = run_trials(agent, row[1][: self.args.sound])
        return share([self._heard_right(one) for one in outcomes])

    def _heard_right(self, outcome: Outcome) -> bool:
        from_s = outcome.answer_from_s
        if from_s is None or self.recogniser is None:
            return False
        from_s = max(from_s, outcome.turns[-1].end_s - 0.2)
        audio = outcome.audio[0, round(from_s * self.codec.sample_rate) :]
        heard = self.recogniser.heard(audio, self.codec.sample_rate)
        return heard == outcome.trial.due.phrases


def scores(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Shares, times and failures of conversations of one row."""
    latencies = [found for one in outcomes if (found := one.latency_s) is not None]
    stops = [found for one in outcomes if (found := one.stop_s) is not None]
    result: dict[str, Any] = {
        "trials": len(outcomes),
        "passed": share([one.passed for one in outcomes]),
        "text_right": share([one.said_right for one in outcomes]),
        "silent": sum(not one.agent for one in outcomes),
        "latency_s": percentiles(latencies),
        "stop_s": percentiles(stops),
    }
    ability = outcomes[0].trial.ability
    if ability in PAUSES or ability == "turn":
        result["prompt_and_patient"] = share([one.prompt_and_patient for one in outcomes])
    if ability == "interruption":
        result["was_going_on"] = sum(one.was_going_on for one in outcomes)
    result["failures"] = [described(one) for one in outcomes if not (one.passed and one.said_right)]
    return result


def share(found: Sequence[bool]) -> dict[str, float]:
    """With its Wilson interval."""
    interval = asdict(wilson(sum(found), len(found)))
    return {name: round(value, 4) for name, value in interval.items()}


def percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """The median and the 95th; nothing of nothing."""
    if not seconds:
        return None
    return {f"p{100 * at:.0f}": round(percentile(seconds, at), 3) for at in _SHARES}


def described(outcome: Outcome) -> str:
    """One line: order, what interrupted it, what was said and when."""
    trial = outcome.trial
    second = "" if trial.second is None else f" / {trial.second.text}"
    said = " ".join(word.text for word in outcome.words)
    agent, turns = (
        " ".join(f"{start_s:.2f}-{end_s:.2f}" for start_s, end_s in segments)
        for segments in (outcome.agent, outcome.turns)
    )
    return f"{trial.order.text}{second} [{turns}] -> {said} [{agent}]"


def real_digits(manifest: str, num_trials: int, sample_rate: int) -> list[Trial]:
    """Digits that people said, as whole orders: equally many of each speaker, drawn."""
    records = [json.loads(line) for line in Path(manifest).read_text().splitlines()]
    by_speaker: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_speaker.setdefault(record["speaker"], []).append(record)
    rng = random.Random("real digits")
    speakers = sorted(by_speaker)
    chosen = [
        rng.choice(by_speaker[speakers[number % len(speakers)]]) for number in range(num_trials)
    ]
    recordings = []
    for record in chosen:
        audio = read_audio(Path(manifest).parent / record["path"], sample_rate, 1)[0]
        loudness = audio.square().mean().sqrt().clamp(min=1e-4)
        audio = (audio * 10 ** (-24 / 20) / loudness).clamp(-1, 1)
        recordings.append((bare_digit(DIGITS[record["digit"]]), audio))
    return recorded_trials(recordings)


def measured_rows(bench: Bench, arm: str, agent: Agent, rows: Sequence[Row]) -> dict[str, Any]:
    """All rows of one arm."""
    return {
        row[0]: bench.measured(f"{arm} | {row[0]}", partial(bench.scored, arm, agent, row))
        for row in rows
    }


def main() -> None:
    """Measure everything that was not measured before, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--utterances", default="~/.cache/counterpoint/utterances")
    parser.add_argument("--digits", default="", help="digits.jsonl of real recordings")
    parser.add_argument("--sound", type=int, default=0, help="trials that a recogniser hears")
    parser.add_argument("--bias", type=float, default=None, help="instead of choosing one")
    parser.add_argument("--timeouts", type=float, nargs="*", default=[])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--audio", default="", help="folder for the first conversation of each row")
    parser.add_argument("--out", default="benchmarks/results/duplex_small.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    rows = bench.rows()
    results: dict[str, Any] = {"trials": args.trials, "policies": {}, "models": {}}
    arms = bench.floors()
    for arm, agent in arms.items():
        results["policies"][arm] = measured_rows(bench, arm, agent, rows)
        for found in results["policies"][arm].values():
            found["failures"] = found["failures"][:1]
    models: dict[str, Agent] = {}
    if args.checkpoints:
        bias = args.bias
        if bias is None:
            results["padding_bias"] = bench.measured("padding bias", bench.tuned)
            bias = results["padding_bias"]["chosen"]
        models = {
            f"{path.name}, bias {bias:g}": bench.model(path, bias) for path in args.checkpoints
        }
    for name, agent in models.items():
        results["models"][name] = measured_rows(bench, name, agent, rows)
    results["sound_right"] = {
        f"{name} | {row[0]}": bench.measured(
            f"{name} | {row[0]} | sound", partial(bench.heard, agent, row)
        )
        for name, agent in {"oracle": arms["oracle"], **models}.items()
        for row in rows
        if bench.recogniser is not None and row[0] in SOUND_ROWS
    }
    results["codec_floor"] = bench.measured("codec floor", bench.codec_floor)
    finish("What does the small duplex model do in live trials?", results, args.out)


if __name__ == "__main__":
    main()
