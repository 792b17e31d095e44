"""Tests run under a checker of annotations, which looks at the first calls of every test."""

import importlib
from typing import Any

import jaxtyping
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float
from torch import Tensor

from counterpoint.blocks.norm import RMSNorm

checks: Any = importlib.import_module("type_checks")
GOOD, BAD = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long)


def test_shapes_are_checked_in_the_first_calls_of_a_test_and_again_in_the_next() -> None:
    norm = RMSNorm(3)
    for _ in range(2):
        with pytest.raises(jaxtyping.TypeCheckError, match="parameters of .*RMSNorm.forward"):
            norm(BAD)
        for _ in range(checks.CHECKED_CALLS):
            norm(GOOD)
        with pytest.raises(RuntimeError):  # torch's own
            norm(BAD)
        checks.begin_test()


def test_a_local_function_has_one_checker_however_often_it_is_made() -> None:
    def outer(kind: Any) -> Any:
        def local(value: kind) -> None:
            """It is made anew in every call of the function around it."""

        return checks.checked(local)

    assert outer(int) is outer(int)
    assert outer(int) is not outer(str)
    with pytest.raises(BeartypeCallHintViolation):
        outer(int)("text")
    outer(str)("text")


def test_a_result_must_have_the_axes_of_the_arguments() -> None:
    @jaxtyping.jaxtyped(typechecker=checks.checked)
    def cut(x: Float[Tensor, "B T"], length: int) -> Float[Tensor, "B T"]:
        return x[:, :length]

    assert cut(GOOD, 3).shape == (2, 3)
    with pytest.raises(jaxtyping.TypeCheckError, match="return value of .*cut"):
        cut(GOOD, 2)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameters of .*cut"):
        cut(BAD, 3)
