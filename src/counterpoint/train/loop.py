"""The training loop, one for every system."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from counterpoint.config_json import encode, first_difference
from counterpoint.data.source import BatchSource, attach
from counterpoint.streams.batch import Batch, Unit
from counterpoint.streams.spec import Layout
from counterpoint.systems.contract import System
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
from counterpoint.train.distributed import World, current_world, gathered, sync_gradients
from counterpoint.train.fine_tuning import check_begun, without
from counterpoint.train.metrics import MetricLogger, MetricsFile
from counterpoint.train.optimizer import KindOptimizers, lr_ratio
from counterpoint.train.progress import Reporter, StepReport
from counterpoint.train.run_folder import only_one

Evaluate = Callable[[nn.Module], Mapping[str, float]]
"""Measures a model: called in all processes, in evaluation mode and without gradients."""


class DivergedError(ValueError):
    """The loss or the gradient is not a number; the message is one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """How a call of `train` ended.

    Attributes:
        finished: False when a signal stopped it; the same call goes on from there.
        checkpoint: Folder of the last checkpoint.
        counters: What the whole run has done, earlier calls included.
        loss: Of the last step in bits a byte of text, or a frame of speech; ``nan`` when this call
            took none.
        evaluation: Last evaluation of this call, empty when there was none.
    """

    finished: bool
    checkpoint: Path
    counters: Counters
    loss: float
    evaluation: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """Numbers of one step, over all processes."""

    loss: float
    lr: float
    grad_norm: float
    size: int
    unit: Unit
    flops: float
    seconds: float
    terms: dict[str, float]
    stop: bool


class _StopSignal:
    """Notes SIGINT and SIGTERM, to be obeyed at the end of a step."""

    def __init__(self) -> None:
        self.requested = False

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        # Whoever insists is obeyed at once; the last checkpoint is whole in any case.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    @contextmanager
    def listening(self) -> Iterator["_StopSignal"]:
        if threading.current_thread() is not threading.main_thread():
            yield self  # only the main thread receives signals
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._request) for number in numbers]
        try:
            yield self
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


