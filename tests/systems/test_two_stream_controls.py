"""Controls of two_stream: what is left of it when one of its ideas is taken away."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import save

from counterpoint.blocks.notes import NotesConfig
from counterpoint.blocks.recall import RecallConfig
from counterpoint.errors import UserError
from counterpoint.recipes.part_whole import arms
from counterpoint.systems.two_stream import TwoStream
from counterpoint.systems.two_stream_config import TwoStreamConfig
from tests.systems.tiny_models import VOCAB, batch_of, level, randomised, tower, two


def shared_levels() -> TwoStream:
    config = two("wavelet", 0, whole=tower(18, 3, 3, 3), shared_layers=True)
    model = randomised(TwoStream(config))
    assert isinstance(model, TwoStream)
    return model


@torch.no_grad()
def test_shared_layers_are_one_stack_and_equal_towers_with_the_same_weights() -> None:
    shared = shared_levels()
    apart = TwoStream(replace(shared.config, shared_layers=False)).eval()
    weights = shared.state_dict()
    doubled = {
        key.replace("part.", "whole.", 1): value
        for key, value in weights.items()
        if key.startswith("part.layers.")
    }
    apart.load_state_dict(weights | doubled)
    batch = batch_of(torch.randint(0, VOCAB, (2, 41)))
    torch.testing.assert_close(shared(batch)["part"], apart(batch)["part"], rtol=0, atol=0)
    assert shared.flops_per_tick(41) == apart.flops_per_tick(41)
    sizes = [sum(weight.numel() for weight in model.parameters()) for model in (shared, apart)]
    assert sizes[1] - sizes[0] == sum(weight.numel() for weight in shared.part.parameters())


def test_shared_layers_are_stored_sharded_and_copied_once() -> None:
    shared = shared_levels()
    names = [name for name in shared.state_dict() if ".layers." in name]
    assert names == [name for name in names if name.startswith("part.layers.")]
    assert len(save(shared.state_dict()))  # refuses what stands under two names
    assert shared.shard_units() == list(shared.part.layers)
    other = copy.deepcopy(shared)
    assert list(other.whole.layers) == list(other.part.layers)
    assert other.part.layers[0] is not shared.part.layers[0]


def test_shared_layers_must_have_one_shape() -> None:
    with pytest.raises(UserError, match="must be the part's, but for its window"):
        two("wavelet", 0, shared_layers=True)


def shuffled(lag: int = 0, **changes: Any) -> TwoStream:
    model = randomised(TwoStream(two("wavelet", lag, whole_control="shuffled", **changes)))
    assert isinstance(model, TwoStream)
    return model


@torch.no_grad()
def test_a_shuffled_whole_is_that_of_the_next_row() -> None:
    model = shuffled()
    own = TwoStream(replace(model.config, whole_control="none")).eval()
    own.load_state_dict(model.state_dict())
    batch = batch_of(torch.randint(0, VOCAB, (3, 41)))
    whole = own.read_whole(batch).whole
    expected = own(batch, whole=whole[[1, 2, 0]])["part"]
    torch.testing.assert_close(model(batch)["part"], expected, rtol=0, atol=0)
    torch.testing.assert_close(model.read_whole(batch).whole, whole[[1, 2, 0]], rtol=0, atol=0)
    losses = [float(one.losses(batch)["part"].nats) for one in (model, own)]
    assert losses[0] != losses[1]
    alone = batch_of(batch.ticks["part"][:1])
    expected = own(alone, whole=torch.zeros_like(whole[:1]))["part"]
    torch.testing.assert_close(model(alone)["part"], expected, rtol=0, atol=0)


@torch.no_grad()
def test_a_shuffled_whole_tells_a_row_nothing_of_its_own_past() -> None:
    """A change moves its own row within the reach of the part tower alone, and the row before."""
    model = shuffled()
    ids = torch.randint(0, VOCAB, (3, 60))
    other = ids.clone()
    other[1, 4] = (other[1, 4] + 1) % VOCAB
    moved = (model(batch_of(ids))["part"] != model(batch_of(other))["part"]).any(-1)
    reach = 4 + 3 * 6 + 3  # three layers with a window of 7, and 4 taps
    assert moved[1, 4]
    assert not moved[1, reach + 1 :].any()
    assert moved[0, reach + 1 :].any()
    assert not moved[2].any()


@torch.no_grad()
@pytest.mark.parametrize("lag", [0, 1])
def test_sessions_in_step_read_a_shuffled_whole_as_whole_rows_do(lag: int) -> None:
    model = shuffled(lag)
    ids = torch.randint(0, VOCAB, (3, 70))
    expected = model(batch_of(ids))["part"]
    state = model.initial_state(3)
    first = 0
    for length in (1, 9, 1, 1, 1, 17, 40):
        hidden, state = model.read({"part": ids[:, first : first + length]}, state)
        found = model.head(hidden)
        close = expected[:, first : first + length]
        torch.testing.assert_close(found, close, rtol=0, atol=1e-5)
        first += length


@torch.no_grad()
@pytest.mark.parametrize("lag", [0, 1])
def test_a_block_of_the_next_row_is_read_once_that_row_has_finished_it(lag: int) -> None:
    """Blocks end early, and documents begin elsewhere."""
    model = shuffled(lag, boundary_ids=(2, 5, 7))
    num_ticks, start, own_start = 41, 20, 24
    ids = torch.randint(0, VOCAB, (2, num_ticks))
    starts = torch.zeros_like(ids)
    starts[0, own_start:] = own_start
    starts[1, start:] = start
    tick = torch.arange(num_ticks)
    pairs = ids.repeat(num_ticks, 1)
    pairs[1::2] = torch.where(tick >= tick[:, None], (ids[1] + 1) % VOCAB, ids[1])
    before = model(batch_of(ids, starts))["part"][0]
    after = model(batch_of(pairs, starts.repeat(num_ticks, 1)))["part"][::2]
    moved = (after - before).abs().amax(2) > 1e-5  # (first changed tick of the next row, tick)
    assert not moved[tick < tick[:, None]].any()
    assert moved[0, 8:start].all()
    ids[1, :start] = (ids[1, :start] + 1) % VOCAB  # a document that is over there
    after = model(batch_of(ids, starts))["part"][0]
    torch.testing.assert_close(after[own_start:], before[own_start:], rtol=0, atol=1e-5)


def test_a_frozen_whole_keeps_its_weights_and_passes_gradients_on() -> None:
    model = TwoStream(two("convolution", 0, whole_control="frozen", part=tower(18, 3, 3, 2)))
    torch.nn.init.normal_(model.head.weight)
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    parts = ("block_norm.", "compressor.", "merge.", "whole.", "whole_norm.")
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(parts)}
    ids = torch.randint(0, VOCAB, (1, 41))
    x = model.embedding(ids).detach().requires_grad_(True)
    model.embedding.register_forward_hook(lambda *_: x)
    model(batch_of(ids))["part"][0, -1].sum().backward()
    assert x.grad is not None
    assert x.grad[0, 4].any()  # beyond the reach of the part tower: through the whole
    assert all(weight.grad is None for name, weight in model.named_parameters() if name in frozen)


def test_a_part_reads_nothing_of_an_unread_whole_which_learns_by_its_own_loss() -> None:
    config = next(one.system for one in arms(0.2) if one.name == "unread_whole")
    assert isinstance(config, TwoStreamConfig)
    unread = randomised(TwoStream(config))
    assert isinstance(unread, TwoStream)
    read = TwoStream(replace(config, whole_control="none")).eval()
    read.load_state_dict(unread.state_dict())
    ids = torch.randint(ord("a"), ord("z"), (2, 60))
    ids[:, ::4] = ord(" ")
    batch = batch_of(ids)
    before = [model(batch)["part"] for model in (unread, read)]
    with torch.no_grad():
        for model in (unread, read):
            model.whole_norm.weight.neg_()
    assert torch.equal(before[0], unread(batch)["part"])
    assert not torch.equal(before[1], read(batch)["part"])
    unread.loss(batch).total.backward()
    for weight in unread.whole.parameters():
        assert weight.grad is not None
        assert weight.grad.any()


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_links": 0, "recall": RecallConfig(num_blocks=1)}, {"text": NotesConfig(depth=1)}],
)
def test_an_unread_whole_must_have_no_other_way_to_the_part(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="An unread whole must have no link"):
        two("mean", 0, whole_control="unread", **changes)


def test_a_shuffled_whole_must_not_be_an_index_of_own_ticks() -> None:
    with pytest.raises(UserError, match="reads its own ticks again"):
        two("mean", 0, whole_control="shuffled", recall=RecallConfig(num_blocks=1))


@torch.no_grad()
def test_a_shuffled_whole_with_levels_tells_a_row_nothing_of_its_own_past() -> None:
    above = replace(level("mean", 0), recall=RecallConfig(num_blocks=1))
    model = shuffled(levels=(above,), boundary_ids=(2, 5, 7))
    ids = torch.randint(0, VOCAB, (3, 60))
    other = ids.clone()
    other[1, 4] = (other[1, 4] + 1) % VOCAB
    before, after = (model(batch_of(rows))["part"] for rows in (ids, other))
    moved = (before - after).abs().amax(2) > 1e-5
    reach = 4 + 3 * 6 + 3  # three layers with a window of 7, and 4 taps
    assert not moved[1, reach + 1 :].any()
    assert moved[0, reach + 1 :].any()


@pytest.mark.parametrize("changes", [{"shared_layers": True}, {"levels": (level("mean", 0),)}])
def test_a_frozen_whole_must_be_the_only_one(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be the only one"):
        two("mean", 0, whole_control="frozen", **changes)
