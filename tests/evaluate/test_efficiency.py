"""When a learning curve reaches a loss."""

import pytest

from counterpoint.errors import UserError
from counterpoint.evaluate.efficiency import reached


def _curve(*losses: float | None) -> list[dict[str, float | None]]:
    return [{"step": 100.0 * (i + 1), "loss": loss} for i, loss in enumerate(losses)]


def test_the_step_is_interpolated_and_costs_follow_from_it() -> None:
    # Smoothed: 4.5, 4, 3, 2, 1.5. A loss of 2.5 lies halfway between steps 300 and 400.
    found = reached(_curve(5, 4, 3, 2, 1), 2.5, bytes_per_step=10, flops_per_step=1e3)
    assert found is not None
    assert found.step == pytest.approx(350)
    assert found.num_bytes == pytest.approx(3500)
    assert found.flops == pytest.approx(3.5e5)


def test_one_lucky_batch_does_not_count() -> None:
    curve = _curve(5, 5, 1, 5, 5, 5)
    assert reached(curve, 2.0, bytes_per_step=1, flops_per_step=1) is None


def test_what_is_reached_at_once_has_the_step_of_the_first_point() -> None:
    found = reached(_curve(1.0, None, 0.5), 2.0, bytes_per_step=1, flops_per_step=1)
    assert found is not None
    assert found.step == 100
    with pytest.raises(UserError, match="none"):
        reached(_curve(None), 2.0, bytes_per_step=1, flops_per_step=1)
