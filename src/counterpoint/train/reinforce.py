"""Reinforcement by GRPO, for every system that hears nothing, with one written stream or several.

For every question the model writes a group of solutions, each is given a reward, and what is better
than the mean of its group becomes likelier. Every element that the model chose counts, in every
stream: the policy of a frame is the product over its elements.

With the log probability l of an element under the model, l_old under the model that wrote it, l_ref
under the model before training and the advantage A of its row, the loss is the mean over elements
of ``-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + kl_weight (exp(d) - d - 1)`` with
``r = exp(l - l_old)`` and ``d = l_ref - l``.

Batches come from the model, so `counterpoint.train.rollout_source.RolloutSource` is attached to it;
the loop is that of all training (`counterpoint.train.loop`), with `GroupObjective` in place of the
system's own losses. Auxiliary
losses of a system have no part in it, nor has noise that only its losses make.

Source: DeepSeekMath (arXiv:2402.03300), section 4.1; clip of two sides as in DAPO
(arXiv:2503.14476), means over elements or a constant as there and in Dr. GRPO (arXiv:2503.20783).
Checked against TRL's `GRPOTrainer`: loss and gradients of given rollouts.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from counterpoint.blocks.loss_sums import LossSums, add_losses
from counterpoint.errors import UserError
from counterpoint.literals import literals_checked
from counterpoint.streams import schedule
from counterpoint.streams.batch import Batch
from counterpoint.systems.contract import Loss, System

_STD_FLOOR = 1e-4
ADVANTAGES = "advantages"
REWARDS = "rewards"
FAILED = "failed"


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class GroupConfig:
    """Settings of GRPO; the defaults are those of the paper where it has one.

    Attributes:
        group_size: Number of solutions of a question.
        clip_low: Largest decrease of a ratio of probabilities that is followed.
        clip_high: Largest increase that is followed.
        kl_weight: Weight of the divergence from the model before training; 0 makes no copy of it.
        corrected_kl: Whether the divergence of an element is multiplied by its ratio, which makes
            its gradient that of the true divergence (DeepSeek-V3.2, arXiv:2512.02556).
        scale: What the differences from the group's mean are divided by: the standard deviation of
            the "group" or of the "batch", or "none".
        mean: What the loss is the mean over: "row" (the mean over the elements of a row, then over
            rows), "element" (over all elements), "constant" (the sum, divided by rows times the
            largest number of elements of a row).
        num_updates: Number of steps that learn from the same solutions.
        temperature: Divisor of the scores, in writing and in learning.
        most_ticks: Largest number of ticks of a solution. Solutions that do not end carry no loss.
        patience: Number of rounds in a row after which training ends if they teach nothing, because
            the solutions of every question have one reward, and not all are right.
    """

    group_size: int = 8
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_weight: float = 0.001
    corrected_kl: bool = True
    scale: Literal["group", "batch", "none"] = "group"
    mean: Literal["row", "element", "constant"] = "row"
    num_updates: int = 1
    temperature: float = 1.0
    most_ticks: int = 128
    patience: int = 20

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise UserError(
                f"`group_size` must be >= 2, because solutions are compared: got {self.group_size}."
            )
        for name in ("num_updates", "most_ticks", "patience"):
            if not 1 <= getattr(self, name) < math.inf:
                raise UserError(f"`{name}` must be finite and >= 1: got {getattr(self, name)}.")
        if not 0 <= self.clip_low < 1:
            raise UserError(f"`clip_low` must be 0 to 1: got {self.clip_low}.")
        for name in ("clip_high", "kl_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"`{name}` must be finite and >= 0: got {getattr(self, name)}.")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"`temperature` must be finite and above 0: got {self.temperature}.")


class GroupObjective:
    """The loss of GRPO over a system; a `counterpoint.train.loop.Objective`.

    Args:
        system: The system that is trained.
        config: Settings.
        reference: The system before training; ``None`` if `kl_weight` is 0.
    """

    def __init__(self, system: System, config: GroupConfig, reference: System | None) -> None:
        self.system = system
        self.config = config
        self.reference = reference

    def losses(self, batch: Batch) -> dict[str, LossSums]:
        """Return the sums of each stream, of the divergence, and of what is shown beside them.

        The nats of a stream are those of what the model wrote, an estimate of its entropy.
        """
        own = self.log_probabilities(self.system, batch)
        before = {}
        if self.reference is not None:
            with torch.no_grad():
                before = self.log_probabilities(self.reference, batch)
        counted = self._counted(batch)
        share = self._element_weights(counted)
        weight = self._total_weight(counted)
        nothing = weight.new_zeros(())
        losses: dict[str, LossSums] = {}
        divergence = nothing
        clipped = nothing
        number = nothing
        for name, log in own.items():
            old = batch.numbers.get(old_name(name), log.detach())
            advantages = _like_rows(batch.numbers[ADVANTAGES], log)
            ratio = torch.exp(log - old)
            config = self.config
            kept = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
            gain = torch.minimum(ratio * advantages, kept * advantages)
            each = counted[name] * _like_rows(share, log)
            nats = -(log.detach() * counted[name]).sum()
            depth = log.shape[2] if log.ndim == 3 else 1
            losses[name] = LossSums(
                counted[name].sum() / depth, nats, -(each * gain).sum(), weight / len(own)
            )
            if before:
                ahead = before[name] - log
                apart = ahead.exp() - ahead - 1
                divergence = (
                    divergence + (each * (apart * ratio if config.corrected_kl else apart)).sum()
                )
            off = (ratio * advantages > kept * advantages) & counted[name]
            clipped = clipped + off.sum()
            number = number + counted[name].sum()
        rewards = batch.numbers[REWARDS]
        rows = torch.full_like(weight, float(len(rewards)))
        shown = {
            "kl": (divergence, weight),
            "clipped": (clipped.to(weight), number.to(weight)),
            "reward": (rewards.sum(), rows),
            "verifier_failed": (batch.numbers[FAILED].sum(), rows),
        }
        return losses | {
            name: LossSums(nothing, nothing, value, below) for name, (value, below) in shown.items()
        }

    def loss_weights(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Return what the policy's loss and the divergence are divided by; see `System`."""
        weight = self._total_weight(self._counted(batch))
        return {"policy": weight, "kl": weight}

    def combine(
        self,
        losses: Mapping[str, LossSums],
        weights: Mapping[str, Float[Tensor, ""]] | None = None,
    ) -> Loss:
        """Return the policy's loss plus the weighted divergence; see `System.combine`."""
        weights = weights or {}
        streams = [stream.name for stream in self.system.layout.predicted if stream.name in losses]
        policy = add_losses([{"policy": losses[name]} for name in streams])["policy"]
        total = policy.weighted_nats / weights.get("policy", policy.weight).clamp(min=1e-9)
        terms = {"policy": total.detach()}
        for name in ("kl", "clipped", "reward", "verifier_failed"):
            sums = losses[name]
            mean = sums.weighted_nats / weights.get(name, sums.weight).clamp(min=1e-9)
            terms[name] = mean.detach()
            if name == "kl":
                total = total + self.config.kl_weight * mean
        if len(streams) > 1:
            for name in streams:
                sums = losses[name]
                terms[f"{name}_nats"] = (sums.nats / sums.num_ticks.clamp(min=1e-9)).detach()
        return Loss(total=total, nats=policy.nats, terms=terms)

    def flops_per_tick(
        self, num_ticks: int, *, training: bool = False, predicted: Collection[str] | None = None
    ) -> float:
        """Return the FLOPs of a tick: of learning, and of writing and scoring its solution."""
        learned = self.system.flops_per_tick(num_ticks, training=training, predicted=predicted)
        if not training:
            return learned
        once = self.system.flops_per_tick(num_ticks, predicted=predicted)
        updates = self.config.num_updates
        # The writing is shared by the updates; with several, so is scoring under the writing model.
        passes = (1 + (updates > 1)) / updates + (self.reference is not None)
        return learned + passes * once

    def log_probabilities(
        self, system: System, batch: Batch
    ) -> dict[str, Float[Tensor, "B T ..."]]:
        """Return the log probability of every target by stream; 0 where there is none."""
        found = {}
        # A sharded system gathers its weights where it is called, not in `forward`.
        for name, logits in system(batch).items():
            targets = batch.targets[name]
            log = torch.log_softmax(logits.float() / self.config.temperature, -1)
            counted = schedule.trained(system.layout[name], targets)
            own = log.gather(-1, targets.masked_fill(~counted, 0)[..., None])[..., 0]
            found[name] = own.masked_fill(~counted, 0.0)
        return found

    def _counted(self, batch: Batch) -> dict[str, Bool[Tensor, "B T ..."]]:
        layout = self.system.layout
        return {name: schedule.trained(layout[name], ids) for name, ids in batch.targets.items()}

    def _element_weights(self, counted: Mapping[str, Tensor]) -> Float[Tensor, " B"]:
        """Return the weight of each element of a row."""
        numbers = torch.stack([own.flatten(1).sum(1) for own in counted.values()]).sum(0).float()
        return 1 / numbers.clamp(min=1) if self.config.mean == "row" else torch.ones_like(numbers)

    def _total_weight(self, counted: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Return the number by which the weighted sums over elements are divided."""
        own = list(counted.values())
        num_rows = torch.tensor(float(len(own[0])), device=own[0].device)
        if self.config.mean == "row":
            return num_rows
        if self.config.mean == "element":
            return torch.stack([mask.sum() for mask in own]).sum().float()
        layout = self.system.layout
        most = sum(
            -(-self.config.most_ticks // layout[name].period_ticks) * layout[name].depth
            for name in counted
        )
        return num_rows * most


def old_name(stream: str) -> str:
    """Return the name of the log probabilities under the model that wrote, in `Batch.numbers`."""
    return f"old {stream}"


def _like_rows(numbers: Float[Tensor, " B"], like: Tensor) -> Tensor:
    return numbers.view(-1, *[1] * (like.ndim - 1))


def group_advantages(
    rewards: Float[Tensor, "Q G"], scale: Literal["group", "batch", "none"]
) -> Float[Tensor, "Q G"]:
    """Return how much better each solution is than the mean of its group; 0 if all are equal."""
    differences = rewards - rewards.mean(1, keepdim=True)
    # The mean of equal rewards is rounded, and a deviation near 0 would make much of that.
    equal = (rewards == rewards[:, :1]).all(1, keepdim=True)
    differences = differences.masked_fill(equal, 0.0)
    if scale == "none":
        return differences
    deviation = rewards.std() if scale == "batch" else rewards.std(1, keepdim=True)
    return differences / (deviation + _STD_FLOOR)
