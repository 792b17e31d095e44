"""Steps in seconds: floats on a border count as on it, whatever the length of a step."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.streams.seconds import border_s, exact, num_begun, num_complete

RATES_HZ = (12.5, 10.0, 25.0, 100.0, 3.0, 0.75, 44_100.0)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_a_time_that_is_counted_in_steps_has_this_number_of_steps(rate_hz: float) -> None:
    step_s = 1 / exact(rate_hz)
    for number in range(2000):
        assert num_complete(number / rate_hz, step_s) == number
        assert num_begun(number / rate_hz, step_s) == number


def test_floats_multiply_wrongly_where_these_functions_do_not() -> None:
    wrong = [number for number in range(1, 200) if number * 0.24 != number * 3 / 12.5]
    assert wrong
    assert all(border_s(number, exact(0.24)) == number * 3 / 12.5 for number in wrong)
    assert exact(0.24) == Fraction(6, 25)


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(0, 20_000))
def test_a_time_lies_between_the_borders_of_its_step(over: int, under: int, place: int) -> None:
    step_s = Fraction(over, under)
    border = border_s(place, step_s)
    assert num_complete(border, step_s) == num_begun(border, step_s) == place
    within = border_s(2 * place + 1, step_s / 2)
    assert num_complete(within, step_s) == place
    assert num_begun(within, step_s) == place + 1
