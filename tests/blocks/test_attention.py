import math
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.blocks.attention import (
    SelfAttention,
    attend,
    filled_slots,
    offline_reach,
    placed_reach,
    ring_steps,
    score_bias,
    streaming_reach,
    write_ring,
)
from counterpoint.streams.clock import SEQUENCE, span, span_mask

SIZES = (1, 63, 100)


def naive_rotate(x: Tensor, position: int) -> Tensor:
    """One vector, as in the paper: pair i turns by position * base^(-2i / E)."""
    half = len(x) // 2
    out = []
    for i in range(len(x)):
        angle = torch.tensor(position * 10_000.0 ** (-2 * (i % half) / len(x)), dtype=torch.float64)
        pair = -x[i + half] if i < half else x[i - half]
        out.append(x[i] * angle.cos().to(x.dtype) + pair * angle.sin().to(x.dtype))
    return torch.stack(out)


def naive(block: SelfAttention, x: Tensor, start: Tensor, window: int) -> Tensor:
    """Every query and head by itself, over the keys that it may read."""
    rows, steps, width = x.shape
    heads, out = block.num_heads, []
    q, k, v = (block.qkv(x)[..., i * width : (i + 1) * width] for i in range(3))
    q, k, v = (y.unflatten(-1, (heads, -1)) for y in (q, k, v))
    for row in range(rows):
        turned = [
            [[naive_rotate(y[row, t, h], t) for h in range(heads)] for t in range(steps)]
            for y in (q, k)
        ]
        for t in range(steps):
            first = max(int(start[row, t]), t - window + 1)
            mixed = []
            for h in range(heads):
                keys = torch.stack([turned[1][s][h] for s in range(first, t + 1)])
                weights = torch.softmax(keys @ turned[0][t][h] / math.sqrt(width / heads), 0)
                mixed.append(weights @ v[row, first : t + 1, h])
            out.append(torch.cat(mixed))
    return block.out(torch.stack(out).unflatten(0, (rows, steps)))


def dense(block: SelfAttention, x: Tensor, start: Tensor, window: int) -> Tensor:
    """The same over whole rows, with the full mask; itself checked against `naive`."""
    steps, width = x.shape[1:]
    q, k, v = block.qkv(x).unflatten(-1, (3, block.num_heads, -1)).unbind(-3)
    head_width = width // block.num_heads
    place = torch.arange(0, head_width, 2, dtype=torch.float64) / head_width
    angle = torch.arange(steps, dtype=torch.float64)[:, None] * 10_000.0**-place
    turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)[:, None]

    def rotated(y: Tensor) -> Tensor:  # pairs as complex numbers
        z = torch.complex(*y.chunk(2, -1)) * turn
        return torch.cat((z.real, z.imag), -1)

    scores = torch.einsum("bqhe,bkhe->bhqk", rotated(q), rotated(k)) / math.sqrt(head_width)
    query, key = torch.arange(steps)[:, None], torch.arange(steps)
    seen = (key <= query) & (key > query - window) & (key >= start[..., None])
    scores = scores.masked_fill(~seen[:, None], -math.inf)
    return block.out(torch.einsum("bhqk,bkhe->bqhe", scores.softmax(-1), v).flatten(2))


def documents(rows: int, steps: int) -> Tensor:
    """A document start for each step, other cuts in every row."""
    cuts = torch.rand(rows, steps) < 0.05
    return (cuts * torch.arange(steps)).cummax(1).values


