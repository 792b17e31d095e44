"""Activation checkpointing: a layer's inner activations are computed twice instead of being kept.

Source: Chen et al. (arXiv:1604.06174), as `torch.utils.checkpoint` does it.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def computed_again(layer: nn.Module, *inputs: Any) -> Any:
    """Call a layer, and once more when its gradient is asked for.

    Outputs and gradients are those of the plain call. Without gradients it is the plain call.

    Args:
        layer: A module that draws no random numbers.
        inputs: What it is called with; only these are kept.
    """
    if not torch.is_grad_enabled():
        return layer(*inputs)
    return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
