"""What a recogniser has heard of spoken problems, pass by pass, and when each word is told.

A pass recognises the sound up to its time. Its last words may still change ("twenty" becomes
"twenty eight"), so a rule says which of them wait for the next pass. All words of all passes are
kept in a file, so another rule, another model or passes twice as often cost no recognition again.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from counterpoint.data.tasks.spoken_maths.hearing import Heard, spoken_by
from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData
from counterpoint.runtime.heard_words import RecognisedPasses, Waiting
from counterpoint.speech.partials import PARTIALS_HZ, PartialTranscriber, ScoredWord
from counterpoint.speech.spoken_words import SpokenWord
from counterpoint.speech.voices import Synthesizer, Voice

REREAD_S = 14.0
"""Sound before the end of a pass that is recognised again; Whisper reads at least 10 s."""


class Pass(NamedTuple):
    """What is recognised of the last seconds of the sound so far.

    Attributes:
        at_s: End of the sound in seconds.
        words: The words, in order.
    """

    at_s: float
    words: tuple[ScoredWord, ...]


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


def told_words(passes: Sequence[Pass], waiting: Waiting) -> list[Told]:
    """Return the words of a problem as they are told, by the rule of waiting."""
    told = RecognisedPasses(waiting)
    return [
        Told(word.text, one.at_s, word.probability, word.end_s)
        for number, one in enumerate(passes)
        for word in told.tell(one.words, one.at_s, last=number == len(passes) - 1)
    ]


def paced(told: Sequence[Told], delay_s: float) -> list[Told]:
    """Return words at the pace at which they were said, each so many seconds late or later.

    The words of a pass are otherwise told at once.
    """
    return [word._replace(at_s=max(word.at_s, word.end_s + delay_s)) for word in told]


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


def spoken_problems(
    number: int, path: Path, every_s: float, ear: PartialTranscriber
) -> list[SpokenProblem]:
    """Return held-out problems as they are spoken and recognised; only what is missing is made.

    Args:
        number: Number of problems.
        path: File in which they are kept.
        every_s: Seconds from one pass to the next.
        ear: What recognises them.
    """
    data = SpokenMathsData()
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    engines: list[Any] = []
    for place in range(number):
        own = kept.setdefault(str(place), {})
        if own and all(str(at_s) in own["passes"] for at_s in pass_times(own["end_s"], every_s)):
            continue
        engines = engines or [Synthesizer()]
        problem = data.heard(place, held_out=True).problem
        audio, heard = spoken_by(problem, engines[0], Voice(formant=1.0), PARTIALS_HZ)
        own["times"] = [(word.text, word.start_s, word.end_s) for word in heard.words]
        own["end_s"] = heard.end_s
        passes = own.setdefault("passes", {})
        for at_s in pass_times(heard.end_s, every_s):
            if str(at_s) not in passes:
                passes[str(at_s)] = recognised(ear, audio, at_s)
        path.write_text(json.dumps(kept))
        print(f"recognised {place + 1} of {number}", flush=True)
    return [_read(data, place, kept[str(place)], every_s) for place in range(number)]


def recognised(
    ear: PartialTranscriber, audio: Tensor, at_s: float
) -> list[tuple[str, float, float]]:
    """Return text, end and probability of the last seconds' words of the sound up to a time."""
    stop = min(round(at_s * PARTIALS_HZ), len(audio))
    begin = max(stop - round(REREAD_S * PARTIALS_HZ), 0)
    begin_s = begin / PARTIALS_HZ
    return [
        (word.text, round(begin_s + word.end_s, 3), round(word.probability, 3))
        for word in ear(audio[begin:stop])
    ]


def _read(data: SpokenMathsData, place: int, own: dict[str, Any], every_s: float) -> SpokenProblem:
    heard = data.heard(place, held_out=True)
    timed = tuple(SpokenWord(text, start_s, end_s) for text, start_s, end_s in own["times"])
    passes = tuple(
        Pass(
            at_s,
            tuple(
                ScoredWord(text, word_s, word_s, probability)
                for text, word_s, probability in own["passes"][str(at_s)]
            ),
        )
        for at_s in pass_times(own["end_s"], every_s)
    )
    return SpokenProblem(heard._replace(words=timed, end_s=own["end_s"]), passes)
