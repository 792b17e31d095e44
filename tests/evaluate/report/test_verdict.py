from dataclasses import replace

import pytest

from counterpoint.evaluate.report.arm_summary import ArmSummary
from counterpoint.evaluate.report.verdict import is_enough, scale, use_in_words, verdict
from counterpoint.evaluate.statistics import Interval


def interval(low: float, high: float) -> Interval:
    return Interval(value=(low + high) / 2, low=low, high=high)


def row(name: str, swap: Interval | None = None) -> ArmSummary:
    return ArmSummary(
        name=name,
        num_parameters=1,
        training_flops=1.0,
        training_size=1,
        training_seconds=1.0,
        bits_per_unit=interval(1, 2),
        swap_delta=swap,
    )


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-3.5, -3.1, "b needs 3.3 % fewer bits a byte than a at equal training FLOPs and data"),
        (0.6, 2.0, "b loses: it needs 1.3 % more bits a byte than a"),
        (-0.3, -0.1, "b and a are equal within 0.5 % (-0.2 %)"),
        (-0.9, -0.1, "b and a cannot be told apart by 0.5 % (-0.5 %)"),
        (-1.0, 1.2, "b and a cannot be told apart by 0.5 % (+0.1 %)"),
    ],
)
def test_a_difference_counts_from_half_a_percent_on(low: float, high: float, words: str) -> None:
    rows = [row("a"), row("b")]
    text = verdict(rows, [(rows[1], rows[0], interval(low, high))], "byte", 1)
    assert text.startswith(words)
    assert f"(95 % interval {low:+.1f} to {high:+.1f} %)" in text
    assert text.endswith("One training seed: the intervals cover the choice of text only.")


def test_products_of_the_optimiser_are_told_where_they_differ() -> None:
    control, ours = replace(row("a"), optimizer_share=0.25), replace(row("b"), optimizer_share=0.6)
    pair = (ours, control, interval(-3.5, -3.1))
    words = "equal training FLOPs (+28% with the optimiser's own products) and data"
    assert words in verdict([control, ours], [pair], "byte", 1)
    alike = (replace(ours, optimizer_share=0.26), control, interval(-3.5, -3.1))
    assert "at equal training FLOPs and data" in verdict([control, ours], [alike], "byte", 1)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.85, 0.97, "is used"),
        (0.0001, 0.0004, "is not used, by the 0.01 bits a byte that count"),
        (-0.002, 0.001, "is not used, by the 0.01 bits a byte that count"),
        (0.001, 0.05, "is not shown to be used, by the 0.01 bits a byte that count"),
    ],
)
def test_a_whole_is_used_from_a_hundredth_of_a_bit_on(low: float, high: float, words: str) -> None:
    """After 60 steps a report said that the whole is used: +0.000 bits."""
    assert use_in_words(interval(low, high)) == words
    text = verdict([row("a", swap=interval(low, high))], [], "byte", 1)
    assert f"The whole of a {words}: that of another" in text


def test_a_part_of_a_recipe_is_called_one() -> None:
    budget = {"minutes": 5.0, "reference_steps": {"a": 1100, "b": 1100}, "measured": 1.0}
    assert scale({}, 40) == scale({"budget": None}, 40) == scale({"budget": budget}, 1100) == ""
    text = scale({"budget": budget}, 275)
    assert "fits about 5 minutes here: 275 of its 1,100 steps (25 %) were taken." in text
    text = scale({"budget": budget | {"measured": 0.5}}, 275)
    assert "(25 %) were taken and 50 % of its held-out units were scored." in text
    assert text.endswith("The whole recipe may end otherwise.")
    text = scale({"budget": budget}, 54)
    assert text.endswith(
        "too little to compare anything. Run it with more minutes in another folder."
    )
    assert [is_enough({"budget": budget}, steps) for steps in (54, 55)] == [False, True]
    assert is_enough({}, 1)
    assert "here: 50 % of its" in scale({"budget": budget | {"measured": 0.5}}, 1100)
