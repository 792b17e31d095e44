"""Arms of the part-whole study with random weights, as tests of control use them."""

import torch

from counterpoint.recipes.part_whole import part_whole
from counterpoint.systems import build_system
from counterpoint.systems.contract import System


def untrained_arm(name: str) -> System:
    """Return an arm whose heads and gates are not small, so that what it reads changes a lot."""
    config = next(one.system for one in part_whole().arms if one.name == name)
    system = build_system(config, 0).eval()
    generator = torch.Generator().manual_seed(1)
    for key, weight in system.named_parameters():
        if key.endswith(("head.weight", "gate", "residual.weight")):
            torch.nn.init.normal_(weight, std=0.3, generator=generator)
    return system
