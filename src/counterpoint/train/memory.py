"""Memory of a training run at the end of a forward pass, computed without using that memory.

The forward pass of one part of a batch runs on tensors that have shapes but no values. Every
storage that autograd keeps is counted once. Working memory of single operations, the codec while
recordings are encoded, and memory that the allocator wastes are not counted.
"""

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from counterpoint.blocks.low_rank import add_low_rank
from counterpoint.data.speech.rows import SpeechData
from counterpoint.data.text.corpus import DataConfig
from counterpoint.data.text.held_out import rows_batch
from counterpoint.streams import schedule
from counterpoint.streams.batch import Batch
from counterpoint.systems import build_system, system_layout
from counterpoint.systems.contract import System, SystemConfig
from counterpoint.train.config import TrainConfig
from counterpoint.train.fine_tuning import fresh_names
from counterpoint.train.muon import Muon
from counterpoint.train.optimizer import build_optimizer
from counterpoint.train.run import Run

_CHECKPOINTS = "checkpoint_activations"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingMemory:
    """Memory of one process, in bytes.

    Attributes:
        weights: Parameters, including frozen ones, and adapters.
        gradients: One number for each parameter that is trained.
        optimizer: Moments.
        activations: Tensors that the gradients of one part of a batch need, including bfloat16
            copies of trained weights; with activation checkpointing also those that one layer
            computes again. ``None`` if the size depends on the content.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int | None

    @property
    def total(self) -> int:
        """Sum of all known entries."""
        return self.weights + self.gradients + self.optimizer + (self.activations or 0)


def training_memory(run: Run) -> TrainingMemory:
    """Compute the memory that a run needs on one device.

    Args:
        run: The run. Its rows have the length that its data declare, without prompts; no data are
            read.

    Raises:
        UserError: It trains adapters beside weights that begin anew, and the model with which it
            begins cannot be used.
    """
    batch = example_batch(run)
    fine_tune = run.train.fine_tune
    has_adapters = fine_tune is not None and fine_tune.low_rank is not None
    fresh = fresh_names(run.system, fine_tune) if has_adapters else ()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.random.fork_rng(devices=[]):
        system = _begun(run.system, run.train, fresh)
        trained = [weight for weight in system.parameters() if weight.requires_grad]
        tensors = [*system.parameters(), *system.buffers()]
        return TrainingMemory(
            weights=sum(tensor.nbytes for tensor in tensors),
            gradients=sum(weight.nbytes for weight in trained),
            optimizer=_moments(system, run),
            activations=_activations(run, batch, fresh),
        )


def _begun(config: SystemConfig, train: TrainConfig, fresh: Container[str]) -> System:
    """Return a system with its adapters and any weights; `fresh` ones are trained themselves."""
    system = build_system(config, seed=0)
    if train.fine_tune is not None and train.fine_tune.low_rank is not None:
        add_low_rank(system, train.fine_tune.low_rank, 0, fresh)
    system.at_step(0, train.num_steps)  # no later stage needs more memory
    return system


def _moments(system: nn.Module, run: Run) -> int:
    """Return the bytes of the moments: two for AdamW, one for Muon.

    If text is trained in addition to speech, batches of text have their own moments.
    """
    total = 0
    for part in build_optimizer(system, run.train.optimizer).parts:
        count = 1 if isinstance(part, Muon) else 2
        own = [weight for group in part.param_groups for weight in group["params"]]
        total += count * sum(weight.nbytes for weight in own)
    has_text = isinstance(run.data, SpeechData) and run.data.text is not None
    return total * (2 if has_text else 1)


def _activations(run: Run, batch: Batch, fresh: Container[str]) -> int | None:
    """Return the bytes kept from the forward pass, plus those of the largest layer run again."""
    bfloat16 = run.train.precision != "float32"  # "auto" chooses it where memory is scarce
    try:
        system = _begun(run.system, run.train, fresh)
        kept = kept_bytes(system, batch, bfloat16)
        again = [
            (kept_bytes(_begun(other, run.train, fresh), batch, bfloat16) - kept) // layers
            for other, layers in _without_checkpoints(run.system)
        ]
    except (RuntimeError, NotImplementedError, AttributeError):  # an operation needs values
        return None
    copies = 0
    if again and bfloat16:
        # Autocast keeps converted weights until the pass ends. Without activation checkpointing the
        # graph holds the same tensors.
        copies = sum(weight.nbytes // 2 for weight in system.parameters() if weight.requires_grad)
    return kept + copies + max(again, default=0)


def _without_checkpoints(config: Any) -> list[tuple[SystemConfig, int]]:
    """Return, for each part with checkpointing, the config without it and its number of layers."""
    found = []
    for name in getattr(config, "__dataclass_fields__", ()):
        part = getattr(config, name)
        if getattr(part, _CHECKPOINTS, False):
            plain = replace(part, **{_CHECKPOINTS: False})
            found.append((replace(config, **{name: plain}), part.num_layers))
    return found


def kept_bytes(system: System, batch: Batch, bfloat16: bool) -> int:
    """Return the bytes of the tensors that the gradient of a loss needs, without parameters.

    Args:
        system: The model, possibly on tensors without values.
        batch: The batch.
        bfloat16: Whether to compute under autocast.
    """
    own = {_storage(tensor) for tensor in (*system.parameters(), *system.buffers())}
    held = dict[int, int]()
    alive = list[Tensor]()  # otherwise a freed storage could give its address to another one

    def keep(tensor: Tensor) -> Tensor:
        place = _storage(tensor)
        if place not in own:
            alive.append(tensor)
            held[place] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        _Guessed(),  # type: ignore[no-untyped-call]
    ):
        loss = system.combine(system.losses(batch)).total
    del loss
    return sum(held.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Guessed(TorchDispatchMode):
    """Answers True if code reads a boolean tensor, so that rows may hold several documents.

    Counts that depend on the content, such as learned blocks, stay unknown.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return True
        return func(*args, **(kwargs or {}))


def example_batch(run: Run) -> Batch:
    """Return one part of a batch of a run, with rows of the length on which it trains."""
    layout = system_layout(run.system)
    num_rows = max(run.train.batch_rows // run.train.accumulation, 1)
    num_ticks = run.data.num_ticks(layout)
    if isinstance(run.data, DataConfig):
        ids = [np.zeros(num_ticks + 1, np.int64)] * num_rows
        return rows_batch(ids, layout.block_ticks)
    given = [*layout.predicted, *layout.heard]
    return schedule.lay_out(
        layout,
        {
            stream.name: torch.zeros(
                num_rows,
                num_ticks,
                *stream.element_shape,
                dtype=torch.long if stream.is_discrete else torch.float32,
            )
            for stream in given
        },
    )
