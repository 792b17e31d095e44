"""Trials held some at a time: the n-th has the n-th sampling."""

from counterpoint.evaluate.duplex.abilities import hold_trials
from counterpoint.runtime.choices import FrameSampling
from tests.evaluate.duplex.test_trials import trial
from tests.runtime.talking import echo_speaker


def test_every_trial_has_its_own_sampling() -> None:
    asked = list[int]()
    done = list[int]()

    def sampling(number: int) -> FrameSampling:
        asked.append(number)
        return FrameSampling()

    trials = [trial("turn", 0.2) for _ in range(3)]
    outcomes = hold_trials(echo_speaker(), trials, sampling, done.append)
    assert [one.trial for one in outcomes] == trials
    assert {1, 2, 3} <= set(asked)
    assert done == [3]
