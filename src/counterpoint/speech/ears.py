"""What a model hears of a recording, chunk by chunk: sound as vectors, or recognised words."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


class HeardChunk(NamedTuple):
    """A chunk of a recording, as a model hears it.

    Attributes:
        start_s: Time at which it begins.
        end_s: Time at which it is complete.
        content: Vectors of its frames, or its words as one text; all words so far if they are
            retold (`HeardWords.is_retold`).
        text: What was newly recognised, if anything was; the content may have other words.
    """

    start_s: float
    end_s: float
    content: Float[Tensor, "T F"] | str
    text: str = ""


@runtime_checkable
class ChunkEar(Protocol):
    """Hears one recording, which comes in pieces of any length."""

    @property
    def sample_rate(self) -> int:
        """Samples a second."""

    def push(self, samples: Float[Tensor, " N"]) -> list[HeardChunk]:
        """Hear any number of samples, and return the chunks that are now known.

        A chunk is given out when a sample after it has come: only then is it known not to be the
        last, which ends with the recording and may be shorter.
        """

    def finish(self) -> HeardChunk:
        """Return the last chunk: the recording is over."""


InOwnWords = Callable[[str], Sequence[str]]
"""Returns a recognised word in words that a model knows; none if it is like none of them."""


class HeardWords(NamedTuple):
    """How a model that hears words is told them.

    Attributes:
        chunk_s: Seconds of a chunk.
        in_own_words: Brings a recognised word into the words of the model.
        num_waiting: Number of last words of a chunk that wait for the next one, because they may
            still change; none of words that are retold.
        example: Text that is like what will be said; a recogniser expects its words.
        is_retold: Whether each chunk holds all words so far, as they are recognised by then, unless
            it changes nothing.
    """

    chunk_s: float
    in_own_words: InOwnWords
    num_waiting: int
    example: str = ""
    is_retold: bool = False


WordEar = Callable[[HeardWords], ChunkEar]
"""Returns an ear that recognises words."""
