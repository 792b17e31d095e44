"""Lanes of a stack answer as their systems do alone."""

import pytest
import torch

from counterpoint.data.tasks.part_whole.logbook import Logbook
from counterpoint.data.tasks.part_whole.rhm import RandomHierarchy
from counterpoint.evaluate.lanes import answer_lanes
from counterpoint.evaluate.tasks import answer, may_be_told
from counterpoint.recipes.part_whole_small import part_whole_small
from counterpoint.systems import build_system
from counterpoint.train.config import TrainConfig
from counterpoint.train.stacked import Stack

ARMS = {arm.name: arm.system for arm in part_whole_small().arms}
TASKS = (RandomHierarchy(), Logbook(num_events=9))


@pytest.mark.parametrize(
    "arm",
    ["full", "hrt", "hnet", "two_stream_text", pytest.param("hdlm", marks=pytest.mark.slow)],
)
def test_lanes_answer_as_their_systems_do_alone(arm: str) -> None:
    systems = [build_system(ARMS[arm], seed).eval() for seed in range(2)]
    with torch.no_grad():
        for system in systems:
            for weight in system.parameters():
                weight.add_(torch.randn_like(weight) * 0.1)
    items = [[task.item(0, number) for number in range(3)] for task in TASKS]
    stack = Stack(systems, [TrainConfig(num_steps=1, batch_rows=1, precision="float32")] * 2)
    together = answer_lanes(stack, items)
    alone = [list(answer(*pair)) for pair in zip(systems, items, strict=True)]
    assert together == alone
    told = answer_lanes(stack, items, true_whole=True)
    assert told == [
        list(answer(*pair, true_whole=True)) for pair in zip(systems, items, strict=True)
    ]
    assert (told != together) == may_be_told(systems[0].layout, items[0])
    assert len({text for lane in alone for one in lane for text in one.values()}) > 1
