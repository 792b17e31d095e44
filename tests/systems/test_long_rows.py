"""Long rows read the whole in groups of ticks: the same results, at a cost that grows linearly."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from counterpoint.blocks.boundaries import BoundariesConfig
from counterpoint.blocks.far_attention import FarAttentionConfig
from counterpoint.blocks.recall import RecallConfig
from counterpoint.streams.batch import Batch
from counterpoint.systems import SystemConfig, build_system
from counterpoint.systems.contract import System
from counterpoint.systems.two_stream import TwoStream, TwoStreamConfig
from tests.blocks.covering import covering_rows
from tests.systems.contract_models import CONFIGS, batch_of, build, random_ticks
from tests.systems.counted_flops import CountedFlops
from tests.systems.in_groups import no_groups, tiny_groups
from tests.systems.scoring import extend
from tests.systems.tiny_models import level, mixed, randomised, tower, two

LAYERS = tower(18, 3, 3, 7)
OPTIONS: dict[str, Sequence[Any]] = {
    "ends": ("fixed", "words", "learned"),
    "lag": (0, 1, 2),
    "slots_apart": (False, True),
    "num_levels": (1, 2, 3),
    "recall": (0, 1, 2),
    "starts": ((0,), (0, 1, 2, 19, 40), (0, 33)),
    "shared_layers": (False, True),
    "dilated": (False, True),
    "num_ticks": (37, 64, 91),
    "whole_dropout": (0.0, 0.5),
}


def config_of(row: Mapping[str, Any]) -> TwoStreamConfig:
    """The shape with some options. A tower can be dilated if no link guides it."""
    dilated = row["dilated"] and not row["shared_layers"] and row["num_levels"] == 1
    mixer = FarAttentionConfig(block_ticks=2, kept_blocks=3) if dilated else LAYERS.mixer
    whole = replace(LAYERS, window=8, mixer=mixer)
    over = [replace(level("mean", row["lag"]), whole=replace(whole, window=4)) for _ in range(2)]
    return two(
        "convolution" if row["slots_apart"] else "mean",
        row["lag"],
        block_ticks=2,
        part=LAYERS,
        whole=whole,
        slots_apart=row["slots_apart"],
        boundary_ids=(2, 5, 7) if row["ends"] == "words" else (),
        learned_ends=BoundariesConfig(ratio=2.0, max_share=0.5)
        if row["ends"] == "learned"
        else None,
        recall=RecallConfig(num_blocks=row["recall"]) if row["recall"] else None,
        levels=tuple(over[: row["num_levels"] - 1]),
        shared_layers=row["shared_layers"],
        whole_dropout=row["whole_dropout"],
    )


ROWS = covering_rows(OPTIONS)


def documents(model: System, num_rows: int, num_ticks: int, starts: Sequence[int]) -> Batch:
    """Rows of documents that begin at these ticks, one tick later in every further row."""
    begin = torch.zeros(num_rows, num_ticks, dtype=torch.long)
    for row in range(num_rows):
        for start in starts:
            first = start + row if start else 0
            begin[row, first:] = first
    return batch_of(model, random_ticks(model, num_rows, num_ticks), begin)


def outcome(model: System, batch: Batch) -> tuple[list[Tensor], int]:
    """Scores and gradients of all weights, and the FLOPs of both."""
    model.train()
    torch.manual_seed(3)  # for `whole_dropout`
    with CountedFlops() as counted:
        scores = model(batch)["part"]
        total = model.loss(batch).total + scores.square().mean()
        weights = list(model.parameters())
        found = torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True)
    return [scores, *found], counted.total


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_rows_in_groups_equal_rows_that_compare_every_tick_with_every_block(number: int) -> None:
    row = ROWS[number]
    torch.manual_seed(number)
    model = randomised(build_system(config_of(row), 0)).double()
    assert isinstance(model, TwoStream)
    batch = documents(model, 3, row["num_ticks"], row["starts"])
    with no_groups():
        dense, dense_flops = outcome(model, batch)
    with tiny_groups():
        grouped, flops = outcome(model, batch)
    assert flops < dense_flops
    for ours, theirs in zip(grouped, dense, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("starts", [(0,), (0, 1, 2, 19, 40), (0, 33)])
@pytest.mark.parametrize("name", CONFIGS["hrt"])
def test_levels_in_groups_read_what_each_step_picks_alone(name: str, starts: Sequence[int]) -> None:
    """HRT without groups picks the newest coarse steps for each step apart."""
    torch.manual_seed(4)
    model = build("hrt", name).double()
    batch = documents(model, 3, 91, starts)
    with no_groups():
        alone, alone_flops = outcome(model, batch)
    with tiny_groups():
        grouped, flops = outcome(model, batch)
    assert flops > alone_flops
    for ours, theirs in zip(grouped, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


LONG: dict[str, SystemConfig] = {
    "fixed": two("wavelet", 1, block_ticks=2),
    "words": two("mean", 0, block_ticks=2, boundary_ids=(2, 5, 7)),
    "slots_and_recall": two(
        "convolution",
        0,
        block_ticks=2,
        slots_apart=True,
        whole=tower(20, 2, 2, 6),
        recall=RecallConfig(num_blocks=2),
    ),
    "two_wholes": two("mean", 2, block_ticks=2, levels=(level("last", 1),)),
    "one_rate": two(
        "last",
        0,
        block_ticks=1,
        whole=replace(tower(10, 1, 1, 3), mixer=FarAttentionConfig(block_ticks=2, kept_blocks=3)),
    ),
    "strided": mixed(7, FarAttentionConfig(block_ticks=2, kept_blocks=3)),
    "summaries": mixed(7, FarAttentionConfig(block_ticks=2, kept_blocks=3, num_summaries=1)),
}
"""Shapes of which a row of 1,000 ticks reads in groups as it is."""


@pytest.fixture(params=LONG)
def long(request: pytest.FixtureRequest) -> System:
    torch.manual_seed(1)
    model = randomised(build_system(LONG[request.param], 0))
    assert isinstance(model, System)
    return model


class Bytes(TorchDispatchMode):
    """Bytes of all results of operations, and those of the largest one; views count as well."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self.largest = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [leaf.nbytes for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.total += sum(made)
        self.largest = max(self.largest, *made, 0)
        return out


