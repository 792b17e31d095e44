"""The chains of `counterpoint.recipes.front_loading` as lanes of stacks.

A chain is one run of phases, whose rows are dealt and counted as `counterpoint.train.phases` does
for every run. Its pre-training is the same as that of the other chains of its backbone, so it is
trained once. A *segment* is one phase of a chain, or of all chains that share it: it begins with
the weights of the segment before it, and without moments. Segments of all chains are trained
together, as lanes of a stack (`counterpoint.train.stacked`), from batches that are recorded before.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from counterpoint.data.passes import ReadItems
from counterpoint.data.recorded import read_recorded, record_once
from counterpoint.data.source import BatchSource, DataSource, PreparedSource
from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.token_deal import MemberWeight
from counterpoint.files import read_json, write_json
from counterpoint.processes import work_in_processes
from counterpoint.progress import Progress
from counterpoint.recipes.cells import WORK
from counterpoint.recipes.front_loading import (
    FAMILIES,
    FOLDS,
    NOTHING,
    Chain,
    FrontLoading,
    chains,
    corpora,
)
from counterpoint.recipes.phased import Phase, phased_run, placed
from counterpoint.recipes.stacks import begun_system, train_further
from counterpoint.streams.batch import Batch
from counterpoint.systems import sketch
from counterpoint.systems.contract import System
from counterpoint.train.config import ScheduleConfig, TrainConfig
from counterpoint.train.ledger import Ledger
from counterpoint.train.phases import (
    PhasedData,
    PhaseSource,
    PreparedPhases,
)
from counterpoint.train.reinforce import GroupConfig
from counterpoint.train.rewarded import RewardedData
from counterpoint.train.run import Run

PLAIN = "plain"
BATCHES = "batches"
_REINFORCED_TIMES = 4
_ALIKE = 1.7
"""Largest ratio of the numbers of steps of two lanes of a stack."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainPhase:
    """A phase of a chain, as a lane of a stack.

    Attributes:
        chain: A chain with this phase; others may share it.
        seed: Training seed.
        phase: Number of the phase.
    """

    chain: Chain
    seed: int
    phase: int

    @property
    def key(self) -> str:
        """Name of its files; segments with equal keys are the same."""
        if not self.phase:
            return f"{_word(self.chain.backbone.name)}-seed{self.seed}"
        return f"{chain_key(self.chain, self.seed)}-{self.phase}"

    @property
    def parent(self) -> "ChainPhase | None":
        """The segment with whose weights it begins; ``None`` for pre-training."""
        if not self.phase:
            return None
        return ChainPhase(chain=self.chain, seed=self.seed, phase=self.phase - 1)


def chain_key(chain: Chain, seed: int) -> str:
    """Return the name of a chain's files."""
    return f"{_word(chain.backbone.name)}-{_word(chain.tuning.name)}-seed{seed}"


def _word(name: str) -> str:
    return name.replace(",", "").replace(" ", "_")


def last_segment(chain: Chain, seed: int) -> ChainPhase:
    """Return the last phase of a chain, whose weights are those of the chain."""
    phases = 0 if chain.tuning.name == NOTHING else 1 + bool(chain.tuning.before)
    return ChainPhase(chain=chain, seed=seed, phase=phases)


def segments(study: FrontLoading) -> list[ChainPhase]:
    """Return all segments once, each after its parent; the most important groups come first."""
    found: dict[str, ChainPhase] = {}
    for group in study.groups:
        own = [one for one in chains((group,)) if not one.tuning.is_reinforced]
        for phase in range(3):
            for chain, seed in product(own, study.seeds):
                if phase <= last_segment(chain, seed).phase:
                    segment = ChainPhase(chain=chain, seed=seed, phase=phase)
                    found.setdefault(segment.key, segment)
    return [*found.values()]


def chain_run(study: FrontLoading, chain: Chain, seed: int) -> Run:
    """Return a chain as a run of phases, of which the first one is pre-training."""
    data = corpora(study)
    phases = [_pretraining(study, chain), *_tunings(study, chain)]
    used = {PLAIN, *(one.member for phase in phases for one in phase.weights)}
    sources = [PhaseSource(name=name, data=own) for name, own in data.items() if name in used]
    train = replace(study.train, seed=seed)
    name = chain_key(chain, seed)
    return phased_run(name, study.system, sources, phases, train, held_out=(PLAIN,))


def _pretraining(study: FrontLoading, chain: Chain) -> Phase:
    backbone = chain.backbone
    tokens = study.pretrain_tokens
    if backbone.without_share:
        tokens = round(tokens * (1 - study.share))
    shares = {backbone.corpus: study.share} if backbone.corpus else {}
    return Phase(
        name="pretraining",
        tokens=tokens,
        weights=placed(PLAIN, shares, backbone.placement),
        row_ticks=study.row_ticks,
        trained=backbone.trained,
    )


