"""How fast and how steady is a live conversation of the embedded engines?

A synthesised user asks questions in real time, waits for the answer, and interrupts every third one
with the next question. Measured are the first sound after the last sample of a question, the last
sound after the first sample of an interruption, where the time before the first sound goes, what
went wrong (words misheard, turns cut, silences within answers), whether the conversation falls
behind the clock, and the memory of the process. With `--cpu-time` nothing waits for a clock: every
step of an engine takes its time on the processor, as on a machine with a free core for each,
whatever else runs here.

    python benchmarks/cascade_live.py --minutes 20 --out results.json

Needs `pip install 'counterpoint[offline]'`.
"""

import argparse
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from counterpoint.evaluate.duplex.turns import percentile
from counterpoint.evaluate.word_errors import count_word_errors
from counterpoint.runtime.cascade.cascade import Cascade, CascadeRules, Engines
from counterpoint.runtime.cascade.ear import EAR_BLOCK, EAR_HZ
from counterpoint.runtime.cascade.embedded import embedded_engines, language_model, warm_up
from counterpoint.runtime.cascade.lanes import LaneFactory, ThreadLane, TimedLane
from counterpoint.runtime.cascade.live import wait
from counterpoint.runtime.cascade.reply import Voiced
from counterpoint.runtime.cascade.returned import plain
from counterpoint.runtime.cascade.thinking import ClauseTrigger, Scene
from counterpoint.speech.voices import Synthesizer, Voice
from counterpoint.streams.timeline import Event

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


STAGES = (
    ("voice", "the detector hears the last voice"),
    ("hearing", "the last recognition begins"),
    ("heard", "its words are known"),
    ("asked", "the language model is asked"),
    ("token", "its first token is there"),
    ("clause", "its first clause is there"),
    ("voiced", "the sound of that is there"),
    ("sound", "the first sound is played"),
)
"""What happens before a first sound, in order."""


_LOOKED_FOR = (  # the last before something, or the first after something and before another thing
    ("asked", "", "sound"),
    ("token", "asked", "sound"),
    ("clause", "token", "sound"),
    ("voiced", "clause", "sound"),
    ("heard", "", "asked"),
    ("hearing", "", "heard"),
)


class Mark(NamedTuple):
    """Something that happens, with what the whole process had used by then, in seconds.

    Attributes:
        name: What happens.
        at_s: When, since the conversation began.
        processor_s: Time of all threads on a processor.
        waited_s: Time for which threads that could run waited for a processor. What keeps them
            waiting are other programs, and each other.
    """

    name: str
    at_s: float
    processor_s: float
    waited_s: float


def waited_s() -> float:
    """Return for how long the threads of this process have waited for a processor (Linux)."""
    waited_ns = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # a thread may end meanwhile
            waited_ns += int(file.read_text().split()[1])
    return waited_ns / 1e9


