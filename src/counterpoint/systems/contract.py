"""What every system offers to training, runtime and evaluation.

A system is a subclass of `System`: a model over a layout of streams. Offline it scores whole rows
(`forward`, `losses`); live it reads ticks into a state (`read`) and writes the next one element by
element (`write`). Whatever else needs a system asks it through this class and its `layout`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.errors import UserError
from counterpoint.streams import schedule
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID, Layout, Ticks

Logits = Mapping[str, Float[Tensor, "B T ... _V"]]
"""Scores of the next element, by predicted stream: (B, T, V), or (B, T, K, V) of K codebooks."""

State = Any
"""What a model carries between ticks: nested tuples of tensors, batch first, all zeros at first.

It is consumed by `System.read`: buffers are written in place, so keep only the state that is
returned.
"""

Choose = Callable[[str, int, Float[Tensor, "B V"]], Int[Tensor, " B"]]
"""Gives the ids of an element of a frame: of a stream, a codebook of it, and its scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemConfig:
    """Base of the configs of all systems: what runs, presets and checkpoints hold."""


class LossSums(NamedTuple):
    """What some targets cost, as sums that add up over rows, parts of a batch and processes.

    Attributes:
        num_ticks: Ticks with targets; of a stream with codebooks a tick counts by the share of its
            codebooks that carry loss.
        nats: Negative log likelihood, without weights.
        weighted_nats: The same with the weights of the loss.
        weight: What the weighted nats are divided by.
    """

    num_ticks: Float[Tensor, ""]
    nats: Float[Tensor, ""]
    weighted_nats: Float[Tensor, ""]
    weight: Float[Tensor, ""]


Losses = Mapping[str, LossSums]
"""Sums by name: of every predicted stream that has targets, and of auxiliary terms."""


