"""What is said in trials, and what counts as shown."""

from typing import Any

import pytest
import torch

from counterpoint.data.making.orders import BACKCHANNELS, OPENINGS, Order
from counterpoint.evaluate.duplex.trials import (
    ABILITIES,
    PAUSES,
    Ability,
    Outcome,
    Trial,
    order_trials,
    recorded_trials,
)
from counterpoint.evaluate.duplex.turns import Segment
from counterpoint.streams.timeline import Event, Timeline
from tests.data.speech.tones import HIGH, RATE, tone_synthesizer

ORDER = Order(text="my number is two", phrases=("you said", "two"), complete=4)
OTHER = Order(text="take six", phrases=("you said", "six"), complete=2)
USER_RATE = 200


def trial(ability: Ability, seconds: float = 1.5, second_s: float = 1.0) -> Trial:
    comes_in = ability in ("interruption", "backchannel")
    return Trial(
        ability=ability,
        order=ORDER,
        audio=torch.ones(round(seconds * USER_RATE)),
        pauses=(),
        second=OTHER if ability == "interruption" else None,
        second_audio=torch.ones(round(second_s * USER_RATE) * comes_in),
        after_s=0.5,
    )


def outcome(
    ability: Ability,
    agent: list[tuple[float, float]],
    turns: list[tuple[float, float]],
    said: list[tuple[float, str]] | None = None,
    undisturbed: list[tuple[float, float]] | None = None,
) -> Outcome:
    words = [
        Event(start_s=start_s, end_s=start_s, stream="agent", kind="word", text=text)
        for start_s, text in said or []
    ]
    return Outcome(
        trial=trial(ability),
        audio=torch.zeros(2, 1),
        words=Timeline(events=tuple(words)),
        agent=tuple(Segment(*times) for times in agent),
        turns=tuple(Segment(*times) for times in turns),
        undisturbed=tuple(Segment(*times) for times in undisturbed or []),
    )


@pytest.mark.parametrize(
    ("agent", "passed"),
    [
        ([(2.9, 5.0)], True),
        ([(2.35, 5.0)], True),  # 0.15 s before the end
        ([(2.25, 5.0)], False),  # too early
        ([(1.2, 1.6), (2.9, 5.0)], False),  # came in between
        ([(4.45, 6.0)], True),
        ([(4.55, 6.0)], False),  # too late
        ([], False),
    ],
)
def test_turn_is_taken_in_time(agent: list[tuple[float, float]], passed: bool) -> None:
    assert outcome("turn", agent, [(1.0, 2.5)]).passed is passed


@pytest.mark.parametrize("ability", PAUSES)
@pytest.mark.parametrize(
    ("agent", "passed", "prompt"),
    [
        ([(4.0, 6.0)], True, True),
        ([(4.45, 6.0)], True, True),
        ([(4.55, 6.0)], True, False),  # waits, and takes more than 1 s
        ([(5.6, 6.0)], False, False),  # too late
        ([], False, False),  # never answers
        ([(2.0, 2.2), (4.0, 6.0)], False, False),
        ([(3.2, 5.0)], False, False),
    ],
)
def test_pause_is_waited_through_and_then_answered(
    ability: Ability, agent: list[tuple[float, float]], passed: bool, prompt: bool
) -> None:
    found = outcome(ability, agent, [(1.0, 3.5)])
    assert found.passed is passed
    assert found.prompt_and_patient is prompt


@pytest.mark.parametrize(
    ("agent", "passed"),
    [
        ([(3.0, 4.9), (6.5, 8.0)], True),
        ([(3.0, 5.0), (5.9, 8.0)], True),  # answers 0.1 s before the end
        ([(3.0, 5.1), (6.5, 8.0)], False),  # stops after 1.1 s
        ([(3.0, 4.5), (5.2, 5.5), (6.5, 8.0)], False),  # speaks again
        ([(3.0, 4.9)], True),
        ([(3.0, 3.8), (6.5, 8.0)], True),  # between two phrases
        ([(3.0, 3.5), (6.5, 8.0)], False),  # nothing to interrupt: it had stopped before
        ([(3.0, 4.9), (5.1, 7.0)], False),  # only draws breath
    ],
)
def test_interruption_silences(agent: list[tuple[float, float]], passed: bool) -> None:
    turns, going_on = [(1.0, 2.5), (4.0, 6.0)], [(3.0, 6.5)]
    assert outcome("interruption", agent, turns, undisturbed=going_on).passed is passed