class Stopwatch:
    """Notes when engines begin and end, in seconds since the conversation began."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self.marks: list[Mark] = []
        self.rows: list[dict[str, Mark]] = []
        self.voices_s: list[float] = []  # when the detector heard the end of each turn's voice

    def now(self, name: str) -> Mark:
        """Return a mark of this moment."""
        return Mark(name, time.monotonic() - self.began_s, time.process_time(), waited_s())

    def mark(self, name: str) -> None:
        """Note that something happens now."""
        self.marks.append(self.now(name))

    def watched(self, engines: Engines) -> Engines:
        """Return engines that are watched."""

        def recognise(audio: Tensor) -> Any:
            self.mark("hearing")
            words = engines.recognise(audio)
            self.mark("heard")
            return words

        def answer(scene: Scene) -> Iterator[str]:
            self.mark("asked")
            has_begun = False
            for piece in engines.answer(scene):
                if piece and not has_begun:
                    has_begun = True
                    self.mark("token")
                yield piece

        def speak(text: str) -> Voiced:
            self.mark("clause")
            voiced = engines.speak(text)
            self.mark("voiced")
            return voiced

        return replace(engines, recognise=recognise, answer=answer, speak=speak)

    def sounded(self, ended_s: float, sound_s: float) -> None:
        """Take the stages that led to a first sound, in seconds since the conversation began."""
        sound = self.now("sound")._replace(at_s=sound_s)
        before = [mark for mark in self.marks if mark.at_s <= sound_s]
        self.marks = self.marks[len(before) :]
        asked = [mark for mark in before if mark.name == "question"]
        if not asked:
            return
        row = {"question": asked[-1]._replace(at_s=ended_s), "sound": sound}
        for name, after, until in _LOOKED_FOR:
            from_s, to_s = row[after].at_s if after else 0.0, row[until].at_s
            found = [mark for mark in before if mark.name == name and from_s <= mark.at_s <= to_s]
            if not found:
                return  # the sound is none of an answer to this question
            row[name] = found[0] if after else found[-1]
        self.rows.append(row)

    def results(self) -> dict[str, Any]:
        """Return what the stages have taken, of all questions, the slowest ones, and each."""
        if not self.rows:
            return {"stages": {}, "slowest_tenth": {}, "stages_of_questions": []}
        stages = self.table()
        questions = self.questions()
        return {
            "stages": stages,
            "slowest_tenth": slowest(questions),
            "stages_of_questions": questions,
        }

    def table(self) -> dict[str, Any]:
        """Return, for each stage, when it comes after the question and after the stage before."""
        for row in self.rows:
            end_s = row["question"].at_s
            late_s = min((at_s - end_s for at_s in self.voices_s), key=abs)
            row["voice"] = row["question"]._replace(at_s=end_s + late_s)
        found: dict[str, Any] = {}
        last = "question"
        for name, what in STAGES:
            after_question = [row[name].at_s - row["question"].at_s for row in self.rows]
            steps = [_between(row[last], row[name]) for row in self.rows]
            found[name] = {
                "what": what,
                "after_question_s": spread(after_question),
                "after_stage_before_s": spread([step.at_s for step in steps]),
                "processor_s": spread([step.processor_s for step in steps]),
                "waited_s": spread([step.waited_s for step in steps]),
            }
            last = name
        return found

    def questions(self) -> list[dict[str, Any]]:
        """Return, for each question, its end and what every stage has taken; after `table`.

        A stage has three numbers: seconds after the stage before, of the processor, and of waiting
        for a processor.
        """
        names = ["question", *(name for name, _ in STAGES)]
        found: list[dict[str, Any]] = []
        for row in self.rows:
            steps = {new: _between(row[old], row[new]) for old, new in pairwise(names)}
            taken = {name: [round(one, 3) for one in step[1:]] for name, step in steps.items()}
            found.append({"end_s": round(row["question"].at_s, 3), **taken})
        return found


def _between(first: Mark, second: Mark) -> Mark:
    """Return what has passed from one mark to another."""
    amounts = (new - old for old, new in zip(first[1:], second[1:], strict=True))
    return Mark(second.name, *amounts)


def slowest(rows: list[dict[str, Any]], share: float = 0.1) -> dict[str, Any]:
    """Return what the stages have taken in the slowest questions: means, as in the rows."""
    names = [name for name, _ in STAGES]
    ranked = sorted(rows, key=lambda row: -sum(row[name][0] for name in names))
    kept = ranked[: max(round(share * len(rows)), 1)]
    means = {name: torch.tensor([row[name] for row in kept]).mean(0).tolist() for name in names}
    rounded = {name: [round(one, 3) for one in mean] for name, mean in means.items()}
    return {"number": len(kept), **rounded}


_SHORTEST_GAP_S = 0.1  # a word may hold a shorter silence
_LONGEST_GAP_S = 0.9  # the next question may come after a longer one


class Caller:
    """Asks questions into a conversation, and notes when it hears what."""

    def __init__(self, seed: int, voice: Voice) -> None:
        self._rng = random.Random(seed)
        speaker = Synthesizer()
        self._spoken = [(text, speaker.speak(text, voice, EAR_HZ).audio) for text in QUESTIONS]
        self._sound = torch.zeros(0)
        self._ask_s = 1.0
        self.said: list[str] = []
        self._interrupts = False
        self.ended_s: list[float] = []  # last sample of each question
        self.first_sounds: list[float] = []
        self.barged_s: float | None = None
        self.stops: list[float] = []
        self.spoken_over = set[int]()  # questions into which the agent spoke
        self.gaps: list[float] = []  # silences within answers
        self._waits = False
        self._quiet_s = 0.0
        self._last_sound_s = 0.0

    def next(self, now_s: float) -> Tensor:
        """Return the user's next block."""
        if not len(self._sound) and now_s >= self._ask_s:
            text, self._sound = self._rng.choice(self._spoken)
            self.said.append(text)
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
        if len(places) and len(self._sound) and self.barged_s is None:
            self.spoken_over.add(len(self.said))
        if len(places):
            gap_s = now_s + int(places[0]) / EAR_HZ - self._last_sound_s
            if not self._waits and _SHORTEST_GAP_S < gap_s < _LONGEST_GAP_S:
                self.gaps.append(gap_s)
            self._last_sound_s = now_s + (int(places[-1]) + 1) / EAR_HZ
            if self._waits:
                self.first_sounds.append(now_s + int(places[0]) / EAR_HZ - self.ended_s[-1])
                self._waits = False
                self._interrupts = len(self.said) % 3 == 0
                self._ask_s = now_s + 1.0 if self._interrupts else float("inf")
        elif not self._waits and now_s - self._last_sound_s > 0.4:
            if self.barged_s is not None:
                self.stops.append(max(self._last_sound_s - self.barged_s, 0.0))
                self.barged_s = None
                self._interrupts = False
            elif self._ask_s == float("inf") and not len(self._sound):
                self._ask_s = now_s + self._rng.uniform(0.5, 1.5)