def add_losses(losses: Iterable[Losses]) -> dict[str, LossSums]:
    """The sums of several batches, by name; a batch may lack some of the names."""
    added: dict[str, LossSums] = {}
    for one in losses:
        for name, sums in one.items():
            before = added.get(name)
            if before is not None:
                sums = LossSums(*(a + b for a, b in zip(before, sums, strict=True)))
            added[name] = sums
    return added


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A training loss and what it is made of.

    Attributes:
        total: What is minimised; see `System.combine`.
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
        columns: What was read, in order of arrival: the initial frame and the content.
        num_ticks: Ticks of content in it.
        hidden: What the model can write from behind the newest column.
        state: The model's state behind it, one row; see `System.beginning`.
    """

    columns: Ticks
    num_ticks: int
    hidden: Float[Tensor, "1 D"]
    state: State

    @property
    def num_columns(self) -> int:
        """Columns that were read."""
        return next(iter(self.columns.values())).shape[1]


class System(nn.Module, ABC):
    """A model over a layout of streams.

    Attributes:
        Config: Class of `config`; ``X(config)`` builds a system ``X``.
        config: Its shape; a frozen dataclass.
        layout: Its streams.
        tick_stages: Methods that `counterpoint.runtime.compiled` compiles for single ticks.
        writes_with_tower: Whether `write` needs the state.
        free_fields: Fields of configs, on all levels, that do not change what weights mean: they
            may differ where a run begins with the weights of another.
    """

    Config: ClassVar[type[SystemConfig]]
    tick_stages: ClassVar[tuple[str, ...]] = ("read", "write")
    writes_with_tower: ClassVar[bool] = False
    free_fields: ClassVar[frozenset[str]] = frozenset(
        {"window", "pinned_steps", "checkpoint_activations"}
    )
    config: Any
    layout: Layout

    # Offline

    @abstractmethod
    def forward(self, batch: Batch) -> Logits:
        """Score the next element at every tick of whole rows.

        Where a frame is written element by element, each is scored after those before it in
        ``batch.elements``.
        """

    def losses(self, batch: Batch) -> dict[str, LossSums]:
        """What the targets of a batch cost, by predicted stream, and auxiliary terms by name.

        By default the cross-entropy of every stream's targets, without weights; `UNSET_ID` and
        initial ids carry none.
        """
        # Not `self(batch)`: distributed training has prepared the weights for this call already,
        # and warns of outputs that are views.
        return self.stream_losses(batch, self.forward(batch))

    def stream_losses(self, batch: Batch, scores: Logits) -> dict[str, LossSums]:
        """What the targets of the streams cost that are scored, by scores of `forward`."""
        losses = {}
        for name, logits in scores.items():
            ids = batch.targets[name]
            counted = schedule.trained(self.layout[name], ids)
            weight = self.target_weights(name, ids)
            losses[name] = stream_loss(logits, ids.masked_fill(~counted, UNSET_ID), weight)
        return losses

    def target_weights(self, name: str, targets: Int[Tensor, "*B"]) -> Float[Tensor, "*B"] | None:
        """Weight of each target of a stream, trained or not; ``None`` where all weigh the same."""
        return None

    def loss_weights(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """What the weighted nats of groups will be divided by, where targets weigh unlike.

        It is known before the losses are, so that the parts of a batch can share the weight of all.
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
        """The group of a loss: the weighted sums of a group are divided by its common weight."""
        return name

    def loss_factor(self, group: str) -> float:
        """Weight of a group's mean in the training loss."""
        return 1.0

    def combine(
        self, losses: Losses, weights: Mapping[str, Float[Tensor, ""]] | None = None
    ) -> Loss:
        """The training loss of sums: the means of all groups, each with its factor, added up.

        A group's weighted nats are divided by its weight in ``losses``, or in ``weights`` if it is
        there: the mean weight of all parts of a batch makes the mean of their losses that of all.
        Terms are the means of auxiliary losses; where several streams are predicted also those of
        the groups, and the nats of every stream for each of its frames.
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
            # Where nothing carries loss both sums are zero.
            mean = weighted / weight.clamp(min=1e-9)
            factor = self.loss_factor(group)
            # A product by one is left out: it would be a step of the graph for nothing.
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
        """Training loss of a batch; see `combine`."""
        return self.combine(self.losses(batch))

    def lay_out(self, content: Ticks, num_prompt: int = 0) -> Batch:
        """A batch of content; see `counterpoint.streams.schedule.lay_out`."""
        return schedule.lay_out(self.layout, content, num_prompt)

    # Live

    @property
    def device(self) -> torch.device:
        """Where the ids that are read must be: by default where the first weight is."""
        return next(self.parameters()).device

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """State of ``batch_size`` sessions before their first tick."""

    @abstractmethod
    def read(
        self, ticks: Ticks, state: State, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """Read some more ticks of every session; call it without gradients.

        Args:
            ticks: The next T ticks of every row.
            state: What `initial_state` or the previous call returned.
            lengths: Ticks of each row that are real, from the left; the rest of the row is
                ignored and leaves no trace. 0 pauses a row. ``None`` means all T.

        Returns:
            What `write` needs to write the tick behind each (meaningless beyond a row's length),
            and the new state.
        """

    @abstractmethod
    def write(
        self, hidden: Float[Tensor, "B D"], choose: Choose, state: State | None = None
    ) -> dict[str, Int[Tensor, "B ..."]]:
        """Write the next tick of every row, element by element.

        Args:
            hidden: One tick of what `read` returned.
            choose: Gives the ids of each element; what it gives is what later elements see.
            state: What `read` returned with it, for a system that writes with its own tower: it may
                use what lies behind the ticks that have been read, and changes nothing before.

        Returns:
            The tick by predicted stream: ids (B,), or (B, K) of codebooks.
        """

    @property
    @abstractmethod
    def window_ticks(self) -> int:
        """Most recent ticks that are read at once, through whichever stream reaches furthest.

        An upper bound where blocks may end early.
        """

    def beginning(self, state: State, num_ticks: int) -> State:
        """A copy of a state of one row that has read so many ticks, to begin other sessions with.

        Its tensors may be shorter than the state's: they fill the first places of an empty one.
        """
        return map_state(torch.Tensor.clone, state)

    def prefix(
        self, columns: Ticks, num_ticks: int, hidden: Float[Tensor, "1 T D"], state: State
    ) -> Prefix:
        """The prefix of columns with so many ticks of content that one row has just read."""
        num_columns = next(iter(columns.values())).shape[1]
        return Prefix(
            columns=columns,
            num_ticks=num_ticks,
            hidden=hidden[:, -1],
            state=self.beginning(state, num_columns),
        )

    def plain(self) -> "System":
        """The model itself, where it is wrapped; see `Simultaneous`."""
        return self

    def wait(self) -> None:
        """Come back when nothing is being computed beside the caller; see `Simultaneous`."""

    def agent_alone(self) -> "System":
        """The model that predicts what the agent says, and hears everyone else."""
        return self

    def pinned(self, num_ticks: int) -> "System":
        """The same model, whose sessions keep their first ticks in the window.

        Raises:
            UserError: It cannot.
        """
        raise UserError(
            f"Only models that pin their prompts can be given one to keep: {type(self).__name__} "
            "does not. Leave the pin out."
        )

    # Costs

    @abstractmethod
    def flops_per_tick(
        self, num_ticks: int, *, training: bool = False, predicted: Collection[str] | None = None
    ) -> float:
        """FLOPs a tick of `forward`, averaged over one row of ``num_ticks`` (multiply-add = 2).

        Matrix products as executed, masked entries included.

        Args:
            num_ticks: Ticks of the row.
            training: Count `loss` with its auxiliary terms, forward and backward (three times the
                forward).
            predicted: Streams that have targets, as in ``batch.targets``; ``None`` means all.
        """

    def state_bytes_per_tick(self, num_ticks: int) -> float:
        """State bytes of one session after ``num_ticks``, divided by ``num_ticks``."""
        return state_bytes(self.initial_state(1)) / num_ticks

    def shard_units(self) -> list[nn.Module]:
        """Modules that distributed training shards one by one."""
        return []


@runtime_checkable
class HasWhole(Protocol):
    """A system whose whole can be read, replaced and lent; `TwoStream` is one."""

    config: Any
    layout: Layout

    def forward(self, batch: Batch, whole: Float[Tensor, "B W D"] | None = None) -> Logits:
        """Scores under the model's own whole, or under another."""
        ...

    def read_whole(self, batch: Batch) -> Any:
        """``whole`` states, ``attention`` on null key and blocks, blocks ``finished`` by tick."""
        ...

    def finished_blocks(self, state: State) -> Int[Tensor, " B"]:
        """Blocks that each session has finished."""
        ...

    @property
    def usable_blocks(self) -> int:
        """Blocks that must be finished before a session reads any whole."""
        ...

    def swap(self, state: State, donor: State) -> State:
        """The session of ``state`` going on with a copy of the whole of ``donor``."""
        ...


def stream_loss(
    logits: Float[Tensor, "*B V"],
    targets: Int[Tensor, "*B"],
    weight: Float[Tensor, "*B"] | None = None,
) -> LossSums:
    """Sums of one stream.

    Args:
        logits: Scores of every target.
        targets: Ids; `UNSET_ID` carries no loss.
        weight: Weight of each; by default each target counts one and the weighted nats are divided
            by the number of *all* places, so that the mean over equal parts of a batch is the
            whole's, however many targets each part has.
    """
    counted = targets != UNSET_ID
    depth = targets.shape[2] if targets.ndim == 3 else 1
    count = counted.sum() / depth
    if weight is None:
        nats = cross_entropy(logits, targets)
        return LossSums(count, nats, nats, torch.full_like(nats, float(targets.numel())))
    each = F.cross_entropy(
        logits.float().flatten(0, -2),
        targets.flatten(),
        ignore_index=UNSET_ID,
        reduction="none",
    ).view_as(targets)
    weight = counted * weight
    return LossSums(count, each.sum(), (each * weight).sum(), weight.sum())


def cross_entropy(logits: Float[Tensor, "*B V"], targets: Int[Tensor, "*B"]) -> Float[Tensor, ""]:
    """Summed nats of the targets, in float32; `UNSET_ID` carries no loss."""
    return F.cross_entropy(
        logits.float().flatten(0, -2), targets.flatten(), ignore_index=UNSET_ID, reduction="sum"
    )


def in_chunks(
    read_chunk: Callable[[Ticks, State, Tensor | None], tuple[Tensor, State]],
    chunk_ticks: int,
    ticks: Ticks,
    state: State,
    lengths: Int[Tensor, " B"] | None,
) -> tuple[Float[Tensor, "B T D"], State]:
    """Run `System.read` as calls of at most ``chunk_ticks`` ticks, joining what they return."""
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
    """All tensors of a state."""
    if isinstance(state, Tensor):
        return [state]
    return [tensor for part in state for tensor in state_tensors(part)]


def map_state(change: Callable[[Tensor], Tensor], state: State) -> State:
    """A state with every tensor changed."""
    if isinstance(state, Tensor):
        return change(state)
    parts = [map_state(change, part) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def state_bytes(state: State) -> int:
    """Bytes of all tensors of a state."""
    return sum(tensor.nbytes for tensor in state_tensors(state))
