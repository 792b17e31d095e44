"""Questions of reasoning-gym become items, and its verifiers judge what is written."""

import pytest

from counterpoint.config_json import decode, encode
from counterpoint.data.tasks.items import HELD_OUT_SEED, floors
from counterpoint.data.tasks.reasoning.gym import GymReasoning
from counterpoint.data.tasks.reasoning.gym_verifier import gym_reward
from counterpoint.data.tasks.reasoning.item import judge
from counterpoint.errors import UserError

pytest.importorskip("reasoning_gym")


def test_items_are_pure_and_their_answers_are_accepted() -> None:
    task = GymReasoning()
    items = [task.item(0, number) for number in range(40)]
    assert items == [task.item(0, number) for number in range(40)]
    scored = {task.item(HELD_OUT_SEED, number).text for number in range(40)}
    assert not scored & {item.text for item in items}
    assert {item.family for item in items} == set(task.families)
    for item in items:
        assert item.prompt.endswith("\n")
        assert item.solution == f"#{item.answers[0].text}\n"
        assert len(item.text) <= task.most_symbols
        assert gym_reward(item, item.solution) == 1
        assert gym_reward(item, item.solution[:-1]) == gym_reward(item, "") == 0
        assert gym_reward(item, "#none of these\n") < 0.5
        assert judge(item, item.solution) == (True, True, 0, 0, 0)
        assert not judge(item, "#none of these\n").is_right
    assert floors(task, 40, seed=0)["oracle"]["answer"] == 1


def test_unknown_and_unfitting_families_are_refused() -> None:
    with pytest.raises(UserError, match="nearest is 'chain_sum'"):
        GymReasoning(families=("chain_sums",)).item(0, 0)
    with pytest.raises(UserError, match="most_symbols"):
        GymReasoning(families=("rotten_oranges",), most_symbols=40).item(0, 0)
    with pytest.raises(UserError, match="at least one"):
        GymReasoning(families=())


def test_it_is_a_config() -> None:
    assert decode(GymReasoning, encode(GymReasoning())) == GymReasoning()
