"""AdamW with parameter groups, and the learning rate over a run."""

import math
import re
from difflib import get_close_matches

from torch import nn
from torch.optim import AdamW

from counterpoint.train.config import OptimizerConfig, ScheduleConfig


def build_optimizer(system: nn.Module, config: OptimizerConfig) -> AdamW:
    """AdamW over all trainable parameters, in groups of equal decay and learning-rate factor.

    The fused form is one pass over memory. Best of 11 steps on 2 CPU cores, 9 M parameters in 120
    tensors: fused 8 ms, one parameter after the other 25 ms, foreach 54 ms.

    Raises:
        ValueError: A prefix of `lr_factors` matches no parameter.
    """
    named = {name: p for name, p in system.named_parameters() if p.requires_grad}
    for prefix, _ in config.lr_factors:
        if not any(name.startswith(prefix) for name in named):
            prefixes = {n[: m.start()] for n in named for m in re.finditer(r"\.|$", n)}
            near = get_close_matches(prefix, sorted(prefixes), n=1, cutoff=0)
            raise ValueError(
                "Each prefix in `lr_factors` must start a parameter's name: "
                f"got {prefix!r}, which starts none. Did you mean {near[0]!r}?"
            )
    embeddings = {
        id(module.weight)
        for module in system.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        decays = parameter.ndim >= 2 and id(parameter) not in embeddings
        factors = [item for item in config.lr_factors if name.startswith(item[0])]
        factor = max(factors, key=lambda item: len(item[0]))[1] if factors else 1.0
        decay = config.weight_decay if decays else 0.0
        groups.setdefault((decay, factor), []).append(parameter)
    return AdamW(
        [
            {"params": parameters, "weight_decay": decay, "lr_factor": factor}
            for (decay, factor), parameters in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def lr_ratio(config: ScheduleConfig, step: int, num_steps: int) -> float:
    """Share of the highest learning rate that optimiser step ``step`` (0 first) uses.

    The warm-up reaches 1 at step ``warmup_steps - 1``; the last step uses ``final_ratio``.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    last = num_steps - 1
    if config.kind == "cosine":
        begin = max(config.warmup_steps - 1, 0)
    else:
        begin = max(last - round(config.decay_fraction * num_steps), config.warmup_steps - 1)
    if step <= begin or last <= begin:
        return 1.0
    done = min((step - begin) / (last - begin), 1.0)
    fallen = (1 - math.cos(math.pi * done)) / 2 if config.kind == "cosine" else done
    return 1.0 - (1.0 - config.final_ratio) * fallen


def set_lr(optimizer: AdamW, lr: float) -> None:
    """Give every group the learning rate times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
