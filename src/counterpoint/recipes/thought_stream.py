"""thought_stream: must a stream of thoughts be there from pre-training on?

Two systems learn to answer questions with a thought. A two_stream whose whole is text has its
thoughts in the whole; a single_stream writes them into the text. Each is pre-trained on questions
with their thoughts, or on the same questions with their answers only, and is then fine-tuned on
other questions with thoughts. The two systems are not compared with each other: they differ in size
and in what a thought may hold.

A model that is trained has its weights in the folder, and one that has answered its record, so a
study that was stopped goes on where it was. A record of a version that kept neither the thoughts
of the whole nor the ledger is made again from the weights.
"""

import json
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from counterpoint.blocks.notes import NotesConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.config_json import encode
from counterpoint.data.loader import Loader
from counterpoint.data.mixture import num_targets
from counterpoint.data.passes import Cursor, Passes
from counterpoint.data.tasks.items import HELD_OUT_SEED
from counterpoint.data.tasks.reasoning.aside import AsideReasoning
from counterpoint.data.tasks.reasoning.corpus import LABEL_SYMBOLS, Reasoning, answer_floors
from counterpoint.data.tasks.reasoning.item import ReasoningItem, judge
from counterpoint.data.tasks.source import TaskData
from counterpoint.evaluate.attempts import attempt
from counterpoint.locks import locked
from counterpoint.processes import work_in_processes
from counterpoint.progress import Progress
from counterpoint.recipes.begun import keep_or_check_study
from counterpoint.recipes.cells import CELLS, WORK, read_records, write_records
from counterpoint.recipes.stacks import (
    begun_system,
    keep_weights,
    record_runs,
    recorded_run,
    train_further,
)
from counterpoint.streams.batch import Amount
from counterpoint.systems import sketch
from counterpoint.systems.contract import SystemConfig
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.systems.two_stream import TwoStreamConfig
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.ledger import Ledger
from counterpoint.train.run import Run

FAMILIES = ("arithmetic", "dyck")
"""Families whose results fit into a label of the whole."""

BEFORE = "from pre-training on"
LATER = "added in fine-tuning"
STUDY = "study.json"
ThoughtPlace = Literal["aside", "inline"]
_LONGER = 8
_TUNING_LR = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class ThoughtStream:
    """The study.

    Attributes:
        name: Name of its folder.
        systems: Models, by where they have their thoughts: aside in a whole of text, or inline.
        train: Settings of pre-training.
        tuning_steps: Steps of fine-tuning, with a quarter of the learning rate.
        operations: Smallest and largest number of operations.
        num_items: Number of items that are scored for each family.
        seeds: Training seeds.
    """

    name: str = "thought_stream"
    systems: tuple[tuple[ThoughtPlace, SystemConfig], ...]
    train: TrainConfig
    tuning_steps: int = 100
    operations: tuple[int, int] = (3, 4)
    num_items: int = 100
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class ThoughtLane:
    """A model of the study.

    Attributes:
        kind: Where its thoughts are.
        seed: Training seed.
        has_begun: Whether it has thoughts from pre-training on.
        times: Number of times that it takes the steps of fine-tuning; 0 for none.
    """

    kind: ThoughtPlace
    seed: int
    has_begun: bool
    times: int

    @property
    def key(self) -> str:
        """Name of its files."""
        start = "before" if self.has_begun else "later"
        return f"{self.kind}-{start}-x{self.times}-seed{self.seed}"

    @property
    def arm(self) -> str:
        """Its name in tables."""
        times = {0: ", not fine-tuned", 1: ""}.get(self.times, f", {self.times} times")
        return f"{self.kind}, {BEFORE if self.has_begun else LATER}{times}"


def thought_stream_study() -> ThoughtStream:
    """Return the study at the size of a minute of a GPU."""
    part = TowerConfig(width=96, num_layers=3, num_heads=3, mlp_hidden=256, window=96)
    return ThoughtStream(
        systems=(
            (
                "aside",
                TwoStreamConfig(
                    part=part,
                    whole=replace(part, num_layers=2),
                    lower_layers=1,
                    block_ticks=8,
                    num_links=1,
                    whole_dropout=0.0,
                    predict_weight=0.0,
                    reconstruct_weight=0.0,
                    text=NotesConfig(depth=LABEL_SYMBOLS, vocab_size=128, padding_id=0),
                ),
            ),
            ("inline", SingleStreamConfig(tower=part)),
        ),
        train=TrainConfig(
            num_steps=1200,
            batch_rows=32,
            precision="float32",
            log_every=100,
            optimizer=OptimizerConfig(lr=3e-3),
            schedule=ScheduleConfig(warmup_steps=50),
        ),
    )


