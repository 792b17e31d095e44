"""A recogniser as the ear of a model that hears words: what is told of the sound, chunk by chunk.

At the end of every chunk, and within long ones every few seconds, the newest sound is recognised
again. The last words of such a pass may still change ("twenty" becomes "twenty eight"), so they
wait for the next one, unless a pause follows them. Times of words are not exact, so the words that
were told are found again in a later pass by their letters and their times. To a model that is told
all words again with every chunk they are told at once, and changed when they change.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from os.path import commonprefix

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.runtime.cascade.ear import EAR_HZ, Recognise
from counterpoint.runtime.cascade.returned import checked_words, plain
from counterpoint.speech.codec import check_channel
from counterpoint.speech.ears import HeardChunk, InOwnWords, WordEar
from counterpoint.speech.partials import ScoredWord
from counterpoint.streams.seconds import border_s, exact, num_complete

_SAMPLE = Fraction(1, EAR_HZ)  # seconds
_AGAIN_S = 14.0  # sound before the end of a pass that it recognises; Whisper needs 10 s
_PASS_S = 7.0  # longest time between two passes, so that each has what the one before it kept back
_PAUSE_S = 1.0  # silence after which a word does not change any more
_COMPARED = 4  # last words that were told, by which their place in a new pass is found
_SEAM_S = 1.0  # from the beginning of a pass on; words before it were recognised better before


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """Which recognised words wait for the next pass, and which are never told.

    Commands use `last` alone; the other two were measured and help little.

    Attributes:
        last: Number of last words of a pass that wait, whatever the recogniser is sure of; a word
            that is followed by a second of silence waits no longer.
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
        num_waiting = 0 if last else self._waiting.last
        still_s = at_s - _PAUSE_S
        stop = len(words)
        while stop and stop > len(words) - num_waiting and words[stop - 1].end_s > still_s:
            stop -= 1
        heard_again = [word for word in self._taken if word.end_s > at_s - _AGAIN_S]
        new = words[_after(words[:stop], heard_again) : stop]
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
        is_retold: Whether each chunk holds all words so far; see `HeardWords.is_retold`.

    Attributes:
        num_told: Number of recognised words in the chunks so far.
        num_known: How many of them the model knows, or others that are like them.

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
        *,
        is_retold: bool = False,
    ) -> None:
        if not 0 < chunk_s < math.inf:
            raise UserError(f"`chunk_s` must be positive and finite: got {chunk_s}.")
        self._recognise = recognise
        self._chunk_s = exact(chunk_s)
        self._in_own_words = in_own_words
        self._passes = RecognisedPasses(waiting)
        self._sound = torch.zeros(0)  # from `_start` on
        self._start = 0
        self._num_samples = 0
        self._num_chunks = 0
        self._pass_s = 0.0  # end of the sound of the pass before
        self._told: list[ScoredWord] = []  # in this chunk
        self._is_retold = is_retold
        self._said: list[str] = []  # told in the chunk before
        self._content = ""  # the same in the words of the model
        self.num_told = 0
        self.num_known = 0

    def push(self, samples: Float[Tensor, " N"]) -> list[HeardChunk]:
        """Hear any number of samples; see `ChunkEar.push`.

        Raises:
            UserError: The samples are not valid (see `check_channel`). Then nothing was heard.
        """
        check_channel(samples)
        self._sound = torch.cat((self._sound, samples))
        self._num_samples += len(samples)
        known = []
        while self._num_samples > self._samples(at_s := self._next_pass_s()):
            self._hear(self._samples(at_s), at_s)
            if at_s == self._border_s(self._num_chunks + 1):
                known.append(self._cut(at_s))
        return known

    def finish(self) -> HeardChunk:
        """Recognise the sound to its end; see `ChunkEar.finish`."""
        end_s = self._num_samples / EAR_HZ
        self._hear(self._num_samples, end_s, last=True)
        return self._cut(end_s)

    def _next_pass_s(self) -> float:
        return min(self._pass_s + _PASS_S, self._border_s(self._num_chunks + 1))

    def _border_s(self, number: int) -> float:
        return border_s(number, self._chunk_s)

    @staticmethod
    def _samples(time_s: float) -> int:
        return num_complete(time_s, _SAMPLE)

    def _hear(self, stop: int, at_s: float, *, last: bool = False) -> None:
        """Recognise the newest sound up to a sample, and keep what is told of it."""
        begin = max(stop - self._samples(_AGAIN_S), self._start)
        sound = self._sound[begin - self._start : stop - self._start]
        begin_s = begin / EAR_HZ
        words = [
            word._replace(start_s=begin_s + word.start_s, end_s=begin_s + word.end_s)
            for word in (checked_words(self._recognise(sound)) if len(sound) else ())
        ]
        if self._is_retold:
            kept = [word for word in self._told if begin and word.end_s <= begin_s + _SEAM_S]
            heard_again = [word for word in kept if word.end_s > begin_s]
            self._told = kept + words[_after(words, heard_again) :]
        else:
            self._told += self._passes.tell(words, at_s, last=last)
        self._sound = self._sound[begin - self._start :]
        self._start = begin
        self._pass_s = at_s

    def _cut(self, end_s: float) -> HeardChunk:
        """Return the next chunk, with the words that were told since the one before, or all."""
        own = [self._in_own_words(word.text) for word in self._told]
        content = "".join(f" {word}" for words in own for word in words)
        said = [word.text for word in self._told]
        if self._is_retold:
            self.num_told = self.num_known = 0
            same = len(commonprefix([said, self._said]))
            self._said = said
            content, self._content = "" if content == self._content else content, content
        else:
            self._told.clear()
            same = 0
        self.num_told += len(own)
        self.num_known += sum(map(bool, own))
        self._num_chunks += 1
        begin_s = self._border_s(self._num_chunks - 1)
        return HeardChunk(begin_s, end_s, content, " ".join(said[same:]))


def recognised_by(recogniser: Callable[[str], Recognise]) -> WordEar:
    """Return a `WordEar` with a recogniser that is made when a model needs it.

    Args:
        recogniser: Returns the recogniser for speech that is like an example.
    """
    return lambda how: ChunkedWords(
        recogniser(how.example),
        how.chunk_s,
        how.in_own_words,
        Waiting(last=how.num_waiting),
        is_retold=how.is_retold,
    )
