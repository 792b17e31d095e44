"""What every system offers to training, runtime and evaluation."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID, Layout, Ticks

Logits = Mapping[str, Float[Tensor, "B T ... _V"]]
"""Scores of the next element, by predicted stream: (B, T, V), or (B, T, K, V) of K codebooks."""

State = Any
"""What a model carries between ticks: nested tuples of tensors, batch first, all zeros at first.

It is consumed by `extend`: buffers are written in place, so keep only the state that is returned.
"""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A training loss and what it is made of.

    Attributes:
        total: What is minimised. Of a text system: nats a tick (sum over targets / (B * T)) plus
            weighted terms, so that the mean over equal parts of a batch is the whole's. `Moshi`
            divides by the sum of its targets' weights, as published: its parts' mean is the whole's
            where their weights are equal.
        nats: Summed negative log likelihood of all targets, without weights and auxiliary terms.
        terms: Auxiliary terms and measurements to log, by name; scalars.
    """

    total: Float[Tensor, ""]
    nats: Float[Tensor, ""]
    terms: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)


class System(Protocol):
    """A model over a layout of streams."""

    config: Any
    layout: Layout

    def forward(self, batch: Batch) -> Logits:
        """Score the next element at every tick of whole rows (offline)."""
        ...

    def loss(self, batch: Batch) -> Loss:
        """Training loss of a batch."""
        ...

    def initial_state(self, batch_size: int) -> State:
        """State of ``batch_size`` sessions before their first tick."""
        ...

    def extend(
        self, ticks: Ticks, state: State, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Logits, State]:
        """Read some more ticks of every session (streaming); call it without gradients.

        Args:
            ticks: The next n ticks of every row.
            state: As returned by `initial_state` or the previous call.
            lengths: Ticks of each row that are real, from the left; the rest of the row is
                ignored and leaves no trace. 0 pauses a row. ``None`` means all n.

        Returns:
            Logits at the n ticks (meaningless beyond a row's length) and the new state. A system
            that writes a frame element by element scores the first one; its page says who goes on.
        """
        ...

    def flops_per_tick(self, num_ticks: int, *, training: bool = False) -> float:
        """FLOPs a tick of `forward`, averaged over one row of ``num_ticks`` (multiply-add = 2).

        Matrix products as executed, masked entries included. With ``training``, of `loss` with its
        auxiliary terms, forward and backward (three times the forward).
        """
        ...

    def state_bytes_per_tick(self, num_ticks: int) -> float:
        """State bytes of one session after ``num_ticks``, divided by ``num_ticks``."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As `torch.nn.Module.parameters`."""
        ...


def cross_entropy(logits: Float[Tensor, "*B V"], targets: Int[Tensor, "*B"]) -> Float[Tensor, ""]:
    """Summed nats of the targets, in float32; `UNSET_ID` carries no loss."""
    return F.cross_entropy(
        logits.float().flatten(0, -2), targets.flatten(), ignore_index=UNSET_ID, reduction="sum"
    )


def in_chunks(
    extend_chunk: Callable[[Mapping[str, Tensor], State, Tensor | None], tuple[Logits, State]],
    chunk_ticks: int,
    ticks: Mapping[str, Tensor],
    state: State,
    lengths: Int[Tensor, " B"] | None,
) -> tuple[Logits, State]:
    """Run `System.extend` as calls of at most ``chunk_ticks`` ticks, joining their logits."""
    num_ticks = next(iter(ticks.values())).shape[1]
    if num_ticks <= chunk_ticks:
        return extend_chunk(ticks, state, lengths)
    pieces: list[Logits] = []
    for first in range(0, num_ticks, chunk_ticks):
        chunk = {name: ids[:, first : first + chunk_ticks] for name, ids in ticks.items()}
        real = None if lengths is None else (lengths - first).clamp(0, chunk_ticks)
        logits, state = extend_chunk(chunk, state, real)
        pieces.append(logits)
    return {name: torch.cat([piece[name] for piece in pieces], 1) for name in pieces[0]}, state


def state_bytes(state: State) -> int:
    """Bytes of all tensors of a state."""
    if isinstance(state, Tensor):
        return state.nbytes
    return sum(state_bytes(part) for part in state)
