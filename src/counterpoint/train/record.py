"""The folder of a run, and those who follow the run: reporter and loggers."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from counterpoint.config_json import decode, encode, first_difference
from counterpoint.data.source import BatchSource, HasProgress
from counterpoint.streams.batch import ContentUnit
from counterpoint.train.checkpoint import (
    CheckpointError,
    Counters,
    newest_checkpoint,
    read_manifest,
    remove_old_checkpoints,
    restore,
    save_checkpoint,
)
from counterpoint.train.config import TrainConfig
from counterpoint.train.distributed import World
from counterpoint.train.fine_tuning import without
from counterpoint.train.ledger import Ledger, read_ledger
from counterpoint.train.metrics import MetricLogger, MetricsFile
from counterpoint.train.optimizer import KindOptimizers
from counterpoint.train.phase_steps import phase_ends
from counterpoint.train.reporter import Reporter, StepReport
from counterpoint.train.run import Run


@dataclass(kw_only=True, slots=True)
class TrainState:
    """A system in training: everything that a checkpoint holds.

    Attributes:
        system: The model, sharded or not.
        optimizers: Its optimisers.
        config: Settings of the training.
        counters: Progress of the whole run so far.
        source: Where the batches come from; a checkpoint holds what it counts.
        ledger: What was read of each source so far.
    """

    system: nn.Module
    optimizers: KindOptimizers
    config: TrainConfig
    source: BatchSource
    counters: Counters = field(default_factory=Counters)
    ledger: Ledger = field(default_factory=Ledger)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepNumbers:
    """Numbers of one step, over all processes.

    Attributes:
        loss: Loss in bits a unit.
        lr: Learning rate.
        grad_norm: Norm of the gradient before it was clipped.
        size: Amount that was learned from, in ``unit``.
        unit: Bytes of text, or frames of speech.
        flops: Training FLOPs.
        seconds: Duration of the step.
        terms: Terms of the loss, by name.
        stop: Whether a process received a stop signal.
    """

    loss: float
    lr: float
    grad_norm: float
    size: int
    unit: ContentUnit
    flops: float
    seconds: float
    terms: dict[str, float]
    stop: bool


class Record:
    """The folder of a run and those who follow it; only the first process writes and reports.

    Args:
        folder: The run's folder.
        world: The processes; all of them must call the methods that say so.
        reporter: Shows the run to a person.
        loggers: Receive the numbers.
        run: JSON that every checkpoint stores.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        reporter: Reporter | None,
        loggers: Sequence[MetricLogger],
        run: Mapping[str, Any] | None,
    ) -> None:
        self.folder = folder
        self.world = world
        self.reporter = reporter if world.is_first else None
        self.loggers = loggers if world.is_first else ()
        self.run = run
        self.metrics: MetricsFile | None = None
        self.checkpoint: Path | None = None
        self._saved_step: int | None = None

    def note(self, text: str) -> None:
        """Tell the user something."""
        if self.reporter is not None:
            self.reporter.note(text)

    def begin(self, state: TrainState) -> None:
        """Restore the newest good checkpoint in all processes, and cut the metrics back to it.

        Raises:
            CheckpointError: No checkpoint can be used, or they learned from other data.
        """
        path = None
        error = None
        if self.world.is_first:
            try:
                path = newest_checkpoint(self.folder, state.system, self.note)
            except CheckpointError as problem:
                error = str(problem)
        path, error = self.world.from_first((path, error))
        if error is not None:
            raise CheckpointError(error)
        if path is not None:
            self._restore(path, state)
        if self.world.is_first:
            self._open_metrics(state.counters.step)
            for logger in self.loggers:
                logger.start(state.counters.step)

    def _open_metrics(self, step: int) -> None:
        try:
            self.metrics = MetricsFile(self.folder / "metrics.jsonl", step)
        except OSError as problem:
            raise self._unwritable(problem) from None
        if self.metrics.num_damaged:
            self.note(f"Damaged lines left out of metrics.jsonl: {self.metrics.num_damaged}.")

    def _restore(self, path: Path, state: TrainState) -> None:
        self._check_data(path)
        state.counters = restore(path, state.system, state.optimizers, self.world)
        state.ledger = read_ledger(read_manifest(path).get("ledger", []))
        if any(entry.unique_items is None for entry in state.ledger):
            raise CheckpointError(
                f"A ledger must count items by their content: {path} is of a version that counted "
                "them by source. Go on with that version, or train in another folder."
            )
        progress = read_manifest(path).get("progress")
        if progress is not None and isinstance(state.source, HasProgress):
            state.source.go_on(progress)
        self.checkpoint = path
        self._saved_step = state.counters.step
        self.note(f"Going on after step {state.counters.step}, from {path}.")
        changed = first_difference(
            read_manifest(path)["train"], encode(state.config), "train config"
        )
        if changed is not None:
            self.note(f"The run does not continue as it began: changed {changed}.")

    def _check_data(self, path: Path) -> None:
        """Refuse other data: the model might train on held-out text, and nobody would see it."""
        old = _data_of(read_manifest(path)["run"])
        new = (self.run or {}).get("data")
        if old is None or new is None:
            return
        # The place of the cache does not change what is learned.
        old, new = (without(data, ["cache_folder"]) for data in (old, encode(new)))
        changed = first_difference(old, new, "data")
        if changed is not None:
            raise CheckpointError(
                f"A run must continue with the data it began with: {path} has another {changed}. "
                "Train in another folder, or change the data back."
            )

    def evaluated(self, step: int) -> bool:
        """Return whether the evaluation of a step was written; all processes must ask."""
        known = self.metrics is not None and step in self.metrics.evaluated_steps
        return bool(self.world.from_first(known))

    def part(self, state: TrainState, part: int, num_parts: int) -> None:
        """Show that ``part`` of ``num_parts`` parts of the next step are computed."""
        if self.reporter is not None and part < num_parts:
            self.reporter.part(state.counters.step, state.config.num_steps, part, num_parts)

    def step(self, state: TrainState, step: StepNumbers) -> None:
        """Record a step that is done."""
        counters = state.counters
        config = state.config
        if self.reporter is not None:
            self.reporter.step(
                StepReport(
                    step=counters.step,
                    num_steps=config.num_steps,
                    loss=step.loss,
                    seconds=step.seconds,
                    size=step.size,
                    unit=step.unit,
                    flops=step.flops,
                    num_processes=self.world.size,
                )
            )
        if is_due(config, counters.step, config.log_every):
            values = {"loss": step.loss, "lr": step.lr, "grad_norm": step.grad_norm}
            self._write({**asdict(counters), **values, "terms": step.terms})
            self._log(counters.step, "train", {**values, **step.terms})

    def evaluation(self, counters: Counters, values: dict[str, float]) -> None:
        """Record an evaluation."""
        self._write({**asdict(counters), "evaluation": values})
        self._log(counters.step, "evaluation", values)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.note(f"step {counters.step}  evaluation: {shown}")

    def _log(self, step: int, group: str, values: Mapping[str, float]) -> None:
        for logger in self.loggers:
            logger.log(step, {f"{group}/{name}": value for name, value in values.items()})

    def _write(self, row: Mapping[str, Any]) -> None:
        if self.metrics is None:
            return
        try:
            self.metrics.write(row)
        except OSError as problem:
            raise self._unwritable(problem) from None

    def _unwritable(self, problem: OSError) -> CheckpointError:
        return CheckpointError(
            f"metrics.jsonl must be writable in {self.folder}: {problem.strerror}. The last "
            f"checkpoint is {self.checkpoint or 'none'}. Make room and run the same command again."
        )

    def save_once(self, state: TrainState) -> None:
        """Write a checkpoint unless there is one of this step; see `save`."""
        if self._saved_step != state.counters.step:
            self.save(state)

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, with all processes, and delete old ones.

        Raises:
            CheckpointError: It could not be written.
        """
        if self.metrics is not None:
            try:
                self.metrics.sync()
            except OSError as problem:
                raise self._unwritable(problem) from None
        self.checkpoint = save_checkpoint(
            self.folder,
            state.system,
            state.optimizers,
            state.counters,
            self.world,
            {
                "train": encode(state.config),
                "run": self.run,
                "num_threads": torch.get_num_threads() if self.world.on_cpu else None,
                "ledger": state.ledger.encoded(),
                "progress": state.source.progress
                if isinstance(state.source, HasProgress)
                else None,
            },
        )
        self._saved_step = state.counters.step
        if self.world.is_first:
            remove_old_checkpoints(self.folder, state.config.keep_checkpoints, self.checkpoint)

    def close(self) -> None:
        """Close the record of a run that has ended or failed."""
        if self.reporter is not None:
            self.reporter.close()
        if self.metrics is not None:
            self.metrics.close()
        for logger in self.loggers:
            logger.close()


def _data_of(run: Any) -> Any:
    """Return the config of the data of a stored run; newer fields get their defaults."""
    with contextlib.suppress(ValueError):  # then the config is compared as it was written
        return encode(decode(Run, run, "run").data)
    return (run or {}).get("data")


def is_due(config: TrainConfig, step: int, every: int) -> bool:
    """Return whether an action is due after a step: every so many, and at the end of each phase."""
    at_end = step >= config.num_steps or step in phase_ends(config)
    return at_end or (every > 0 and step % every == 0)
