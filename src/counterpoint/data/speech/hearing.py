"""What a model that listens has to write: the words of the other speaker, a moment later.

Either each word when it is over, or all words of a stretch of speech when that is over: then they
have to be kept in mind, as an answer demands.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from counterpoint.data.speech.monologue import Word
from counterpoint.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Hearing:
    """When words that are heard are written.

    Attributes:
        after_s: Seconds behind the end of a word, or of a stretch.
        stretch_gap_s: Silence that ends a stretch of speech, whose words are then written one
            behind the other; ``None`` writes each word by itself.
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
                "`after_s` must be at least `stretch_gap_s`, the silence by which the end of a "
                f"stretch is known: got {self.after_s} and {self.stretch_gap_s}."
            )

    def place(self, words: Iterable[Word]) -> tuple[Word, ...]:
        """The words where they are to be written, each as long as it was heard.

        A stretch that is over before the one before it is written waits for its turn.
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
