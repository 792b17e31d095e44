"""Whether code may look at the values of tensors, or only at their shapes.

A compiled graph, a CUDA graph and a model that runs for several seeds at once are computed from one
trace: a branch on a value would break it. Code that saves time by looking at values asks
`is_traced` first, and otherwise does what is right for every value.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_shapes_only: ContextVar[bool] = ContextVar("shapes_only", default=False)


def is_traced() -> bool:
    """Whether values must not be looked at."""
    return torch.compiler.is_compiling() or _shapes_only.get()


@contextmanager
def tracing() -> Iterator[None]:
    """Within this context no value is looked at."""
    token = _shapes_only.set(True)
    try:
        yield
    finally:
        _shapes_only.reset(token)
