import json
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from counterpoint.blocks.far_attention import FarAttentionConfig
from counterpoint.blocks.loss_sums import cross_entropy
from counterpoint.config_json import decode, encode
from counterpoint.errors import UserError
from counterpoint.streams.clock import available_at, visible
from counterpoint.streams.spec import Role
from counterpoint.systems.two_stream import TwoStream, TwoStreamConfig
from counterpoint.systems.two_stream_state import TwoStreamState
from tests.blocks.retention import RetentionConfig
from tests.systems.scoring import extend
from tests.systems.tiny_models import (
    CONFIGS,
    VOCAB,
    batch_of,
    level,
    mixed,
    randomised,
    tower,
    two,
)

END = VOCAB - 1


def build(lag: int, **changes: Any) -> TwoStream:
    model = randomised(TwoStream(two("wavelet", lag, **changes)))
    assert isinstance(model, TwoStream)
    return model


def random_ids(rows: int, ticks: int) -> Tensor:
    return torch.randint(0, VOCAB, (rows, ticks))


def documents(lengths: tuple[int, ...]) -> Tensor:
    """`document_start` of a row of documents."""
    starts = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    return starts.repeat_interleave(torch.tensor(lengths))[None]


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def readable_blocks(model: TwoStream, tick: int, start: int = 0) -> list[int]:
    """Blocks that the state at a tick may read, from the dense rule of visibility."""
    stop = [b for b in range(tick) if visible(model.layout, ("part", tick + 1), ("whole", b))]
    return [b for b in stop[-model.config.whole.window :] if b >= start // model.config.block_ticks]


@pytest.mark.parametrize("lag", [0, 1, 2])
@torch.no_grad()
def test_read_shows_attention_on_readable_blocks_only(lag: int) -> None:
    model, starts = build(lag), documents((12, 29))
    reading = model.read_whole(batch_of(random_ids(1, 41), starts))
    assert reading.whole.shape == (1, 10, 20)
    same(reading.attention.sum(-1), torch.ones(1, 41))
    for tick in range(41):
        seen = reading.attention[0, tick].nonzero().flatten().tolist()
        readable = readable_blocks(model, tick, int(starts[0, tick]))
        assert seen == [0] + [block + 1 for block in readable]


@pytest.mark.parametrize("lag", [0, 1, 2])
@torch.no_grad()
def test_whole_reaches_exactly_the_visible_ticks(lag: int) -> None:
    """A changed block moves its readers, and what the part window carries on, nothing else."""
    model = build(lag, part=tower(18, 2, 3, 1), num_links=1)  # the part remembers nothing itself
    batch = batch_of(random_ids(1, 41), documents((12, 29)))
    whole = model.read_whole(batch).whole
    before = model(batch)["part"]
    for block in range(whole.shape[1]):
        changed = whole.clone()
        changed[:, block] = torch.randn(20)
        moved = (model(batch, whole=changed)["part"] != before).any(-1)[0]
        expected = [
            block in readable_blocks(model, tick, int(batch.document_start[0, tick]))
            for tick in range(41)
        ]
        assert moved.tolist() == expected


@torch.no_grad()
def test_forward_takes_the_whole_of_another() -> None:
    model, batch, other = build(1), batch_of(random_ids(2, 41)), batch_of(random_ids(2, 41))
    reading = model.read_whole(batch)
    assert torch.equal(model(batch, whole=reading.whole)["part"], model(batch)["part"])
    moved = (model(batch, whole=model.read_whole(other).whole)["part"] != model(batch)["part"]).any(
        -1
    )
    first = available_at(model.layout, "whole", 0).tick
    assert not moved[:, :first].any()
    assert moved[:, first:].all()


@torch.no_grad()
def test_whole_carries_further_than_the_part_windows() -> None:
    model = build(0, whole=tower(20, 2, 2, 9))
    ids = random_ids(1, 41)
    changed = ids.clone()
    changed[:, 1] = (changed[:, 1] + 1) % VOCAB
    moved = (model(batch_of(ids))["part"] != model(batch_of(changed))["part"]).any(-1)[0]
    assert moved[1 + 3 + 3 * 6 + 1 :].all()  # 3 layers with a window of 7, and the convolution


@torch.no_grad()
def feed(model: TwoStream, ids: Tensor, state: TwoStreamState) -> tuple[Tensor, TwoStreamState]:
    logits, state = extend(model, {"part": ids}, state)
    return logits["part"], state


@torch.no_grad()
def kept(model: TwoStream, state: TwoStreamState, num_blocks: int) -> Tensor:
    """The kept whole states in the order of their blocks."""
    states, blocks = model.kept_whole(state)
    order = blocks.clamp(min=-1).argsort(1)[:, -num_blocks:]
    row = torch.arange(len(order))[:, None]
    assert blocks[row, order].tolist() == [list(range(num_blocks))] * len(order)
    return states[row, order]


@torch.no_grad()
def test_kept_whole_is_the_offline_whole() -> None:
    model, ids = build(1), random_ids(2, 61)
    _, state = feed(model, ids, model.initial_state(2))
    offline = model.read_whole(batch_of(ids)).whole
    states, blocks = model.kept_whole(state)
    capacity = states.shape[1]
    assert sorted(blocks[0].tolist()) == list(range(15 - capacity, 15))
    assert capacity >= model.config.whole.window
    for row in range(2):
        same(states[row], offline[row, blocks[row]])
    _, fresh = model.kept_whole(model.initial_state(1))
    assert (fresh < 0).all()


def words(rows: int, ticks: int, first_end: int) -> Tensor:
    """Random ids of which one is `END`: where that ends blocks, the first ends at that tick."""
    ids = torch.randint(0, END, (rows, ticks))
    ids[:, first_end] = END
    return ids


@pytest.mark.parametrize("early", [(), (END,)])
@pytest.mark.parametrize("lag", [1, 2])
@torch.no_grad()
def test_swapped_session_equals_offline_with_the_other_whole(
    lag: int, early: tuple[int, ...]
) -> None:
    """Swapped before a block was read, so that both see the same from the first tick on."""
    model, ids, other = build(lag, boundary_ids=early), words(2, 25, 2), words(2, 7, 0)
    first, mine = feed(model, ids[:, :6], model.initial_state(2))
    _, donor = feed(model, other, model.initial_state(2))
    second, state = feed(model, ids[:, 6:], model.swap(mine, donor))
    whole = kept(model, state, 6)
    same(whole[:, :1], model.read_whole(batch_of(other)).whole[:, :1])
    assert not torch.allclose(whole, model.read_whole(batch_of(ids)).whole, atol=1e-2)
    offline = model(batch_of(ids), whole=whole)["part"]
    same(torch.cat((first, second), 1), offline)


@pytest.mark.parametrize("early", [(), (END,)])
@pytest.mark.parametrize("lag", [0, 1])
@torch.no_grad()
def test_swapped_session_forgets_its_own_whole(lag: int, early: tuple[int, ...]) -> None:
    """Once the part windows have passed, only the new whole counts, at any lag."""
    model, ids = build(lag, whole=tower(20, 2, 2, 12), boundary_ids=early), words(1, 61, 2)
    _, mine = feed(model, ids[:, :22], model.initial_state(1))
    _, donor = feed(model, words(1, 23, 0), model.initial_state(1))
    logits, state = feed(model, ids[:, 22:], model.swap(mine, donor))
    offline = model(batch_of(ids), whole=kept(model, state, 15))["part"][:, 22:]
    memory = 2 * 6 + 4  # two upper layers with a window of 7, and the plan of a block
    same(logits[:, memory:], offline[:, memory:])
    assert not torch.allclose(logits[:, :4], offline[:, :4], atol=1e-3)


@pytest.mark.parametrize("early", [(), (2, 5, 7)])
@pytest.mark.parametrize("ticks", [2, 9, 45])
@torch.no_grad()
def test_session_swapped_with_its_like_goes_on_as_before(
    ticks: int, early: tuple[int, ...]
) -> None:
    """Also when it has finished many more blocks than are kept."""
    model, ids = build(1, boundary_ids=early), random_ids(2, 70)
    states = [feed(model, ids[:, :ticks], model.initial_state(2))[1] for _ in range(3)]
    plain, _ = feed(model, ids[:, ticks:], states[0])
    swapped, _ = feed(model, ids[:, ticks:], model.swap(states[1], states[2]))
    same(swapped, plain)


@torch.no_grad()
def test_swap_refuses_sessions_of_other_lengths() -> None:
    model = build(0)
    _, mine = feed(model, random_ids(1, 9), model.initial_state(1))
    _, donor = feed(model, random_ids(1, 4), model.initial_state(1))
    with pytest.raises(ValueError, match=r"it has \[2\], the donor \[1\]"):
        model.swap(mine, donor)


@pytest.mark.parametrize("lag", [1, 2])
@torch.no_grad()
def test_edited_block_equals_offline_with_the_edited_whole(lag: int) -> None:
    model, ids, edited = build(lag), random_ids(2, 25), torch.randn(2, 20)
    first, state = feed(model, ids[:, :6], model.initial_state(2))
    model.edit(state, torch.tensor([0, 0]), edited)
    second, state = feed(model, ids[:, 6:], state)
    whole = model.read_whole(batch_of(ids)).whole
    whole[:, 0] = edited
    same(torch.cat((first, second), 1), model(batch_of(ids), whole=whole)["part"])
    same(kept(model, state, 6), whole)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("block", range(5, 12))
@torch.no_grad()
def test_edit_of_any_kept_block_changes_later_ticks_only(lag: int, block: int) -> None:
    """Blocks that are still read, and older ones whose plan is over: all as offline."""
    model = build(lag, part=tower(18, 2, 3, 1), num_links=1)  # the part remembers nothing itself
    ids = random_ids(1, 70)
    _, state = feed(model, ids[:, :50], model.initial_state(1))  # 12 blocks are finished
    capacity = model.kept_whole(state)[0].shape[1]
    if block < 12 - capacity:
        with pytest.raises(ValueError, match="still kept"):
            model.edit(state, torch.tensor([block]), torch.randn(1, 20))
        return
    whole = model.read_whole(batch_of(ids)).whole
    whole[:, block] = torch.randn(20)
    model.edit(state, torch.tensor([block]), whole[:, block])
    logits, _ = feed(model, ids[:, 50:], state)
    same(logits, model(batch_of(ids), whole=whole)["part"][:, 50:])


@pytest.mark.parametrize("lag", [0, 1])
@torch.no_grad()
def test_edit_renews_the_plans_that_are_kept_and_no_others(lag: int) -> None:
    model = build(lag)
    _, state = feed(model, random_ids(1, 50), model.initial_state(1))
    finished = int(state.whole.finished)
    num_plans = state.whole.published.plan.shape[1] - 1
    for block in range(finished - num_plans - 1, finished):
        before = state.whole.published.plan.clone()
        model.edit(state, torch.tensor([block]), torch.randn(1, 20))
        is_new = (state.whole.published.plan != before).any(-1).any(-1)[0, :num_plans]
        kept = block >= finished - num_plans
        assert is_new.nonzero().flatten().tolist() == ([block % num_plans] if kept else [])


@torch.no_grad()
def test_edit_of_one_row_leaves_the_others() -> None:
    model, ids = build(1), random_ids(2, 30)
    plain, _ = feed(model, ids[:, 9:], feed(model, ids[:, :9], model.initial_state(2))[1])
    _, state = feed(model, ids[:, :9], model.initial_state(2))
    whole = model.kept_whole(state)[0][:, 1].clone()  # block 1 lies in slot 1
    whole[0] = torch.randn(20)
    model.edit(state, torch.tensor([1, 1]), whole)
    logits, _ = feed(model, ids[:, 9:], state)
    same(logits[1], plain[1])
    assert not torch.allclose(logits[0], plain[0], atol=1e-3)


@pytest.mark.parametrize("block", [-1, 3])
@torch.no_grad()
def test_edit_refuses_unfinished_blocks(block: int) -> None:
    model = build(0)
    _, state = feed(model, random_ids(1, 14), model.initial_state(1))
    with pytest.raises(ValueError, match=r"blocks \[0\] to below \[3\], got"):
        model.edit(state, torch.tensor([block]), torch.randn(1, 20))


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("chunk", [1, 3, 4])
@torch.no_grad()
def test_upper_part_need_not_wait_for_the_whole(lag: int, chunk: int) -> None:
    model, ids = build(lag), random_ids(3, 60)
    state, late = model.initial_state(3), []
    for first in range(0, 60, chunk):
        lower = model.read_lower({"part": ids[:, first : first + chunk]}, state)
        hidden, after = model.read_upper(lower, state)
        model.read_whole_tower(lower, state)  # may run meanwhile, on another device or thread
        late.append(model.head(hidden))
        state = after
    in_order, _ = feed(model, ids, model.initial_state(3))
    same(torch.cat(late, 1), in_order)


@torch.no_grad()
def test_whole_is_dropped_in_training_only() -> None:
    model = build(0, whole_dropout=1.0)
    batch = batch_of(random_ids(2, 41))
    assert torch.equal(model.loss(batch).nats, model.loss(batch).nats)
    targets = batch.targets["part"]
    assert torch.equal(model.loss(batch).nats, cross_entropy(model(batch)["part"], targets))
    model.train()
    dropped = model.loss(batch).nats
    for weight in model.whole_norm.parameters():  # whatever the whole says
        weight.neg_()
    assert torch.equal(model.loss(batch).nats, dropped)
    model.eval()
    assert model.loss(batch).nats != dropped


@torch.no_grad()
def test_whole_is_dropped_by_rows_at_the_given_share() -> None:
    model = build(0, whole_dropout=0.3).train()
    batch = batch_of(random_ids(1, 41).expand(200, -1))
    lower = model._read_rows(batch)
    whole = model.read_blocks(model.compress(lower.cut), lower.cut, None)
    published = model.steering.record(whole, lower.cut.end_step)
    values = []
    for keep in (False, True):
        mask = torch.full((200, 1), keep)
        hidden = model._write_part(lower, model._guidance(lower, published, mask))
        logits = model.head(hidden)
        values.append(cross_entropy(logits, batch.targets["part"]))
    share = float((model.loss(batch).nats - values[1]) / (values[0] - values[1]))
    assert share == pytest.approx(round(share * 200) / 200, abs=1e-3)  # whole rows
    assert 0.2 < share < 0.4


def test_a_block_is_rebuilt_from_its_own_whole_also_where_another_is_shown() -> None:
    batch = batch_of(random_ids(3, 41))
    model = build(0, reconstruct_from="whole")
    shuffled = build(0, reconstruct_from="whole", whole_control="shuffled")
    shuffled.load_state_dict(model.state_dict())
    own, foreign = model.loss(batch), shuffled.loss(batch)
    torch.testing.assert_close(own.terms["reconstruct"], foreign.terms["reconstruct"])
    assert not torch.equal(own.nats, foreign.nats)


@pytest.mark.parametrize("source", ["compressed", "whole"])
@pytest.mark.parametrize("early", [(), (1, 4)])
@pytest.mark.parametrize("lag", [0, 1, 2])
@torch.no_grad()
def test_auxiliary_losses_have_the_right_targets(
    lag: int, early: tuple[int, ...], source: Literal["compressed", "whole"]
) -> None:
    """By brute force: the plan of a block predicts the block that comes 1 + lag later."""
    model = build(
        lag,
        predict_weight=0.5,
        reconstruct_weight=0.25,
        reconstruct_from=source,
        boundary_ids=early,
    )
    lengths = (4, 16, 12, 11)
    batch = batch_of(random_ids(1, 43), documents(lengths))
    lower = model._read_rows(batch)
    compressed = model.compress(lower.cut)
    whole = model.read_blocks(compressed, lower.cut, None)
    ids, targets = batch.ticks["part"][0], batch.targets["part"][0]
    plans = model.steering.plan(whole[0]).unflatten(-1, (4, -1))

    def nats(state: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(model.head(model.norm(state))[None], target[None])

    predict = reconstruct = torch.zeros(())
    number = first = begin = 0
    for length in lengths:
        block: list[int] = []
        for tick in range(begin, begin + length):
            block.append(tick)
            if ids[tick] in early or len(block) == 4:
                known = whole if source == "whole" else compressed
                rebuilt = model.reconstructor(known[0, number])
                for place, written in enumerate(reversed(block)):
                    reconstruct = reconstruct + nats(rebuilt[3 - place], ids[written])
                number, block = number + 1, []
            if number - lag > first:
                predict = predict + nats(plans[number - lag - 1, len(block)], targets[tick])
        begin, first = begin + length, number
    loss = model.loss(batch)
    torch.testing.assert_close(loss.terms["predict"] * 43, predict)
    torch.testing.assert_close(loss.terms["reconstruct"] * 43, reconstruct)
    plain = loss.nats / 43 + 0.5 * loss.terms["predict"] + 0.25 * loss.terms["reconstruct"]
    torch.testing.assert_close(loss.total, plain)


@torch.no_grad()
def test_rows_shorter_than_a_block_run() -> None:
    model = build(1)
    batch = batch_of(random_ids(2, 3))
    logits, _ = feed(model, batch.ticks["part"], model.initial_state(2))
    same(logits, model(batch)["part"])
    assert model.loss(batch).total.isfinite()
    assert model.read_whole(batch).whole.shape == (2, 0, 20)


@pytest.mark.parametrize("lower_layers", [0, 3])
def test_layers_must_be_left_on_both_sides(lower_layers: int) -> None:
    with pytest.raises(ValueError, match=f"must be 1 to 2.*got {lower_layers}"):
        two("mean", 0, lower_layers=lower_layers)


def test_compressor_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="power of two: got 6"):
        TwoStream(two("wavelet", 0, block_ticks=6))
    with pytest.raises(ValueError, match="`num_slots` must divide `block_ticks`: got 3 and 4"):
        TwoStream(two("attention", 0, num_slots=3))


def test_read_needs_links() -> None:
    with pytest.raises(ValueError, match="`num_links`"):
        build(0, num_links=0).read_whole(batch_of(random_ids(1, 9)))


def test_whole_of_another_length_is_refused() -> None:
    model = build(0)
    with pytest.raises(ValueError, match=r"expected \(1, 10, 20\), got \(1, 9, 20\)"):
        model(batch_of(random_ids(1, 41)), whole=torch.zeros(1, 9, 20))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_ticks": 0}, "`block_ticks` must be >= 1; got 0"),
        ({"lag_blocks": -1}, "`lag_blocks` must be >= 0; got -1"),
        ({"num_links": 3}, "`num_links` must be 0 to 2; got 3"),
        ({"usual_block_ticks": 0.5}, "must be >= 1 or None; got 0.5"),
        ({"boundary_ids": (VOCAB,)}, r"ids, 0 to 12; got \(13,\)"),
        ({"whole_dropout": 1.5}, "must be 0 to 1; got 1.5"),
        ({"levels": (level("mean", 0, num_links=2),)}, "`num_links` must be 0 to 1; got 2"),
        (
            {"part": mixed(7, RetentionConfig()).tower, "num_links": 1},
            "must be attention .* got RetentionConfig",
        ),
    ],
)
def test_shapes_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        two("mean", 0, **({"lower_layers": 1} | changes))