class _Trainer:
    """A system, its optimiser and how far they have come."""

    def __init__(self, system: nn.Module, loader: BatchSource, config: TrainConfig) -> None:
        self.system = system
        self.contract = cast("System", system)
        self.loader = loader
        attach(loader, system)
        self.config = config
        self.device = next(system.parameters()).device
        self.world = current_world(self.device)
        self.num_parts = max(config.accumulation // self.world.size, 1)
        check_begun(system, config.fine_tune)
        self.optimizers = KindOptimizers(system, config.optimizer)
        self.counters = Counters()
        loss = self.contract.loss
        if config.compile:
            _check_regular(self.contract.layout)
        self.loss = torch.compile(loss) if config.compile else loss

    def autocast(self) -> torch.autocast:
        bfloat16 = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bfloat16)

    def step(self, stop: _StopSignal) -> _Step:
        """Learn from the next batch; a stop of any process is told to all."""
        begin = time.perf_counter()
        config, counters = self.config, self.counters
        batch = self.loader.batch(counters.step)
        num_rows, num_ticks = batch.document_start.shape
        self._check_rows(num_rows)
        nats, terms = self._gradients(batch.to(self.device))
        parameters = [p for p in self.system.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = gathered(torch.nn.utils.get_total_norm(gradients, foreach=True))
        # One reduction and one transfer a step carry all that the loop decides on.
        local = torch.stack(
            (nats, torch.tensor(float(stop.requested)).to(nats), *terms.values())
        ).double()
        counts = torch.tensor([num_rows, batch.size], dtype=torch.float64, device=self.device)
        sums = self.world.sum(torch.cat((local, counts))).tolist()
        total_nats, stops, (rows, size) = sums[0], sums[1], sums[-2:]
        grad_norm = float(norm)
        if not (math.isfinite(total_nats) and math.isfinite(grad_norm)):
            raise DivergedError(
                f"Loss and gradient must be finite: step {counters.step + 1} has a loss of "
                f"{total_nats} nats and a gradient of length {grad_norm}."
            )
        if config.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, norm, foreach=True)
        ratio = lr_ratio(config.schedule, counters.step, config.num_steps)
        ratio *= config.optimizer.kind_lr_factor(batch.kind)
        optimizer = self.optimizers.for_kind(batch.kind)
        optimizer.set_lr(ratio)
        optimizer.step()
        optimizer.zero_grad()
        flops = self.contract.flops_per_tick(num_ticks, training=True) * num_ticks * rows
        seconds = time.perf_counter() - begin
        counters.step += 1
        counters.size += int(size)
        counters.flops += flops
        counters.seconds += seconds
        return _Step(
            loss=total_nats / math.log(2) / max(size, 1),
            lr=config.optimizer.lr * ratio,
            grad_norm=grad_norm,
            size=int(size),
            unit=batch.unit,
            flops=flops,
            seconds=seconds,
            terms=dict(zip(terms, (x / self.world.size for x in sums[2:-2]), strict=True)),
            stop=stops > 0,
        )

    def _gradients(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Accumulate the gradient of the mean loss; give back summed nats and mean terms."""
        parts = split_batch(batch, self.num_parts)
        nats: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        for i, part in enumerate(parts):
            sync_gradients(self.system, i == len(parts) - 1)
            _seed(self.config.seed, self.counters.step, self.world.rank * len(parts) + i)
            with self.autocast():
                loss = self.loss(part)
            (loss.total / len(parts)).backward()
            nats.append(loss.nats.detach())
            for name, value in loss.terms.items():
                share = value.detach().float() / len(parts)
                terms[name] = terms[name] + share if name in terms else share
        return torch.stack(nats).double().sum(), terms

    def _check_rows(self, num_rows: int) -> None:
        expected = self.config.batch_rows
        if num_rows * self.world.size != expected or num_rows % self.num_parts:
            raise ValueError(
                "`batch_rows` must be shared evenly by processes and accumulation: "
                f"{expected} rows over {self.world.size} processes in {self.num_parts} parts "
                f"each, and the loader gives {num_rows} a process. Change one of them."
            )

    def evaluate(self, evaluate: Evaluate) -> dict[str, float]:
        self.system.eval()
        with torch.no_grad(), self.autocast():
            values = evaluate(self.system)
        self.system.train()
        return {name: float(value) for name, value in values.items()}


def train(
    system: nn.Module,
    loader: BatchSource,
    config: TrainConfig,
    folder: Path,
    *,
    evaluate: Evaluate | None = None,
    reporter: Reporter | None = None,
    loggers: Sequence[MetricLogger] = (),
    run: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train a system; go on from the folder's newest good checkpoint when there is one.

    The folder gets ``metrics.jsonl`` and ``checkpoints/``. On SIGINT or SIGTERM the step is
    finished, a checkpoint is written and the call returns; the same call goes on, and on the CPU
    its losses are bit for bit those of a run that was never stopped.

    Args:
        system: A model that follows `counterpoint.systems.contract.System`, on its device; with
            several processes, sharded by `counterpoint.train.distributed.shard`.
        loader: Gives this process's rows of each step.
        config: What to do.
        folder: Run folder; on many machines, on a disk that all of them share.
        evaluate: Measures the model at the intervals of the config and at the end.
        reporter: Shows the run to a person (first process only).
        loggers: Follow the numbers (first process only).
        run: JSON that every checkpoint carries, such as
            `counterpoint.config_json.encode(run)`. Its "data" must stay what it was.

    Raises:
        DivergedError: The loss or the gradient is not finite. Nothing of that step was learned.
        CheckpointError: The disk is full, or the folder's checkpoints cannot be used, or they
            learned from other data, or another command is at work in the folder.
    """
    with _StopSignal().listening() as stop:
        trainer = _Trainer(system, loader, config)
        record = _Record(folder, trainer.world, reporter, loggers, run)
        with only_one(folder, trainer.world, ".train.lock"), closing(record):
            record.begin(trainer)
            return _run(trainer, record, evaluate, stop)


class _Record:
    """The folder of a run and those who follow it; silent in all processes but the first."""

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

    def note(self, text: str) -> None:
        if self.reporter is not None:
            self.reporter.note(text)

    def begin(self, trainer: _Trainer) -> None:
        """Restore the newest good checkpoint; cut the metrics back to it."""
        path, error = None, None
        if self.world.is_first:
            try:
                path = newest_checkpoint(self.folder, trainer.system, self.note)
            except CheckpointError as problem:
                error = str(problem)
        path, error = self.world.from_first((path, error))
        if error is not None:
            raise CheckpointError(error)
        if path is not None:
            self._check_data(path)
            trainer.counters = restore(path, trainer.system, trainer.optimizers, self.world)
            self.checkpoint = path
            self.note(f"Going on after step {trainer.counters.step}, from {path}.")
            changed = first_difference(
                read_manifest(path)["train"], encode(trainer.config), "train config"
            )
            if changed is not None:
                self.note(f"The run does not go on as it began: changed {changed}.")
        parts, accumulation = trainer.num_parts * self.world.size, trainer.config.accumulation
        if parts != accumulation:
            self.note(
                f"Noise such as whole dropout is not that of one process: {self.world.size} "
                f"processes compute {parts} parts of each batch and `accumulation` is "
                f"{accumulation}. Make it a multiple of {self.world.size} to have the same."
            )
        if self.world.is_first:
            self._open_metrics(trainer.counters.step)
            for logger in self.loggers:
                logger.start(trainer.counters.step)

    def _open_metrics(self, step: int) -> None:
        try:
            self.metrics = MetricsFile(self.folder / "metrics.jsonl", step)
        except OSError as problem:
            raise self.unwritable(problem) from None
        if self.metrics.num_damaged:
            self.note(f"Damaged lines left out of metrics.jsonl: {self.metrics.num_damaged}.")

    def _check_data(self, path: Path) -> None:
        """Refuse other data: what was held out might be trained on, and nobody would see it."""
        old, new = ((run or {}).get("data") for run in (read_manifest(path)["run"], self.run))
        if old is None or new is None:
            return
        # Where the cache lies changes nothing that is learned.
        old, new = (without(data, ["cache_folder"]) for data in (old, encode(new)))
        changed = first_difference(old, new, "data")
        if changed is not None:
            raise CheckpointError(
                f"A run must go on with the data it began with: {path} has another {changed}. "
                "Train in another folder, or change the data back."
            )

    def evaluated(self, step: int) -> bool:
        known = self.metrics is not None and step in self.metrics.evaluated_steps
        return bool(self.world.from_first(known))

    def step(self, counters: Counters, config: TrainConfig, step: _Step) -> None:
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
        if _due(counters.step, config.log_every, config.num_steps):
            values = {"loss": step.loss, "lr": step.lr, "grad_norm": step.grad_norm}
            self.write({**asdict(counters), **values, "terms": step.terms})
            self.log(counters.step, "train", {**values, **step.terms})

    def evaluation(self, counters: Counters, values: dict[str, float]) -> None:
        self.write({**asdict(counters), "evaluation": values})
        self.log(counters.step, "evaluation", values)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.note(f"step {counters.step}  evaluation: {shown}")

    def log(self, step: int, group: str, values: Mapping[str, float]) -> None:
        for logger in self.loggers:
            logger.log(step, {f"{group}/{name}": value for name, value in values.items()})

    def write(self, row: Mapping[str, Any]) -> None:
        if self.metrics is None:
            return
        try:
            self.metrics.write(row)
        except OSError as problem:
            raise self.unwritable(problem) from None

    def unwritable(self, problem: OSError) -> CheckpointError:
        return CheckpointError(
            f"metrics.jsonl must be writable in {self.folder}: {problem.strerror}. The last "
            f"checkpoint is {self.checkpoint or 'none'}. Make room and run the same command again."
        )

    def save(self, trainer: _Trainer) -> None:
        if self.metrics is not None:
            try:
                self.metrics.sync()
            except OSError as problem:
                raise self.unwritable(problem) from None
        self.checkpoint = save_checkpoint(
            self.folder,
            trainer.system,
            trainer.optimizers,
            trainer.counters,
            self.world,
            {"train": encode(trainer.config), "run": self.run},
        )
        if self.world.is_first:
            remove_old_checkpoints(self.folder, trainer.config.keep_checkpoints, self.checkpoint)

    def close(self) -> None:
        if self.reporter is not None:
            self.reporter.close()
        if self.metrics is not None:
            self.metrics.close()
        for logger in self.loggers:
            logger.close()


def _run(
    trainer: _Trainer, record: _Record, evaluate: Evaluate | None, stop: _StopSignal
) -> TrainResult:
    config, counters = trainer.config, trainer.counters
    trainer.system.train()
    loss, evaluation, stopped = math.nan, dict[str, float](), False
    while True:
        # A checkpoint comes before the evaluation of its step. Whoever is stopped between the two,
        # or resumes there, evaluates first.
        if (
            evaluate is not None
            and not stopped
            and counters.step > 0
            and _due(counters.step, config.evaluate_every, config.num_steps)
            and not record.evaluated(counters.step)
        ):
            evaluation = trainer.evaluate(evaluate)
            record.evaluation(counters, evaluation)
        if stopped or counters.step >= config.num_steps:
            break
        try:
            step = trainer.step(stop)
        except DivergedError as problem:
            raise DivergedError(
                f"{problem} The last good checkpoint is {record.checkpoint or 'none'}. "
                "Lower the learning rate or `clip_norm`, and run again."
            ) from None
        loss, stopped = step.loss, step.stop
        record.step(counters, config, step)
        if stopped or _due(counters.step, config.checkpoint_every, config.num_steps):
            record.save(trainer)
    finished = counters.step >= config.num_steps
    if not finished:
        record.note(
            f"Stopped after step {counters.step} of {config.num_steps}; saved {record.checkpoint}. "
            "Run the same command to go on."
        )
    if record.checkpoint is None:
        raise AssertionError("a run that has ended has saved")
    return TrainResult(
        finished=finished,
        checkpoint=record.checkpoint,
        counters=counters,
        loss=loss,
        evaluation=evaluation,
    )


def split_batch(batch: Batch, num_parts: int) -> list[Batch]:
    """Equal parts of a batch, by rows. Each keeps the whole's `size`, which losses ignore."""
    if num_parts == 1:
        return [batch]
    rows = batch.document_start.shape[0] // num_parts
    cuts = [slice(i * rows, (i + 1) * rows) for i in range(num_parts)]
    return [
        replace(
            batch,
            ticks={name: ids[cut] for name, ids in batch.ticks.items()},
            targets={name: ids[cut] for name, ids in batch.targets.items()},
            elements={name: ids[cut] for name, ids in batch.elements.items()},
            document_start=batch.document_start[cut],
        )
        for cut in cuts
    ]


def _due(step: int, every: int, last: int) -> bool:
    return step >= last or (every > 0 and step % every == 0)


def _check_regular(layout: Layout) -> None:
    for stream in layout.streams:
        if stream.irregular:
            raise ValueError(
                f"`compile` needs steps of fixed length: {stream.name!r} is irregular, and a "
                "compiled graph would compute a step of it at every tick. Train without `compile`."
            )


def _seed(seed: int, step: int, part: int) -> None:
    """Make noise a function of (seed, step, part of the batch).

    No random state has to be saved, and a part has the same noise in whatever process.
    """
    mixed = np.random.SeedSequence((seed, step, part)).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(mixed))