def thinkers(study: ThoughtStream, kind: ThoughtPlace) -> list[ThoughtLane]:
    """Return the models of a system, those that are not fine-tuned first."""
    forms = ((True, 0), (False, 0), (True, 1), (False, 1), (False, _LONGER))
    return [
        ThoughtLane(kind=kind, seed=seed, has_begun=has_begun, times=times)
        for has_begun, times in forms
        for seed in study.seeds
    ]


def thinker_run(study: ThoughtStream, one: ThoughtLane) -> Run:
    """Return the last phase of a model as a run."""
    questions = Reasoning(
        families=FAMILIES,
        templates=(0, 1),
        operations=study.operations,
        folds=(5, 6, 7) if one.times else (1, 2, 3, 4),
    )
    has_thoughts = one.has_begun or one.times > 0
    task: AsideReasoning | Reasoning = AsideReasoning(task=questions, has_thoughts=has_thoughts)
    if one.kind == "inline":
        task = replace(
            questions, skipped_steps=0.0 if has_thoughts else 1.0, most_symbols=task.most_symbols
        )
    train = replace(study.train, seed=one.seed)
    if one.times:
        optimizer = replace(train.optimizer, lr=_TUNING_LR * train.optimizer.lr)
        train = replace(train, num_steps=one.times * study.tuning_steps, optimizer=optimizer)
    data = TaskData(task=task, num_held_out=0, trained="spans" if one.times else "all")
    return Run(name=one.key, system=dict(study.systems)[one.kind], data=data, train=train)


def run_thought_stream(
    study: ThoughtStream,
    folder: Path,
    device: torch.device | str,
    *,
    batches_only: bool = False,
    progress: Progress | None = None,
) -> None:
    """Train the models that are missing as lanes of stacks, and let them answer.

    Args:
        study: The study.
        folder: Folder of the results; one that was begun there must be the same, but for seeds.
            Records of what the models answer come system by system.
        device: Device on which they learn.
        batches_only: Only record the batches of training.
        progress: Shows how far it is; on stderr by default.

    Raises:
        DivergedError: Weights of a model are not finite.
        UserError: The folder belongs to another study.
    """
    progress = Progress() if progress is None else progress
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".study.lock", wait=False):
        keep_or_check_study(folder / STUDY, study, ("seeds",))
        every = [one for kind, _ in study.systems for one in thinkers(study, kind)]
        missing = [one for one in every if not _weights(folder, one).exists()]
        record_runs([thinker_run(study, one) for one in missing], _batches(folder), progress)
        if not batches_only:
            for kind, _ in study.systems:
                _run_system(study, folder, thinkers(study, kind), device, progress)


def _run_system(
    study: ThoughtStream,
    folder: Path,
    every: Sequence[ThoughtLane],
    device: torch.device | str,
    progress: Progress,
) -> None:
    """Train the models of a system that have no weights, and let those answer that did not yet."""
    for times in (0, 1, _LONGER):
        own = [one for one in every if one.times == times]
        untrained = [one for one in own if not _weights(folder, one).exists()]
        if untrained:
            _train(study, folder, untrained, device, progress)
    silent = [one for one in every if not _has_answered(_answers(folder, one))]
    task = progress.task(f"answers, {every[0].kind}")
    work = partial(_record, study, folder)
    with closing(work_in_processes(work, silent, os.cpu_count() or 1)) as done:
        for number, (one, record) in enumerate(done, 1):
            write_records(_answers(folder, one), [record])
            task(number, len(silent), figures=one.key)
    answered = [one for kind, _ in study.systems for one in thinkers(study, kind)]
    paths = [path for one in answered if (path := _answers(folder, one)).exists()]
    records = [record for path in paths for record in read_records(path)]
    write_records(folder / "thought_stream.parquet", records)


def _train(
    study: ThoughtStream,
    folder: Path,
    some: Sequence[ThoughtLane],
    device: torch.device | str,
    progress: Progress,
) -> None:
    """Train models as lanes of a stack, and keep their weights."""
    runs = [thinker_run(study, one) for one in some]
    systems = [
        begun_system(
            run.system, one.seed, _weights(folder, replace(one, times=0)) if one.times else None
        )
        for one, run in zip(some, runs, strict=True)
    ]
    sources = [recorded_run(run, _batches(folder)) for run in runs]
    configs = [run.train for run in runs]
    train_further(systems, configs, sources, device, [one.key for one in some], progress)
    for one, system in zip(some, systems, strict=True):
        keep_weights(_weights(folder, one), system)


