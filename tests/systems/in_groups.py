"""A context in which even short rows read the whole in groups, so that the contract covers them."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from counterpoint.blocks import key_groups


@contextmanager
def tiny_groups() -> Iterator[None]:
    """Groups of few queries, wherever they have fewer keys than the row."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(key_groups, "GROUP_SIZE", 5)
        changed.setattr(key_groups, "DENSE_TIMES", 1)
        changed.setattr(key_groups, "FEW_KEYS", 0)
        yield


@contextmanager
def no_groups() -> Iterator[None]:
    """Every step computes scores for all keys."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(key_groups, "DENSE_TIMES", 1 << 40)
        yield
