from typing import Any

import pytest

from counterpoint.blocks.ramp import RampConfig, mean_of_shorter
from counterpoint.errors import UserError


def lengths(ramp: RampConfig, final_ticks: int, num_steps: int) -> list[int]:
    return [ramp.ticks_at(final_ticks, step, num_steps) for step in range(num_steps + 1)]


def test_lengths_double_in_equal_parts_of_the_share() -> None:
    ramp = RampConfig(start_ticks=2, share=0.6)
    expected = [2] * 3 + [4] * 3 + [8] * 3 + [16] * 7
    assert lengths(ramp, 16, 15) == expected
    assert ramp.starts(16, 15) == (0, 3, 6, 9)
    assert lengths(RampConfig(start_ticks=3, share=0.5), 12, 10) == [3, 3, 3, 6, 6] + [12] * 6


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 10, 97, 1100])
@pytest.mark.parametrize("share", [0.01, 0.29, 0.5, 0.99])
@pytest.mark.parametrize("start_ticks", [1, 2, 4, 8, 16, None])
def test_stages_begin_where_the_length_changes(
    start_ticks: int | None, share: float, num_steps: int
) -> None:
    ramp = RampConfig(start_ticks=start_ticks, share=share)
    found = lengths(ramp, 16, num_steps)
    steps = range(1, num_steps)
    assert ramp.starts(16, num_steps) == (0, *(n for n in steps if found[n] != found[n - 1]))
    assert found == sorted(found)
    assert found[-2:] == [16, 16]  # the last step, and the finished model


def test_a_ramp_that_ends_at_once_is_none() -> None:
    for ramp in (RampConfig(), RampConfig(start_ticks=8), RampConfig(start_ticks=1, share=0.001)):
        assert lengths(ramp, 8, 100) == [8] * 101
        assert ramp.starts(8, 100) == (0,)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.0, 1.5, float("nan")])
def test_a_share_without_final_blocks_is_refused(share: float) -> None:
    with pytest.raises(UserError, match=r"above 0 and below 1, .* got [-.0-9na]*\. 0\.5 is"):
        RampConfig(start_ticks=2, share=share)


@pytest.mark.parametrize(
    ("start_ticks", "final_ticks", "choices"),
    [(0, 8, "1 or 2 or 4 or 8"), (-2, 8, "1 or"), (3, 8, "1 or"), (16, 8, "1 or"), (2, 12, "3 or")],
)
def test_a_first_length_that_does_not_become_the_last_is_refused(
    start_ticks: int, final_ticks: int, choices: str
) -> None:
    with pytest.raises(
        UserError, match=f"= {final_ticks} by .* got {start_ticks}. Choose {choices}"
    ):
        RampConfig(start_ticks=start_ticks).check(final_ticks)


def test_shorter_blocks_have_the_mean_of_equal_chances() -> None:
    def mean(chance: float, longest: int) -> float:
        return (1 - (1 - chance) ** longest) / chance

    values: Any = pytest.approx([1.0, mean(0.2, 2), mean(0.2, 4)], rel=1e-6)
    assert [mean_of_shorter(mean(0.2, 8), 8, ticks) for ticks in (1, 2, 4)] == values
    assert mean_of_shorter(4.6, 8, 8) == 4.6
    assert mean_of_shorter(8.0, 8, 4) == pytest.approx(4.0)
