"""The contract: what every system offers to training, runtime and evaluation.

A system is a subclass of `System`: a model over a layout of streams. Offline it scores whole rows
(`forward`, `losses`). Live it reads ticks into a state (`read`) and writes the next tick element by
element (`write`). All other code uses a system only through this class and its `layout`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.blocks.loss_sums import Losses, LossSums, stream_loss
from counterpoint.blocks.transformer import Layer
from counterpoint.errors import NoCoarsePastError, UserError
from counterpoint.streams import schedule
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID, Layout, Ticks
from counterpoint.systems.backbone import OnBackbone, Weights

Logits = Mapping[str, Float[Tensor, "B T ... _V"]]
"""Scores of the next element, by predicted stream: (B, T, V), or (B, T, K, V) for K codebooks."""

State = Any
"""What a model carries between ticks: nested tuples of tensors, batch first, initially zeros.

`System.read` updates its buffers in place, so only the state that it returns may be used
afterwards.
"""

Choose = Callable[[str, int, Float[Tensor, "B V"]], Int[Tensor, " B"]]
"""A function that chooses the ids of one element, given its stream, codebook and scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemConfig:
    """Base class of the configs of all systems; runs, presets and checkpoints store a config."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A training loss and its parts.

    Attributes:
        total: The number that training minimises; see `System.combine`.
        nats: Summed negative log likelihood of all targets, without weights and auxiliary terms.
        terms: Auxiliary terms and measurements to log, by name; scalars.
    """

    total: Float[Tensor, ""]
    nats: Float[Tensor, ""]
    terms: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefix:
    """The beginning of prompts, read once for any number of sessions that begin with it.

    Attributes:
        columns: The columns that were read, in arrival order: the initial frame and the content.
        num_ticks: Number of ticks of content in them.
        hidden: What `System.write` needs to write the column after the newest one.
        state: State of the model after the columns, for one row; see `System.beginning`.
    """

    columns: Ticks
    num_ticks: int
    hidden: Float[Tensor, "1 D"]
    state: State

    @property
    def num_columns(self) -> int:
        """Number of columns that were read."""
        return next(iter(self.columns.values())).shape[1]


