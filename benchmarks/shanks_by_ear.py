"""What is left of a model's ear for errors when it hears a recogniser in place of exact words?

Held-out problems of spoken maths are spoken by a voice (Piper), and at the end of every chunk of
two seconds the sound so far is recognised (Whisper tiny.en): the cascade of SHANKS. Every model
listens to these words. As controls it hears the exact words at the times at which they are said,
and the exact words with the last one of every chunk in the next, as the recogniser's. Words that
were recognised are brought into the words of the problems (`as_problem_words`), which is a part of
what is measured. The judge of sums
that `counterpoint talk shanks` has by default hears the recognised words too. What is recognised
is kept beside the results, so that a run that was stopped goes on.

    python benchmarks/shanks_by_ear.py runs/shanks_small --problems 150 --out results.json

Needs `pip install 'counterpoint[offline]'`. Source: SHANKS (arXiv:2510.06917), section 4, where a
recogniser and a large language model listen; here the model is the small one of these problems.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from record import finish
from torch import Tensor

from counterpoint.data.tasks.spoken_maths.hearing import Chunk, Heard, chunks, spoken_by
from counterpoint.data.tasks.spoken_maths.numbers import MOST, spoken
from counterpoint.data.tasks.spoken_maths.problems import vocabulary
from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData, Words
from counterpoint.evaluate.duplex.spoken_maths import clock_of, judged, think_in_chunks
from counterpoint.evaluate.duplex.thinking import Attempt, score_interruptions
from counterpoint.evaluate.statistics import Interval
from counterpoint.evaluate.word_errors import count_word_errors
from counterpoint.runtime.cascade.returned import plain
from counterpoint.runtime.cascade.sum_judge import SumJudge
from counterpoint.runtime.cascade.thinking import Scene
from counterpoint.runtime.load import load
from counterpoint.runtime.thinker import SystemThinker
from counterpoint.speech.partials import PARTIALS_HZ, PartialTranscriber, ScoredWord
from counterpoint.speech.voices import Synthesizer, Voice
from counterpoint.streams.timeline import Event, Timeline
from counterpoint.systems.contract import System

QUESTION = "What is left of a model's ear for errors when it hears a recogniser?"
REREAD_S = 14.0
"""Sound before the end of a chunk that is recognised again; Whisper reads at least 10 s."""
SURE = 0.5
"""Score of the judge of sums from which on it interrupts; the default of the cascade."""

Hearing = tuple[str, float, float]
"""A recognised word: text, end in seconds, probability."""

_KNOWN = vocabulary()
_SIGNS = {"+": "plus", "-": "minus", "=": "is", "\N{MULTIPLICATION SIGN}": "times", "x": "times"}


def as_problem_words(text: str) -> list[str]:
    """Return a recognised word in the words that the models know; what is unlike them is left out.

    Recognisers write numbers as figures, and join words with hyphens.
    """
    found: list[str] = []
    bare = text.lower().strip(" .,;:?!$\"'")
    for part in bare.replace("-", " ").split() or ([bare] if bare in _SIGNS else []):
        if part.isdecimal() and int(part) <= MOST:
            found += spoken(int(part))
        else:
            found += get_close_matches(_SIGNS.get(part, part), _KNOWN, 1, 0.75)
    return found


def recognised(ear: PartialTranscriber, audio: Tensor, heard: Heard, chunk_s: float) -> list[Any]:
    """Return the new words at the end of every chunk: text, end in seconds, probability.

    The last word of a chunk may still change ("twenty" becomes "twenty eight"), so it waits for the
    next chunk.
    """
    found: list[list[Hearing]] = []
    taken: list[Hearing] = []
    for chunk in chunks(heard, chunk_s):
        is_last = chunk.end_s >= heard.end_s
        stop = len(audio) if is_last else round(chunk.end_s * PARTIALS_HZ)
        begin = max(stop - round(REREAD_S * PARTIALS_HZ), 0)
        words = [
            (word.text, round(begin / PARTIALS_HZ + word.end_s, 3), round(word.probability, 3))
            for word in ear(audio[begin:stop])
        ]
        stable = words if is_last else words[:-1]
        new = stable[after(stable, taken) :]
        taken += new
        found.append(new)
    return found


def after(words: Sequence[Hearing], taken: Sequence[Hearing]) -> int:
    """Return the place in words, recognised anew, that follows what was taken before.

    Times of words are not exact, so the last words that were taken are looked for, near their time.
    """
    if not taken:
        return 0

    def fit(place: int) -> float:
        pairs = zip(reversed(words[:place]), reversed(taken), strict=False)
        same = sum(plain(one[0]) == plain(other[0]) for one, other in islice(pairs, 4))
        end_s = words[place - 1][1] if place else words[0][1] - 1.0
        return same - abs(end_s - taken[-1][1])

    return max(range(len(words) + 1), key=fit) if words else 0


def spoken_problems(number: int, path: Path) -> list[tuple[Heard, list[Any]]]:
    """Return problems as they are spoken, with what is recognised of them; kept in a file."""
    data = SpokenMathsData()
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    speaker = Synthesizer()
    voice = Voice(formant=1.0)
    ear = PartialTranscriber()
    problems = []
    for place in range(number):
        problem = data.heard(place, held_out=True).problem
        if str(place) not in kept:
            audio, heard = spoken_by(problem, speaker, voice, PARTIALS_HZ)
            times = [(word.text, word.start_s, word.end_s) for word in heard.words]
            words = recognised(ear, audio, heard, data.chunk_s)
            kept[str(place)] = {"times": times, "end_s": heard.end_s, "chunks": words}
            path.write_text(json.dumps(kept))
            print(f"recognised {place + 1} of {number}", flush=True)
        own = kept[str(place)]
        heard = data.heard(place, held_out=True)
        timed = [
            word._replace(start_s=start_s, end_s=end_s)
            for word, (_, start_s, end_s) in zip(heard.words, own["times"], strict=True)
        ]
        problems.append((heard._replace(words=tuple(timed), end_s=own["end_s"]), own["chunks"]))
    return problems


def listened(
    system: System, data: SpokenMathsData, heard: Heard, words: Sequence[Sequence[str]]
) -> Attempt:
    """Let a model listen to a problem, of which it hears these words in each chunk."""
    thinker = SystemThinker(system, Words(data.marks), data.marks)
    cut = chunks(heard, data.chunk_s)
    by_start = {chunk.start_s: " ".join(own) for chunk, own in zip(cut, words, strict=True)}

    def content(chunk: Chunk) -> str:
        return by_start[chunk.start_s]

    return judged(think_in_chunks(thinker, heard, clock_of(data), content), heard)


def hearings(heard: Heard, words: Sequence[Any], chunk_s: float) -> dict[str, list[list[str]]]:
    """Return what is heard of a problem in each chunk, in three ways."""
    exact = [[*chunk.words] for chunk in chunks(heard, chunk_s)]
    late: list[list[str]] = []
    waiting: list[str] = []
    for place, own in enumerate(exact):
        every = [*waiting, *own]
        is_last = place == len(exact) - 1
        waiting = [] if is_last else every[-1:]
        late.append(every if is_last else every[:-1])
    known = [[word for text, *_ in own for word in as_problem_words(text)] for own in words]
    return {"recognised words": known, "exact words": exact, "exact words, the last late": late}


def judged_by_sums(heard: Heard, words: Sequence[Any], chunk_s: float) -> Attempt:
    """Return what the judge of sums does after each chunk; it says, and so names, nothing."""
    so_far: list[ScoredWord] = []
    cut = chunks(heard, chunk_s)
    for chunk, own in zip(cut[:-1], words, strict=False):
        so_far += [ScoredWord(text, end_s, end_s, sure) for text, end_s, sure in own]
        if SumJudge()(Scene(words=tuple(so_far))) >= SURE:
            at_s = chunk.end_s
            event = Event(start_s=at_s, end_s=at_s, stream="agent", kind="interruption")
            timeline = Timeline(events=(event,))
            return Attempt(timeline=timeline, wrong_s=heard.wrong_s, named=False, corrected=False)
    return Attempt(timeline=Timeline(), wrong_s=heard.wrong_s, named=False, corrected=False)


def numbers(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Return a score as JSON; shares as value, low and high."""
    score = score_interruptions(attempts)
    shares: Mapping[str, Interval] = {
        "false alarms": score.right,
        "wrong speakers interrupted": score.wrong,
        "found": score.found,
        "corrected": score.corrected,
    }
    found: dict[str, Any] = {
        name: [round(value, 4) for value in (one.value, one.low, one.high)]
        for name, one in shares.items()
    }
    return found | {"latency p50": score.latency(0.5), "latency p95": score.latency(0.95)}


