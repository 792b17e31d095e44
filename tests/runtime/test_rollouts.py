"""Rollouts hold exactly what a model chose, where its `forward` scores it, in every stream."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.data.tasks.verify import Verified
from counterpoint.runtime.generate import generate
from counterpoint.runtime.rollouts import roll_out
from counterpoint.runtime.sampler import Sampling
from counterpoint.streams import schedule
from counterpoint.streams.spec import Layout, Role, Stream, Ticks
from counterpoint.systems import build_system
from counterpoint.systems.contract import System
from counterpoint.train.reinforce import GroupConfig
from counterpoint.train.rollout_source import Rollouts, rollout_batch
from tests.runtime.any_layout import AnyLayout
from tests.systems.tiny_models import CONFIGS, VOCAB, randomised

NEVER = -7


def laid_out(*streams: Stream) -> System:
    return AnyLayout(Layout(streams=streams, tick_hz=10.0))


def stream(name: str, role: Role, **changes: Any) -> Stream:
    return Stream(name=name, role=role, **({"vocab_size": 11, "predicted": True} | changes))


SYSTEMS = {
    **{
        f"{system} {name}": (system, name)
        for system, name in (
            ("single_stream", "windowed"),
            ("hnet", "one_stage"),
            ("hrt", "wavelet"),
            ("hdlm", "none"),
            ("hdlm", "propagate_slow"),
            ("two_stream", "attention_lag1"),
            ("two_stream", "text_lag1"),
            ("two_stream", "text_recall"),
        )
    }
}
LAYOUTS = {
    "thought": (stream("part", Role.PART), stream("thought", Role.THOUGHT)),
    "delayed thought": (
        stream("part", Role.PART),
        stream("thought", Role.THOUGHT, delay_ticks=2, initial_id=11),
    ),
    "delayed part": (
        stream("part", Role.PART, delay_ticks=1, initial_id=11),
        stream("thought", Role.THOUGHT),
    ),
    "slow whole": (
        stream("part", Role.PART),
        stream("whole", Role.WHOLE, period_ticks=3, depth=2, has_codebooks=True),
    ),
    "slow late whole": (
        stream("part", Role.PART, initial_id=11),
        stream("whole", Role.WHOLE, period_ticks=4, delay_ticks=3),
    ),
}


def prompts_of(system: System, count: int, seed: int = 0) -> list[Ticks]:
    """Prompts of 5, 6, ... ticks, in whose slow streams some elements are set."""
    generator = torch.Generator().manual_seed(seed)
    prompts = list[Ticks]()
    for length in range(5, 5 + count):
        prompt = {}
        for own in system.layout.predicted:
            shape = (1, length // own.period_ticks, *own.element_shape)
            ids = torch.randint(own.vocab_size or 0, shape, generator=generator)
            prompt[own.name] = ids
        prompts.append(prompt)
    return prompts


def targets_agree(system: System, rollouts: Rollouts) -> int:
    """Check that every chosen element is the likeliest at its target, and count them."""
    rollouts = rollouts._replace(ended=torch.ones_like(rollouts.ended))
    outcomes = [Verified(0.0)] * len(rollouts.texts)
    config = GroupConfig(group_size=len(outcomes))
    batch = rollout_batch(system, rollouts, outcomes, config)
    number = 0
    with torch.no_grad():
        scores = system.forward(batch)
    for name, targets in batch.targets.items():
        counted = schedule.trained(system.layout[name], targets)
        assert torch.equal(scores[name].argmax(-1)[counted], targets[counted])
        depth = targets.shape[2] if targets.ndim == 3 else 1
        assert counted.sum() == rollouts.written[name].sum() * depth
        number += int(counted.sum())
    return number


@pytest.mark.parametrize("name", [*SYSTEMS, *LAYOUTS])
def test_the_likeliest_elements_are_those_that_forward_scores_highest(name: str) -> None:
    torch.manual_seed(1)
    if name in SYSTEMS:
        system, config = SYSTEMS[name]
        model = build_system(CONFIGS[system][config], seed=3)
        randomised(model)
        for weight in model.parameters():
            weight.data.mul_(3)  # so that the likeliest elements vary
    else:
        model = laid_out(*LAYOUTS[name])
    prompts = prompts_of(model, 3)
    rollouts = roll_out(model, prompts, [1, 2, 3], temperature=0, most_ticks=13, end_id=NEVER)
    assert [len(text) for text in rollouts.texts] == [13] * 3
    assert not rollouts.ended.any()
    found = targets_agree(model, rollouts)
    assert found >= 3 * 13
    part = model.layout.part.name
    for row, text in enumerate(rollouts.texts):
        ids = rollouts.content[part][row]
        assert ids[rollouts.written[part][row]].tolist() == text
        prompt = prompts[row][part][0]
        assert torch.equal(ids[: len(prompt)], prompt)
    if len(model.layout.predicted) > 1:
        assert found > 3 * 13  # the second stream has elements of its own


def test_rows_are_sampled_as_generated_alone_and_end_at_their_end() -> None:
    torch.manual_seed(1)
    model = build_system(replace(CONFIGS["single_stream"]["windowed"]), seed=3).eval()
    prompts = prompts_of(model, 2)
    each = [prompts[0], prompts[0], prompts[1]]
    rollouts = roll_out(model, each, [5, 6, 7], temperature=1.5, most_ticks=30, end_id=4)
    for row, (prompt, seed) in enumerate(zip(each, (5, 6, 7), strict=True)):
        sampling = Sampling(temperature=1.5, seed=seed)
        ids = prompt["part"][0].tolist()
        alone = list(generate(model, ids, sampling, 30, end_id=4))
        assert rollouts.texts[row] == alone
        assert bool(rollouts.ended[row]) == (alone[-1] == 4)
    assert rollouts.texts[0] != rollouts.texts[1]
    assert rollouts.ended.any()


def test_what_stands_behind_the_end_and_in_prompts_is_not_trained() -> None:
    model = build_system(CONFIGS["single_stream"]["windowed"], seed=3).eval()
    prompts = prompts_of(model, 2)
    rollouts = roll_out(model, prompts, [5, 6], temperature=1.5, most_ticks=9, end_id=4)
    rollouts = rollouts._replace(ended=torch.tensor([True, False]))
    batch = rollout_batch(
        model, rollouts, [Verified(1.0), Verified(0.0, "raised")], GroupConfig(group_size=2)
    )
    targets: Tensor = batch.targets["part"]
    trained = (targets >= 0).nonzero()
    # The first target stands behind the last id of the prompt.
    assert trained.tolist() == [[0, 4 + tick] for tick in range(len(rollouts.texts[0]))]
    assert targets[0][targets[0] >= 0].tolist() == rollouts.texts[0]
    assert batch.numbers["rewards"].tolist() == [1.0, 0.0]
    assert batch.numbers["failed"].tolist() == [0.0, 1.0]
    assert batch.numbers["advantages"].tolist() == pytest.approx([0.7070, -0.7070], abs=1e-3)


def test_prompts_of_a_group_are_read_once() -> None:
    model = build_system(CONFIGS["single_stream"]["full"], seed=3).eval()
    reads = []
    read = model.read

    def counted(ticks: Ticks, state: Any, lengths: Tensor | None = None) -> Any:
        reads.append(next(iter(ticks.values())).shape)
        return read(ticks, state, lengths)

    model.read = counted  # type: ignore[method-assign]
    first, second = prompts_of(model, 2)
    roll_out(model, [first] * 4 + [second] * 4, range(8), most_ticks=3, end_id=NEVER)
    assert reads == [(1, 5), (1, 6), (8, 1), (8, 1)]
    assert VOCAB == 13
