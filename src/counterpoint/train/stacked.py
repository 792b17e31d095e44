"""Stacks: several models of one shape are trained at once, each as a lane of the stack.

The time of a step of a small model depends on the number of calls, not on arithmetic. The weights
of all lanes are therefore stored as rows of one tensor, (S, P) for S lanes of P numbers, and
`torch.vmap` runs every operation for all lanes in one call. On a GPU the whole step is one CUDA
graph. Each lane has its own batches, seed and learning rate, and learns what it would learn alone,
up to rounding. Noise within the model, such as whole dropout, differs from that of a run alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from counterpoint.data.recorded import Recorded
from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import Role
from counterpoint.systems.contract import System
from counterpoint.tracing import tracing
from counterpoint.train.config import TrainConfig
from counterpoint.train.optimizer import build_optimizer, lr_ratio

_EAGER_STEPS = 3
"""Number of steps before a CUDA graph is made, during which libraries prepare themselves."""

_LIKE = ("num_steps", "batch_rows", "clip_norm", "schedule", "precision", "compile")
"""Fields of a `TrainConfig` that must be equal for all lanes."""


class StackedBatch(NamedTuple):
    """Batches of all lanes: the fields of a `Batch` with an additional first axis.

    Attributes:
        ticks: Ids to be read, (S, B, T, ...).
        targets: Ids to be predicted.
        elements: See `Batch.elements`.
        document_start: First tick of each tick's document.
    """

    ticks: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    elements: Mapping[str, Tensor]
    document_start: Int[Tensor, "S B T"]


class LaneSource(Protocol):
    """Batches of all lanes, step by step.

    Attributes:
        content: The batches that were loaded; every step is written into the same tensors.
    """

    content: StackedBatch

    def load(self, step: int) -> None:
        """Write the batches of a step into `content`; steps are asked for in order."""
        ...

    def sizes(self, step: int) -> list[int]:
        """Return `Batch.size` of every lane at a step."""
        ...


class _Side:
    def __init__(self, sources: Sequence[Recorded], device: torch.device, rows: int) -> None:
        self._sources = sources
        self._rows = rows
        self._everything = _side_by_side(sources, device)
        self.content = _at(self._everything, 0, rows)

    def load(self, step: int) -> None:
        _copy(_at(self._everything, step, self._rows), self.content)

    def sizes(self, step: int) -> list[int]:
        return [source.sizes[step] for source in self._sources]


class Stack:
    """Lanes that learn together.

    Args:
        systems: Models of one config, on one device; `finish` changes their weights.
        configs: Training of each lane: with AdamW, without accumulation; only seeds and rates
            differ.

    Raises:
        UserError: The lanes differ in more than that, or need what a stack does not support.
    """

    def __init__(self, systems: Sequence[System], configs: Sequence[TrainConfig]) -> None:
        _check(systems, configs)
        self.systems = systems
        self.config = configs[0]
        first = systems[0]
        self.device = first.device
        self._template = _Loss(first)
        self._buffers = {f"system.{name}": value for name, value in first.named_buffers()}
        lanes = [dict(system.named_parameters()) for system in systems]
        trained = [name for name, weight in lanes[0].items() if weight.requires_grad]
        self._frozen = {
            f"system.{name}": torch.stack([lane[name].detach() for lane in lanes])
            for name in lanes[0]
            if name not in trained
        }
        flat = [torch.cat([lane[name].detach().flatten() for name in trained]) for lane in lanes]
        self.weights = torch.stack(flat)
        self._moments = (torch.zeros_like(self.weights), torch.zeros_like(self.weights))
        self._parameters = self._views(trained, lanes[0])
        self._rates, self._decay = self._groups(systems, configs, trained)
        self._numbers = self._schedule()
        compute: Callable[..., Any] = self._all_lanes
        self._compute = torch.compile(compute) if self.config.compile else compute

    def _views(self, names: list[str], like: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
        """Return the parameters of all lanes as views of the weights."""
        found = {}
        begin = 0
        for name in names:
            shape = (len(self.systems), *like[name].shape)
            columns = slice(begin, begin + like[name].numel())
            found[f"system.{name}"] = nn.Parameter(self.weights[:, columns].view(shape))
            begin = columns.stop
        return found

    def _groups(
        self, systems: Sequence[System], configs: Sequence[TrainConfig], names: list[str]
    ) -> tuple[Float[Tensor, "S P"], Float[Tensor, "S P"]]:
        """Return the highest learning rate and the decay of every number, as in a run alone."""
        rates = list[Tensor]()
        decays = list[Tensor]()
        for system, config in zip(systems, configs, strict=True):
            found = {}
            for group in build_optimizer(system, config.optimizer).param_groups:
                for weight in group["params"]:
                    found[id(weight)] = (group["highest_lr"], group["weight_decay"])
            lane = dict(system.named_parameters())
            sizes = torch.tensor([lane[name].numel() for name in names])
            both = torch.tensor([found[id(lane[name])] for name in names])
            rate, decay = both.repeat_interleave(sizes, 0).unbind(1)
            rates.append(rate)
            decays.append(decay)
        return torch.stack(rates).to(self.device), torch.stack(decays).to(self.device)

    def _schedule(self) -> Float[Tensor, "N 3"]:
        """Return the share of the learning rate and the corrections of both moments, by step."""
        config = self.config
        betas = config.optimizer.betas
        rows = [
            (
                lr_ratio(config.schedule, step, config.num_steps),
                1 - betas[0] ** (step + 1),
                1 - betas[1] ** (step + 1),
            )
            for step in range(config.num_steps)
        ]
        return torch.tensor(rows, device=self.device)

    def losses(self, batch: StackedBatch) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
        """Return the loss of every lane, and the summed nats of its part."""
        weights = {**self._parameters, **self._frozen}
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"
        )
        # If compiled, attention must not use CUDA's fused kernels either: see `attend`.
        with tracing(), autocast, sdpa_kernel(SDPBackend.MATH):
            both: tuple[Tensor, Tensor] = self._compute(weights, tuple(batch))
        return both

    def _all_lanes(
        self, weights: dict[str, Tensor], batch: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        def lane(weights: dict[str, Tensor], own: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
            ticks, targets, elements, start = own
            batch = Batch(
                ticks=ticks, targets=targets, elements=elements, document_start=start, size=0
            )
            both: tuple[Tensor, Tensor] = functional_call(
                self._template, (weights, self._buffers), (batch,)
            )
            return both

        both: tuple[Tensor, Tensor] = torch.vmap(lane, randomness="different")(weights, batch)
        return both

    def step(self, content: StackedBatch, numbers: Float[Tensor, " 3"]) -> Float[Tensor, " S"]:
        """Learn from the next batch of every lane; return the summed nats of each part.

        Args:
            content: The batches.
            numbers: The row of the schedule for this step.

        Source: AdamW (arXiv:1711.05101), as torch has it.
        """
        config = self.config
        ratio, *corrections = numbers.unbind()
        betas = config.optimizer.betas
        total, nats = self.losses(content)
        gradients = torch.autograd.grad(
            total.sum(), list(self._parameters.values()), materialize_grads=True
        )
        with torch.no_grad():
            gradient = torch.cat([one.flatten(1) for one in gradients], 1)
            if config.clip_norm is not None:
                norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
                gradient.mul_((config.clip_norm / (norm + 1e-6)).clamp(max=1))
            first, second = self._moments
            first.lerp_(gradient, 1 - betas[0])
            second.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
            rate = self._rates * ratio
            self.weights.mul_(1 - rate * self._decay)
            root = (second / corrections[1]).sqrt_().add_(config.optimizer.eps)
            self.weights.sub_(rate * (first / corrections[0]) / root)
        return nats.detach()

    def train(
        self,
        sources: Sequence[Recorded],
        on_step: Callable[[int, list[float]], None] = lambda step, bits: None,
    ) -> None:
        """Take all steps.

        Args:
            sources: The recorded batches of each lane.
            on_step: Function that gets the number of steps taken and the loss of each lane's part,
                in bits a unit of size, every ``log_every`` steps and at the end.

        Raises:
            UserError: The batches of the lanes do not have the same shapes.
        """
        self.learn(_Side(sources, self.device, self.config.batch_rows), on_step)

    def learn(
        self,
        batches: "LaneSource",
        on_step: Callable[[int, list[float]], None] = lambda step, bits: None,
    ) -> None:
        """Take all steps from batches that may come from anywhere.

        Args:
            batches: The batches of all lanes.
            on_step: See `train`.
        """
        config = self.config
        numbers = self._numbers[0].clone()
        take = self._compiled(batches.content, numbers)
        for step in range(config.num_steps):
            batches.load(step)
            sizes = batches.sizes(step)
            numbers.copy_(self._numbers[step])
            nats = take(step)
            done = step + 1
            if done % config.log_every == 0 or done == config.num_steps:
                values = (nats.double() / math.log(2)).tolist()
                on_step(
                    done, [value / max(size, 1) for value, size in zip(values, sizes, strict=True)]
                )

    def _compiled(self, content: StackedBatch, numbers: Tensor) -> Callable[[int], Tensor]:
        """Return a function that takes a step, given its number, from the data in ``content``."""
        if self.device.type != "cuda":
            return lambda step: self.step(content, numbers)
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        nats = torch.empty(0)

        def take(step: int) -> Tensor:
            nonlocal nats
            if step < _EAGER_STEPS:
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    found = self.step(content, numbers)
                torch.cuda.current_stream().wait_stream(side)
                return found
            if step == _EAGER_STEPS:
                with torch.cuda.graph(graph, stream=side):
                    nats = self.step(content, numbers)
            graph.replay()
            return nats

        return take

    def finish(self) -> list[bool]:
        """Copy the weights to the systems; return whether those of each lane are finite."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                for lane, system in enumerate(self.systems):
                    system.get_parameter(name.removeprefix("system.")).copy_(parameter[lane])
        return [bool(found) for found in self.weights.isfinite().all(1)]


