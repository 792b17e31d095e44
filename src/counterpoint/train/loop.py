"""The training loop, one for every system."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from counterpoint.blocks.loss_sums import Losses, LossSums, add_losses
from counterpoint.data.source import BatchSource, attach
from counterpoint.errors import UserError
from counterpoint.streams.batch import Amount, Batch
from counterpoint.streams.spec import Layout
from counterpoint.systems.contract import Loss, System
from counterpoint.train.checkpoint import Counters
from counterpoint.train.config import TrainConfig
from counterpoint.train.distributed import current_world, gathered, sync_gradients
from counterpoint.train.fine_tuning import check_begun
from counterpoint.train.metrics import MetricLogger
from counterpoint.train.optimizer import KindOptimizers, warm_up_note
from counterpoint.train.phase_steps import begins_anew, phase_name, step_lr_ratio
from counterpoint.train.phases import PhasedBatches
from counterpoint.train.precision import settle_precision
from counterpoint.train.record import Record, StepNumbers, TrainState, is_due
from counterpoint.train.reporter import Reporter
from counterpoint.train.run_folder import only_one
from counterpoint.train.stop_signal import StopNow, StopSignal

Evaluate = Callable[[nn.Module], Mapping[str, float]]
"""A function that measures a model; all processes call it in evaluation mode, without gradients."""


@runtime_checkable
class Objective(Protocol):
    """What a run minimises, and what that costs; every `System` is its own objective."""

    def losses(self, batch: Batch) -> Losses:
        """See `System.losses`."""

    def loss_weights(self, batch: Batch) -> dict[str, Tensor]:
        """See `System.loss_weights`."""

    def combine(self, losses: Losses, weights: Mapping[str, Tensor] | None = None) -> Loss:
        """See `System.combine`."""

    def flops_per_tick(
        self, num_ticks: int, *, training: bool = False, predicted: Collection[str] | None = None
    ) -> float:
        """See `System.flops_per_tick`."""


@runtime_checkable
class HasObjective(Protocol):
    """A `BatchSource` whose batches have a loss of their own, such as rewarded rollouts."""

    @property
    def objective(self) -> Objective:
        """The loss; asked for once, after the source was attached to the model."""


class DivergedError(UserError):
    """The loss or the gradient is not finite; the message is one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """The end of a call of `train`.

    Attributes:
        finished: False if a signal stopped the run; the same call continues it.
        checkpoint: Folder of the last checkpoint.
        counters: Counters of the whole run, including earlier calls.
        loss: Loss of the last step in bits a byte of text, or bits a frame of speech; ``nan`` if
            this call took no step.
        evaluation: Last evaluation of this call; empty if there was none.
    """

    finished: bool
    checkpoint: Path
    counters: Counters
    loss: float
    evaluation: Mapping[str, float]


