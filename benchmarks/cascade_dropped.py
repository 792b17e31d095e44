"""How long does an answer wait for one that was dropped?

A user pauses and goes on: the answer that was prepared in the pause is dropped while the language
model writes it, and soon after another one is asked for. Measured are the first word of that one,
and what a note that is taken afterwards costs: little, if the model still has the beginning of its
prompt. Each trial has other words, so nothing is known from the trial before but the history.

    python benchmarks/cascade_dropped.py --out results.json

Needs `pip install 'counterpoint[offline]'`.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from counterpoint.evaluate.duplex.turns import percentile
from counterpoint.runtime.cascade.embedded import language_model
from counterpoint.runtime.cascade.lanes import ThreadLane
from counterpoint.runtime.cascade.ledger import SoundLedger
from counterpoint.runtime.cascade.models import Complete
from counterpoint.runtime.cascade.reply import Mouth, Voiced
from counterpoint.runtime.cascade.thinking import Answerer, NoteTaker, Scene
from counterpoint.speech.partials import ScoredWord

_HISTORY = (
    ("We want to travel by train. What should we take?", "You can take a bag, a book and a coat."),
    (
        "Which fish is the largest of all?",
        "The largest fish is the whale shark, which eats little.",
    ),
    ("What do people eat for breakfast?", "They eat bread, eggs, porridge, fruit and many others."),
    ("Tell me one fact about cats.", "Cats sleep for most of the day and hunt in the evening."),
)
_RUNS_S = 0.3  # an answer is dropped so long after its first word
_WORDS = ("red", "blue", "green", "black", "white", "brown", "grey", "pink", "gold", "tall", "old")


def scene(text: str) -> Scene:
    """Return what is known when a text was heard."""
    words = tuple(ScoredWord(word, 0.0, 0.0, 1.0) for word in text.split())
    history = [
        {"role": role, "content": said}
        for pair in _HISTORY
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]
    return Scene(words=words, history=tuple(history))


class Watched:
    """An answerer that notes when the first word of each answer comes, by what is asked."""

    def __init__(self, complete: Complete) -> None:
        self._answer = Answerer(complete)
        self._first_s: dict[str, float] = {}

    def __call__(self, asked: Scene) -> Iterator[str]:
        """See `SceneWriter`."""
        for piece in self._answer(asked):
            if piece:
                self._first_s.setdefault(asked.text, time.monotonic())
            yield piece

    def wait(self, text: str, limit_s: float = 60.0) -> float:
        """Wait for the first word of an answer, and return when it came."""
        ends_s = time.monotonic() + limit_s
        while text not in self._first_s and time.monotonic() < ends_s:
            time.sleep(0.001)
        if text not in self._first_s:
            raise TimeoutError(f"no word within {limit_s:g} s")
        return self._first_s[text]


def hum(text: str) -> Voiced:
    """Speak 10 ms for every sentence: only the language model is measured."""
    return Voiced(torch.full((160,), 0.1), ())


def trial(complete: Complete, number: int, gap_s: float, *, drops: bool) -> dict[str, float]:
    """Drop an answer, ask for another one, and then take a note."""
    watched = Watched(complete)
    lanes = ThreadLane(), ThreadLane(), ThreadLane()
    mouth = Mouth(watched, hum, SoundLedger(16_000), *lanes, "Sorry.")
    word = _WORDS[number % len(_WORDS)]
    first = f"Tell me a long story about a {word} cat number {number}."
    second = f"{first} And it is {word} all over."
    if drops:
        mouth.begin(scene(first), 1, 0.0, is_sure=False)
        watched.wait(first)
        time.sleep(_RUNS_S)
        mouth.drop()
        time.sleep(gap_s)
    began_s, cpu_s = time.monotonic(), time.process_time()
    mouth.begin(scene(second), 1, 0.0, is_sure=True)
    wait_s = watched.wait(second) - began_s
    work_s = time.process_time() - cpu_s
    mouth.drop()
    time.sleep(2.0)  # whatever still writes has ended
    cpu_s = time.process_time()
    note = NoteTaker(complete, most_tokens=1)
    list(note(scene(f"I want a {word} cat and {number} dogs")))
    note_s = time.process_time() - cpu_s
    for lane in lanes:
        lane.close(5.0)
    return {"first_word_s": wait_s, "processor_s": work_s, "note_processor_s": note_s}


def measure(model: str, trials: int) -> dict[str, Any]:
    """Return medians and largest values for each gap, and without a dropped answer."""
    complete = language_model(model)
    arms: dict[str, tuple[float, bool]] = {
        "nothing dropped": (0.0, False),
        "asked at once": (0.0, True),
        "asked 0.3 s later": (0.3, True),
    }
    trial(complete, 1000, 0.0, drops=False)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for number in range(trials):
        for place, (name, (gap_s, drops)) in enumerate(arms.items()):
            rows[name].append(trial(complete, 3 * number + place, gap_s, drops=drops))
    found: dict[str, Any] = {}
    for name, every in rows.items():
        values = {key: [row[key] for row in every] for key in every[0]}
        found[name] = {
            key: {"p50": percentile(some, 0.5), "max": max(some)} for key, some in values.items()
        }
    return {"trials": trials, "load": os.getloadavg()[0], "cores": os.cpu_count(), "arms": found}


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    text = json.dumps(measure(options.model, options.trials), indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
