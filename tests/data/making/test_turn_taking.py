from random import Random
from statistics import quantiles

import pytest

from counterpoint.data.making.scripts import Script, Turn
from counterpoint.data.making.turn_taking import (
    BACKCHANNELS,
    FLOOR_TRANSFER,
    PAUSE,
    PLAIN,
    YIELD,
    Embellishment,
    Quantiles,
    embellish,
)

LONG = "this is what an agent says, in more than eight words. and it goes on"


def dialogue(name: str = "x") -> Script:
    turns = []
    for _ in range(20):
        turns += [Turn(speaker="user", text="and then?"), Turn(speaker="agent", text=LONG)]
    return Script(name=name, turns=tuple(turns))


def test_quantiles_are_met_between_and_at_the_ends() -> None:
    two = Quantiles(values=(1.0, 3.0), levels=(0.2, 0.6))
    assert [two.at(level) for level in (0, 0.2, 0.4, 0.6, 1)] == pytest.approx([1, 1, 2, 3, 3])
    assert FLOOR_TRANSFER.at(0.5) == pytest.approx(0.131)
    for table in (FLOOR_TRANSFER, PAUSE, YIELD):
        assert len(table.values) == len(table.levels)
        assert list(table.values) == sorted(table.values)


def test_draws_have_the_distribution_they_are_drawn_from() -> None:
    rng = Random(0)
    drawn = quantiles([FLOOR_TRANSFER.at(rng.random()) for _ in range(20_000)], n=10)
    assert drawn == pytest.approx(FLOOR_TRANSFER.values[2:11], abs=0.03)
    assert sum(FLOOR_TRANSFER.at(rng.random()) < 0 for _ in range(20_000)) / 20_000 == (
        pytest.approx(0.341, abs=0.015)
    )


def test_embellishment_is_decided_by_seed_and_name() -> None:
    config = Embellishment()
    assert embellish(dialogue(), config, 1) == embellish(dialogue(), config, 1)
    assert embellish(dialogue(), config, 1) != embellish(dialogue(), config, 2)
    assert embellish(dialogue(), config, 1).turns != embellish(dialogue("y"), config, 1).turns
    assert embellish(dialogue(), PLAIN, 1) == dialogue()


def test_embellishment_adds_what_its_rates_say() -> None:
    config = Embellishment(pauses_per_minute=17, backchannels_per_minute=5, interruption_share=0.25)
    made = [turn for seed in range(100) for turn in embellish(dialogue(), config, seed).turns]
    agent = [turn for turn in made if turn.speaker == "agent"]
    minutes = len(LONG.split()) / 170
    assert sum(len(turn.pauses) for turn in agent) / len(agent) == (
        pytest.approx(17 * minutes, rel=0.1)
    )
    # The first turn of the user comes after nothing, the last of the agent before nothing.
    chances = 100 * 19
    interruptions = [turn for turn in made if turn.kind == "interruption"]
    assert len(interruptions) / chances == pytest.approx(0.25, abs=0.03)
    backchannels = [turn for turn in made if turn.kind == "backchannel"]
    assert len(backchannels) / (chances * 0.75) == pytest.approx(5 * minutes, abs=0.04)
    assert {turn.text for turn in backchannels} == set(BACKCHANNELS)
    after_comma = sum(index == 6 for turn in agent for index, _ in turn.pauses)
    after_word = sum(index == 3 for turn in agent for index, _ in turn.pauses)
    assert after_comma > 4 * after_word


def test_turns_that_say_more_stay_as_they_are() -> None:
    turns = (
        Turn(speaker="agent", text=LONG, pauses=((2, 0.1),)),
        Turn(speaker="user", text="so there", gap_s=0.3),
    )
    config = Embellishment(pauses_per_minute=200, backchannels_per_minute=0, interruption_share=1)
    assert embellish(Script(name="x", turns=turns), config, 0).turns == turns


def test_embellishment_refuses_impossible_rates() -> None:
    with pytest.raises(ValueError, match="must be >= 0"):
        Embellishment(pauses_per_minute=-1)
    with pytest.raises(ValueError, match="must be 0 to 1: got 1.5"):
        Embellishment(interruption_share=1.5)