class Trainer:
    """Takes the steps of a run, one after another.

    Args:
        system: The system, sharded if several processes train it; it is changed in place.
        loader: Batches by step. If it has an objective, that replaces the losses of the system.
        config: Settings of the training, with a chosen type of products.

    Raises:
        UserError: The phases do not have the steps of the run, or the system does not allow the
            fine-tuning or the compilation that is wanted.
    """

    def __init__(self, system: nn.Module, loader: BatchSource, config: TrainConfig) -> None:
        check_begun(system, config.fine_tune)
        if config.phases and sum(phase.num_steps for phase in config.phases) != config.num_steps:
            raise UserError(
                "Phases must have the steps of the run: got "
                f"{[phase.num_steps for phase in config.phases]} of {config.num_steps}. Train with "
                "`counterpoint.recipes.training.train_run`, which finds them."
            )
        self.contract = cast("System", system)
        self.loader = loader
        self.config = config
        self.device = next(system.parameters()).device
        self.world = current_world(self.device)
        self.num_parts = max(config.accumulation // self.world.size, 1)
        self.dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        optimizers = KindOptimizers(system, config.optimizer, self.dtype)
        self.state = TrainState(system=system, optimizers=optimizers, config=config, source=loader)
        if config.compile:
            _check_regular(self.contract.layout)
        self.on_part: Callable[[TrainState, int, int], None] = lambda state, part, num_parts: None
        self.compute = torch.compile(self._loss) if config.compile else self._loss
        attach(loader, system)
        self.objective: Objective = (
            loader.objective if isinstance(loader, HasObjective) else self.contract
        )

    def enter(self, folder: Path) -> None:
        """Begin the phase of the next step, which may have a loss of its own."""
        if isinstance(self.loader, PhasedBatches):
            self.loader.enter(self.state.counters.step, folder)
            self.objective = self.loader.objective

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the run's type."""
        enabled = self.dtype == torch.bfloat16
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def step(self, stop: StopSignal, *, learns: bool = True) -> StepNumbers:
        """Learn from the next batch; a stop signal of any process reaches all processes.

        Args:
            stop: The signal of this process.
            learns: Whether the weights change. A step that is only timed computes all the same,
                with a learning rate of 0.

        Raises:
            DivergedError: The loss or the gradient is not finite.
            UserError: The batch has another number of rows than the config says.
        """
        begin = time.perf_counter()
        counters = self.state.counters
        if begins_anew(self.config, counters.step):
            self.state.optimizers.empty_state([])
        self._begin_step(counters.step)
        batch = self.loader.batch(counters.step)
        num_rows, num_ticks = batch.document_start.shape
        self._check_rows(num_rows)
        losses = self._gradients(batch.to(self.device))
        parameters = [p for p in self.state.system.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = gathered(torch.nn.utils.get_total_norm(gradients, foreach=True))
        # One reduction and one transfer a step carry everything that the loop decides on.
        losses, (rows, size, stops, *counts) = self._over_processes(
            losses, [num_rows, batch.size, float(stop.requested), *_flat(batch.amounts)]
        )
        loss = self.objective.combine(losses)
        nats = float(loss.nats)
        grad_norm = float(norm)
        if not (math.isfinite(nats) and math.isfinite(grad_norm)):
            raise DivergedError(
                f"Loss and gradient must be finite: step {counters.step + 1} has a loss of "
                f"{nats} nats and a gradient of length {grad_norm}."
            )
        lr = self._update(parameters, norm, batch.kind, learns=learns)
        flops_per_tick = self.objective.flops_per_tick(
            num_ticks, training=True, predicted=batch.targets
        )
        flops = flops_per_tick * num_ticks * rows
        seconds = time.perf_counter() - begin
        amounts = dict(zip(batch.amounts, _amounts(counts), strict=True))
        phase = phase_name(self.config, counters.step)
        self.state.ledger.add(phase, amounts, flops_per_tick * num_ticks)
        counters.step += 1
        counters.size += int(size)
        counters.flops += flops
        counters.seconds += seconds
        return StepNumbers(
            loss=nats / math.log(2) / max(size, 1),
            lr=lr,
            grad_norm=grad_norm,
            size=int(size),
            unit=batch.unit,
            flops=flops,
            seconds=seconds,
            terms={name: float(value) for name, value in loss.terms.items()},
            stop=stops > 0,
        )

    def _begin_step(self, step: int) -> None:
        """Make the model what it is in a step.

        A loss of the data is that of the finished model, whose sessions have written the rows.
        """
        num_steps = self.config.num_steps
        is_own = self.objective is self.contract
        self.contract.at_step(step if is_own else num_steps, num_steps)

    def _loss(
        self, batch: Batch, weights: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, LossSums]]:
        """Return the loss to minimise, and the sums it consists of, without gradients."""
        losses = self.objective.losses(batch)
        total = self.objective.combine(losses, weights).total
        return total, {
            name: LossSums(*(value.detach() for value in sums)) for name, sums in losses.items()
        }

    def _gradients(self, batch: Batch) -> dict[str, LossSums]:
        """Accumulate the gradient of the mean loss of the parts, and return the sums over them."""
        parts = split_batch(batch, self.num_parts)
        weights = self._mean_weights(batch)
        found = list[dict[str, LossSums]]()
        for i, part in enumerate(parts):
            sync_gradients(self.state.system, i == len(parts) - 1)
            part_number = self.world.rank * len(parts) + i
            _seed(self.config.seed, self.state.counters.step, part_number)
            with self.autocast():
                total, losses = self.compute(part, weights)
            (total / len(parts)).backward()
            found.append(
                {name: LossSums(*(v.double() for v in sums)) for name, sums in losses.items()}
            )
            self.on_part(self.state, len(found), len(parts))
        return add_losses(found)

    def _mean_weights(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean weight of a part, over all processes, of each group with unequal weights.

        With these weights the mean of the parts' losses is the loss of the whole batch.
        """
        own = self.objective.loss_weights(batch)
        if not own:
            return {}
        added = self.world.sum(torch.stack([weight.double() for weight in own.values()]))
        means = added.float() / (self.num_parts * self.world.size)
        return dict(zip(own, means.unbind(), strict=True))

    def _over_processes(
        self, losses: Losses, numbers: Sequence[float]
    ) -> tuple[dict[str, LossSums], list[float]]:
        """Return the sums of losses and of numbers over all processes, on the CPU."""
        own = [torch.stack(sums) for sums in losses.values()]
        others = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        added = self.world.sum(torch.cat((*own, others))).cpu()
        *sums, totals = added.split([*map(len, own), len(numbers)])
        together = {
            name: LossSums(*value.unbind()) for name, value in zip(losses, sums, strict=True)
        }
        return together, totals.tolist()

    def _update(
        self, parameters: list[nn.Parameter], norm: Tensor, kind: str, *, learns: bool
    ) -> float:
        """Clip the gradient, take the step, and return AdamW's learning rate in it."""
        config = self.config
        if config.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, norm, foreach=True)
        ratio = step_lr_ratio(config, self.state.counters.step) if learns else 0.0
        ratio *= config.optimizer.kind_lr_factor(kind)
        optimizer = self.state.optimizers.for_kind(kind)
        optimizer.set_lr(ratio)
        optimizer.step()
        optimizer.zero_grad()
        return config.optimizer.lr * ratio

    def note_surprises(self, record: Record) -> None:
        """Tell the user where a run differs from what its config seems to say."""
        warm_up = warm_up_note(self.config.schedule, self.config.num_steps)
        if warm_up is not None and self.state.counters.step < self.config.num_steps:
            record.note(warm_up)
        parts = self.num_parts * self.world.size
        if parts != self.config.accumulation:
            record.note(
                f"Noise such as whole dropout differs from a run of one process: {self.world.size} "
                f"processes compute {parts} parts of each batch and `accumulation` is "
                f"{self.config.accumulation}. Make it a multiple of {self.world.size} to get the "
                "same noise."
            )

    def _check_rows(self, num_rows: int) -> None:
        expected = self.config.batch_rows
        if num_rows * self.world.size != expected or num_rows % self.num_parts:
            raise UserError(
                "`batch_rows` must be divided evenly by processes and accumulation: "
                f"{expected} rows over {self.world.size} processes in {self.num_parts} parts "
                f"each, and the loader gives {num_rows} a process. Change one of them."
            )

    def evaluate(self, evaluate: Evaluate) -> dict[str, float]:
        """Measure the model in its current state."""
        system = self.state.system
        system.eval()
        with torch.no_grad(), self.autocast():
            values = evaluate(system)
        system.train()
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
    """Train a system, or continue from the newest good checkpoint of the folder.

    The folder gets ``metrics.jsonl`` and ``checkpoints/``. On SIGINT or SIGTERM the current step is
    finished, a checkpoint is written and the call returns. The same call continues the run; on the
    CPU its losses are equal bit for bit to those of a run that was never stopped. An evaluation in
    one process is interrupted by the signal, and made first by the next call.

    Args:
        system: A `counterpoint.systems.contract.System` on its device; with several processes,
            sharded by `counterpoint.train.distributed.shard`.
        loader: Yields this process's rows of each step.
        config: Settings of the training.
        folder: Run folder; with several machines, on a disk that all of them share.
        evaluate: Measures the model at the intervals of the config and at the end.
        reporter: Shows the run to a person (first process only).
        loggers: Receive the numbers (first process only).
        run: JSON that every checkpoint stores, such as `counterpoint.config_json.encode(run)`. Its
            "data" must not change when the run is continued.

    Returns:
        How the call ended.

    Raises:
        DivergedError: The loss or the gradient is not finite. Nothing was learned from that step.
        CheckpointError: The disk is full, the folder's checkpoints cannot be used or learned from
            other data, or another command uses the folder.
    """
    with StopSignal().listening() as stop:
        why = ""
        if config.precision == "auto":
            world = current_world(next(system.parameters()).device)
            choice = settle_precision("auto", [system], [folder], world)
            config = replace(config, precision=choice.precision)
            why = choice.why
        trainer = Trainer(system, loader, config)
        record = Record(folder, trainer.world, reporter, loggers, run)
        trainer.on_part = record.part
        with only_one(folder, trainer.world, ".train.lock"), closing(record):
            if why:
                record.note(why)
            record.begin(trainer.state)
            trainer.note_surprises(record)
            return _run(trainer, record, evaluate, stop)


def _run(
    trainer: Trainer, record: Record, evaluate: Evaluate | None, stop: StopSignal
) -> TrainResult:
    config = trainer.config
    state = trainer.state
    counters = state.counters
    state.system.train()
    loss = math.nan
    evaluation = dict[str, float]()
    stopped = False
    while True:
        # A checkpoint is written before the evaluation of its step. A run that was stopped between
        # the two, or in the evaluation, evaluates first when it is resumed.
        is_owed = (
            evaluate is not None
            and counters.step > 0
            and is_due(config, counters.step, config.evaluate_every)
            and not record.evaluated(counters.step)
        )
        if evaluate is not None and is_owed and not stopped:
            measured = _interruptibly(trainer, evaluate, stop)
            if measured is None:
                stopped = True
                record.save_once(state)
            else:
                is_owed = False
                evaluation = measured
                record.evaluation(counters, evaluation)
        if stopped or counters.step >= config.num_steps:
            break
        trainer.enter(record.folder)
        try:
            step = trainer.step(stop)
        except DivergedError as problem:
            raise DivergedError(
                f"{problem} The last good checkpoint is {record.checkpoint or 'none'}. "
                "Lower the learning rate or `clip_norm`, and run again."
            ) from None
        loss = step.loss
        stopped = step.stop
        record.step(state, step)
        if stopped or is_due(config, counters.step, config.checkpoint_every):
            record.save(state)
    # A signal in the last step stops what would follow the training, such as a study.
    finished = counters.step >= config.num_steps and not is_owed and not stopped
    if not finished:
        record.note(
            f"Stopped after step {counters.step} of {config.num_steps}; saved {record.checkpoint}. "
            "Run the same command to continue."
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


def _interruptibly(
    trainer: Trainer, evaluate: Evaluate, stop: StopSignal
) -> dict[str, float] | None:
    """Measure the model; ``None`` if a signal has interrupted it.

    Of several processes none is interrupted, because the others would wait for it.
    """
    if trainer.world.size > 1:
        return trainer.evaluate(evaluate)
    try:
        with stop.obeyed_at_once():
            return trainer.evaluate(evaluate)
    except StopNow:
        return None


def split_batch(batch: Batch, num_parts: int) -> list[Batch]:
    """Split a batch into equal parts by rows. Each keeps the `size` of the whole batch."""
    if num_parts == 1:
        return [batch]
    rows = batch.document_start.shape[0] // num_parts
    cuts = [slice(i * rows, (i + 1) * rows) for i in range(num_parts)]
    return [batch.rows(cut) for cut in cuts]


def _flat(amounts: Mapping[str, Amount]) -> list[float]:
    return [float(count) for amount in amounts.values() for count in amount]


def _amounts(counts: Sequence[float]) -> list[Amount]:
    """Return the amounts of which `_flat` made numbers."""
    width = len(Amount._fields)
    starts = range(0, len(counts), width)
    return [Amount(*map(int, counts[start : start + width])) for start in starts]


def _check_regular(layout: Layout) -> None:
    for stream in layout.streams:
        if stream.irregular:
            raise UserError(
                f"`compile` needs steps of fixed length: {stream.name!r} is irregular, and a "
                "compiled graph would compute its steps at every tick. Train without `compile`."
            )


def _seed(seed: int, step: int, part: int) -> None:
    """Seed torch so that noise is a function of (seed, step, part of the batch).

    No random state has to be saved, and a part has the same noise in every process.
    """
    mixed = np.random.SeedSequence((seed, step, part)).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(mixed))
