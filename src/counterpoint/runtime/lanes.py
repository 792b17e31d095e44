"""Models of one shape that read and write together, each as a lane.

The time of a tick of a small model depends on the number of calls, not on arithmetic. The weights
of all lanes are therefore stored in one tensor a parameter, and `torch.vmap` runs every operation
for all lanes and rows in one call; on a GPU a tick is one CUDA graph. All lanes get the same
prompts, and each writes what it would write in sessions of its own, up to rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems.contract import State, System, map_state, state_tensors
from counterpoint.tracing import tracing

_EAGER_TICKS = 3
"""Number of ticks before a CUDA graph is made, during which libraries prepare themselves."""

_CHECK_EVERY = 8
"""Number of ticks after which is looked whether all rows have ended; looking waits for the GPU."""


class Lanes:
    """Models that write one discrete stream, an id each tick, and hear nothing.

    Args:
        systems: Models of one config, on one device, in evaluation mode.

    Attributes:
        num_lanes: Number of models.
        layout: Streams of each model.
        device: Their device.

    Raises:
        UserError: The models differ in shape, or have other streams.
    """

    def __init__(self, systems: Sequence[System]) -> None:
        first = systems[0]
        streams = first.layout.streams
        if len(streams) != 1 or not streams[0].is_discrete or streams[0].has_codebooks:
            raise UserError(
                "Lanes must write one stream of ids and hear none: the system has "
                f"{', '.join(stream.name for stream in streams)}. Let each model write by itself."
            )
        if any(system.config != first.config for system in systems):
            raise UserError("Lanes must have one config: build them alike.")
        self._system = first
        self.layout = first.layout
        self.device = first.device
        self._part = streams[0].name
        self.num_lanes = len(systems)
        self._forward = _Forward(first)
        self._tick = _Tick(first, self._part)
        self._buffers = {f"system.{name}": value for name, value in first.named_buffers()}
        lanes = [dict(system.named_parameters()) for system in systems]
        self._weights = {
            f"system.{name}": torch.stack([lane[name].detach() for lane in lanes])
            for name in lanes[0]
        }

    @torch.no_grad()
    def scores(self, batch: Batch) -> Float[Tensor, "S B T V"]:
        """Return what every lane expects at each tick of the same rows; see `System.forward`."""

        def lane(weights: dict[str, Tensor]) -> Tensor:
            found: Tensor = functional_call(
                self._forward, (weights, self._buffers), (batch, self._part)
            )
            return found

        with _mapping():
            scores: Tensor = torch.vmap(lane)(self._weights)
        return scores

    @torch.no_grad()
    def write(
        self,
        prompts: Sequence[Sequence[int]],
        most: Sequence[int],
        end_id: int,
        *,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[list[list[int]]]:
        """Let every lane continue the same prompts.

        Args:
            prompts: Ids of each row, at least one.
            most: Largest number of ids that each row writes, at least one.
            end_id: Id after which a row ends.
            temperature: Divisor of the scores; 0 always takes the likeliest id.
            seed: Seed of what is sampled.

        Returns:
            For each lane and row the ids that were written, with the end.
        """
        device = self.device
        lengths = np.array([len(prompt) for prompt in prompts])
        last = int((lengths + np.array(most)).max())
        table = np.full((len(prompts), last), UNSET_ID, np.int64)
        for row, prompt in enumerate(prompts):
            table[row, : len(prompt)] = prompt
        given = torch.from_numpy(table).to(device)
        noise = torch.Generator(device).manual_seed(seed) if temperature else None
        shape = (self.num_lanes, len(prompts))
        ids = given[:, 0].expand(shape)
        ended = torch.zeros(shape, dtype=torch.bool, device=device)
        written = torch.full((last, *shape), UNSET_ID, dtype=torch.int32, device=device)
        read = self.start(len(prompts))
        for tick in range(1, last):
            chosen = _chosen(read(ids), temperature, noise)
            ids = torch.where(given[:, tick] != UNSET_ID, given[:, tick], chosen)
            written[tick] = ids
            ended |= (given[:, tick] == UNSET_ID) & (ids == end_id)
            if tick % _CHECK_EVERY == 0 and bool(ended.all()):
                break
        table = written.cpu().numpy()
        return [
            [
                _until(table[length : length + count, lane, row], end_id)
                for row, (length, count) in enumerate(zip(lengths, most, strict=True))
            ]
            for lane in range(self.num_lanes)
        ]

    def start(self, num_rows: int) -> "LaneReader":
        """Return what reads ids in rows of every lane, from the first tick on."""
        state = map_state(
            lambda own: own.expand(self.num_lanes, *own.shape).clone(),
            self._system.initial_state(num_rows),
        )
        ids = torch.zeros(self.num_lanes, num_rows, dtype=torch.long, device=self.device)
        return LaneReader(self.read, ids, state)

    def read(self, ids: Int[Tensor, "S B"], state: State) -> tuple[Float[Tensor, "S B V"], State]:
        """Read an id in every row of every lane; return the scores of the next, and the state."""

        def lane(weights: dict[str, Tensor], ids: Tensor, state: State) -> tuple[Tensor, State]:
            both: tuple[Tensor, State] = functional_call(
                self._tick, (weights, self._buffers), (ids[:, None], state)
            )
            return both

        with _mapping():
            both: tuple[Tensor, State] = torch.vmap(lane)(self._weights, ids, state)
        return both


class LaneReader:
    """Reads one id a tick in every row of every lane; on a GPU a tick is one CUDA graph.

    A graph knows addresses only. So everything that it reads and writes is an attribute, which
    keeps its memory from being used for something else.

    Args:
        read: Function of ids and state; see `Lanes.read`.
        ids: Where the ids to be read are put, (S, B).
        state: The state before the first tick, zeros.
    """

    def __init__(
        self,
        read: Callable[[Tensor, State], tuple[Tensor, State]],
        ids: Int[Tensor, "S B"],
        state: State,
    ) -> None:
        self._read = read
        self._ids = ids
        self._state = state
        self._graph = torch.cuda.CUDAGraph() if ids.is_cuda else None
        self._scores = torch.empty(0, device=ids.device)
        if self._graph is not None:
            self._capture(self._graph)

    def __call__(self, ids: Int[Tensor, "S B"]) -> Float[Tensor, "S B V"]:
        """Read the next id of every row; return the scores of the id after it."""
        self._ids.copy_(ids)
        if self._graph is None:
            return self._next()
        self._graph.replay()
        return self._scores

    def _next(self) -> Tensor:
        scores, after = self._read(self._ids, self._state)
        for old, new in zip(state_tensors(self._state), state_tensors(after), strict=True):
            if old.data_ptr() != new.data_ptr():  # rings are written in place
                old.copy_(new)
        return scores

    def _capture(self, graph: torch.cuda.CUDAGraph) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_EAGER_TICKS):
                self._next()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph, stream=side):
            self._scores = self._next()
        for own in state_tensors(self._state):
            own.zero_()  # a row is reset by zeroing its state


class _Forward(nn.Module):
    """A system as a module that scores whole rows."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = system

    def forward(self, batch: Batch, part: str) -> Tensor:
        scores: Tensor = self.system(batch)[part]
        return scores


