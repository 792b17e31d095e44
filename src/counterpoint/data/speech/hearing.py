"""The words that a listening model writes: those of the other speaker, a moment later.

A word is written when it is over, or all words of a stretch of speech are written when the stretch
is over. In the second case the model must remember them, as it must in order to answer.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from counterpoint.data.speech.monologue import Word
from counterpoint.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Hearing:
    """When heard words are written.

    Attributes:
        after_s: Seconds after the end of a word, or of a stretch.
        stretch_gap_s: Silence in seconds that ends a stretch of speech, whose words are then
            written one after another; ``None`` writes each word separately.
        word_s: Seconds from one word of a stretch to the next.
    """

    after_s: float
    stretch_gap_s: float | None = None
    word_s: float = 0.16

    def __post_init__(self) -> None:
        for name in ("after_s", "stretch_gap_s", "word_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"`{name}` must be seconds >= 0: got {value}.")
        if self.after_s < (self.stretch_gap_s or 0.0):
            raise UserError(
                "`after_s` must be at least `stretch_gap_s`, the silence that ends a stretch: got "
                f"{self.after_s} and {self.stretch_gap_s}."
            )

    def place(self, words: Iterable[Word]) -> tuple[Word, ...]:
        """Return the words at the times at which they are written, with their heard durations.

        A stretch that ends before the stretch before it has been written waits until that is done.
        """
        placed = list[Word]()
        free_s = 0.0
        for stretch in self._stretches(words):
            start_s = stretch[-1].end_s + self.after_s
            for word in stretch:
                if self.stretch_gap_s is not None:
                    start_s = max(start_s, free_s)
                    free_s = start_s + self.word_s
                placed.append(Word(word.text, start_s, start_s + word.end_s - word.start_s))
        return tuple(placed)

    def _stretches(self, words: Iterable[Word]) -> Iterator[list[Word]]:
        stretch = list[Word]()
        for word in sorted(words, key=lambda word: word.start_s):
            gap_s = self.stretch_gap_s
            if stretch and (gap_s is None or word.start_s - stretch[-1].end_s > gap_s):
                yield stretch
                stretch = []
            stretch.append(word)
        if stretch:
            yield stretch
