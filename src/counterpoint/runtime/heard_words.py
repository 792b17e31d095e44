"""A recogniser as the ear of a model that hears words: what is told of the sound, chunk by chunk.

After every chunk the newest sound is recognised again. The last words of such a pass may still
change ("twenty" becomes "twenty eight"), so they wait for the next one. Times of words are not
exact, so the words that were told are found again in a later pass by their letters and their times.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.runtime.cascade.ear import EAR_HZ, Recognise
from counterpoint.runtime.cascade.returned import checked_words, plain
from counterpoint.speech.codec import check_channel
from counterpoint.speech.ears import HeardChunk, InOwnWords
from counterpoint.speech.partials import ScoredWord
from counterpoint.streams.seconds import border_s, exact

_AGAIN_S = 14.0  # sound before the end of a pass that it recognises; Whisper needs 10 s
_COMPARED = 4  # last words that were told, by which their place in a new pass is found


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


class RecognisedPasses:
    """Tells every word once, although each pass recognises most of them again.

    Args:
        waiting: Which words wait.
    """

    def __init__(self, waiting: Waiting | None = None) -> None:
        self._waiting = waiting or Waiting()
        self._taken: list[ScoredWord] = []
        self._seen_s = 0.0  # end of the sound of the pass before

    def tell(
        self, words: Sequence[ScoredWord], at_s: float, *, last: bool = False
    ) -> list[ScoredWord]:
        """Return the words of a pass that are told now.

        Args:
            words: The words of the newest sound, in order, with times since the beginning.
            at_s: End of the sound.
            last: Whether no pass follows, so that no word waits.
        """
        stop = len(words) if last else max(len(words) - self._waiting.last, 0)
        new = words[_after(words[:stop], self._taken) : stop]
        if not last:
            new = new[: self._sure_until(new)]
        self._taken += new
        self._seen_s = at_s
        return [word for word in new if word.probability >= self._waiting.left_out]

    def _sure_until(self, words: Sequence[ScoredWord]) -> int:
        """Return the place of the first word that waits: it is unsure, and no pass had it yet."""
        return next(
            (
                place
                for place, word in enumerate(words)
                if word.probability < self._waiting.unsure and word.end_s > self._seen_s
            ),
            len(words),
        )


def _after(words: Sequence[ScoredWord], taken: Sequence[ScoredWord]) -> int:
    """Return the place in newly recognised words that follows what was taken before."""
    if not taken:
        return 0

    def fit(place: int) -> float:
        pairs = zip(reversed(words[:place]), reversed(taken), strict=False)
        same = sum(plain(one.text) == plain(other.text) for one, other in islice(pairs, _COMPARED))
        end_s = words[place - 1].end_s if place else words[0].end_s - 1.0
        return same - abs(end_s - taken[-1].end_s)

    return max(range(len(words) + 1), key=fit) if words else 0


class ChunkedWords:
    """Words of one recording, in chunks of equal length; a `ChunkEar`.

    Args:
        recognise: Recognises words.
        chunk_s: Seconds of a chunk.
        in_own_words: Brings a recognised word into the words of the model.
        waiting: Which words wait.

    Raises:
        UserError: A chunk is no time.
    """

    sample_rate = EAR_HZ

    def __init__(
        self,
        recognise: Recognise,
        chunk_s: float,
        in_own_words: InOwnWords,
        waiting: Waiting | None = None,
    ) -> None:
        if not chunk_s > 0:
            raise UserError(f"`chunk_s` must be positive: got {chunk_s}.")
        self._recognise = recognise
        self._chunk_s = exact(chunk_s)
        self._in_own_words = in_own_words
        self._passes = RecognisedPasses(waiting)
        self._sound = torch.zeros(0)  # from `_start` on
        self._start = 0
        self._num_samples = 0
        self._num_chunks = 0

    def push(self, samples: Float[Tensor, " N"]) -> list[HeardChunk]:
        """Hear any number of samples; see `ChunkEar.push`.

        Raises:
            UserError: The samples are not valid (see `check_channel`). Then nothing was heard.
        """
        check_channel(samples)
        self._sound = torch.cat((self._sound, samples))
        self._num_samples += len(samples)
        known = []
        while self._num_samples > (stop := self._samples(self._next_s())):
            known.append(self._cut(stop, self._next_s()))
        return known

    def finish(self) -> HeardChunk:
        """Recognise the sound to its end; see `ChunkEar.finish`."""
        return self._cut(self._num_samples, self._num_samples / EAR_HZ, last=True)

    def _next_s(self) -> float:
        return border_s(self._num_chunks + 1, self._chunk_s)

    @staticmethod
    def _samples(time_s: float) -> int:
        return round(time_s * EAR_HZ)

    def _cut(self, stop: int, end_s: float, *, last: bool = False) -> HeardChunk:
        """Return the next chunk: what is told of the sound up to a sample."""
        begin = max(stop - self._samples(_AGAIN_S), self._start)
        sound = self._sound[begin - self._start : stop - self._start]
        begin_s = begin / EAR_HZ
        words = [
            word._replace(start_s=begin_s + word.start_s, end_s=begin_s + word.end_s)
            for word in (checked_words(self._recognise(sound)) if len(sound) else ())
        ]
        told = self._passes.tell(words, end_s, last=last)
        own = [known for word in told for known in self._in_own_words(word.text)]
        content = "".join(f" {word}" for word in own)
        chunk = HeardChunk(border_s(self._num_chunks, self._chunk_s), end_s, content, " ".join(own))
        self._sound = self._sound[begin - self._start :]
        self._start = begin
        self._num_chunks += 1
        return chunk


def recognised_by(
    recogniser: Callable[[], Recognise],
) -> Callable[[float, InOwnWords], ChunkedWords]:
    """Return a `WordEar` with a recogniser that is made when a model needs it."""
    return lambda chunk_s, in_own_words: ChunkedWords(recogniser(), chunk_s, in_own_words)