def _tunings(study: FrontLoading, chain: Chain) -> Iterator[Phase]:
    """Yield the phases of fine-tuning."""
    tuning = chain.tuning
    reasoning = round(study.share * study.pretrain_tokens)
    wanted = {tuning.before: reasoning} if tuning.before else {}
    if tuning.corpus:
        wanted[tuning.corpus] = study.tuning_tokens * tuning.times
    for corpus, tokens in wanted.items():
        yield Phase(
            name=f"tuning on {corpus}",
            tokens=tokens,
            weights=(MemberWeight(member=corpus, weight=1.0),),
            row_ticks=study.row_ticks,
            trained="spans",
            schedule=study.train.schedule,
            lr_factor=study.tuning_lr_factor,
            reset_optimizer=True,
        )
    if tuning.is_reinforced:
        yield reinforcement(study)


def reinforcement(study: FrontLoading) -> Phase:
    """Return a phase of GRPO over questions of all families, with the rows of 4 fine-tunings."""
    rows = _REINFORCED_TIMES * study.tuning_tokens // study.row_ticks
    task = Reasoning(
        families=FAMILIES, operations=study.operations, most_symbols=study.row_ticks, folds=FOLDS
    )
    group = GroupConfig(most_ticks=study.row_ticks, kl_weight=0.001)
    return Phase(
        name="reinforcement",
        rewarded=RewardedData(task=task, group=group),
        num_steps=max(rows // study.train.batch_rows, 1),
        schedule=ScheduleConfig(warmup_steps=0, final_ratio=1.0),
        lr_factor=study.tuning_lr_factor / 5,
        reset_optimizer=True,
    )


# ------------------------------------------------------------------------------ recorded batches


class Recorder:
    """Records the batches of segments, with the ledger and the number of steps of each.

    What a process has made of a corpus stays in memory for its next segments.
    """

    def __init__(self, study: FrontLoading, folder: Path) -> None:
        self.study = study
        self.folder = folder
        self._prepared: dict[str, PreparedSource] = {}
        self._dealt: dict[str, tuple[BatchSource, int, ReadItems]] = {}

    def __call__(self, some: Sequence[ChainPhase]) -> str:
        """Record the segments of a backbone that are missing, seed by seed; return its name."""
        for segment in some:
            if not facts_path(self.folder, segment).exists():
                self._record(segment)
        return some[0].chain.backbone.name

    def _record(self, segment: ChainPhase) -> None:
        run = chain_run(self.study, segment.chain, segment.seed)
        data: Any = run.data
        system = sketch(run.system)
        source, num_steps = self._batches(segment, self._phases(data, system), run.train)
        settings = run.train.phases[segment.phase]
        counted = _Counted(source, system, settings.name)
        path = batches_path(self.folder, segment)
        path.unlink(missing_ok=True)  # its ledger was not written
        record_once(counted, num_steps, path)
        facts = {
            "ledger": counted.ledger.encoded(),
            "num_steps": num_steps,
            "lr_factor": settings.lr_factor,
        }
        write_json(facts_path(self.folder, segment), facts)

    def _batches(
        self, segment: ChainPhase, phases: PreparedPhases, train: TrainConfig
    ) -> tuple[BatchSource, int]:
        """Deal the phases of a chain up to that of a segment, as for the run of the chain.

        The deal of pre-training is kept for the other chains of the backbone.
        """
        unread = phases.reading()
        root = replace(segment, phase=0).key
        if root not in self._dealt:
            reading = deepcopy(unread)
            own = phases.dealt(0, reading, train.batch_rows, train.seed)
            self._dealt = {root: (*own, reading)}
        source, num_steps, after = self._dealt[root]
        # Another chain of the backbone may have other sources.
        reading = deepcopy(after)
        read = {name: cursor for name, cursor in reading.cursors.items() if cursor.turn}
        reading.cursors = unread.cursors | read
        for number in range(1, segment.phase + 1):
            source, num_steps = phases.dealt(number, reading, train.batch_rows, train.seed)
        return source, num_steps

    def _phases(self, data: PhasedData, system: System) -> PreparedPhases:
        """Prepare the sources of phases, as `PhasedData.prepare` does."""

        def prepared(own: DataSource) -> PreparedSource:
            key = repr(own)
            if key not in self._prepared:
                self._prepared[key] = own.prepare(system)
            return self._prepared[key]

        return PreparedPhases(
            data,
            {source.name: prepared(source.data) for source in data.sources},
            [{name: prepared(own) for name, own in data.of(one).items()} for one in data.phases],
        )


class _Counted:
    """Batches of a phase, which are counted in a ledger as they are read; a `BatchSource`."""

    def __init__(self, source: BatchSource, system: System, phase: str) -> None:
        self.ledger = Ledger()
        self._source = source
        self._system = system
        self._phase = phase

    def batch(self, step: int) -> Batch:
        batch = self._source.batch(step)
        num_ticks = batch.document_start.shape[1]
        flops = self._system.flops_per_tick(num_ticks, training=True, predicted=batch.targets)
        self.ledger.add(self._phase, batch.amounts, flops * num_ticks)
        return batch


def batches_path(folder: Path, segment: ChainPhase) -> Path:
    """Return the path of the recorded batches of a segment."""
    return folder / WORK / BATCHES / f"{segment.key}.pt"


def facts_path(folder: Path, segment: ChainPhase) -> Path:
    """Return the path of the ledger and the number of steps of a segment."""
    return batches_path(folder, segment).with_suffix(".json")


def read_facts(folder: Path, segment: ChainPhase) -> dict[str, Any]:
    """Return the ledger and the number of steps of a segment."""
    found: dict[str, Any] = read_json(facts_path(folder, segment))
    return found


def record_segments(
    study: FrontLoading, folder: Path, some: Sequence[ChainPhase], progress: Progress
) -> None:
    """Record the batches of segments, in as many processes as there are cores."""
    missing: dict[str, list[ChainPhase]] = {}
    for segment in sorted(some, key=lambda one: one.seed):
        if not facts_path(folder, segment).exists():
            missing.setdefault(segment.chain.backbone.name, []).append(segment)
    task = progress.task("making batches")
    work = Recorder(study, folder)
    with closing(work_in_processes(work, [*missing.values()], os.cpu_count() or 1)) as done:
        for number, key in enumerate(done, 1):
            task(number, len(missing), figures=key)


# ------------------------------------------------------------------------------------- training


def stacks(folder: Path, some: Sequence[ChainPhase], most_lanes: int) -> list[list[ChainPhase]]:
    """Return groups of segments that are trained together.

    Lanes of a stack take equally many steps, and those that have fewer wait. A group therefore has
    segments whose numbers of steps are alike. Every group comes after those with its parents, and
    groups are in the order of their first segments. As later segments fill earlier groups, give
    only segments that are equally important.

    Args:
        folder: Folder of the study, with the recorded batches.
        some: Segments, each after its parent.
        most_lanes: Largest number of segments of a group.
    """
    groups: list[list[ChainPhase]] = []
    steps: list[int] = []
    places: dict[str, int] = {}
    for segment in some:
        own = read_facts(folder, segment)["num_steps"]
        after = -1 if segment.parent is None else places.get(segment.parent.key, -1)
        for place in range(after + 1, len(groups)):
            alike = max(own, steps[place]) <= _ALIKE * min(own, steps[place])
            if alike and len(groups[place]) < most_lanes:
                break
        else:
            place = len(groups)
            groups.append([])
            steps.append(own)
        groups[place].append(segment)
        places[segment.key] = place
    return groups


def train_segments(
    study: FrontLoading,
    folder: Path,
    some: Sequence[ChainPhase],
    device: torch.device,
    progress: Progress | None = None,
) -> list[System]:
    """Train segments as lanes of a stack, and return the models.

    Raises:
        DivergedError: Weights of a segment are not finite.
    """
    systems = []
    for segment in some:
        path = None if segment.parent is None else weights_path(folder, segment.parent)
        systems.append(begun_system(study.system, segment.seed, path).to(device))
    configs = [segment_config(study, folder, segment) for segment in some]
    sources = [read_recorded(batches_path(folder, segment)) for segment in some]
    names = [segment.key for segment in some]
    train_further(systems, configs, sources, device, names, progress)
    return systems


def segment_config(study: FrontLoading, folder: Path, segment: ChainPhase) -> TrainConfig:
    """Return the training of a segment by itself; its schedule warms up anew."""
    facts = read_facts(folder, segment)
    optimizer = replace(study.train.optimizer, lr=study.train.optimizer.lr * facts["lr_factor"])
    return replace(
        study.train,
        num_steps=facts["num_steps"],
        seed=segment.seed,
        optimizer=optimizer,
        phases=(),
    )


def weights_path(folder: Path, segment: ChainPhase) -> Path:
    """Return the path of the weights of a segment."""
    return folder / WORK / "weights" / f"{segment.key}.safetensors"
