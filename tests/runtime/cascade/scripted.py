"""Engines with a script, on a clock that only they move: a conversation is the same every time.

Sound carries its words: a word is a block of constant samples, whose level is the place of the word
in a list. So the recogniser hears exactly what was put into the sound, also after it was cut.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from counterpoint.data.tools import Tool
from counterpoint.runtime.cascade.cascade import Cascade, CascadeRules, Engines
from counterpoint.runtime.cascade.ear import EAR_BLOCK, EAR_HZ
from counterpoint.runtime.cascade.lanes import TimedLane
from counterpoint.runtime.cascade.reply import Voiced
from counterpoint.runtime.cascade.thinking import Scene
from counterpoint.speech.partials import ScoredWord
from counterpoint.speech.spoken_words import SpokenWord
from counterpoint.streams.timeline import Timeline

WORD_BLOCKS = 10  # 0.32 s
WORD_S = WORD_BLOCKS * EAR_BLOCK / EAR_HZ
HANG_S = 1e6
_LEVELS = 1000


@dataclass
class FakeClock:
    """A clock that stands still unless it is moved."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Stage:
    """A clock, the words that sound can carry, and what a conversation was asked."""

    clock: FakeClock = field(default_factory=FakeClock)
    vocabulary: list[str] = field(default_factory=list)
    asked: list[Scene] = field(default_factory=list)

    def sound(self, text: str) -> Tensor:
        """Return sound that carries words; "-" is silence as long as a word."""
        pieces = []
        for word in text.split():
            level = 0.0
            if word != "-":
                if word not in self.vocabulary:
                    self.vocabulary.append(word)
                level = (self.vocabulary.index(word) + 1) / _LEVELS
            pieces.append(torch.full((WORD_BLOCKS * EAR_BLOCK,), level))
        return torch.cat(pieces)

    def detect(self, block: Tensor) -> float:
        return float(block.abs().max() > 0)

    def recogniser_that_hangs(self, at: range) -> Callable[[Tensor], list[ScoredWord]]:
        """Return `recognise`, of which the calls with these numbers hang; the first is 1."""
        num_heard = 0

        def recognise(audio: Tensor) -> list[ScoredWord]:
            nonlocal num_heard
            num_heard += 1
            words = self.recognise(audio)
            self.clock.now_s += HANG_S if num_heard in at else 0.0
            return words

        return recognise

    def recognise(self, audio: Tensor) -> list[ScoredWord]:
        """Hear the words of which at least half is there; it takes 0.1 s."""
        self.clock.now_s += 0.1
        levels = (audio.reshape(-1, EAR_BLOCK).amax(1) * _LEVELS).round().int().tolist()
        words = []
        start = 0
        for place in range(1, len(levels) + 1):
            if place == len(levels) or levels[place] != levels[start]:
                if levels[start] and place - start >= WORD_BLOCKS // 2:
                    text = self.vocabulary[levels[start] - 1]
                    times = (start * EAR_BLOCK / EAR_HZ, place * EAR_BLOCK / EAR_HZ)
                    words.append(ScoredWord(text, *times, 0.9))
                start = place
        return words

    def speak(self, text: str) -> Voiced:
        """Say each word for 0.2 s; it takes 0.05 s."""
        self.clock.now_s += 0.05
        words = text.split()
        spoken = tuple(
            SpokenWord(word, 0.2 * number, 0.2 * number + 0.2) for number, word in enumerate(words)
        )
        return Voiced(torch.full((round(0.2 * EAR_HZ) * len(words),), 0.5), spoken)

    def writer(self, *pieces: str, step_s: float = 0.02) -> Callable[[Scene], Iterator[str]]:
        """Return a thinker or answerer that writes the same whatever it is asked."""

        def write(scene: Scene) -> Iterator[str]:
            self.asked.append(scene)
            for piece in pieces:
                self.clock.now_s += step_s
                yield piece

        return write

    def engines(self, answer: str = "Here is a rather long answer for you.") -> Engines:
        """Return engines without thoughts."""
        return Engines(
            detect=self.detect,
            recognise=self.recognise,
            answer=self.writer(*(f"{word} " for word in answer.split())),
            speak=self.speak,
        )

    def cascade(
        self,
        engines: Engines | None = None,
        rules: CascadeRules | None = None,
        tools: Sequence[Tool] = (),
    ) -> Cascade:
        """Return a conversation on the stage's clock."""
        return Cascade(
            engines or self.engines(),
            tools=tuple(tools),
            rules=rules,
            lanes=lambda: TimedLane(self.clock),
        )


def unasked(messages: object, most_tokens: int) -> Iterator[str]:
    """Be a language model that must not be asked."""
    raise AssertionError("the result of the call is all that must be said")


def sounding_s(sound: Tensor) -> tuple[float, float]:
    """Return the times at which sound begins and ends."""
    (places,) = sound.nonzero(as_tuple=True)
    return float(places[0]) / EAR_HZ, float(places[-1] + 1) / EAR_HZ


def kinds(timeline: Timeline, stream: str) -> list[str]:
    """Return the kinds of the events of a stream, in order, words left out."""
    return [event.kind for event in timeline.where(stream=stream) if event.kind != "word"]
