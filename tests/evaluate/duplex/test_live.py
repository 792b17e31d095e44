"""Live trials: a user who acts by what is heard, and rows that go on side by side."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from counterpoint.evaluate.duplex.live import ModelAgent, User, run_trials
from counterpoint.evaluate.duplex.turns import Segment
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.sampler import Sampling
from tests.evaluate.duplex.test_trials import USER_RATE, trial
from tests.runtime.talking import echo_speaker

FRAME = 8


def heard(user: User, speech: Iterator[bool]) -> Tensor:
    """What the user says until there is no more, while the agent speaks or does not."""
    frames = []
    while not user.done:
        frames.append(user.next_frame(FRAME))
        user.listen(next(speech), FRAME)
    return torch.cat(frames)


def speech_from(frame: int) -> Iterator[bool]:
    for number in range(10_000):
        yield number >= frame


def test_user_comes_in_when_the_agent_has_spoken_for_a_while() -> None:
    user = User(trial("interruption"), USER_RATE)
    said = heard(user, speech_from(80))  # from 3.2 s; the turn ends at 2.5 s
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


def test_a_muted_user_stays_silent_at_the_same_moment() -> None:
    user, muted = (
        User(replace(trial("interruption"), muted=muted), USER_RATE) for muted in (False, True)
    )
    heard(user, speech_from(80))
    said = heard(muted, speech_from(80))
    assert muted.turns == user.turns
    assert not said[round(2.5 * USER_RATE) :].any()
    assert len(said) / USER_RATE == pytest.approx(muted.turns[1].start_s + 1.5, abs=0.05)


def test_user_gives_up_on_an_agent_that_is_silent_or_spoke_before() -> None:
    user = User(trial("interruption"), USER_RATE)
    early = (number < 60 for number in range(10_000))  # until 2.4 s
    said = heard(user, early)
    assert len(user.turns) == 1
    assert math.isclose(len(said) / USER_RATE, 2.5 + 4.0, abs_tol=0.05)


def test_an_agent_that_repeats_what_it_hears_shows_no_ability() -> None:
    agent = echo_speaker()
    (found,) = run_trials(ModelAgent(talker=agent, sampling=lambda _: None), [trial("turn")])
    assert found.agent[0].start_s == pytest.approx(found.turns[0].start_s + 0.08, abs=0.05)
    assert not found.passed
    assert found.audio.shape[1] == pytest.approx(USER_RATE * (1.0 + 1.5 + 6.0), abs=8)


def test_rows_side_by_side_are_conversations_of_their_own() -> None:
    agent = echo_speaker(letters=" abcd")

    def sampling(number: int) -> FrameSampling:
        return FrameSampling(
            text=Sampling(temperature=0.0), audio=Sampling(temperature=0.5, seed=number)
        )

    trials = [trial("turn", seconds) for seconds in (0.2, 0.5)]
    together = run_trials(ModelAgent(talker=agent, sampling=sampling), trials)
    for number, (one, found) in enumerate(zip(trials, together, strict=True), start=1):
        agent_alone = ModelAgent(talker=agent, sampling={1: sampling(number)}.__getitem__)
        (alone,) = run_trials(agent_alone, [one])
        assert torch.equal(alone.audio, found.audio)
        assert alone.words == found.words
        assert alone.turns == found.turns
