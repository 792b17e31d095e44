"""Live trials: who speaks when, and what counts as shown."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from counterpoint.data.making.orders import BACKCHANNELS, OPENINGS, Order
from counterpoint.evaluate.duplex.trials import (
    Ability,
    Outcome,
    Trial,
    _User,
    order_trials,
    run_trial,
)
from counterpoint.evaluate.duplex.turns import Segment
from counterpoint.streams.timeline import Event, Timeline
from tests.data.speech.tones import HIGH, RATE, tone_synthesizer
from tests.runtime.talking import echo_speaker

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


@pytest.mark.parametrize(
    ("agent", "passed"),
    [([(4.0, 6.0)], True), ([], True), ([(2.0, 2.2), (4.0, 6.0)], False), ([(3.2, 5.0)], False)],
)
def test_pause_is_waited_through(agent: list[tuple[float, float]], passed: bool) -> None:
    assert outcome("pause", agent, [(1.0, 3.5)]).passed is passed


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
    ],
)
def test_interruption_silences(agent: list[tuple[float, float]], passed: bool) -> None:
    found = outcome("interruption", agent, [(1.0, 2.5), (4.0, 6.0)])
    assert found.passed is passed


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


def heard(user: _User, sound: Iterator[Tensor]) -> Tensor:
    """What the user says until there is no more, while something sounds."""
    frames = []
    while not user.done:
        frames.append(user.next_frame(8))
        user.listen(next(sound))
    return torch.cat(frames)


def silence_until(frame: int, level: float) -> Iterator[Tensor]:
    for number in range(10_000):
        yield torch.full((8,), level * (number >= frame))


def test_user_comes_in_when_the_agent_has_spoken_for_a_while() -> None:
    user = _User(trial("interruption"), USER_RATE)
    said = heard(user, silence_until(80, 0.5))  # from 3.2 s; the turn ends at 2.5 s
    first, second = user.turns
    assert first == Segment(1.0, 2.5)
    # The fourth loud frame of 40 ms makes it more than 0.12 s; then after_s.
    assert second.start_s == pytest.approx(3.2 + 4 * 0.04 + 0.5)
    sounding = (said > 0).nonzero()[:, 0] / USER_RATE
    edges = [(1.0, 2.5), (second.start_s, second.end_s)]
    for start_s, end_s in edges:
        inside = sounding[(sounding >= start_s - 0.1) & (sounding < end_s + 0.1)]
        assert inside[0] == pytest.approx(start_s)
        assert inside[-1] == pytest.approx(end_s - 1 / USER_RATE, abs=1e-4)
    assert len(sounding) == round(2.5 * USER_RATE)


def test_user_gives_up_on_an_agent_that_is_silent_or_spoke_before() -> None:
    user = _User(trial("interruption"), USER_RATE)
    early = (torch.full((8,), 0.5 * (number < 60)) for number in range(10_000))  # until 2.4 s
    said = heard(user, early)
    assert len(user.turns) == 1
    assert math.isclose(len(said) / USER_RATE, 2.5 + 4.0, abs_tol=0.05)


def test_an_agent_that_repeats_what_it_hears_shows_no_ability() -> None:
    agent = echo_speaker()
    found = run_trial(agent, trial("turn"))
    assert found.agent[0].start_s == pytest.approx(found.turns[0].start_s + 0.08, abs=0.05)
    assert not found.passed
    assert found.audio.shape[1] == pytest.approx(USER_RATE * (1.0 + 1.5 + 6.0), abs=8)


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