def _batches(folder: Path) -> Path:
    return folder / WORK / "batches"


def _weights(folder: Path, one: ThoughtLane) -> Path:
    return folder / WORK / "weights" / f"{one.key}.safetensors"


def _answers(folder: Path, one: ThoughtLane) -> Path:
    return folder / WORK / CELLS / f"{one.key}.parquet"


def _has_answered(path: Path) -> bool:
    """Return whether there is a record with all that is kept today."""
    return path.exists() and {"thoughts", "ledger"} <= read_records(path)[0].keys()


def _record(
    study: ThoughtStream, folder: Path, one: ThoughtLane
) -> tuple[ThoughtLane, dict[str, Any]]:
    """Return a model and what it answers to the scored questions, likeliest symbol by symbol."""
    system = begun_system(dict(study.systems)[one.kind], one.seed, _weights(folder, one))
    items = scored(study, one.kind)
    found = attempt(system, items, temperature=0.0, most_ticks=64, batch_rows=len(items))
    texts = [each.texts[0] for each in found]
    rights = [
        judge(item, text).is_right for item, text in zip(questions(study), texts, strict=True)
    ]
    return one, {
        "arm": one.arm,
        "kind": one.kind,
        "seed": one.seed,
        "split": "in range",
        "families": [item.family for item in items],
        "texts": texts,
        "right": rights,
        "thoughts": [each.labels[0] for each in found],
        "ledger": json.dumps(thought_ledger(study, one).encoded()),
    }


def thought_ledger(study: ThoughtStream, one: ThoughtLane) -> Ledger:
    """Return what a model has read in its phases, counted from the rows of its batches.

    Targets are those of all streams. A whole that is to stay silent has targets too, which are no
    tokens of an item, so there may be more targets than tokens.
    """
    ledger = Ledger()
    known = set[int]()
    for own in dict.fromkeys((replace(one, times=0), one)):
        run = thinker_run(study, own)
        system = sketch(run.system)
        rows = run.data.prepare(system).batches(run.train.batch_rows, run.train.seed)
        assert isinstance(rows, Loader)
        source = "other questions, with thoughts" if own.times else "questions, with thoughts"
        if not (own.times or own.has_begun):
            source = "questions, answers only"
        hand = Passes(Cursor(name=source), rows, known)
        for _ in range(run.train.num_steps):
            turns, amounts = zip(*(hand.take() for _ in range(run.train.batch_rows)), strict=True)
            batch = hand.read([turn.number for turn in turns])
            amount = Amount(*map(sum, zip(*amounts, strict=True)))
            amount = amount._replace(targets=num_targets(batch))
            num_ticks = batch.document_start.shape[1]
            flops = system.flops_per_tick(num_ticks, training=True, predicted=batch.targets)
            phase = "fine-tuning" if own.times else "pre-training"
            ledger.add(phase, {source: amount}, flops * num_ticks)
    return ledger


def questions(study: ThoughtStream) -> list[ReasoningItem]:
    """Return the scored questions with their thoughts in the text."""
    tasks = [
        Reasoning(families=(name,), templates=(0, 1), operations=study.operations)
        for name in FAMILIES
    ]
    return [task.item(HELD_OUT_SEED, n) for task in tasks for n in range(study.num_items)]


def scored(study: ThoughtStream, kind: ThoughtPlace) -> list[ReasoningItem]:
    """Return the scored questions as a system reads them."""
    if kind == "inline":
        return questions(study)
    tasks = [
        AsideReasoning(
            task=Reasoning(families=(name,), templates=(0, 1), operations=study.operations)
        )
        for name in FAMILIES
    ]
    return [task.item(HELD_OUT_SEED, n) for task in tasks for n in range(study.num_items)]


def declaration(study: ThoughtStream) -> dict[str, Any]:
    """Return what is declared before a run: the study, its comparisons, and their floors."""
    return {
        "study": encode(study),
        "primary": "share of right answers; the likeliest solution, symbol by symbol",
        "comparisons": thought_pairs(study),
        "correction": "Holm over all comparisons; p below 0.05 is shown",
        "floors": answer_floors(questions(study)),
    }


def thought_pairs(study: ThoughtStream) -> list[tuple[str, str, str]]:
    """Return the declared comparisons: a claim, the arm that should be better, and the other."""
    pairs = []
    for kind, _ in study.systems:
        first = ThoughtLane(kind=kind, seed=0, has_begun=True, times=1)
        for times in (1, _LONGER):
            other = replace(first, has_begun=False, times=times)
            pairs.append(("Thoughts are better from pre-training on.", first.arm, other.arm))
    return pairs
