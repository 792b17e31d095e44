"""Agents without a model: each fails something, and the oracle passes everything."""

from collections.abc import Mapping

import pytest
import torch

from counterpoint.data.making.orders import Order
from counterpoint.evaluate.duplex.live import Agent, run_trials
from counterpoint.evaluate.duplex.policies import (
    SpokenAnswer,
    oracle,
    silent,
    speak_answer,
    talking,
    timeout,
)
from counterpoint.evaluate.duplex.trials import ABILITIES, Ability, Outcome, Trial
from tests.data.speech.tones import HIGH, tone_synthesizer
from tests.runtime.talking import LevelCodec

RATE = 200
CODEC = LevelCodec()
FIRST = Order(text="my number is two", phrases=("you said", "two"), complete=4)
SECOND = Order(text="take six", phrases=("you said", "six"), complete=2)
LOUD = 0.75


def answer(order: Order, seconds: float = 3.0) -> SpokenAnswer:
    words = tuple((word, 0.4 * place) for place, word in enumerate(order.reply.split()))
    return SpokenAnswer(audio=torch.full((round(seconds * RATE),), LOUD), words=words)


ANSWERS: Mapping[tuple[str, ...], SpokenAnswer] = {
    order.phrases: answer(order) for order in (FIRST, SECOND)
}


def sound(*spoken: tuple[float, bool]) -> torch.Tensor:
    return torch.cat([torch.full((round(s * RATE),), LOUD * is_loud) for s, is_loud in spoken])


def trial(ability: Ability) -> Trial:
    pause_s = {"pause": 1.2, "long pause": 3.0, "late pause": 1.2}.get(ability, 0.0)
    comes_in = {"interruption": 1.6, "backchannel": 0.5}.get(ability, 0.0)
    return Trial(
        ability=ability,
        order=FIRST,
        audio=sound((0.8, True), (pause_s, False), (0.8, True)),
        pauses=(),
        second=SECOND if ability == "interruption" else None,
        second_audio=sound((comes_in, True)),
        after_s=0.6,
    )


def had(agent: Agent, ability: Ability) -> Outcome:
    return run_trials(agent, [trial(ability)])[0]


def passes(agent: Agent) -> set[str]:
    return {ability for ability in ABILITIES if had(agent, ability).passed}


def test_the_oracle_passes_everything() -> None:
    agent = oracle(CODEC, ANSWERS)
    assert len(passes(agent)) == 6
    for ability in ABILITIES[:-1]:
        found = had(agent, ability)
        assert found.said_right
        assert found.latency_s == pytest.approx(0.5, abs=0.1)
    assert had(agent, "interruption").stop_s == pytest.approx(0.5, abs=0.1)


def test_policies_fail_what_they_cannot_do() -> None:
    assert passes(silent(CODEC)) == set()
    assert passes(talking(CODEC, answer(FIRST))) == set()
    short = timeout(CODEC, answer(SECOND), 0.7)
    assert passes(short) == {"turn"}
    # Passed pauses and, with a short answer, interruptions of the rules before.
    late = timeout(CODEC, answer(SECOND), 1.65)
    assert passes(late) == {"turn", "pause", "late pause"}
    assert passes(timeout(CODEC, answer(SECOND), 1.65, longest_s=1.7)) == passes(late)
    assert passes(timeout(CODEC, answer(SECOND), 0.7, stops_after_s=0.3)) == {
        "turn",
        "interruption",
    }


def test_no_timeout_is_prompt_and_patient() -> None:
    for seconds in (0.3, 0.7, 1.0, 1.3, 1.65):
        found = had(timeout(CODEC, answer(FIRST), seconds), "pause")
        assert not found.prompt_and_patient


def test_a_timeout_answers_when_it_is_over() -> None:
    found = had(timeout(CODEC, answer(FIRST), 0.7), "turn")
    assert found.latency_s == pytest.approx(0.7, abs=0.05)
    assert [word.text for word in found.words] == ["you", "said", "two"]
    cut = had(timeout(CODEC, answer(FIRST), 0.7, longest_s=0.5), "turn")
    assert [word.text for word in cut.words] == ["you", "said"]
    assert cut.agent[0].end_s - cut.agent[0].start_s == pytest.approx(0.5, abs=0.05)


def test_answers_are_spoken_phrase_by_phrase_through_the_codec() -> None:
    spoken = speak_answer(("you said", "two"), tone_synthesizer(), HIGH, LevelCodec())
    plain = speak_answer(("you said", "two"), tone_synthesizer(), HIGH, LevelCodec(), coded=False)
    assert [word for word, _ in spoken.words] == ["you", "said", "two"]
    starts = [start_s for _, start_s in spoken.words]
    assert starts == sorted(starts)
    assert not torch.equal(spoken.audio[: len(plain.audio)], plain.audio)
