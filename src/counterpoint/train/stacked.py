"""Stacks: several models of one shape are trained at once, each as a lane of the stack.

The time of a step of a small model depends on the number of calls, not on arithmetic. The weights
of all lanes are therefore stored as rows of one tensor, (S, P) for S lanes of P numbers, and
`torch.vmap` runs every operation for all lanes in one call. On a GPU the whole step is one CUDA
graph. Each lane has its own batches, seed, learning rate, schedule and number of steps, and learns
what it would learn alone, up to rounding: rows that are shorter than those of other lanes are
padded, and a lane that has taken all its steps stays as it is. Noise within the model, such as
whole dropout, is another than that of a run alone, and is drawn for all lanes of a stack together.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from counterpoint.blocks.loss_sums import Losses
from counterpoint.data.recorded import Recorded
from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import Role
from counterpoint.systems.contract import System
from counterpoint.tracing import tracing
from counterpoint.train.config import OptimizerConfig, TrainConfig
from counterpoint.train.lane_batches import LaneBatches, LaneSource, StackedBatch
from counterpoint.train.optimizer import build_optimizer, lr_ratio
from counterpoint.train.precision import quick_products

_EAGER_STEPS = 1
"""Number of steps before a CUDA graph is made, during which libraries prepare themselves."""

_LIKE = ("batch_rows", "clip_norm", "precision", "compile")
"""Fields of a `TrainConfig` that must be equal for all lanes."""

OnStep = Callable[[int, list[float]], bool | None]
"""Function that gets the number of steps taken and the loss of each lane's part, in bits a unit of
size. If it returns True, the training ends."""


def _go_on(step: int, bits: list[float]) -> None:
    """Report nothing."""


class Stack:
    """Lanes that learn together.

    Args:
        systems: Models of one config; `finish` changes their weights.
        configs: Training of each lane: with AdamW, without accumulation. Seeds, learning rates,
            schedules, and numbers of steps may differ.
        device: Device on which the lanes learn; by default that of the first model.

    Raises:
        UserError: The lanes differ in more than that, or need what a stack does not support.
    """

    def __init__(
        self,
        systems: Sequence[System],
        configs: Sequence[TrainConfig],
        device: torch.device | str | None = None,
    ) -> None:
        _check(systems, configs)
        self.systems = systems
        self.config = configs[0]
        self.device = systems[0].device if device is None else torch.device(device)
        self._report_every = (configs[0].log_every, configs[0].evaluate_every)
        self._lane_steps = [config.num_steps for config in configs]
        self.num_steps = max(self._lane_steps)
        first = copy.deepcopy(systems[0]).to(self.device).train()
        self._template = _Lane(first)
        self._buffers = {f"system.{name}": value for name, value in first.named_buffers()}
        lanes = [dict(system.named_parameters()) for system in systems]
        trained = [name for name, weight in lanes[0].items() if weight.requires_grad]
        self._frozen = {
            f"system.{name}": torch.stack([lane[name].detach() for lane in lanes]).to(self.device)
            for name in lanes[0]
            if name not in trained
        }
        flat = [torch.cat([lane[name].detach().flatten() for name in trained]) for lane in lanes]
        self.weights = torch.stack(flat).to(self.device)
        self._moments = (torch.zeros_like(self.weights), torch.zeros_like(self.weights))
        self._parameters = self._views(trained, lanes[0])
        self._rates, self._decay = self._groups(systems, configs, trained)
        self._numbers = self._schedule(configs)
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
        known: dict[str, tuple[Tensor, Tensor]] = {}
        system = systems[0]
        lane = dict(system.named_parameters())
        sizes = torch.tensor([lane[name].numel() for name in names])
        for config in configs:
            if repr(config.optimizer) not in known:
                found = {}
                for group in build_optimizer(system, config.optimizer).param_groups:
                    for weight in group["params"]:
                        found[id(weight)] = (group["highest_lr"], group["weight_decay"])
                both = torch.tensor([found[id(lane[name])] for name in names])
                rate, decay = both.repeat_interleave(sizes, 0).unbind(1)
                known[repr(config.optimizer)] = (rate, decay)
        every = [known[repr(config.optimizer)] for config in configs]
        rates, decays = zip(*every, strict=True)
        return torch.stack(rates).to(self.device), torch.stack(decays).to(self.device)

    def _schedule(self, configs: Sequence[TrainConfig]) -> Float[Tensor, "N S 3"]:
        """Return every lane's share of its rate and the corrections of both moments, by step.

        The share is 0 after the last step of a lane.
        """
        found = torch.zeros(self.num_steps, len(configs), 3)

        @cache
        def shares(number: int) -> Float[Tensor, " n"]:
            config = kinds[number]
            every = range(config.num_steps)
            return torch.tensor([lr_ratio(config.schedule, i, config.num_steps) for i in every])

        kinds = [replace(config, seed=0, optimizer=OptimizerConfig()) for config in configs]
        for lane, config in enumerate(kinds):
            found[: config.num_steps, lane, 0] = shares(kinds.index(config))
        taken = torch.arange(1, self.num_steps + 1, dtype=torch.float64)
        for place, beta in enumerate(self.config.optimizer.betas, 1):
            found[:, :, place] = (1 - beta**taken)[:, None]
        return found.to(self.device)

    def losses(self, batch: StackedBatch) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
        """Return the loss of every lane, and the summed nats of its part."""
        weights = {**self._parameters, **self._frozen}
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"
        )
        # If compiled, attention must not use CUDA's fused kernels either: see `attend`.
        with tracing(), autocast, sdpa_kernel(SDPBackend.MATH):
            both: tuple[Tensor, Tensor] = self._compute(weights, batch)
        return both

    def _all_lanes(self, weights: dict[str, Tensor], batch: StackedBatch) -> tuple[Tensor, Tensor]:
        def lane(weights: dict[str, Tensor], own: StackedBatch) -> tuple[Tensor, Tensor]:
            both: tuple[Tensor, Tensor] = functional_call(
                self._template, (weights, self._buffers), (_loss, own.lane())
            )
            return both

        mapped = torch.vmap(lane, in_dims=(0, batch.mapped), randomness="different")
        both: tuple[Tensor, Tensor] = mapped(weights, batch)
        return both

    def map(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Return the results of some work on the model of every lane, without gradients.

        Args:
            work: Function of a model in evaluation mode and of one lane's share of the arguments.
            arguments: Tensors, or nested tuples and mappings of tensors, with the lanes first;
                empty fields of a `StackedBatch` stay empty.
        """
        weights = {**self._parameters, **self._frozen}
        axes = tuple(tree_map(lambda x: 0 if isinstance(x, Tensor) else None, arguments))
        self._template.eval()

        def lane(weights: dict[str, Tensor], own: tuple[Any, ...]) -> Any:
            return functional_call(self._template, (weights, self._buffers), (work, *own))

        try:
            with torch.no_grad(), tracing(), sdpa_kernel(SDPBackend.MATH):
                return torch.vmap(lane, in_dims=(0, axes), randomness="different")(
                    weights, arguments
                )
        finally:
            self._template.train()

    def step(self, content: StackedBatch, numbers: Float[Tensor, "S 3"]) -> Float[Tensor, " S"]:
        """Learn from the next batch of every lane; return the summed nats of each part.

        Source: AdamW (arXiv:1711.05101), as torch has it.
        """
        config = self.config
        ratio, *corrections = numbers[..., None].unbind(1)
        betas = config.optimizer.betas
        with quick_products(self.device):
            total, nats = self.losses(content)
            gradients = torch.autograd.grad(
                total.sum(), list(self._parameters.values()), materialize_grads=True
            )
        with torch.no_grad():
            gradient = torch.cat([one.reshape(len(one), -1) for one in gradients], 1)
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

    def train(self, sources: Sequence[Recorded], on_step: OnStep = _go_on) -> None:
        """Take all steps.

        Args:
            sources: The recorded batches of each lane, at least as many as it takes steps. Their
                rows may have different numbers of ticks.
            on_step: See `OnStep`; called at the end and, as the first config says, every
                ``log_every`` and ``evaluate_every`` steps. A lane that has taken all its steps has
                the loss of its last batch.

        Raises:
            UserError: The lanes have other streams or numbers of rows, or too few batches.
        """
        self._check_sources(sources)
        with closing(LaneBatches(sources, self.device)) as batches:
            self.learn(batches, on_step)

    def learn(self, batches: LaneSource, on_step: OnStep = _go_on) -> None:
        """Take all steps from batches that may come from anywhere."""
        numbers = self._numbers[0].clone()
        take = self._compiled(batches.content, numbers)
        torch.manual_seed(self.config.seed)
        for step in range(self.num_steps):
            batches.load(step)
            numbers.copy_(self._numbers[step])
            nats = take(step)
            done = step + 1
            every = [number for number in self._report_every if number]
            if done == self.num_steps or any(done % number == 0 for number in every):
                sizes = torch.tensor(batches.sizes(step)).clamp(min=1)
                bits = nats.double().cpu() / sizes / math.log(2)
                if on_step(done, bits.tolist()):
                    return

    def _check_sources(self, sources: Sequence[Recorded]) -> None:
        for source, number in zip(sources, self._lane_steps, strict=True):
            if len(source.sizes) < number or source.batch_rows != self.config.batch_rows:
                raise UserError(
                    f"A lane of {number} steps of {self.config.batch_rows} rows must have as many "
                    f"recorded batches: got {len(source.sizes)} of {source.batch_rows} rows. "
                    "Record them for its run."
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
                torch.cuda.empty_cache()
                with torch.cuda.graph(graph, stream=side):
                    nats = self.step(content, numbers)
            graph.replay()
            return nats

        return take

    def finish(self) -> list[bool]:
        """Copy the weights to the systems; return whether those of each lane are finite.

        It may also be called between steps, from ``on_step``.
        """
        weights = self.weights.cpu()
        with torch.no_grad():
            for lane, system in enumerate(self.systems):
                begin = 0
                for name in self._parameters:
                    own = system.get_parameter(name.removeprefix("system."))
                    own.copy_(weights[lane, begin : begin + own.numel()].view_as(own))
                    begin += own.numel()
        return [bool(found) for found in weights.isfinite().all(1)]


class _Lane(nn.Module):
    """A system to which functions can be applied with other weights."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = system

    def forward(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return work(self.system, *arguments)


def _loss(system: System, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the loss, and the nats of the part or of all that is predicted."""
    losses = system.losses(batch)
    loss = system.combine(losses, _real_weights(system, batch, losses))
    parts = system.layout.by_role(Role.PART)
    return loss.total, losses[parts[0].name].nats if parts else loss.nats


def _real_weights(system: System, batch: Batch, losses: Losses) -> dict[str, Tensor]:
    """Return the weight that losses have without padding, by group.

    Losses are divided by the number of all ticks, unless their targets have weights.
    """
    if batch.lengths is None:
        return {}
    share = batch.lengths.sum() / batch.document_start.numel()
    weighted = system.loss_weights(batch)
    weights: dict[str, Tensor] = {}
    for name, sums in losses.items():
        group = system.loss_group(name)
        if group not in weighted:
            weights[group] = weights.get(group, torch.zeros_like(sums.weight)) + sums.weight
    return {group: weight * share for group, weight in weights.items()}


def _check(systems: Sequence[System], configs: Sequence[TrainConfig]) -> None:
    if not systems or len(systems) != len(configs):
        raise UserError(
            f"Every lane must have a system and a config: got {len(systems)} and {len(configs)}."
        )
    first = configs[0]
    for system, config in zip(systems, configs, strict=True):
        unlike = [name for name in _LIKE if getattr(config, name) != getattr(first, name)]
        for name in ("betas", "eps"):
            if getattr(config.optimizer, name) != getattr(first.optimizer, name):
                unlike.append(f"optimizer.{name}")
        if system.config != systems[0].config:
            unlike.append("system")
        if unlike:
            raise UserError(
                "Lanes of a stack must be alike but for seeds, rates and schedules: they differ in "
                f"{', '.join(unlike)}. Train them in stacks of their own."
            )
        if len(system.stages(config.num_steps)) > 1:
            raise UserError(
                "A stack computes all steps of all lanes alike: got a system that trains in "
                f"{len(system.stages(config.num_steps))} stages, such as those of a `ramp`. Leave "
                "the ramp out, or train the lanes one by one."
            )
        kinds = (config.optimizer.muon_lr, config.fine_tune, config.phases or None)
        if kinds != (None, None, None) or config.accumulation > 1:
            raise UserError(
                "A stack learns with AdamW, in one part and one phase: got `muon_lr`, "
                "`fine_tune`, `phases` or `accumulation`. Train the lanes one by one."
            )