class _Tick(nn.Module):
    """A system as a module that reads one id and scores the next."""

    def __init__(self, system: System, part: str) -> None:
        super().__init__()
        self.system = system
        self._part = part

    def forward(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        hidden, after = self.system.read({self._part: ids}, state)
        found = list[Tensor]()

        def choose(name: str, place: int, scores: Tensor) -> Tensor:
            found.append(scores)
            return scores.argmax(-1)

        self.system.write(hidden[:, -1], choose, after)
        return found[0], after


@contextmanager
def _mapping() -> Iterator[None]:
    """Forbid what a map over lanes does not allow: reading values, and CUDA's fused attention."""
    with tracing(), sdpa_kernel(SDPBackend.MATH):
        yield


def _chosen(
    scores: Float[Tensor, "S B V"], temperature: float, noise: torch.Generator | None
) -> Int[Tensor, "S B"]:
    """Return the likeliest ids, or sampled ones: the largest of scores with Gumbel noise."""
    if noise is None:
        return scores.argmax(-1)
    drawn = torch.empty_like(scores).exponential_(generator=noise).clamp_(min=1e-20)
    return (scores / temperature - drawn.log()).argmax(-1)


def _until(ids: Any, end_id: int) -> list[int]:
    """Return ids up to the first one that ends a row, or up to the last one that was written."""
    found: list[int] = ids[ids != UNSET_ID].tolist()
    return found[: found.index(end_id) + 1] if end_id in found else found
