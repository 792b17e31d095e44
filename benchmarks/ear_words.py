"""What a recogniser has heard of spoken problems, pass by pass, and when each word is told.

A pass recognises the sound up to its time. Its last words may still change ("twenty" becomes
"twenty eight"), so a rule says which of them wait for the next pass. All words of all passes are
kept in a file, so another rule, another model or passes twice as often cost no recognition again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from counterpoint.data.tasks.spoken_maths.hearing import Heard, spoken_by
from counterpoint.data.tasks.spoken_maths.numbers import MOST, spoken
from counterpoint.data.tasks.spoken_maths.problems import vocabulary
from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData
from counterpoint.runtime.cascade.returned import plain
from counterpoint.speech.partials import PARTIALS_HZ, PartialTranscriber
from counterpoint.speech.spoken_words import SpokenWord
from counterpoint.speech.voices import Synthesizer, Voice

REREAD_S = 14.0
"""Sound before the end of a pass that is recognised again; Whisper reads at least 10 s."""

_KNOWN = vocabulary()
_SIGNS = {"+": "plus", "-": "minus", "=": "is", "\N{MULTIPLICATION SIGN}": "times", "x": "times"}


class Hearing(NamedTuple):
    """A recognised word.

    Attributes:
        text: The word.
        end_s: Its end in seconds.
        probability: How sure the recogniser is of it.
    """

    text: str
    end_s: float
    probability: float


class Pass(NamedTuple):
    """What is recognised of the last seconds of the sound so far.

    Attributes:
        at_s: End of the sound in seconds.
        words: The words, in order.
    """

    at_s: float
    words: tuple[Hearing, ...]


class Told(NamedTuple):
    """A recognised word that is told to a model.

    Attributes:
        text: The word.
        at_s: Time at which it is told, in seconds: that of the pass, or later.
        probability: How sure the recogniser is of it.
        end_s: Its end by the recogniser, in seconds.
    """

    text: str
    at_s: float
    probability: float
    end_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """Which recognised words wait for the next pass, and which are never told.

    Attributes:
        last: Number of last words of a pass that wait, whatever the recogniser is sure of.
        unsure: Probability below which a word waits for the next pass, with all words after it; in
            the next pass it is told as it is recognised then.
        left_out: Probability below which a word is left out when it would be told.
    """

    last: int = 1
    unsure: float = 0.0
    left_out: float = 0.0


def told_words(passes: Sequence[Pass], waiting: Waiting) -> list[Told]:
    """Return the words of a problem as they are told, by the rule of waiting."""
    found: list[Told] = []
    taken: list[Hearing] = []
    seen_s = 0.0  # end of the sound of the pass before
    for number, one in enumerate(passes):
        is_last = number == len(passes) - 1
        stop = len(one.words) if is_last else max(len(one.words) - waiting.last, 0)
        stable = one.words[:stop]
        new = stable[after(stable, taken) :]
        if not is_last:
            new = new[: _sure_until(new, waiting.unsure, seen_s)]
        taken += new
        found += [
            Told(word.text, one.at_s, word.probability, word.end_s)
            for word in new
            if word.probability >= waiting.left_out
        ]
        seen_s = one.at_s
    return found


def paced(told: Sequence[Told], delay_s: float) -> list[Told]:
    """Return words at the pace at which they were said, each so many seconds late or later.

    The words of a pass are otherwise told at once.
    """
    return [word._replace(at_s=max(word.at_s, word.end_s + delay_s)) for word in told]


def _sure_until(words: Sequence[Hearing], unsure: float, seen_s: float) -> int:
    """Return the place of the first word that waits: it is unsure, and no pass had it before."""
    return next(
        (
            place
            for place, word in enumerate(words)
            if word.probability < unsure and word.end_s > seen_s
        ),
        len(words),
    )


def after(words: Sequence[Hearing], taken: Sequence[Hearing]) -> int:
    """Return the place in words, recognised anew, that follows what was taken before.

    Times of words are not exact, so the last words that were taken are looked for, near their time.
    """
    if not taken:
        return 0

    def fit(place: int) -> float:
        pairs = zip(reversed(words[:place]), reversed(taken), strict=False)
        same = sum(plain(one.text) == plain(other.text) for one, other in islice(pairs, 4))
        end_s = words[place - 1].end_s if place else words[0].end_s - 1.0
        return same - abs(end_s - taken[-1].end_s)

    return max(range(len(words) + 1), key=fit) if words else 0


def pass_times(end_s: float, every_s: float) -> list[float]:
    """Return the times at which a speech is recognised; the last is its end."""
    times = []
    at_s = every_s
    while at_s < end_s - 1e-9:
        times.append(round(at_s, 6))
        at_s += every_s
    return [*times, end_s]


class SpokenProblem(NamedTuple):
    """A problem as a voice says it.

    Attributes:
        heard: The problem with the times of the exact words.
        passes: What is recognised of it.
    """

    heard: Heard
    passes: tuple[Pass, ...]


def spoken_problems(number: int, path: Path, every_s: float) -> list[SpokenProblem]:
    """Return held-out problems as they are spoken and recognised; only what is missing is made.

    Args:
        number: Number of problems.
        path: File in which they are kept.
        every_s: Seconds from one pass to the next.
    """
    data = SpokenMathsData()
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    engines: list[Any] = []
    for place in range(number):
        own = kept.setdefault(str(place), {})
        if own and all(str(at_s) in own["passes"] for at_s in pass_times(own["end_s"], every_s)):
            continue
        engines = engines or [Synthesizer(), PartialTranscriber()]
        problem = data.heard(place, held_out=True).problem
        audio, heard = spoken_by(problem, engines[0], Voice(formant=1.0), PARTIALS_HZ)
        own["times"] = [(word.text, word.start_s, word.end_s) for word in heard.words]
        own["end_s"] = heard.end_s
        passes = own.setdefault("passes", {})
        for at_s in pass_times(heard.end_s, every_s):
            if str(at_s) not in passes:
                passes[str(at_s)] = recognised(engines[1], audio, at_s)
        path.write_text(json.dumps(kept))
        print(f"recognised {place + 1} of {number}", flush=True)
    return [_read(data, place, kept[str(place)], every_s) for place in range(number)]


def recognised(ear: PartialTranscriber, audio: Tensor, at_s: float) -> list[Hearing]:
    """Return the words of the last seconds of the sound up to a time."""
    stop = min(round(at_s * PARTIALS_HZ), len(audio))
    begin = max(stop - round(REREAD_S * PARTIALS_HZ), 0)
    begin_s = begin / PARTIALS_HZ
    return [
        Hearing(word.text, round(begin_s + word.end_s, 3), round(word.probability, 3))
        for word in ear(audio[begin:stop])
    ]


def _read(data: SpokenMathsData, place: int, own: dict[str, Any], every_s: float) -> SpokenProblem:
    heard = data.heard(place, held_out=True)
    timed = tuple(SpokenWord(text, start_s, end_s) for text, start_s, end_s in own["times"])
    passes = tuple(
        Pass(at_s, tuple(Hearing(*word) for word in own["passes"][str(at_s)]))
        for at_s in pass_times(own["end_s"], every_s)
    )
    return SpokenProblem(heard._replace(words=timed, end_s=own["end_s"]), passes)


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
