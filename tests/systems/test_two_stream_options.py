"""Options of the whole: slots apart, codes and recall, beyond what the contract asks of them."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.blocks.boundaries import BoundariesConfig
from counterpoint.blocks.ramp import RampConfig
from counterpoint.blocks.recall import RecallConfig
from counterpoint.config_json import decode, encode
from counterpoint.errors import UserError
from counterpoint.streams.clock import visible
from counterpoint.streams.spec import Role
from counterpoint.systems.contract import state_bytes
from counterpoint.systems.two_stream import TwoStream, TwoStreamConfig
from counterpoint.systems.two_stream_state import TwoStreamState
from tests.systems.scoring import extend
from tests.systems.tiny_models import CONFIGS, VOCAB, batch_of, level, randomised, tower, two

APART: dict[str, Any] = {"slots_apart": True, "whole": tower(20, 2, 2, 6)}  # 3 blocks of 2 slots
RECALL: dict[str, Any] = {"recall": RecallConfig(num_blocks=2)}
BLOCK = 4
CODES: dict[str, Any] = {"code_levels": (5, 4, 3)}


def build(lag: int, **changes: Any) -> TwoStream:
    model = randomised(TwoStream(two("attention", lag, **changes)))
    assert isinstance(model, TwoStream)
    return model


def random_ids(rows: int, ticks: int) -> Tensor:
    return torch.randint(0, VOCAB, (rows, ticks))


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def feed(model: TwoStream, ids: Tensor, state: TwoStreamState) -> tuple[Tensor, TwoStreamState]:
    logits, state = extend(model, {"part": ids}, state)
    return logits["part"], state


@pytest.mark.parametrize("changes", [APART, RECALL, CODES, APART | RECALL])
@torch.no_grad()
def test_edited_block_equals_offline_with_the_edited_whole(changes: dict[str, Any]) -> None:
    model, ids = build(1, **changes), random_ids(2, 25)
    edited = torch.randn(2, model.config.coarse_width)
    first, state = feed(model, ids[:, :6], model.initial_state(2))
    model.edit(state, torch.tensor([0, 0]), edited)
    second, state = feed(model, ids[:, 6:], state)
    whole = model.read_whole(batch_of(ids)).whole
    whole[:, 0] = edited
    same(torch.cat((first, second), 1), model(batch_of(ids), whole=whole)["part"])


@pytest.mark.parametrize("changes", [APART, RECALL, APART | RECALL])
@torch.no_grad()
def test_swapped_session_equals_offline_with_the_other_whole(changes: dict[str, Any]) -> None:
    """Swapped before a block was read; the part recalls its own steps."""
    model, ids, other = build(1, **changes), random_ids(2, 25), random_ids(2, 6)
    first, mine = feed(model, ids[:, :6], model.initial_state(2))
    _, donor = feed(model, other, model.initial_state(2))
    second, state = feed(model, ids[:, 6:], model.swap(mine, donor))
    states, blocks = model.kept_whole(state)
    order = blocks.clamp(min=-1).argsort(1)[:, -6:]
    whole = states.gather(1, order[..., None].expand(-1, -1, states.shape[2]))
    same(torch.cat((first, second), 1), model(batch_of(ids), whole=whole)["part"])


@pytest.mark.parametrize("changes", [APART, RECALL, APART | RECALL])
@pytest.mark.parametrize("lag", [0, 1])
@torch.no_grad()
def test_whole_reaches_exactly_the_visible_ticks(changes: dict[str, Any], lag: int) -> None:
    model = build(lag, part=tower(18, 2, 3, 1), num_links=1, **changes)
    batch = batch_of(random_ids(1, 41))
    whole = model.read_whole(batch).whole
    before = model(batch)["part"]
    for block in range(whole.shape[1]):
        changed = whole.clone()
        changed[:, block] = torch.randn(model.config.coarse_width)
        moved = (model(batch, whole=changed)["part"] != before).any(-1)[0]
        for tick in range(41):
            readable = [
                other
                for other in range(10)
                if visible(model.layout, ("part", tick + 1), ("whole", other))
            ][-model.config.window_blocks :]
            assert bool(moved[tick]) == (block in readable)


@torch.no_grad()
def test_attention_is_shown_by_block() -> None:
    model = build(0, **APART)
    reading = model.read_whole(batch_of(random_ids(2, 41)))
    assert reading.attention.shape == (2, 41, 11)
    same(reading.attention.sum(-1), torch.ones(2, 41))


def test_slots_apart_hold_more_state() -> None:
    """As many windows' worth of blocks; the coarse states and their memories are doubled."""
    merged = TwoStream(two("attention", 0, whole=tower(20, 2, 2, 3)))
    apart = TwoStream(two("attention", 0, **APART))
    assert apart.config.window_blocks == merged.config.window_blocks == 3
    ours, theirs = (m.initial_state(1).whole.published for m in (apart, merged))
    assert ours.coarse.shape == (1, theirs.coarse.shape[1], 2 * theirs.coarse.shape[2])
    assert state_bytes(ours.memories) == 2 * state_bytes(theirs.memories)


