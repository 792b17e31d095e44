"""How fast and how steady is a live conversation of the embedded engines?

A synthesised user asks questions in real time, waits for the answer, and interrupts every third one
with the next question. Measured are the first sound after the last sample of a question, the last
sound after the first sample of an interruption, whether the conversation falls behind the clock,
and the memory of the process. With `--cpu-time` nothing waits for a clock: every step of an engine
takes its time on the processor, as on a machine with a free core for each, whatever else runs here.

    python benchmarks/cascade_live.py --minutes 20 --out results.json

Needs `pip install 'counterpoint[offline]'`.
"""

import argparse
import json
import os
import random
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from counterpoint.evaluate.duplex.turns import percentile
from counterpoint.runtime.cascade.cascade import Cascade, CascadeRules
from counterpoint.runtime.cascade.ear import BLOCK_S, EAR_BLOCK, EAR_HZ
from counterpoint.runtime.cascade.embedded import embedded_engines, language_model, warm_up
from counterpoint.runtime.cascade.lanes import LaneFactory, ThreadLane, TimedLane
from counterpoint.runtime.cascade.thinking import ClauseTrigger
from counterpoint.speech.voices import Synthesizer, Voice

QUESTIONS = (
    "What is the capital of France?",
    "How many days are in a week?",
    "I am reading a book about the sea, and I wonder which fish is the largest of all?",
    "Can you tell me what people eat for breakfast in England?",
    "My sister has a birthday tomorrow. What could I give her?",
    "Tell me one fact about cats.",
    "We want to travel by train next week. What should we take with us?",
    "Which color do you get from blue and yellow?",
)


AIMS = (
    ("first_sound_s", "first sound after a question", 0.8),
    ("stop_s", "last sound after an interruption", 0.3),
)
"""Numbers with their aims: the largest median in seconds."""


class Caller:
    """Asks questions into a conversation, and notes when it hears what."""

    def __init__(self, seed: int, voice: Voice) -> None:
        self._rng = random.Random(seed)
        speaker = Synthesizer()
        self._spoken = [speaker.speak(text, voice, EAR_HZ).audio for text in QUESTIONS]
        self._sound = torch.zeros(0)
        self._ask_s = 1.0
        self._asked = 0
        self._interrupts = False
        self.ended_s: list[float] = []  # last sample of each question
        self.first_sounds: list[float] = []
        self.barged_s: float | None = None
        self.stops: list[float] = []
        self._waits = False
        self._quiet_s = 0.0
        self._last_sound_s = 0.0

    def next(self, now_s: float) -> Tensor:
        """Return the user's next block."""
        if not len(self._sound) and now_s >= self._ask_s:
            self._sound = self._rng.choice(self._spoken)
            self._asked += 1
            if self._interrupts:
                self.barged_s = now_s
            self._ask_s = float("inf")
        block, self._sound = self._sound[:EAR_BLOCK], self._sound[EAR_BLOCK:]
        if len(block) and not len(self._sound):
            self.ended_s.append(now_s + len(block) / EAR_HZ)
            self._waits = True
            self._ask_s = now_s + 15.0  # without an answer the user asks again
        return torch.cat([block, torch.zeros(EAR_BLOCK - len(block))])

    def hears(self, sound: Tensor, now_s: float) -> None:
        """Take the agent's sound of the block that began now."""
        (places,) = sound.nonzero(as_tuple=True)
        if len(places):
            self._last_sound_s = now_s + (int(places[-1]) + 1) / EAR_HZ
            if self._waits:
                self.first_sounds.append(now_s + int(places[0]) / EAR_HZ - self.ended_s[-1])
                self._waits = False
                self._interrupts = self._asked % 3 == 0
                self._ask_s = now_s + 1.0 if self._interrupts else float("inf")
        elif not self._waits and now_s - self._last_sound_s > 0.4:
            if self.barged_s is not None:
                self.stops.append(max(self._last_sound_s - self.barged_s, 0.0))
                self.barged_s = None
                self._interrupts = False
            elif self._ask_s == float("inf") and not len(self._sound):
                self._ask_s = now_s + self._rng.uniform(0.5, 1.5)


def memory_mb() -> float:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def hold(minutes: float, model: str, seed: int, *, in_cpu_time: bool) -> dict[str, Any]:
    """Hold a conversation and return what was measured."""
    lanes: LaneFactory = partial(TimedLane, time.process_time) if in_cpu_time else ThreadLane
    engines = embedded_engines(language_model(model))
    warm_up(engines)
    rules = CascadeRules(trigger=ClauseTrigger())
    cascade = Cascade(engines, rules=rules, lanes=lanes)
    caller = Caller(seed, Voice(formant=1.15))
    memory = [memory_mb()]
    errors = discarded = thoughts = 0
    most_late_s = 0.0
    began_s = time.monotonic()
    cpu_s = time.process_time()
    while cascade.now_s < 60 * minutes:
        now_s = cascade.now_s
        if not in_cpu_time:
            late_s = time.monotonic() - began_s - now_s
            most_late_s = max(most_late_s, late_s)
            time.sleep(max(BLOCK_S - late_s, 0.0))
        caller.hears(cascade.hear(caller.next(now_s)), now_s)
        if cascade.now_s // 60 >= len(memory):
            memory.append(memory_mb())
        for event in cascade.take_events():
            errors += event.kind == "error"
            discarded += event.kind == "discarded"
            thoughts += event.kind == "thought" and bool(event.text)
    wall_s = time.monotonic() - began_s
    return {
        "minutes": minutes,
        "model": model,
        "clock": "processor" if in_cpu_time else "wall",
        "load": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "cpu_s_a_second": (time.process_time() - cpu_s) / cascade.now_s,
        "questions": len(caller.ended_s),
        "first_sound_s": spread(caller.first_sounds),
        "stop_s": spread(caller.stops),
        "thoughts": thoughts,
        "prepared_answers_dropped": discarded,
        "errors": errors,
        "clock_behind_at_end_s": None if in_cpu_time else wall_s - cascade.now_s,
        "clock_behind_most_s": None if in_cpu_time else most_late_s,
        "memory_mb": memory,
        "memory_growth_mb_a_minute": growth(memory),
        "history_messages": len(cascade.history),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return number, median, 95th percentile and largest value."""
    if not values:
        return {"number": 0}
    return {
        "number": len(values),
        "p50": percentile(values, 0.5),
        "p95": percentile(values, 0.95),
        "max": max(values),
    }


def growth(memory: list[float]) -> float:
    """Return the median of the growth from minute to minute, after the first minute."""
    steps = [after - before for before, after in pairwise(memory[1:])]
    return percentile(steps, 0.5) if steps else 0.0


def judged(found: dict[str, Any]) -> list[str]:
    """Return a line for each aim, with what was measured beside it."""
    lines = []
    for name, what, most_s in AIMS:
        spread = found[name]
        if not spread["number"]:
            lines.append(f"{what}: nothing measured; the aim is at most {most_s} s")
            continue
        verdict = "held" if spread["p50"] <= most_s else "missed"
        lines.append(
            f"{what}: p50 {spread['p50']:.2f} s of at most {most_s} s: {verdict}; "
            f"p95 {spread['p95']:.2f} s, n = {spread['number']}"
        )
    return lines


def main() -> None:
    """Measure, and print and store the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    found = hold(options.minutes, options.model, options.seed, in_cpu_time=options.cpu_time)
    text = json.dumps(found, indent=1)
    print(text)
    print(*judged(found), sep="\n")
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
