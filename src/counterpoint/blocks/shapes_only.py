"""Modules whose weights take no memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWN = ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_")


class _WithoutNoise(TorchFunctionMode):
    """Skips filling tensors with random numbers and scaling them."""

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
    """Build modules on the meta device, without memory and random numbers.

    On that device torch would import its compiler before it draws random numbers or scales a
    tensor; that takes seconds and has no effect.
    """
    with torch.device("meta"), _WithoutNoise():
        yield