class _Loss(nn.Module):
    """A system as a module: its loss, and the nats of its part or of all that it predicts."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = system

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        losses = self.system.losses(batch)
        loss = self.system.combine(losses)
        parts = self.system.layout.by_role(Role.PART)
        return loss.total, losses[parts[0].name].nats if parts else loss.nats


def _check(systems: Sequence[System], configs: Sequence[TrainConfig]) -> None:
    if not systems or len(systems) != len(configs):
        raise UserError(
            f"Every lane must have a system and a config: got {len(systems)} and {len(configs)}."
        )
    first = configs[0]
    for system, config in zip(systems, configs, strict=True):
        unlike = [name for name in _LIKE if getattr(config, name) != getattr(first, name)]
        if system.config != systems[0].config:
            unlike.append("system")
        if unlike:
            raise UserError(
                f"Lanes of a stack must be alike but for seed and rates: they differ in {unlike}. "
                "Train them one by one."
            )
        if config.optimizer.muon_lr is not None or config.accumulation > 1 or config.fine_tune:
            raise UserError(
                "A stack learns with AdamW, in one part, from random weights: got `muon_lr`, "
                "`accumulation` or `fine_tune`. Train the lanes one by one."
            )


def _side_by_side(sources: Sequence[Recorded], device: torch.device) -> StackedBatch:
    """Return all rows of all lanes on the device."""
    first = sources[0]
    if any(source.ticks.keys() != first.ticks.keys() for source in sources):
        raise UserError("Lanes of a stack must learn from the same streams.")

    def lanes(of: Callable[[Recorded], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {
            name: torch.stack([of(source)[name] for source in sources]).to(device)
            for name in of(first)
        }

    return StackedBatch(
        lanes(lambda source: source.ticks),
        lanes(lambda source: source.targets),
        lanes(lambda source: source.elements),
        torch.stack([source.document_start for source in sources]).to(device),
    )


def _at(content: StackedBatch, step: int, batch_rows: int) -> StackedBatch:
    """Return the rows of a step, with ids of the type that models need."""
    rows = slice(step * batch_rows, (step + 1) * batch_rows)

    def own(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: ids[:, rows] if ids.is_floating_point() else ids[:, rows].long()
            for name, ids in named.items()
        }

    ticks, targets, elements, start = content
    return StackedBatch(own(ticks), own(targets), own(elements), start[:, rows].long())


def _copy(source: StackedBatch, target: StackedBatch) -> None:
    for one, other in zip(source[:3], target[:3], strict=True):
        for name, ids in one.items():
            other[name].copy_(ids)
    target.document_start.copy_(source.document_start)
