"""GRPO: the loss by its definition, in several streams; the loop, its resumption and its end."""

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.data.tasks.items import Item
from counterpoint.data.tasks.verify import Verified
from counterpoint.errors import UserError
from counterpoint.runtime.rollouts import roll_out
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems import build_system
from counterpoint.systems.contract import System
from counterpoint.train import rollout_source
from counterpoint.train.config import OptimizerConfig, TrainConfig
from counterpoint.train.distributed import World
from counterpoint.train.loop import Trainer, split_batch, train
from counterpoint.train.reinforce import (
    GroupConfig,
    GroupObjective,
    group_advantages,
    old_name,
)
from counterpoint.train.rollout_source import (
    Asked,
    NoRewardError,
    Rollouts,
    RolloutSource,
    Verify,
    join_rollouts,
)
from tests.systems.tiny_models import CONFIGS, randomised

END = 4
MODELS = {"one stream": ("single_stream", "windowed"), "text whole": ("two_stream", "text_recall")}
SHORT = GroupConfig(group_size=4, most_ticks=8, temperature=1.2)


def model_of(name: str, seed: int = 3) -> System:
    system, config = MODELS[name]
    torch.manual_seed(seed)
    model = build_system(CONFIGS[system][config], seed=seed)
    randomised(model)
    return model


def few_fives(item: Item, text: str) -> Verified:
    """Reward a text for what it does not have, so that most are rewarded a little."""
    return Verified(1.0 - text.count("\x05") / len(text))