@torch.no_grad()
def test_whole_is_a_function_of_its_codes() -> None:
    """Texts with equal codes have equal wholes, and the codes are those of every slot."""
    model, batch = build(0, **CODES), batch_of(random_ids(300, 4))
    codes = model.read_codes(batch)
    assert codes.shape == (300, 1, 2)
    assert int(codes.max()) < 5 * 4 * 3
    whole = model.read_whole(batch).whole[:, 0]
    _, group = codes.flatten(1).unique(dim=0, return_inverse=True)
    assert 20 < int(group.max()) < 299
    for number in range(int(group.max()) + 1):
        same(whole[group == number], whole[group == number][:1].expand((group == number).sum(), -1))


def test_only_coded_wholes_have_codes() -> None:
    with pytest.raises(UserError, match="`code_levels`"):
        build(0).read_codes(batch_of(random_ids(1, 9)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots_apart": True, "whole": tower(20, 2, 2, 1)}, "it is 1 .* has 2 slots"),
        (
            APART | {"levels": (level("mean", 0, num_links=1),), "num_slots": 4},
            "4 steps each: got 2",
        ),
        ({"recall": RecallConfig(num_blocks=4)}, "at least the 4 blocks .* got 3"),
        ({"learned_ends": BoundariesConfig(), "boundary_ids": (1,)}, "got both"),
        ({"code_levels": (4, 1)}, r"at least 3 levels each: got \(4, 1\)"),
    ],
)
def test_shapes_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(0, **changes)


@torch.no_grad()
def test_blocks_end_where_the_router_says_and_when_they_are_full() -> None:
    model = build(0, learned_ends=BoundariesConfig(ratio=2.0, max_share=1.0))
    batch = batch_of(random_ids(2, 40), torch.tensor([0] * 24 + [24] * 16).expand(2, -1))
    lower = model._read_rows(batch)
    assert lower.ends is not None
    likely = lower.ends.probability >= 0.5
    for row in range(2):
        size, ends = 0, []
        for tick in range(40):
            first = tick in (0, 24)
            size = 1 if first else size + 1
            ends.append(size == BLOCK or (bool(likely[row, tick]) and not first))
            size *= not ends[-1]
        finished = torch.tensor(ends).cumsum(0)
        assert torch.equal(lower.cut.grid.finished[row], finished)
        assert finished[-1] > 10  # early ones among them


def test_ratio_loss_draws_blocks_to_their_length() -> None:
    torch.manual_seed(1)
    model = build(0, learned_ends=BoundariesConfig(ratio=4.0, max_share=1.0)).train()
    batch = batch_of(random_ids(16, 40))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    shares = []
    for _ in range(50):
        optimiser.zero_grad()
        losses = model.losses(batch)
        losses["ratio"].nats.div(losses["ratio"].weight).backward()
        optimiser.step()
        shares.append(float(losses["share"].nats / losses["share"].weight))
    assert abs(shares[0] - 0.25) > 0.1
    assert abs(shares[-1] - 0.25) < 0.05


@pytest.mark.parametrize("changes", [{"ratio": 1.0}, {"ratio": 2.0, "max_share": 0.4}])
def test_learned_ends_that_cannot_be_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(UserError, match="got"):
        BoundariesConfig(**changes)


def test_shape_survives_json() -> None:
    for name in (
        "learned_lag1",
        "text_recall",
        "recall_early_lag1",
        "slots_apart_two_wholes",
        "codes",
    ):
        config = CONFIGS["two_stream"][name]
        assert decode(TwoStreamConfig, json.loads(json.dumps(encode(config)))) == config


def test_wholes_above_slots_cover_whole_blocks() -> None:
    streams = TwoStream(CONFIGS["two_stream"]["slots_apart_two_wholes"]).layout.by_role(Role.WHOLE)
    assert [stream.period_ticks for stream in streams] == [4, 4]


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, 1),
        ({"part": tower(18, 3, 3, 6)}, 2),
        ({"boundary_ids": tuple(range(VOCAB))}, 3),
        ({"ramp": RampConfig(start_ticks=1)}, 1),
    ],
)
@torch.no_grad()
def test_rings_hold_the_blocks_that_a_chunk_can_end_and_no_more(
    changes: dict[str, Any], most: int
) -> None:
    lag = 2
    model = build(lag, **({"part": tower(18, 3, 3, 3)} | changes))
    ids = random_ids(2, 40)
    published = model.initial_state(2).whole.published
    assert published.plan.shape[1] - 1 == lag + 1 + most
    assert published.coarse.shape[1] - 1 == model.config.window_blocks + lag + 1 + most
    whole = model(batch_of(ids))["part"]
    for size in (1, 2, 3, 7, 40):
        state = model.initial_state(2)
        found = []
        for chunk in ids.split(size, 1):
            scores, state = feed(model, chunk, state)
            found.append(scores)
        same(torch.cat(found, 1), whole)