def agree(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    """Values and gradients of everything."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    pull = torch.randn_like(ours)
    gradients = torch.autograd.grad(ours, inputs, pull)
    expected = torch.autograd.grad(theirs, inputs, pull)
    for mine, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


def test_dense_reference_is_the_naive_one() -> None:
    block, x, start = SelfAttention(12, 2), torch.randn(2, 13, 12), documents(2, 13)
    start[0, 5:] = 5
    for window in (4, 100):
        theirs = naive(block, x, start, window)
        torch.testing.assert_close(dense(block, x, start, window), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", SIZES)
@pytest.mark.parametrize("window", [1, 7, 32, 50, 63, 1000])
@pytest.mark.parametrize("packed", [False, True])
def test_attention_matches_dense_mask(steps: int, window: int, packed: bool) -> None:
    """Plain, masked and grouped paths, at every relation of window and row."""
    block = SelfAttention(18, 3)
    x = torch.randn(2, steps, 18, requires_grad=True)
    start = documents(2, steps) if packed else torch.zeros(2, steps, dtype=torch.long)
    ours = block(x, offline_reach(start, 6, window))
    agree(ours, dense(block, x, start, window), [x, *block.parameters()])


@pytest.mark.parametrize(("window", "longest"), [(1, 1), (7, 7), (40, 25), (64, 1)])
def test_attention_with_cache_matches_dense_mask(window: int, longest: int) -> None:
    """Rows at different positions; steps that are not real leave no trace."""
    block, capacity = SelfAttention(18, 3), window + longest - 1
    x = torch.randn(3, 310, 18)
    expected = dense(block, x, torch.zeros(3, 310, dtype=torch.long), window)
    cache, position = block.initial_state(3, capacity), torch.zeros(3, dtype=torch.long)
    with torch.no_grad():
        for _ in range(12):
            lengths = torch.randint(0, longest + 1, (3,))
            chunk = torch.randn(3, longest, 18)
            for row in range(3):
                at = int(position[row])
                chunk[row, : lengths[row]] = x[row, at : at + int(lengths[row])]
            reach = streaming_reach(position, longest, lengths, 6, window, capacity)
            y = block(chunk, reach, cache)
            for row in range(3):
                at, real = int(position[row]), int(lengths[row])
                theirs = expected[row, at : at + real]
                torch.testing.assert_close(y[row, :real], theirs, rtol=0, atol=1e-5)
            position += lengths


def naive_pinned(block: SelfAttention, x: Tensor, window: int, num_pinned: int) -> Tensor:
    """One row, query by query: the first steps, turned as if next to the newest, and the newest."""
    heads, width = block.num_heads, x.shape[-1]
    q, k, v = (block.qkv(x)[:, i * width : (i + 1) * width] for i in range(3))
    q, k, v = (y.unflatten(-1, (heads, -1)) for y in (q, k, v))
    turned = torch.stack([torch.stack([naive_rotate(y, t) for y in k[t]]) for t in range(len(x))])
    out = []
    for t in range(len(x)):
        newest = [s for s in range(num_pinned, t + 1) if s > t - (window - num_pinned)]
        first = [s for s in range(num_pinned) if s <= t]
        mixed = []
        for h in range(heads):
            # Within the first window both are the same.
            near, own = (naive_rotate(q[t, h], p) for p in (min(t, window - 1), t))
            scores = torch.cat((turned[first, h] @ near, turned[newest, h] @ own))
            weights = torch.softmax(scores / math.sqrt(width / heads), 0)
            mixed.append(weights @ v[first + newest, h])
        out.append(block.out(torch.cat(mixed)))
    return torch.stack(out)


@pytest.mark.parametrize(
    ("window", "longest", "num_pinned"),
    [(2, 1, 1), (7, 7, 3), (7, 1, 6), (12, 9, 1), (40, 25, 17), (64, 9, 60)],
)
def test_pinned_steps_match_dense_attention(window: int, longest: int, num_pinned: int) -> None:
    """Streamed in chunks, rows at different positions, several times around the ring."""
    block, capacity, num_steps = SelfAttention(12, 2), window + longest - 1, 150
    x = torch.randn(2, num_steps + longest, 12)
    with torch.no_grad():
        expected = torch.stack([naive_pinned(block, row, window, num_pinned) for row in x])
        cache, position = block.initial_state(2, capacity), torch.zeros(2, dtype=torch.long)
        while int(position.min()) < num_steps:
            lengths = torch.randint(0, longest + 1, (2,)).clamp(max=num_steps - position)
            rows = zip(x, position.tolist(), strict=True)
            chunk = torch.stack([row[at : at + longest] for row, at in rows])
            reach = streaming_reach(position, longest, lengths, 6, window, capacity, num_pinned)
            y = block(chunk, reach, cache)
            for row in range(2):
                at, real = int(position[row]), int(lengths[row])
                theirs = expected[row, at : at + real]
                torch.testing.assert_close(y[row, :real], theirs, rtol=0, atol=1e-5)
            position += lengths


def with_own_heads(shared: SelfAttention, *inputs: Any) -> Tensor:
    """The same attention with keys and values copied for each head of queries."""
    heads, sharing = shared.num_heads, shared.num_heads // shared.num_kv_heads
    q, k, v = shared.qkv.weight.split(
        [count * shared.head_width for count in (heads, *[shared.num_kv_heads] * 2)]
    )
    k, v = (y.unflatten(0, (-1, shared.head_width)).repeat_interleave(sharing, 0) for y in (k, v))
    weights = {
        "qkv.weight": torch.cat((q, k.flatten(0, 1), v.flatten(0, 1))),
        "out.weight": shared.out.weight,
    }
    own = SelfAttention(shared.out.in_features, heads)
    found: Tensor = torch.func.functional_call(own, weights, inputs)
    return found


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("steps", "window"), [(1, 7), (63, 100), (63, 40), (100, 7)])
def test_shared_heads_are_copies_of_them(num_kv_heads: int, steps: int, window: int) -> None:
    """Plain, masked and grouped paths, with gradients."""
    block, x = SelfAttention(24, 4, num_kv_heads), torch.randn(2, steps, 24, requires_grad=True)
    reach = offline_reach(torch.zeros(2, steps, dtype=torch.long), 6, window)
    agree(block(x, reach), with_own_heads(block, x, reach), [x, *block.parameters()])


@pytest.mark.parametrize("num_kv_heads", [1, 2])
@pytest.mark.parametrize("num_pinned", [0, 3])
@torch.no_grad()
def test_shared_heads_with_a_cache_are_copies_of_them(num_kv_heads: int, num_pinned: int) -> None:
    block, window, capacity = SelfAttention(24, 4, num_kv_heads), 7, 10
    cache, whole = block.initial_state(2, capacity), SelfAttention(24, 4).initial_state(2, capacity)
    assert cache.numel() * 4 == whole.numel() * num_kv_heads
    position = torch.zeros(2, dtype=torch.long)
    for _ in range(20):
        lengths, x = torch.randint(0, 5, (2,)), torch.randn(2, 4, 24)
        reach = streaming_reach(position, 4, lengths, 6, window, capacity, num_pinned)
        ours, theirs = block(x, reach, cache), with_own_heads(block, x, reach, whole)
        for row in range(2):
            same = ours[row, : lengths[row]], theirs[row, : lengths[row]]
            torch.testing.assert_close(*same, rtol=0, atol=1e-5)
        position += lengths


@pytest.mark.parametrize("num_kv_heads", [0, 3, 8])
def test_shared_heads_must_divide_those_of_queries(num_kv_heads: int) -> None:
    with pytest.raises(ValueError, match=f"must divide the 4 query heads: got {num_kv_heads}"):
        SelfAttention(24, 4, num_kv_heads)


@pytest.mark.parametrize("num_pinned", [1, 4])
def test_ring_steps_keep_pinned_steps(num_pinned: int) -> None:
    capacity = 5
    for end in range(3 * capacity):
        slots = [-1] * capacity
        for step in range(end):
            behind = num_pinned + (step - num_pinned) % (capacity - num_pinned)
            slots[step if step < num_pinned else behind] = step
        held = ring_steps(torch.tensor([end]), capacity, capacity, num_pinned)
        assert held[0].tolist() == slots


def test_attention_with_cache_passes_gradients_of_a_chunk() -> None:
    block, x = SelfAttention(12, 2), torch.randn(2, 9, 12, requires_grad=True)
    reach = streaming_reach(torch.zeros(2, dtype=torch.long), 9, None, 6, 5, 13)
    ours = block(x, reach, block.initial_state(2, 13))
    agree(ours, dense(block, x, torch.zeros(2, 9, dtype=torch.long), 5), [x, *block.parameters()])


def test_attend_survives_queries_that_see_nothing() -> None:
    q, k, v = (torch.randn(1, 2, 3, 4, requires_grad=True) for _ in range(3))
    mask = torch.tensor([[[True, False, False], [False] * 3, [True] * 3]])
    y = attend(q, k, v, score_bias(mask))
    torch.testing.assert_close(y[:, :, 0], v[:, :, 0])
    y[:, :, [0, 2]].sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (q, k, v))


@pytest.mark.parametrize("capacity", [1, 5, 70])
def test_ring_steps_are_what_was_written(capacity: int) -> None:
    for end in range(2 * capacity + 3):
        slots = [-1] * capacity
        for step in range(end):
            slots[step % capacity] = step
        rows = torch.tensor([end, 0])
        for limit in (0, 1, capacity):
            held = ring_steps(rows, capacity, limit)
            assert held[0].clamp(min=-1).tolist() == slots[:limit]
            assert (held[1] < 0).all()


@pytest.mark.parametrize("capacity", [1, 64, 100, 327])
def test_filled_slots_cover_what_was_written(capacity: int) -> None:
    for end in range(0, 2 * capacity + 3, 3):
        filled = filled_slots(torch.tensor([end]), capacity)
        assert min(end, capacity) <= filled <= capacity
        assert filled < end + 64
        # Shapes of a batch never depend on how far a row is: that would change rounding in others.
        assert filled_slots(torch.tensor([end, 1]), capacity) == capacity


def test_write_ring_writes_each_step_into_its_slot() -> None:
    ring, key_value = torch.zeros(2, 2, 3, 6, 4), torch.randn(2, 2, 3, 2, 4)
    slot = torch.tensor([[4, 0], [5, 2]])
    write_ring(ring, slot, key_value)
    for row in range(2):
        for step in range(2):
            written = ring[row, :, :, slot[row, step]]
            assert torch.equal(written, key_value[row, :, :, step])
    untouched = [[1, 2, 3, 5], [0, 1, 3, 4]]
    for row in range(2):
        assert not ring[row][:, :, untouched[row]].any()


@pytest.mark.parametrize("num_kv_heads", [None, 2])
@pytest.mark.parametrize("window", [3, 20])
def test_some_steps_may_read_keys_of_others(window: int, num_kv_heads: int | None) -> None:
    """Where only some steps of a row ask, they find what they find where all of them do."""
    block = SelfAttention(16, 4, num_kv_heads)
    x = torch.randn(2, 11, 16)
    starts = documents(2, 11)
    asks = torch.tensor([0, 2, 3, 7, 9])
    others = torch.tensor([1, 4, 5, 6, 8, 10])
    every = offline_reach(starts, 4, window)
    expected = block(x, every)[:, asks]
    kept = block.keys_values(x[:, others], every.cos[:, :, others], every.sin[:, :, others])
    reach = placed_reach(
        asks.expand(2, -1),
        torch.cat((asks, others)).expand(2, -1),
        4,
        window,
        first=starts[:, asks],
    )
    torch.testing.assert_close(block(x[:, asks], reach, kept), expected, rtol=0, atol=1e-5)


def test_span_feeds_the_mask_of_the_reach() -> None:
    """The plain path is only taken when it is the same rule."""
    start = torch.zeros(2, 9, dtype=torch.long)
    assert offline_reach(start, 4, 9).bias is None
    step = torch.arange(9)[None]
    reach = span(SEQUENCE, "sequence", "sequence", step.expand(2, -1) + 1, first=start, window=8)
    bias = offline_reach(start, 4, 8).bias
    assert bias is not None
    assert torch.equal(bias[:, 0] == 0, span_mask(reach, step))


@pytest.mark.parametrize(("width", "heads"), [(10, 3), (9, 3)])
def test_attention_refuses_widths_that_cannot_rotate(width: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"even whole number: got {width} / {heads}"):
        SelfAttention(width, heads)