class Tally:
    """What the events of a conversation amount to."""

    def __init__(self) -> None:
        self.discarded = self.thoughts = 0
        self.errors: list[str] = []
        self.heard: list[str] = []
        self.written = Counter[str]()
        self.exchanges: list[dict[str, Any]] = []
        self._turns: dict[int, Event] = {}

    def take(self, events: list[Event], watch: Stopwatch) -> None:
        """Count events, and tell the stopwatch where voices end."""
        for event in events:
            if event.kind == "error":
                self.errors.append(f"{event.start_s:.2f} {event.stream}: {event.text}")
            self.discarded += event.kind == "discarded"
            self.thoughts += event.kind == "thought" and bool(event.text)
            if event.kind == "answer":
                self._answered(event)
            if event.kind == "turn":
                self._turns[event.payload["turn"]] = event
                self.heard.append(event.text)
                watch.voices_s.append(event.end_s)

    def _answered(self, event: Event) -> None:
        """Keep an answer beside its question; a question may have ended without one."""
        written = str(event.payload["written"])
        turn = self._turns.get(event.payload["turn"])
        if turn is not None:
            self.exchanges.append(
                {
                    "question": turn.text,
                    "answer": written,
                    "cut": event.payload["cut"],
                    "is_new": written not in self.written,
                    "delay_s": round(event.start_s - turn.end_s, 3),
                }
            )
        self.written[written] += 1

    def new_delays_s(self) -> list[float]:
        """Return the delays of answers that were not given before, from the end of the turn."""
        return [one["delay_s"] for one in self.exchanges if one["is_new"]]


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
    watch = Stopwatch()
    cascade = Cascade(watch.watched(engines), rules=rules, lanes=lanes)
    caller = Caller(seed, Voice(formant=1.15))
    memory = [memory_mb()]
    tally = Tally()
    most_late_s = 0.0
    watch.began_s = began_s = time.monotonic()
    cpu_s = time.process_time()
    while cascade.now_s < 60 * minutes:
        now_s = cascade.now_s
        if not in_cpu_time:
            most_late_s = max(most_late_s, time.monotonic() - began_s - now_s)
            wait(cascade, began_s)
        num_sounds, num_questions = len(caller.first_sounds), len(caller.ended_s)
        block = caller.next(now_s)
        if len(caller.ended_s) > num_questions:
            watch.mark("question")
        caller.hears(cascade.hear(block), now_s)
        if len(caller.first_sounds) > num_sounds and not in_cpu_time:
            ended_s = caller.ended_s[-1]
            watch.sounded(ended_s, ended_s + caller.first_sounds[-1])
        if cascade.now_s // 60 >= len(memory):
            memory.append(memory_mb())
        tally.take(cascade.take_events(), watch)
    wall_s = time.monotonic() - began_s
    cascade.close()
    return {
        "minutes": minutes,
        "model": model,
        "clock": "processor" if in_cpu_time else "wall",
        "load": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "cpu_s_a_second": (time.process_time() - cpu_s) / cascade.now_s,
        "questions": len(caller.ended_s),
        "turns": len(tally.heard),
        "questions_spoken_into": len(caller.spoken_over),
        "word_errors": word_errors(_whole(caller.said, len(tally.heard)), tally.heard),
        "first_sound_s": spread(caller.first_sounds),
        "first_sound_of_new_answers_s": spread(tally.new_delays_s()),
        "stop_s": spread(caller.stops),
        "gaps_in_answers_s": spread(caller.gaps),
        **watch.results(),
        "thoughts": tally.thoughts,
        "prepared_answers_dropped": tally.discarded,
        "errors": tally.errors,
        "clock_behind_at_end_s": None if in_cpu_time else wall_s - cascade.now_s,
        "clock_behind_most_s": None if in_cpu_time else most_late_s,
        "memory_mb": memory,
        "memory_growth_mb_a_minute": growth(memory),
        "history_messages": len(cascade.history),
        "exchanges": tally.exchanges,
    }


def _whole(said: list[str], num_turns: int) -> list[str]:
    """Return the questions without one that the end of the conversation has cut."""
    return said[:-1] if len(said) == num_turns + 1 else said


def word_errors(said: list[str], heard: list[str]) -> float:
    """Return the share of the said words that must be changed to give the heard ones."""
    first, second = (list(map(plain, " ".join(texts).split())) for texts in (said, heard))
    return count_word_errors(first, second) / max(len(first), 1)


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
    rows = found.pop("stages_of_questions")
    exchanges = found.pop("exchanges")
    print(json.dumps(found, indent=1))
    print(*judged(found), sep="\n")
    if options.out is not None:
        text = json.dumps(found, indent=1).removesuffix("\n}")
        for name, kept in (("exchanges", exchanges), ("stages_of_questions", rows)):
            text += f',\n "{name}": [\n  ' + ",\n  ".join(map(json.dumps, kept)) + "\n ]"
        options.out.write_text(text + "\n}\n")


if __name__ == "__main__":
    main()
