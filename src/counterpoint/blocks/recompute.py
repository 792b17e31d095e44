"""Activation checkpointing: inner activations of a layer are computed twice instead of kept.

Source: Chen et al. (arXiv:1604.06174), as `torch.utils.checkpoint` does it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def computed_again(layer: Callable[..., Any], *inputs: Any) -> Any:
    """Call a layer, and call it again when its gradient is computed.

    Outputs and gradients equal those of a plain call. Without gradients it is a plain call.

    Args:
        layer: A module or a function that draws no random numbers.
        inputs: The arguments of the layer; only these are kept.
    """
    if not torch.is_grad_enabled():
        return layer(*inputs)
    return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
