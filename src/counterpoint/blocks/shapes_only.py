"""Modules without memory for their weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWN = ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_")


class _WithoutNoise(TorchFunctionMode):
    """Leaves tensors as they are instead of filling them with random numbers and scaling these."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        is_scaled = name in ("mul", "mul_") and isinstance(args[1], float)
        if name in _DRAWN or is_scaled:
            return args[0] if args else kwargs["tensor"]
        if func is torch.randn:
            return torch.empty(*args, **kwargs)
        return func(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build modules on the meta device, which takes neither memory nor random numbers.

    Before torch draws random numbers on that device, or scales a tensor, it imports its compiler,
    which takes seconds and changes nothing.
    """
    with torch.device("meta"), _WithoutNoise():
        yield
