"""Whether code may read the values of tensors, or only their shapes.

A compiled graph, a CUDA graph and a model that runs for several seeds at once are all computed from
one trace, which a branch on a value would break. Code that saves time by reading values asks
`is_traced` first, and otherwise does what is right for every value.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_shapes_only: ContextVar[bool] = ContextVar("shapes_only", default=False)


def is_traced() -> bool:
    """Return whether values must not be read."""
    return torch.compiler.is_compiling() or _shapes_only.get()


@contextmanager
def tracing() -> Iterator[None]:
    """Forbid reading values within this context."""
    token = _shapes_only.set(True)
    try:
        yield
    finally:
        _shapes_only.reset(token)