@pytest.mark.parametrize(
    ("undisturbed", "was_going_on"),
    [
        ([(3.0, 5.1)], True),
        ([(3.0, 4.9)], False),  # would have been silent in time by itself
        ([(3.0, 4.9), (5.2, 5.4)], True),  # draws breath at that moment
        ([(3.0, 4.9), (5.5, 6.0)], False),
        ([], False),
    ],
)
def test_only_who_was_going_on_is_interrupted(
    undisturbed: list[tuple[float, float]], was_going_on: bool
) -> None:
    turns = [(1.0, 2.5), (4.0, 6.0)]
    found = outcome("interruption", [(3.0, 4.6)], turns, undisturbed=undisturbed)
    assert found.was_going_on is was_going_on
    assert found.passed is was_going_on


def test_interruption_that_never_came_is_not_passed() -> None:
    found = outcome("interruption", [], [(1.0, 2.5)])
    assert not found.passed
    assert not found.said_right


def test_times_of_stopping_and_answering() -> None:
    found = outcome("interruption", [(3.0, 4.4), (6.5, 8.0)], [(1.0, 2.5), (4.0, 6.0)])
    assert found.stop_s == pytest.approx(0.4)
    assert found.latency_s == pytest.approx(0.5)
    assert outcome("turn", [], [(1.0, 2.5)]).latency_s is None
    # Had stopped before; what comes after the turn is an answer.
    for answer in ([], [(6.5, 8.0)], [(5.85, 8.0)]):
        found = outcome("interruption", [(3.0, 3.9), *answer], [(1.0, 2.5), (4.0, 6.0)])
        assert found.stop_s == 0.0
    # Drew breath only.
    found = outcome("interruption", [(3.0, 3.9), (4.2, 4.6)], [(1.0, 2.5), (4.0, 6.0)])
    assert found.stop_s == pytest.approx(0.6)


def test_text_is_right_word_for_word() -> None:
    right = [(3.0, "you"), (3.2, "said"), (3.4, "two")]
    assert outcome("turn", [], [(1.0, 2.5)], right).said_right
    assert not outcome("turn", [], [(1.0, 2.5)], right[:2]).said_right
    assert not outcome("turn", [], [(1.0, 2.5)], [(1.2, "all"), *right]).said_right
    # After an interruption only what follows it counts.
    turns = [(1.0, 2.5), (4.0, 6.0)]
    then = [(3.0, "you"), (6.5, "you"), (6.6, "said"), (6.7, "six")]
    assert outcome("interruption", [], turns, then).said_right
    assert not outcome("interruption", [], turns, [*then, (6.9, "two")]).said_right
    assert outcome("backchannel", [], turns, right).passed


def test_trials_are_a_pure_function_with_held_out_orders() -> None:
    def made(ability: Ability) -> list[Trial]:
        return list(order_trials(ability, 6, tone_synthesizer(), [HIGH], RATE, seed=1))

    for first, again in zip(made("pause"), made("pause"), strict=True):
        assert first.order == again.order
        assert torch.equal(first.audio, again.audio)
        (pause,) = first.pauses
        assert 0.4 <= pause.end_s - pause.start_s <= 1.65
        middle = round((pause.start_s + pause.end_s) / 2 * RATE)
        assert not first.audio[middle - 100 : middle + 100].any()
    for one in made("long pause"):
        (pause,) = one.pauses
        assert 2.2 <= pause.end_s - pause.start_s <= 3.55
    for one in made("late pause"):
        assert len(one.pauses) == 1
        assert one.order.complete < len(one.order.text.split())
    for one in made("turn"):
        assert not one.pauses
        assert one.second is None
        assert not len(one.second_audio)
    for one in made("interruption"):
        assert one.second is not None
        assert one.second.reply != one.order.reply
        longest = max(len(opening.split()) for opening in OPENINGS)
        words = len(one.second.text.split())
        assert 0.2 * words < len(one.second_audio) / RATE < 0.25 * (words + longest)
    for one in made("backchannel"):
        assert one.second is None
        assert len(one.second_audio) / RATE < 0.25
    assert all(len(word.split()) == 1 for word in BACKCHANNELS)


def test_trials_of_other_splits_and_pairs() -> None:
    def texts(**how: Any) -> set[str]:
        made = order_trials("turn", 20, tone_synthesizer(), [HIGH], RATE, **how)
        return {one.order.text for one in made}

    assert not texts() & texts(split="tuning")
    assert not texts() & texts(pairs="held_out")
    assert {ability for ability in ABILITIES if ability in PAUSES} == set(PAUSES)


def test_recordings_are_turns() -> None:
    (one,) = recorded_trials([(ORDER, torch.ones(5))])
    assert one.ability == "turn"
    assert one.due is ORDER
    assert len(one.audio) == 5