def row(attempt: Attempt) -> list[Any]:
    """Return what came of a problem: when it was wrong and interrupted, and what was named."""
    return [attempt.wrong_s, attempt.interrupted_s, attempt.named, attempt.corrected]


def main() -> None:
    """Let all models listen; print and store the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--problems", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/shanks_by_ear.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    problems = spoken_problems(options.problems, options.out.with_suffix(".words.json"))
    said = [word for heard, _ in problems for word in heard.problem.words]
    known = [
        word
        for _, words in problems
        for own in words
        for text, *_ in own
        for word in as_problem_words(text)
    ]
    chunk_s = SpokenMathsData().chunk_s
    sums = [judged_by_sums(heard, words, chunk_s) for heard, words in problems]
    found: dict[str, Any] = {
        "problems": len(problems),
        "word_errors": count_word_errors(said, known) / len(said),
        "judge of sums": numbers(sums) | {"rows": [row(one) for one in sums]},
        "models": [],
    }
    for folder in options.folders:
        loaded = load(folder)
        if loaded.run is None or not isinstance(loaded.run.data, SpokenMathsData):
            raise SystemExit(f"{folder} must be a run on spoken maths.")
        data = loaded.run.data
        for hears in ("recognised words", "exact words", "exact words, the last late"):
            attempts = [
                listened(loaded.system, data, heard, hearings(heard, words, data.chunk_s)[hears])
                for heard, words in problems
            ]
            about = {"folder": folder.name, "seed": loaded.run.train.seed, "hears": hears}
            own = about | numbers(attempts) | {"rows": [row(one) for one in attempts]}
            found["models"].append(own)
            print({name: value for name, value in own.items() if name != "rows"}, flush=True)
    finish(QUESTION, found, str(options.out))


if __name__ == "__main__":
    main()
