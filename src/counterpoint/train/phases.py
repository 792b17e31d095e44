"""Phases: one run that learns from changing data with changing settings, and resumes anywhere.

`counterpoint.recipes.phased.phased_run` makes a `Run` of phases such as pre-training, supervised
fine-tuning and reinforcement. Each phase says how many tokens are read, in which shares from which
sources, in rows of which length, which tokens carry a loss, and what becomes of the learning rate
and of the optimiser. Sources are any data of one form by name: folders, parquet files and data sets
of text, or items of tasks. The rows of all phases are dealt before the first step
(`counterpoint.data.token_deal`), so the number of steps follows from the tokens. What was read is
counted in the run's ledger (`counterpoint.train.ledger`). A phase of reinforcement has a number of
steps instead, because the model writes its tokens (`counterpoint.train.rewarded`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from torch import nn

from counterpoint.data.loader import Loader
from counterpoint.data.mixture import Mixture
from counterpoint.data.passes import Cursor, Passes, ReadItems
from counterpoint.data.source import (
    ALONE,
    BatchSource,
    DataSource,
    HasProgress,
    HeldOutUnits,
    Preparation,
    PreparedSource,
)
from counterpoint.data.tasks.items import Trained
from counterpoint.data.tasks.source import TaskData
from counterpoint.data.text.corpus import DataConfig
from counterpoint.data.token_deal import MemberWeight, TokenDeal, pieces, weights_at
from counterpoint.digests import json_digest
from counterpoint.errors import UserError
from counterpoint.literals import literals_checked
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import Layout
from counterpoint.train.phase_steps import phase_at
from counterpoint.train.rewarded import RewardedData
from counterpoint.train.rollout_source import ROLLOUTS, RolloutSource

BYTES = "bytes"
"""Tokenizer of the items of tasks."""


@runtime_checkable
class Shapeable(Protocol):
    """Data whose rows can be made anew for a phase."""

    def shaped(self, row_ticks: int | None, trained: Trained) -> DataSource:
        """Return the same data in other rows.

        Args:
            row_ticks: Number of ticks of a row; ``None`` keeps that of the config.
            trained: Tokens that carry a loss: all; the answers; or the spans kept with each sample,
                except its prompt. Data without spans are trained as a whole.
        """


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseSource:
    """A named source of the phases of a run.

    Attributes:
        name: Name by which phases and the ledger know it.
        data: The data.
        most_passes: Number of times that it may be read in the whole run; ``None`` for any number.
            Sources are capped each by itself: an item that two of them hold may be read as often as
            both allow. The ledger, which knows items by their content, counts it as repeated.
        when_exhausted: What happens when a phase needs more: ``"error"`` refuses the run before it
            begins; with ``"others"`` the other sources of the phase take its share.
    """

    name: str
    data: DataConfig | TaskData | DataSource
    most_passes: float | None = None
    when_exhausted: Literal["error", "others"] = "error"

    def __post_init__(self) -> None:
        if self.most_passes is not None and not 0 < self.most_passes < math.inf:
            raise UserError(
                f"`most_passes` of {self.name!r} must be finite and above 0, or None for any "
                f"number: got {self.most_passes}."
            )


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseData:
    """What a phase reads.

    Attributes:
        name: Name of the phase.
        tokens: Number of tokens: the phase ends with the batch that reaches it.
        weights: Shares of the tokens, by source and part of the phase.
        row_ticks: Number of ticks of a row; ``None`` keeps that of each source.
        trained: Tokens that carry a loss; see `Shapeable.shaped`.
        rewarded: Questions that the model answers, in a phase of reinforcement, which reads nothing
            else.
        num_steps: Number of steps of a phase of reinforcement.
    """

    name: str
    tokens: int = 0
    weights: tuple[MemberWeight, ...] = ()
    row_ticks: int | None = None
    trained: Trained = "all"
    rewarded: RewardedData | None = None
    num_steps: int = 0

    def __post_init__(self) -> None:
        if (self.rewarded is not None) != (self.num_steps > 0):
            raise UserError(
                f"Phase {self.name!r} must have `num_steps` if, and only if, it is rewarded: got "
                f"{self.num_steps} steps."
            )
        if self.rewarded is not None:
            if self.tokens or self.weights:
                raise UserError(
                    f"Phase {self.name!r} must read nothing, because it is rewarded: got "
                    f"{self.tokens} tokens and {len(self.weights)} weights. Leave them out."
                )
            return
        if not 1 <= self.tokens < math.inf:
            raise UserError(f"Phase {self.name!r} must have data: `tokens` is {self.tokens}.")
        if self.row_ticks is not None and not 1 <= self.row_ticks < math.inf:
            raise UserError(
                f"`row_ticks` of phase {self.name!r} must be >= 1 or None: got {self.row_ticks}."
            )
        for begin, end in pieces(self.weights):
            total = sum(weights_at(self.weights, begin).values())
            if not total:
                raise UserError(
                    f"The weights of phase {self.name!r} must not sum to zero: no source has one "
                    f"from {begin:.0%} to {end:.0%} of its tokens. Give one a weight there."
                )
            if not math.isfinite(total):
                raise UserError(
                    f"The weights of phase {self.name!r} must have a finite sum: they are too "
                    f"large from {begin:.0%} to {end:.0%} of its tokens. Give smaller ones."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class PhasedData:
    """Sources, and what each phase reads of them; a `DataSource`.

    Attributes:
        sources: Sources by name; all have rows of the same streams.
        phases: Phases, in order.
        held_out: Names of the sources whose held-out units are measured; ``None`` means all.
    """

    sources: tuple[PhaseSource, ...]
    phases: tuple[PhaseData, ...]
    held_out: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if not names or len(set(names)) < len(names):
            raise UserError(f"A phased run needs sources with different names: got {names}.")
        tokenizers = {getattr(source.data, "tokenizer", BYTES) for source in self.sources}
        if len(tokenizers) > 1:
            raise UserError(
                f"All sources of a run must have one tokenizer: got {sorted(tokenizers)}. Items of "
                f"tasks have {BYTES!r}."
            )
        phases = [phase.name for phase in self.phases]
        if not phases or len(set(phases)) < len(phases):
            raise UserError(f"A phased run needs phases with different names: got {phases}.")
        used = [one.member for phase in self.phases for one in phase.weights]
        for name in (*used, *(self.held_out or ())):
            if name not in names:
                raise UserError(f"There must be a source {name!r}: there are {', '.join(names)}.")

    def is_measured(self, name: str) -> bool:
        """Return whether the held-out units of a source are measured."""
        return self.held_out is None or name in self.held_out

    def fits(self, layout: Layout) -> bool:
        """Return whether a system reads all sources; see `DataSource.fits`."""
        rewarded = [phase.rewarded for phase in self.phases if phase.rewarded is not None]
        read = [source.data for source in self.sources]
        return all(data.fits(layout) for data in (*read, *rewarded))

    def num_ticks(self, layout: Layout) -> int:
        """Return the number of ticks of the longest row; see `DataSource.num_ticks`."""
        return max(
            data.num_ticks(layout) for phase in self.phases for data in self.of(phase).values()
        )

    def of(self, phase: PhaseData) -> dict[str, DataSource]:
        """Return the sources of a phase, in the rows of the phase, by name."""
        if phase.rewarded is not None:
            return {ROLLOUTS: phase.rewarded}
        used = {one.member for one in phase.weights if one.weight > 0}
        return {
            source.name: _shaped(source, phase) for source in self.sources if source.name in used
        }

    def prepare(self, system: Any, how: Preparation = ALONE) -> "PreparedPhases":
        """Read all sources in the rows of all phases; see `DataSource.prepare`."""
        known: dict[str, PreparedSource] = {}

        def prepared(data: DataSource) -> PreparedSource:
            key = repr(data)
            if key not in known:
                known[key] = data.prepare(system, how)
            return known[key]

        return PreparedPhases(
            self,
            {source.name: prepared(source.data) for source in self.sources},
            [
                {name: prepared(data) for name, data in self.of(phase).items()}
                for phase in self.phases
            ],
        )


class PreparedPhases:
    """The rows of all phases; a `counterpoint.data.source.PreparedSource`.

    Args:
        data: The config.
        sources: Every source as it is, by name, for its held-out units.
        by_phase: For each phase, its sources in its rows.
    """

    def __init__(
        self,
        data: PhasedData,
        sources: Mapping[str, PreparedSource],
        by_phase: Sequence[Mapping[str, PreparedSource]],
    ) -> None:
        self.data = data
        self.sources = sources
        self.by_phase = by_phase

    def batches(
        self, batch_rows: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> "PhasedBatches":
        """Deal the rows of all phases, and return the batches by step.

        Raises:
            UserError: A source is exhausted, or does not give single rows.
        """
        reading = self.reading()
        parts = [
            self.dealt(number, reading, batch_rows, seed, rank, world_size)
            for number in range(len(self.by_phase))
        ]
        return PhasedBatches(parts)

    def reading(self) -> ReadItems:
        """Return how far the sources have been read before the first phase: not at all."""
        return ReadItems(
            cursors={
                source.name: Cursor(
                    name=source.name,
                    most_passes=source.most_passes,
                    others_take_over=source.when_exhausted == "others",
                )
                for source in self.data.sources
            }
        )

    def dealt(
        self,
        number: int,
        reading: ReadItems,
        batch_rows: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> tuple[BatchSource, int]:
        """Deal the rows of one phase; return its batches and the number of its steps.

        Args:
            number: Number of the phase.
            reading: How far the run has read; it is moved.
            batch_rows: Number of rows of a step, over all processes.
            seed: Seed of the order of rows.
            rank: Number of this process.
            world_size: Number of processes.
        """
        phase = self.data.phases[number]
        sources = self.by_phase[number]
        if phase.rewarded is not None:
            source = sources[ROLLOUTS].batches(batch_rows, seed, rank, world_size)
            return source, phase.num_steps
        hands = {
            name: Passes(reading.cursors[name], _loader(name, own, seed), reading.known)
            for name, own in sources.items()
        }
        deal = TokenDeal(
            phase.name, phase.tokens, phase.weights, hands, batch_rows, rank, world_size
        )
        return Mixture(hands, deal), deal.num_steps

    def held_out_units(self) -> "JoinedUnits | None":
        """Return the held-out units of the sources that are measured; ``None`` without any."""
        found = {
            name: units
            for name, source in self.sources.items()
            if self.data.is_measured(name) and (units := source.held_out_units()) is not None
        }
        return JoinedUnits(found) if found else None

    def describe(self) -> str:
        """Return the amount of data of each source, in words."""
        return "; ".join(f"{name}: {one.describe()}" for name, one in self.sources.items())

    @property
    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Digests of all sources, by name; see `PreparedSource.fingerprint`."""
        return {
            "sources": {
                name: json_digest([_plain(source.fingerprint), source.describe()])
                for name, source in self.sources.items()
            }
        }