class System(nn.Module, ABC):
    """A model over a layout of streams.

    Attributes:
        Config: Class of `config`; ``X(config)`` builds a system ``X``.
        config: Shape of the system; a frozen dataclass.
        layout: Streams of the system.
        tick_stages: Names of the methods that `counterpoint.runtime.compiled` compiles for single
            ticks.
        writes_with_tower: Whether `write` needs the state.
        free_fields: Names of config fields, on all levels, that do not change the meaning of the
            weights. They may differ if a run begins with the weights of another run.
        fresh_weights: Names of config fields that may differ, too, each with the beginnings of the
            names of the weights that then begin at random.
        backbones: Class names of other systems with whose weights a run may begin, each with the
            names of the config fields that must be equal; see `on_backbone`.
    """

    Config: ClassVar[type[SystemConfig]]
    tick_stages: ClassVar[tuple[str, ...]] = ("read", "write")
    writes_with_tower: ClassVar[bool] = False
    free_fields: ClassVar[frozenset[str]] = frozenset(
        {"window", "pinned_steps", "checkpoint_activations"}
    )
    fresh_weights: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    backbones: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    config: Any
    layout: Layout

    @classmethod
    def on_backbone(cls, weights: Weights, random: Weights) -> OnBackbone:
        """Say which weights of this system are those of a model of `backbones`.

        Args:
            weights: The weights of that model, by their names there.
            random: Random weights of this system, by name.
        """
        raise NotImplementedError("a system with `backbones` says this")

    # Offline

    @abstractmethod
    def forward(self, batch: Batch) -> Logits:
        """Score the next element at every tick of whole rows.

        If a frame is written element by element, the score of an element depends on the elements
        before it, which are taken from ``batch.elements``.
        """

    def losses(self, batch: Batch) -> dict[str, LossSums]:
        """Return the loss sums of each predicted stream, and of auxiliary terms, by name.

        By default they are the cross-entropy of the targets of every stream, without weights.
        `UNSET_ID` and initial ids carry no loss.
        """
        # `self(batch)` would warn about outputs that are views, and distributed training has
        # already prepared the weights for this call.
        return self.stream_losses(batch, self.forward(batch))

    def stream_losses(self, batch: Batch, scores: Logits) -> dict[str, LossSums]:
        """Return the loss sums of the streams for which ``scores`` holds scores of `forward`."""
        losses = {}
        for name, logits in scores.items():
            ids = batch.targets[name]
            counted = schedule.trained(self.layout[name], ids)
            weight = self.target_weights(name, ids)
            losses[name] = stream_loss(logits, ids.masked_fill(~counted, UNSET_ID), weight)
        return losses

    def target_weights(self, name: str, targets: Int[Tensor, "*B"]) -> Float[Tensor, "*B"] | None:
        """Return the weight of each target of a stream, or ``None`` if all have the same weight."""
        return None

    def loss_weights(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Return the weight of each loss group whose targets have different weights.

        It can be computed before the losses, so that all parts of a batch divide by the weight of
        the whole batch.
        """
        weights: dict[str, Tensor] = {}
        for name, ids in batch.targets.items():
            weight = self.target_weights(name, ids)
            if weight is not None:
                own = (weight * schedule.trained(self.layout[name], ids)).sum()
                group = self.loss_group(name)
                weights[group] = weights[group] + own if group in weights else own
        return weights

    def loss_group(self, name: str) -> str:
        """Return the group of a loss; the losses of a group are divided by their common weight."""
        return name

    def loss_factor(self, group: str) -> float:
        """Return the factor of a group's mean in the training loss."""
        return 1.0

    def combine(
        self, losses: Losses, weights: Mapping[str, Float[Tensor, ""]] | None = None
    ) -> Loss:
        """Compute the training loss: the sum over groups of each group's mean times its factor.

        The weighted nats of a group are divided by its weight in ``weights``, or else in
        ``losses``. If every part of a batch is given the mean weight of all parts, the mean of the
        parts' losses equals the loss of the batch. The terms are the means of auxiliary losses; if
        several streams are predicted, also the means of the groups and each stream's nats a frame.
        """
        predicted = [stream.name for stream in self.layout.predicted]
        nothing = next(iter(losses.values())).nats.new_zeros(())
        means: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        groups = dict.fromkeys(self.loss_group(name) for name in (*predicted, *losses))
        for group in groups:
            own = [sums for name, sums in losses.items() if self.loss_group(name) == group]
            if not own:
                terms[group] = nothing
                continue
            weighted = sum((sums.weighted_nats for sums in own), nothing)
            weight = sum((sums.weight for sums in own), nothing)
            if weights and group in weights:
                weight = weights[group]
            # Both sums are zero if nothing carries loss.
            mean = weighted / weight.clamp(min=1e-9)
            factor = self.loss_factor(group)
            # Multiplication by one is skipped, because it would add a needless node to the graph.
            means.append(mean if factor == 1 else factor * mean)
            terms[group] = mean.detach()
        if len(predicted) == 1:
            del terms[self.loss_group(predicted[0])]
        else:
            for name in predicted:
                if name in losses:
                    sums = losses[name]
                    terms[f"{name}_nats"] = (sums.nats / sums.num_ticks.clamp(min=1e-9)).detach()
        nats = sum((sums.nats for name, sums in losses.items() if name in predicted), nothing)
        return Loss(total=sum(means[1:], means[0]), nats=nats, terms=terms)

    def loss(self, batch: Batch) -> Loss:
        """Compute the training loss of a batch; see `combine`."""
        return self.combine(self.losses(batch))

    def lay_out(self, content: Ticks, num_prompt: int = 0) -> Batch:
        """Make a batch of content; see `counterpoint.streams.schedule.lay_out`."""
        return schedule.lay_out(self.layout, content, num_prompt)

    # Training in stages

    def stages(self, num_steps: int) -> tuple[int, ...]:
        """Return the first step of each stage of a training of ``num_steps``, the first of all 0.

        Within a stage all steps compute alike; most systems have one stage. No stage needs more
        memory than the first.
        """
        return (0,)

    def at_step(self, step: int, num_steps: int) -> None:
        """Become in training mode what the model is in a step, a pure function of both numbers.

        The training calls it before every step, counted from 0. With ``step = num_steps`` the model
        becomes the finished one, which it is from the beginning, and always in evaluation mode.
        """

    # Live

    @property
    def device(self) -> torch.device:
        """Device on which the ids that are read must be; by default that of the first weight."""
        return next(self.parameters()).device

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """Return the state of ``batch_size`` sessions before their first tick."""

    @abstractmethod
    def read(
        self, ticks: Ticks, state: State, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """Read the next ticks of every session; call this without gradients.

        Args:
            ticks: The next T ticks of every row.
            state: State from `initial_state` or from the previous call.
            lengths: Number of real ticks of each row, counted from the left. The other ticks are
                ignored and do not change the state; 0 pauses a row. ``None`` means all T.

        Returns:
            For each tick, what `write` needs to write the next tick (undefined beyond a row's
            length), and the new state.
        """

    @abstractmethod
    def write(
        self, hidden: Float[Tensor, "B D"], choose: Choose, state: State | None = None
    ) -> dict[str, Int[Tensor, "B ..."]]:
        """Write the next tick of every row, element by element.

        Args:
            hidden: One tick of the first result of `read`.
            choose: Chooses the ids of each element; later elements depend on them.
            state: State that `read` returned together with ``hidden``, needed by a system that
                writes with its own tower. It may be overwritten after the ticks that were read, but
                not before.

        Returns:
            The tick by predicted stream: ids (B,), or (B, K) for codebooks.
        """

    @property
    @abstractmethod
    def window_ticks(self) -> int:
        """Number of most recent ticks that the model can read, over all its streams.

        It is an upper bound if blocks may end early.
        """

    def beginning(self, state: State, num_ticks: int) -> State:
        """Return a copy of the state of one row after ``num_ticks`` ticks, to start other sessions.

        Its tensors may be shorter than those of the state: they fill the first places of an empty
        state.
        """
        return map_state(torch.Tensor.clone, state)

    def prefix(
        self, columns: Ticks, num_ticks: int, hidden: Float[Tensor, "1 T D"], state: State
    ) -> Prefix:
        """Make the prefix of columns that one row has just read.

        Args:
            columns: The columns, (1, T) or (1, T, K), in arrival order.
            num_ticks: Number of ticks of content in them.
            hidden: What `read` returned for them.
            state: The state after them.
        """
        num_columns = next(iter(columns.values())).shape[1]
        return Prefix(
            columns=columns,
            num_ticks=num_ticks,
            hidden=hidden[:, -1],
            state=self.beginning(state, num_columns),
        )

    def plain(self) -> "System":
        """Return the system itself if this is a wrapper around it; see `Simultaneous`."""
        return self

    def wait(self) -> None:
        """Return when no other thread computes for this system; see `Simultaneous`."""

    def agent_alone(self) -> "System":
        """Return a model that predicts only what the agent says; everyone else is heard."""
        return self

    def swap(self, state: State, donor: State) -> State:
        """Return the sessions ``state`` with a copy of the coarse past of ``donor``, not their own.

        The part keeps what it remembers itself, such as its newest ticks. The whole changes what is
        computed from the next tick on. A whole that is written as text is changed by giving other
        ids for its stream instead.

        Raises:
            NoCoarsePastError: The system keeps no coarse past apart from its part.
            UserError: The donor's does not fit; see `check_same_tick`.
        """
        raise NoCoarsePastError(
            "Only a coarse past that is kept apart from the part can be exchanged: "
            f"{type(self).__name__} keeps none. Give it another prompt, or other ids for the "
            "stream of its whole if it writes one."
        )

    def pinned(self, num_ticks: int) -> "System":
        """Return the same model with sessions that keep their first ``num_ticks`` ticks readable.

        Raises:
            UserError: The model cannot do that.
        """
        raise UserError(
            f"Only models that pin their prompts can keep one: {type(self).__name__} does not. "
            "Leave the pin out."
        )

    # Costs

    @abstractmethod
    def flops_per_tick(
        self, num_ticks: int, *, training: bool = False, predicted: Collection[str] | None = None
    ) -> float:
        """Return the FLOPs a tick of `forward`, averaged over a row (a multiply-add counts 2).

        Matrix products are counted as they are executed, including masked entries.

        Args:
            num_ticks: Number of ticks of the row.
            training: Whether to count `loss` with its auxiliary terms, forward and backward (three
                times the forward FLOPs).
            predicted: Streams that have targets, as in ``batch.targets``; ``None`` means all.

        In training it is the cost of the current step; see `at_step` and `mean_training_flops`.
        """

    def state_bytes_per_tick(self, num_ticks: int) -> float:
        """Return the state bytes of one session after ``num_ticks``, divided by ``num_ticks``."""
        return state_bytes(self.initial_state(1)) / num_ticks

    def shard_units(self) -> list[nn.Module]:
        """Return the modules that distributed training shards one by one: the layers of towers."""
        return [module for module in self.modules() if isinstance(module, Layer)]


def mean_training_flops(system: System, num_ticks: int, num_steps: int) -> float:
    """Return the training FLOPs a tick of `System.flops_per_tick`, averaged over a training.

    Args:
        system: The system, which is not being trained.
        num_ticks: Number of ticks of a row.
        num_steps: Number of steps of the training.
    """
    starts = system.stages(num_steps)
    if len(starts) == 1:
        return system.flops_per_tick(num_ticks, training=True)
    total = 0.0
    for begin, end in pairwise((*starts, num_steps)):
        system.at_step(begin, num_steps)
        total += (end - begin) * system.flops_per_tick(num_ticks, training=True)
    system.at_step(num_steps, num_steps)
    return total / num_steps


@runtime_checkable
class HasWhole(Protocol):
    """A system whose whole can be read and replaced by that of another session."""

    config: Any
    layout: Layout

    def forward(self, batch: Batch, whole: Float[Tensor, "B W D"] | None = None) -> Logits:
        """Return scores under the model's own whole, or under the given one."""

    def read_whole(self, batch: Batch) -> Any:
        """Return the ``whole`` states, their ``attention`` weights and the ``finished`` blocks.

        See `counterpoint.systems.two_stream.Reading`.
        """

    def finished_blocks(self, state: State) -> Int[Tensor, " B"]:
        """Return the number of blocks that each session has finished."""

    @property
    def usable_blocks(self) -> int:
        """Number of blocks that must be finished before a session can read the whole."""

    def swap(self, state: State, donor: State) -> State:
        """Return the session ``state`` with a copy of the whole of ``donor``, not its own."""


def in_chunks(
    read_chunk: Callable[[Ticks, State, Tensor | None], tuple[Tensor, State]],
    chunk_ticks: int,
    ticks: Ticks,
    state: State,
    lengths: Int[Tensor, " B"] | None,
) -> tuple[Float[Tensor, "B T D"], State]:
    """Run `System.read` in several calls, and join their results.

    Args:
        read_chunk: Reads one chunk, given its ticks, the state and the lengths.
        chunk_ticks: Largest number of ticks of a chunk.
        ticks: Ticks by stream; see `System.read`.
        state: State before them.
        lengths: Number of real ticks of each row; ``None`` means all.
    """
    num_ticks = next(iter(ticks.values())).shape[1]
    if num_ticks <= chunk_ticks:
        return read_chunk(ticks, state, lengths)
    pieces: list[Tensor] = []
    for first in range(0, num_ticks, chunk_ticks):
        chunk = {name: ids[:, first : first + chunk_ticks] for name, ids in ticks.items()}
        real = None if lengths is None else (lengths - first).clamp(0, chunk_ticks)
        hidden, state = read_chunk(chunk, state, real)
        pieces.append(hidden)
    return torch.cat(pieces, 1), state


def state_tensors(state: State) -> list[Tensor]:
    """Return all tensors of a state."""
    if isinstance(state, Tensor):
        return [state]
    return [tensor for part in state for tensor in state_tensors(part)]


def check_same_tick(mine: Int[Tensor, " B"], theirs: Int[Tensor, " B"]) -> None:
    """Check that sessions and their donors have read equally many ticks; see `System.swap`.

    Raises:
        UserError: They have not.
    """
    if len(mine) != len(theirs) or not torch.equal(mine, theirs):
        raise UserError(
            "A donor must have read as many ticks as the session that gets its whole: it has read "
            f"{theirs.tolist()}, the session {mine.tolist()}."
        )


def map_state(change: Callable[[Tensor], Tensor], state: State) -> State:
    """Return a state with every tensor replaced by ``change`` of it."""
    if isinstance(state, Tensor):
        return change(state)
    parts = [map_state(change, part) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def state_bytes(state: State) -> int:
    """Return the number of bytes of all tensors of a state."""
    return sum(tensor.nbytes for tensor in state_tensors(state))