def source_of(
    system: System,
    config: GroupConfig = SHORT,
    *,
    verify: Verify = few_fives,
    rows: int = 8,
    folder: Path | None = None,
) -> RolloutSource:
    def ask(number: int) -> Asked:
        prompt: dict[str, Tensor] = {}
        for stream in system.layout.predicted:
            shape = (1, 5 // stream.period_ticks, *stream.element_shape)
            prompt[stream.name] = torch.full(shape, number % 3 + 1)
        return Asked(Item("", ()), prompt)

    return RolloutSource(
        ask,
        verify,
        config,
        batch_rows=rows,
        end_id=END,
        seed=7,
        folder=folder,
        roll_out=roll_out,
    )


def written(system: System, config: GroupConfig = SHORT) -> Batch:
    source = source_of(system, config)
    source.attach(system)
    return source.batch(0)


def by_hand(system: System, reference: System, batch: Batch, config: GroupConfig) -> Tensor:
    """The loss of the definition, element after element."""
    now = system.forward(batch)
    then = reference.forward(batch)
    rows = []
    numbers = []
    for row in range(len(batch.document_start)):
        terms = []
        for name, targets in batch.targets.items():
            for place in product(*map(range, targets.shape[1:])):
                target = int(targets[(row, *place)])
                if target == UNSET_ID:
                    continue
                log = torch.log_softmax(now[name][(row, *place)] / config.temperature, -1)[target]
                before = torch.log_softmax(then[name][(row, *place)] / config.temperature, -1)
                old = batch.numbers[old_name(name)][(row, *place)]
                ratio = torch.exp(log - old)
                better = batch.numbers["advantages"][row]
                clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
                ahead = before[target] - log
                apart = (ahead.exp() - ahead - 1) * ratio
                gain = torch.minimum(ratio * better, clipped * better)
                terms.append(-gain + config.kl_weight * apart)
        rows.append(torch.stack(terms).sum() if terms else torch.zeros(()))
        numbers.append(len(terms))
    sums = torch.stack(rows)
    if config.mean == "row":
        return (sums / torch.tensor(numbers).clamp(min=1)).mean()
    return sums.sum() / sum(numbers)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mean", ["row", "element"])
def test_the_loss_is_that_of_its_definition_in_every_stream(name: str, mean: Any) -> None:
    system = model_of(name)
    config = replace(SHORT, mean=mean, kl_weight=0.2, clip_low=0.05, clip_high=0.1)
    batch = written(system, config)
    older = model_of(name, seed=4)
    objective = GroupObjective(system, config, older)
    with torch.no_grad():
        own = objective.log_probabilities(system, batch)
        other = objective.log_probabilities(older, batch)
    old = {old_name(stream): (own[stream] + other[stream]) / 2 for stream in own}
    batch = replace(batch, numbers={**batch.numbers, **old})
    losses = objective.losses(batch)
    loss = objective.combine(losses)
    expected = by_hand(system, older, batch, config)
    torch.testing.assert_close(loss.total, expected, rtol=0, atol=1e-5)
    assert 0 < float(loss.terms["clipped"]) < 1
    assert float(loss.terms["kl"]) > 0
    assert {stream.name for stream in system.layout.predicted} <= losses.keys()
    loss.total.backward()
    gradients = {n: p.grad.clone() for n, p in system.named_parameters() if p.grad is not None}
    system.zero_grad()
    by_hand(system, older, batch, config).backward()
    for parameter, gradient in gradients.items():
        other_gradient = dict(system.named_parameters())[parameter].grad
        assert other_gradient is not None
        torch.testing.assert_close(gradient, other_gradient, rtol=1e-3, atol=1e-5)


def test_a_second_stream_is_trained_too() -> None:
    system = model_of("text whole")
    batch = written(system)
    assert all((targets >= 0).any() for targets in batch.targets.values())
    whole = next(name for name in batch.targets if name != system.layout.part.name)
    alone = {
        n: ids.masked_fill(ids >= 0, UNSET_ID) if n != whole else ids
        for n, ids in batch.targets.items()
    }
    objective = GroupObjective(system, replace(SHORT, kl_weight=0.0), None)
    objective.combine(objective.losses(replace(batch, targets=alone))).total.backward()
    moved = [n for n, p in system.named_parameters() if p.grad is not None and p.grad.any()]
    assert any("notes" in name for name in moved)


@pytest.mark.parametrize("mean", ["row", "element", "constant"])
def test_parts_of_a_batch_have_the_loss_of_the_batch(mean: Any) -> None:
    system = model_of("text whole")
    config = replace(SHORT, mean=mean, kl_weight=0.1)
    source = source_of(system, config)
    trainer = Trainer(system, source, TrainConfig(num_steps=1, batch_rows=8, precision="float32"))
    batch = source.batch(0)
    trainer._gradients(batch)
    whole = {n: p.grad.clone() for n, p in system.named_parameters() if p.grad is not None}
    system.zero_grad()
    trainer.num_parts = 4
    assert len(split_batch(batch, 4)[1].numbers["advantages"]) == 2
    trainer._gradients(batch)
    assert whole
    for name, gradient in whole.items():
        parts = dict(system.named_parameters())[name].grad
        assert parts is not None
        torch.testing.assert_close(parts, gradient, rtol=1e-4, atol=1e-6)


def trained(name: str, config: GroupConfig, folder: Path, *, crash_at: int = 0) -> System:
    system = model_of(name)
    source = source_of(system, config, folder=folder / "rounds")
    settings = TrainConfig(
        num_steps=4,
        batch_rows=8,
        accumulation=2,
        checkpoint_every=1,
        precision="float32",
        optimizer=OptimizerConfig(lr=1e-2),
    )
    if crash_at:
        batch = source.batch

        def crashing(step: int) -> Batch:
            if step == crash_at:
                raise RuntimeError
            return batch(step)

        source.batch = crashing  # type: ignore[method-assign]
        with pytest.raises(RuntimeError):
            train(system, source, settings, folder)
    else:
        train(system, source, settings, folder)
    return system


@pytest.mark.parametrize(("name", "num_updates"), [("one stream", 1), ("text whole", 3)])
def test_a_run_is_resumed_bit_for_bit(name: str, num_updates: int, tmp_path: Path) -> None:
    """Also in the middle of a round, whose solutions an older model wrote."""
    config = replace(SHORT, num_updates=num_updates, kl_weight=0.05)
    straight = trained(name, config, tmp_path / "straight")
    trained(name, config, tmp_path / "resumed", crash_at=2)
    resumed = trained(name, config, tmp_path / "resumed")
    for own, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(own, other)
    begun = model_of(name)
    assert not all(
        torch.equal(a, b) for a, b in zip(begun.parameters(), straight.parameters(), strict=True)
    )
    text = (tmp_path / "resumed" / "metrics.jsonl").read_text()
    for term in ("reward", "kl", "clipped", "verifier_failed", "policy"):
        assert f'"{term}"' in text
    rounds = list((tmp_path / "resumed" / "rounds").glob("*.safetensors"))
    assert len(rounds) == (2 if num_updates == 3 else 0)


def test_rewards_that_never_come_end_the_run_in_one_line(tmp_path: Path) -> None:
    system = model_of("one stream")
    config = replace(SHORT, patience=3)
    source = source_of(system, config, verify=lambda item, text: Verified(0.0))
    settings = TrainConfig(num_steps=9, batch_rows=8, checkpoint_every=1, precision="float32")
    with pytest.raises(NoRewardError) as problem:
        train(system, source, settings, tmp_path)
    message = str(problem.value)
    assert "\n" not in message
    assert "pass@1 0.000, pass@4 0.000 of the last 6 questions (24 solutions" in message
    assert "below 0.393 with 95 % confidence" in message
    assert list((tmp_path / "checkpoints").iterdir())  # what was learned before is kept


def test_a_verifier_that_fails_is_named_when_rewards_never_come() -> None:
    system = model_of("one stream")
    late = Verified(0.0, "timed out")
    source = source_of(system, replace(SHORT, patience=1), verify=lambda item, text: late)
    source.attach(system)
    with pytest.raises(NoRewardError, match=r"newest 8 judgements, 8 timed out\). .*`limit_s`"):
        source.batch(0)


def ended_after(rounds: list[list[float]], patience: int = 3) -> int:
    """Return the number of rounds of solutions with these rewards, one group a round, to the end.

    The rewards are given again and again; 0 means that the run goes on.
    """
    config = replace(SHORT, group_size=len(rounds[0]), patience=patience, most_ticks=24)
    told = cycle(chain.from_iterable(rounds))
    system = model_of("one stream")
    source = source_of(system, config, rows=len(rounds[0]), verify=lambda *_: Verified(next(told)))
    source.attach(system)
    for number in range(10):
        try:
            source.batch(number)
        except NoRewardError:
            return number + 1
    return 0


@pytest.mark.parametrize(
    ("rounds", "ends_after"),
    [
        ([[0.01] * 6], 3),  # the same partial credit for all
        ([[-1.0] * 6], 3),
        ([[0.1] * 6, [0.3] * 6], 3),  # rewards of different questions are not compared
        ([[-1.0, -0.2] * 3], 0),  # negative rewards that tell solutions apart
        ([[0.0] * 6, [0.0] * 6, [0.0, 0.1] * 3], 0),
        ([[1.0] * 6], 0),  # nothing is left to learn
        ([[1.0] * 6, [0.0] * 6], 6),  # what is always right does not make up for the rest
    ],
)
def test_a_run_ends_if_rewards_do_not_tell_solutions_apart(
    rounds: list[list[float]], ends_after: int
) -> None:
    assert ended_after(rounds) == ends_after


def test_rewards_of_solutions_without_an_end_teach_nothing() -> None:
    system = model_of("one stream")
    told: list[str] = []

    def one_by_one(item: Item, text: str) -> Verified:
        told.append(text)
        return Verified(len(told) / 100)

    source = source_of(system, replace(SHORT, patience=1, most_ticks=1), verify=one_by_one)
    source.attach(system)
    for number in range(20):
        told.clear()
        try:
            source.batch(number)
        except NoRewardError:
            break
        assert any(text.endswith(chr(END)) for text in told)
    assert told
    assert not any(text.endswith(chr(END)) for text in told)


@pytest.mark.parametrize("num_updates", [1, 2])
def test_rounds_without_reward_are_counted_through_a_restart(
    num_updates: int, tmp_path: Path
) -> None:
    """Calls of two steps each end where one call ends, also between two steps of a round."""

    def steps_of(folder: Path, ends: Iterable[int]) -> tuple[int, str]:
        for end in ends:
            system = model_of("one stream")
            source = source_of(
                system,
                replace(SHORT, patience=3, num_updates=num_updates),
                verify=lambda item, text: Verified(0.01),
                folder=folder / "rounds",
            )
            config = TrainConfig(
                num_steps=end, batch_rows=8, precision="float32", checkpoint_every=1
            )
            try:
                train(system, source, config, folder)
            except NoRewardError as problem:
                return end, str(problem)
        raise AssertionError("the run goes on")

    _, whole = steps_of(tmp_path / "whole", [20])
    end, again = steps_of(tmp_path / "again", range(1, 20))
    assert again == whole
    assert "of the last 6 questions" in again
    assert end == 2 * num_updates + 1


def test_equal_rewards_have_no_advantage_at_all() -> None:
    """The mean of equal numbers is rounded: divided by a deviation near 0, it would be noise."""
    rewards = torch.tensor([[0.1] * 7, [0.7] * 7, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    for advantages in (group_advantages(rewards, "group"), group_advantages(rewards, "none")):
        assert not advantages[:2].any()
        assert advantages[2].all()


def test_a_verifier_that_fails_is_counted_and_changes_nothing_else() -> None:
    system = model_of("one stream")
    source = source_of(system, verify=lambda item, text: Verified(0.0, "timed out"))
    source.attach(system)
    batch = source.batch(0)
    objective = source.objective
    loss = objective.combine(objective.losses(batch))
    assert float(loss.terms["verifier_failed"]) == 1
    assert float(loss.terms["reward"]) == 0
    assert float(loss.terms["policy"]) == 0


def test_solutions_differ_within_a_group_and_between_rounds() -> None:
    system = model_of("one stream")
    texts: list[str] = []

    def note(item: Item, text: str) -> Verified:
        texts.append(text)
        return Verified(0.5)

    source = source_of(system, replace(SHORT, group_size=8), verify=note, rows=8)
    source.attach(system)
    source.batch(0)
    source.batch(3)  # the same question again
    assert len(set(texts[:8])) > 2
    assert texts[:8] != texts[8:]


def test_the_reference_stays_as_the_model_was(tmp_path: Path) -> None:
    system = model_of("one stream")
    source = source_of(system, replace(SHORT, kl_weight=0.1))
    settings = TrainConfig(
        num_steps=2, batch_rows=8, precision="float32", optimizer=OptimizerConfig(lr=1e-2)
    )
    train(system, source, settings, tmp_path)
    reference = source.objective.reference
    assert reference is not None
    pairs = zip(reference.parameters(), model_of("one stream").parameters(), strict=True)
    assert all(torch.equal(kept, begun) for kept, begun in pairs)
    assert not reference.training
    assert not torch.equal(next(reference.parameters()), next(system.parameters()))


def test_rare_rewards_do_not_end_a_run() -> None:
    system = model_of("one stream")
    told: list[str] = []

    def rarely(item: Item, text: str) -> Verified:
        told.append(text)
        return Verified(float(len(told) % 16 == 0))  # once in two rounds

    source = source_of(system, replace(SHORT, patience=2), verify=rarely)
    source.attach(system)
    for step in range(6):
        source.batch(step)


def test_flops_are_those_of_learning_writing_and_scoring() -> None:
    system = model_of("one stream")
    once = system.flops_per_tick(16)
    learned = system.flops_per_tick(16, training=True)

    def passes(config: GroupConfig, reference: System | None) -> float:
        objective = GroupObjective(system, config, reference)
        assert objective.flops_per_tick(16) == once
        return (objective.flops_per_tick(16, training=True) - learned) / once

    assert passes(SHORT, None) == pytest.approx(1)  # writing
    assert passes(SHORT, system) == pytest.approx(2)  # and the reference
    # Writing and scoring under the model that wrote serve four steps.
    assert passes(replace(SHORT, num_updates=4), system) == pytest.approx(2 / 4 + 1)


def test_solutions_without_an_end_carry_no_loss() -> None:
    system = model_of("one stream")
    batch = written(system, replace(SHORT, most_ticks=2))
    counts = (batch.targets["part"] >= 0).sum(1).tolist()
    assert 0 in counts
    ids = batch.targets["part"]
    for row, count in enumerate(counts):
        if count:
            assert ids[row][ids[row] >= 0][-1] == END


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"group_size": 1}, ">= 2"),
        ({"most_ticks": 0}, ">= 1"),
        ({"clip_low": 1.5}, "0 to 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"temperature": math.inf}, "`temperature` must be finite and above 0: got inf"),
        ({"temperature": math.nan}, "`temperature` must be finite and above 0: got nan"),
        ({"kl_weight": math.nan}, "`kl_weight` must be finite and >= 0: got nan"),
        ({"kl_weight": math.inf}, "`kl_weight` must be finite and >= 0: got inf"),
        ({"clip_high": math.nan}, "`clip_high` must be finite and >= 0: got nan"),
        ({"clip_low": math.nan}, "0 to 1"),
        ({"patience": math.inf}, ">= 1"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GroupConfig(**wrong)


@pytest.mark.parametrize("name", MODELS)
def test_solutions_written_in_shares_are_those_written_together(name: str) -> None:
    """The shares have other lengths, and are joined as rows of the longest one."""
    system = model_of(name).eval()
    questions = [source_of(system)._ask(number).prompt for number in (0, 0, 1, 1)]

    def write(own: slice, seeds: range) -> Rollouts:
        return roll_out(
            system, questions[own], seeds[own], temperature=1.2, most_ticks=17, end_id=END
        )

    seeds = range(30, 34)
    whole = write(slice(4), seeds)
    shares = [write(own, seeds) for own in (slice(2), slice(2, 4))]
    assert len({one.content["part"].shape[1] for one in shares}) == 2
    joined = join_rollouts(shares, "part")
    assert joined.texts == whole.texts
    assert torch.equal(joined.ended, whole.ended)
    for named, others in ((joined.content, whole.content), (joined.written, whole.written)):
        assert named.keys() == others.keys()
        assert all(torch.equal(ids, others[stream]) for stream, ids in named.items())


def test_several_processes_need_a_whole_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_source, "current_world", lambda device: World(size=2))
    system = model_of("one stream")
    with pytest.raises(UserError, match="must have `writer`, a whole copy of the model"):
        source_of(system).attach(system)


def test_wrong_sources_are_refused() -> None:
    system = model_of("one stream")
    with pytest.raises(UserError, match="multiple of `group_size`"):
        source_of(system, rows=6)
    with pytest.raises(UserError, match="must have a folder"):
        source_of(system, replace(SHORT, num_updates=2))
