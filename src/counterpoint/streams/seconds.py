"""Seconds and steps of equal length, such as frames or chunks, without errors of rounding.

The length of a step is a fraction, and a border between steps is the float next to its exact time.
The 9th step of 0.08 s thus ends at 0.72 s and not after it, as the float product 9 * 0.08 does.
"""

from fractions import Fraction
from math import ceil, floor


def exact(value: float) -> Fraction:
    """Return the number that a float is written as, in the fewest decimal digits: 0.08 is 2/25."""
    return Fraction(repr(float(value)))


def border_s(number: int, step_s: Fraction) -> float:
    """Return the time in seconds at which so many steps of `step_s` seconds have ended."""
    return number * step_s.numerator / step_s.denominator  # a quotient of integers is rounded well


def num_complete(time_s: float, step_s: Fraction) -> int:
    """Return how many steps of `step_s` seconds have ended at a time, also just then."""
    number = floor(time_s / step_s)  # a float, which may be wrong next to a border
    while border_s(number + 1, step_s) <= time_s:
        number += 1
    while border_s(number, step_s) > time_s:
        number -= 1
    return number


def num_begun(time_s: float, step_s: Fraction) -> int:
    """Return how many steps of `step_s` seconds have begun before a time.

    What ends at this time therefore ends in the last of them; on a border it ends in the step
    before the border.
    """
    number = ceil(time_s / step_s)
    while border_s(number - 1, step_s) >= time_s:
        number -= 1
    while border_s(number, step_s) < time_s:
        number += 1
    return number
