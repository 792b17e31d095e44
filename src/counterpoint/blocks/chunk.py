"""Dynamic chunking: chunks whose beginnings a model finds by itself.

For every step a router gives the probability that a chunk begins there, from this step and the one
before. A chunk is *selected*: it is the vector of its first step, so it exists as soon as it
begins. The outputs of the network that reads the chunks are smoothed and spread over the steps.

Shapes are fixed and do not depend on values, so that rows of several models can be computed at
once: chunks are put into a buffer that has room for the largest number that a row may have. A call
may continue sessions: steps count from the first step of the call, so a document that began before
has a negative first step.

Source: H-Net (arXiv:2507.07955), section 2.2, and its code (goombalab/hnet, ``modules/dc.py``).
"""

from contextlib import nullcontext
from fractions import Fraction
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

_DOUBLINGS = 5
"""Smoothing covers 2 to this power chunks: what lies further back weighs less than 2^-32."""

_FAR = 1 << 40
"""Larger than any count of chunks."""


class Chunks(NamedTuple):
    """The chunks that begin within some steps.

    Attributes:
        probability: Probability that a chunk begins at each step; 1 at the start of a document.
        begins: Whether a chunk begins at each step.
        confidence: Probability of the decision at each step.
        at: Step at which each chunk begins (the last step if a row has fewer chunks).
        number: Number of chunks that begin.
        first: First chunk of each chunk's document; negative if it began before these steps.
        read: The chunk that each step reads, counted from 1: the newest one; 0 is the chunk before.
    """

    probability: Float[Tensor, "B T"]
    begins: Bool[Tensor, "B T"]
    confidence: Float[Tensor, "B T"]
    at: Int[Tensor, "B W"]
    number: Int[Tensor, " B"]
    first: Int[Tensor, "B W"]
    read: Int[Tensor, "B T"]

    def select(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B W D"]:
        """Return the vectors of the steps at which chunks begin."""
        return x.gather(1, self.at[..., None].expand(-1, -1, x.shape[2]))

    def smooth(
        self, outputs: Float[Tensor, "B W D"], before: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B W1 D"]:
        """Return ``before``, then the smoothed outputs of the chunks, in float32."""
        weight = F.pad(self.probability.gather(1, self.at).float(), (1, 0), value=1.0)
        return smooth(torch.cat((before[:, None].float(), outputs.float()), 1), weight)

    def spread(self, smoothed: Float[Tensor, "B W1 D"]) -> Float[Tensor, "B T D"]:
        """Return what every step reads: the newest chunk, multiplied by one.

        The gradient of that factor goes to the confidence of the decision (straight-through).
        """
        read = smoothed.gather(1, self.read[..., None].expand(-1, -1, smoothed.shape[2]))
        return read * straight_through(self.confidence)[..., None]

    def newest(self, smoothed: Float[Tensor, "B W1 D"]) -> Float[Tensor, "B D"]:
        """Return the newest smoothed chunk after these steps."""
        index = self.number[:, None, None].expand(-1, 1, smoothed.shape[2])
        return smoothed.gather(1, index)[:, 0]


class Router(nn.Module):
    """Probability that a chunk begins at each step: half of one minus a cosine.

    ``p[t] = (1 - cos(query x[t-1], key x[t])) / 2``, from the steps t-1 and t only. Both maps start
    as the identity, so a chunk begins where neighbouring steps differ. As in the published code,
    the query is computed from the earlier step; in the paper it is the later one. The computation
    is in float32, so that rounding moves as few boundaries as possible.
    """

    def __init__(self, width: int) -> None:
        """Make maps of ``width`` features."""
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        for linear in (self.query, self.key):
            nn.init.eye_(linear.weight)

    def forward(
        self, x: Float[Tensor, "B T D"], before: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B T"]:
        """Return the probability that a chunk begins at each step."""
        earlier = torch.cat((before[:, None].to(x.dtype), x), 1)[:, :-1]
        query = F.normalize(in_float32(self.query, earlier), dim=-1)
        key = F.normalize(in_float32(self.key, x), dim=-1)
        return ((1 - (query * key).sum(-1)) / 2).clamp(0, 1)


def lay_chunks(
    probability: Float[Tensor, "B T"],
    first: Int[Tensor, "B T"],
    *,
    lengths: Int[Tensor, " B"] | None = None,
    begun: Int[Tensor, " B"] | None = None,
    share: float = 1.0,
) -> Chunks:
    """Decide where chunks begin: at the first step of a document, and where it is likely.

    With a ``share`` below 1 a document has at most ``max(1, floor(share * n))`` chunks in its first
    n steps, for every n. A chunk that would exceed this does not begin: its step belongs to the
    chunk before. Whole rows have room for ``max(1, floor(share * T))`` chunks, which is always
    enough if documents have 1 / share steps or more. If documents are shorter, the last ones in a
    row may find no room, and read zeros.

    Args:
        probability: Probability that a chunk begins at each step.
        first: First step of each step's document.
        lengths: Number of real steps of each row; ``None`` means all. No chunk begins at other
            steps.
        begun: Number of chunks that each session has begun; ``None`` for whole rows.
        share: Largest number of chunks for each step.
    """
    num_steps = probability.shape[1]
    step = torch.arange(num_steps, device=probability.device)
    starts = step == first
    probability = torch.where(starts, 1.0, probability)
    begins = probability >= 0.5
    if lengths is not None:
        begins = begins & (step < lengths[:, None])
    if share < 1:
        begins = _within_share(begins, starts, first, begun, share)
    room = num_steps if begun is not None else most_chunks(num_steps, share)
    begins = begins & (begins.cumsum(1) <= room)
    count = begins.cumsum(1)
    # Every chunk writes its own slot; all other steps share one slot that is cut off.
    slot = torch.where(begins, count - 1, room)
    at = first.new_full((len(first), room + 1), num_steps - 1)
    at = at.scatter(1, slot, step.expand_as(slot))[:, :room]
    newest = torch.where(begins, step, -1).cummax(1).values
    read = torch.where((newest >= 0) & (newest >= first), count, 0)
    if begun is None:
        first_chunk = (count.gather(1, first) - 1).gather(1, at)
    else:
        first_chunk = -begun[:, None].expand_as(at)
    return Chunks(
        probability=probability,
        begins=begins,
        confidence=torch.where(begins, probability, 1 - probability),
        at=at,
        number=begins.sum(1),
        first=first_chunk,
        read=read,
    )


def most_chunks(num_steps: int, share: float) -> int:
    """Return how many chunks a row of one or more steps has room for; see `lay_chunks`."""
    if share == 1:
        return num_steps
    part = Fraction(share).limit_denominator(1000)
    return max(1, num_steps * part.numerator // part.denominator)


def _within_share(
    wanted: Bool[Tensor, "B T"],
    starts: Bool[Tensor, "B T"],
    first: Int[Tensor, "B T"],
    begun: Int[Tensor, " B"] | None,
    share: float,
) -> Bool[Tensor, "B T"]:
    """Return which of the wanted chunks begin, so that documents keep to ``share``.

    Granted chunks follow ``granted[t] = min(granted[t-1] + wanted[t], allowed[t])``. Unrolled, this
    is the number of wanted chunks, plus the smallest surplus of allowed over wanted chunks up to t
    if that is negative. This form needs no loop over steps.
    """
    part = Fraction(share).limit_denominator(1000)
    step = torch.arange(wanted.shape[1], device=wanted.device)
    allowed = ((step - first + 1) * part.numerator // part.denominator).clamp(min=1)
    asked = wanted.cumsum(1)
    if begun is None:
        asked = asked - asked.gather(1, first) + 1  # without those of documents before
        before = torch.zeros_like(first[:, 0])
    else:
        asked = asked + begun[:, None]
        before = begun
    # Each document far below the one before, so that the running minimum is that of its own.
    depth = starts.cumsum(1) * _FAR
    spare = (allowed - asked - depth).cummin(1).values + depth
    granted = asked + spare.clamp(max=0)
    previous = torch.cat((before[:, None], granted), 1)[:, :-1].masked_fill(starts, 0)
    return wanted & (granted > previous)


def smooth(x: Float[Tensor, "B W D"], weight: Float[Tensor, "B W"]) -> Float[Tensor, "B W D"]:
    """Return the moving average ``z[t] = w[t] x[t] + (1 - w[t]) z[t-1]``, from zero.

    Args:
        x: Vectors to be smoothed.
        weight: Weights of 0.5 or more, as begun chunks have them: a vector 32 or more steps back
            weighs less than 2^-32 and is left out. A weight of 1 cuts off everything before.
    """
    keep = 1 - weight[..., None]
    z = weight[..., None] * x
    # Doubling: each round doubles the number of steps in z; `keep` is the weight that remains.
    for back in (1 << power for power in range(_DOUBLINGS)):
        z = z + keep * _back(z, back)
        keep = keep * _back(keep, back)
    return z


def _back(x: Float[Tensor, "B W D"], num_steps: int) -> Float[Tensor, "B W D"]:
    """Return the step that lies ``num_steps`` before each step, or zeros."""
    return F.pad(x, (0, 0, num_steps, 0))[:, : x.shape[1]]


def straight_through(x: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Return ones whose gradient goes to ``x`` unchanged."""
    return 1 + (x - x.detach())


def ratio_penalty(share: Float[Tensor, "*B"], mean: Tensor, ratio: float) -> Float[Tensor, "*B"]:
    """Return the loss that draws the mean length of chunks to a ratio N.

    It is ``N / (N - 1) * ((N - 1) F G + (1 - F) (1 - G))``. If F and G are equal, its minimum is 1,
    at F = G = 1 / N. If they differ it can be lower, so watch F.

    Args:
        share: Share of steps that begin a chunk, F.
        mean: Mean probability of the steps to begin a chunk, G.
        ratio: Number of steps that a chunk should have; more than 1.
    """
    both = (ratio - 1) * share * mean + (1 - share) * (1 - mean)
    return both * (ratio / (ratio - 1))


def ratio_loss(
    chunks: Chunks, lengths: Int[Tensor, " B"] | None, ratio: float
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Return the `ratio_penalty` of every row, and its share of steps that begin a chunk.

    Args:
        chunks: Result of `lay_chunks`.
        lengths: Number of real steps of each row, one or more; ``None`` means all.
        ratio: Number of steps that a chunk should have.
    """
    num_steps = chunks.begins.shape[1]
    probability = chunks.probability.float()
    if lengths is None:
        mean = probability.mean(1)
        share = chunks.number / num_steps
    else:
        real = torch.arange(num_steps, device=lengths.device) < lengths[:, None]
        mean = (probability * real).sum(1) / lengths
        share = chunks.number / lengths
    return ratio_penalty(share, mean, ratio), share


def in_float32(linear: nn.Linear, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D2"]:
    """Return a map's output in float32, computed in the type of its weights without autocast."""
    # A map that is stored in 8 bits has no parameter; its first buffer is of the model's dtype.
    like = next(chain(linear.parameters(), linear.buffers()))
    kind = x.device.type
    # The device of shapes without values has no autocast that could be left.
    known = torch.amp.is_autocast_available(kind)
    with torch.autocast(kind, enabled=False) if known else nullcontext():
        y: Tensor = linear(x.to(like.dtype))
    return y.float()