class PhasedBatches:
    """The batches of several phases, one after another; a `BatchSource`.

    Attributes:
        parts: Source of the batches of each phase.
        num_steps: Number of steps of each phase.
    """

    def __init__(self, phases: Sequence[tuple[BatchSource, int]]) -> None:
        self.parts = [part for part, _ in phases]
        self.num_steps = tuple(steps for _, steps in phases)
        self._ends = list(accumulate(self.num_steps))
        self._model: nn.Module | None = None
        self._entered = -1

    def attach(self, model: nn.Module) -> None:
        """Store the model, which is given to each phase that asks for it when the phase begins."""
        self._model = model

    @property
    def objective(self) -> Any:
        """The loss of the current phase: that of the model itself, or that of its rewards."""
        part = self.parts[max(self._entered, 0)]
        return part.objective if isinstance(part, RolloutSource) else self._model

    def enter(self, step: int, folder: Path) -> None:
        """Begin the phase of a step, or go on with it in another call, before its batch is read.

        Args:
            step: The next step.
            folder: Folder of the run: the model with which a phase of reinforcement begins, from
                which it must not go far, is kept there.

        Raises:
            UserError: That model is needed and cannot be read.
        """
        phase = phase_at(self._ends, step)
        if phase == self._entered:
            return
        self._entered = phase
        part = self.parts[phase]
        if isinstance(part, RolloutSource) and self._model is not None:
            part.attach(self._model)
            begins = step == self._ends[phase] - self.num_steps[phase]
            part.keep_reference(folder / f"reference_{phase}.safetensors", begins)

    @property
    def progress(self) -> Any:
        """What each phase counts; see `counterpoint.data.source.HasProgress`."""
        return [part.progress if isinstance(part, HasProgress) else None for part in self.parts]

    def go_on(self, progress: Any) -> None:
        """Go on from the counts of a checkpoint; see `counterpoint.data.source.HasProgress`."""
        for part, own in zip(self.parts, progress, strict=True):
            if isinstance(part, HasProgress):
                part.go_on(own)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step of the run, counted from 0."""
        phase = phase_at(self._ends, step)
        return self.parts[phase].batch(step - self._ends[phase] + self.num_steps[phase])


class JoinedUnits:
    """Held-out units of several sources; a `HeldOutUnits`."""

    def __init__(self, units: Mapping[str, HeldOutUnits]) -> None:
        self._places = [(name, own, i) for name, own in units.items() for i in range(len(own))]

    def __len__(self) -> int:
        return len(self._places)

    def title(self, index: int) -> str:
        """Return the source and the title of a unit."""
        name, units, place = self._places[index]
        return f"{name}: {units.title(place)}"

    def batches(self, index: int) -> Iterator[Batch]:
        """Yield the batches of a unit."""
        _, units, place = self._places[index]
        yield from units.batches(place)


def _shaped(source: PhaseSource, phase: PhaseData) -> DataSource:
    if isinstance(source.data, Shapeable):
        return source.data.shaped(phase.row_ticks, phase.trained)
    if phase.row_ticks is not None or phase.trained != "all":
        raise UserError(
            f"Source {source.name!r} of phase {phase.name!r} must have rows that can be changed: "
            f"{type(source.data).__name__} has no `shaped`. Leave `row_ticks` and `trained` out."
        )
    return source.data


def _loader(name: str, source: PreparedSource, seed: int) -> Loader:
    """Return single rows of a source, in an order of its own."""
    mixed = np.random.SeedSequence([seed, *name.encode()]).generate_state(1)
    loader = source.batches(1, int(mixed[0]))
    if not isinstance(loader, Loader):
        raise UserError(
            f"Source {name!r} must give rows one by one: {type(loader).__name__} gives whole "
            "batches. Leave mixtures out of the sources of phases."
        )
    return loader


def _plain(fingerprint: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {kind: dict(places) for kind, places in fingerprint.items()}