def test_shape_with_levels_survives_json() -> None:
    for name in ("two_wholes", "three_wholes", "plan_only"):
        config = CONFIGS["two_stream"][name]
        assert decode(TwoStreamConfig, json.loads(json.dumps(encode(config)))) == config


def test_wholes_are_streams_of_their_own() -> None:
    streams = TwoStream(CONFIGS["two_stream"]["three_wholes"]).layout.by_role(Role.WHOLE)
    assert [stream.name for stream in streams] == ["whole", "whole_2", "whole_3"]
    assert [stream.period_ticks for stream in streams] == [4, 8, 16]
    assert [stream.delay_ticks for stream in streams] == [0, 8, 0]


@torch.no_grad()
def test_upper_whole_reaches_the_visible_blocks() -> None:
    """What the second whole says moves the first one from where it is visible, and not before."""
    model = randomised(TwoStream(two("mean", 0, levels=(level("mean", 1),))))
    assert isinstance(model, TwoStream)
    assert model.above is not None
    batch = batch_of(random_ids(1, 40))
    before = model.read_whole(batch).whole
    model.above.whole_norm.weight.neg_()
    moved = (model.read_whole(batch).whole != before).any(-1)[0]
    # The first step of the second whole covers blocks 0 and 1 and is read 2 blocks later.
    assert moved.tolist() == [False] * 3 + [True] * 7


@torch.no_grad()
def test_session_with_levels_is_swapped_with_its_equal_only() -> None:
    model, ids = build(0, levels=(level("mean", 0),)), random_ids(2, 60)
    states = [feed(model, ids[:, :22], model.initial_state(2))[1] for _ in range(3)]
    plain, _ = feed(model, ids[:, 22:], states[0])
    swapped, _ = feed(model, ids[:, 22:], model.swap(states[1], states[2]))
    same(swapped, plain)
    _, longer = feed(model, ids, model.initial_state(2))
    with pytest.raises(ValueError, match=r"as many blocks .* \[5, 5\], the donor \[15, 15\]"):
        model.swap(feed(model, ids[:, :22], model.initial_state(2))[1], longer)


def test_a_tower_with_summary_steps_is_refused_in_one_line() -> None:
    config = two("mean", 0)
    mixer = FarAttentionConfig(block_ticks=2, kept_blocks=4, num_summaries=1)
    system = TwoStream(replace(config, part=replace(config.part, mixer=mixer), num_links=0))
    with pytest.raises(UserError, match="needs a system that adds summary steps"):
        system.losses(batch_of(torch.ones(1, 8, dtype=torch.long)))