def cost(model: System, num_ticks: int) -> tuple[int, int, int]:
    """Bytes made, bytes of the largest tensor and FLOPs of a training step of one row."""
    batch = batch_of(model, random_ticks(model, 1, num_ticks))
    with Bytes() as made, CountedFlops() as counted:
        model.loss(batch).total.backward()
    model.zero_grad(set_to_none=True)
    return made.total, made.largest, counted.total


def test_bytes_and_flops_of_a_training_step_are_linear_in_the_row(long: System) -> None:
    """A quadratic share would be seen: with all keys, one tensor of scores is the largest by far.

    The number of groups is rounded up, and the number of words of a random row varies.
    """
    short, double = cost(long, 2048), cost(long, 4096)
    for few, more in zip(short, double, strict=True):
        assert more <= 2.1 * few
    with no_groups():
        dense = cost(long, 2048)
    assert dense[1] > 4 * short[1]
    per_tick = [long.flops_per_tick(num_ticks, training=True) for num_ticks in (2048, 4096)]
    assert per_tick[1] == pytest.approx(per_tick[0], rel=0.02)


@torch.no_grad()
def test_sessions_equal_rows_that_read_in_groups(long: System) -> None:
    ticks = random_ticks(long, 2, 1000)
    wanted = long(batch_of(long, ticks))["part"]
    state: Any = long.initial_state(2)
    first = 0
    for length in (1, 62, 1, 1, 63, 129, 300, 443):
        piece = {name: ids[:, first : first + length] for name, ids in ticks.items()}
        scores, state = extend(long, piece, state)
        part = wanted[:, first : first + length]
        torch.testing.assert_close(scores["part"], part, rtol=0, atol=1e-5)
        first += length
    assert first == 1000


@torch.no_grad()
@pytest.mark.parametrize("tick", [511, 512, 574, 575, 576, 577])
def test_a_tick_moves_nothing_before_itself_in_a_long_row(long: System, tick: int) -> None:
    """Around the border of a group, which is between the ticks 575 and 576."""
    ticks = random_ticks(long, 1, 1000)
    other = {name: ids.clone() for name, ids in ticks.items()}
    other["part"][:, tick] = (other["part"][:, tick] + 1) % 13
    before, after = (long(batch_of(long, one))["part"] for one in (ticks, other))
    moved = ((after - before).abs() > 1e-5).any(-1)[0]
    assert not moved[:tick].any()
    assert moved[tick : tick + 2].all()
