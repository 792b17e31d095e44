"""Chunks whose beginnings a model finds itself: dynamic chunking.

A router says of every step how probably a chunk begins there, from this step and the one before. A
chunk is *selected*: it is the vector of its first step, so it exists as soon as it begins. Behind
the network that reads the chunks, their outputs are smoothed and spread over the steps again.

Shapes are fixed and no value is looked at, so that rows of several models can be computed at once:
chunks go into a buffer that has room for the most that a row may have. Chunks continue sessions:
steps count from the first one of the chunk, so a document that began before has a negative first
step.

Source: H-Net (arXiv:2507.07955), section 2.2, and its code (goombalab/hnet, ``modules/dc.py``).
"""

from fractions import Fraction
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

_DOUBLINGS = 5
"""2 to this power chunks are smoothed over: what is further back weighs less than 2^-32."""

_FAR = 1 << 40
"""More than any count of chunks."""


class Chunks(NamedTuple):
    """The chunks that begin within some steps.

    Attributes:
        probability: How probably one begins at each step; 1 where a document starts.
        begins: Whether one does.
        confidence: The probability of what was decided.
        at: Step at which each chunk begins (the last step where a row has fewer chunks).
        number: Chunks that begin.
        first: First chunk of each one's document; negative where it began before these steps.
        read: The chunk that each step reads, from 1: the newest one; 0 is what was before.
    """

    probability: Float[Tensor, "B T"]
    begins: Bool[Tensor, "B T"]
    confidence: Float[Tensor, "B T"]
    at: Int[Tensor, "B W"]
    number: Int[Tensor, " B"]
    first: Int[Tensor, "B W"]
    read: Int[Tensor, "B T"]

    def select(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B W D"]:
        """The vectors of the steps at which chunks begin."""
        return x.gather(1, self.at[..., None].expand(-1, -1, x.shape[2]))

    def smooth(
        self, outputs: Float[Tensor, "B W D"], before: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B W1 D"]:
        """Smoothed outputs of the chunks, in float32, behind the newest one before them."""
        weight = F.pad(self.probability.gather(1, self.at).float(), (1, 0), value=1.0)
        return smooth(torch.cat((before[:, None].float(), outputs.float()), 1), weight)

    def spread(self, smoothed: Float[Tensor, "B W1 D"]) -> Float[Tensor, "B T D"]:
        """What every step reads: the newest chunk, times one.

        The gradient of that one goes to the confidence of the decision (straight-through).
        """
        read = smoothed.gather(1, self.read[..., None].expand(-1, -1, smoothed.shape[2]))
        return read * straight_through(self.confidence)[..., None]

    def newest(self, smoothed: Float[Tensor, "B W1 D"]) -> Float[Tensor, "B D"]:
        """What goes on behind these steps."""
        index = self.number[:, None, None].expand(-1, 1, smoothed.shape[2])
        return smoothed.gather(1, index)[:, 0]


class Router(nn.Module):
    """How probably a chunk begins at each step: half of one minus a cosine.

    ``p[t] = (1 - cos(query x[t-1], key x[t])) / 2``, from the steps t-1 and t alone. Both maps
    start as the identity: a chunk begins where neighbours are unlike. As in the published code, the
    query is of the earlier step; the paper has it the other way round. Computed in float32, so
    that rounding moves as few boundaries as possible.
    """

    def __init__(self, width: int) -> None:
        """Maps of ``width`` features."""
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        for linear in (self.query, self.key):
            nn.init.eye_(linear.weight)

    def forward(
        self, x: Float[Tensor, "B T D"], before: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B T"]:
        """Probabilities of a chunk to begin.

        Args:
            x: Steps.
            before: The step before them.
        """
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
    """Decide where chunks begin: at the first step of a document, and where it is probable.

    With a ``share`` below 1 a document has at most ``max(1, floor(share * n))`` chunks in its first
    n steps, whatever n. A chunk that would be one more does not begin: its step belongs to the
    chunk before. Whole rows then have room for ``max(1, floor(share * T))`` chunks, which is always
    enough where documents have 1 / share steps or more; of shorter ones the last in a row may find
    no room, and read zeros.

    Args:
        probability: How probably a chunk begins at each step.
        first: First step of each step's document.
        lengths: Real steps of each row; ``None`` means all. No chunk begins at another.
        begun: Chunks that each session has begun; ``None`` for whole rows.
        share: Chunks a step that may begin.
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
    """Room that a row of so many steps has for chunks; see `lay_chunks`."""
    part = Fraction(share).limit_denominator(1000)
    return min(num_steps, max(1, num_steps * part.numerator // part.denominator))


def _within_share(
    wanted: Bool[Tensor, "B T"],
    starts: Bool[Tensor, "B T"],
    first: Int[Tensor, "B T"],
    begun: Int[Tensor, " B"] | None,
    share: float,
) -> Bool[Tensor, "B T"]:
    """The chunks that begin where a document may have so many.

    Granted chunks follow ``granted[t] = min(granted[t-1] + wanted[t], allowed[t])``. Unrolled, that
    is the sum of what was wanted, plus the least that any step so far had to spare, if that is
    negative: no loop over steps.
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
    """Exponential moving average ``z[t] = w[t] x[t] + (1 - w[t]) z[t-1]``, from zero.

    Args:
        x: What is smoothed.
        weight: Weights of 0.5 or more, as chunks have that begin: so what is 32 back or more weighs
            less than 2^-32 and is left out. A weight of 1 cuts off what is before.
    """
    keep = 1 - weight[..., None]
    z = weight[..., None] * x
    # Doubling: after each round z has summed twice as many steps, and `keep` says what is left.
    for back in (1 << power for power in range(_DOUBLINGS)):
        z = z + keep * _back(z, back)
        keep = keep * _back(keep, back)
    return z


def _back(x: Float[Tensor, "B W D"], num_steps: int) -> Float[Tensor, "B W D"]:
    """Every step replaced by the one so many steps before it, or zero."""
    return F.pad(x, (0, 0, num_steps, 0))[:, : x.shape[1]]


def straight_through(x: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Ones, of which the gradient goes to ``x`` unchanged."""
    return 1 + (x - x.detach())


def ratio_penalty(share: Float[Tensor, "*B"], mean: Tensor, ratio: float) -> Float[Tensor, "*B"]:
    """What draws the steps of a chunk towards a ratio N.

    ``N / (N - 1) * ((N - 1) F G + (1 - F) (1 - G))``. It is 1 at F = G = 1 / N, the least where F
    and G agree; it can be less where they do not, so watch F.

    Args:
        share: Steps that begin a chunk, F.
        mean: Mean probability of the steps to begin one, G.
        ratio: Steps that a chunk should have; more than 1.
    """
    both = (ratio - 1) * share * mean + (1 - share) * (1 - mean)
    return both * (ratio / (ratio - 1))


def ratio_loss(
    chunks: Chunks, lengths: Int[Tensor, " B"] | None, ratio: float
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """`ratio_penalty` of every row, and its share of steps that begin a chunk.

    Args:
        chunks: From `lay_chunks`.
        lengths: Real steps of each row, one or more; ``None`` means all.
        ratio: Steps that a chunk should have.
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
    """A map computed in the type of its weights, whatever products around it are computed in."""
    # Stored in 8 bits a map has no parameter; its first buffer is of the model's dtype.
    like = next(chain(linear.parameters(), linear.buffers()))
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = linear(x.to(like.dtype))
    return y.float()
