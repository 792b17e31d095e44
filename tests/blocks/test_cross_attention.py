import math

import pytest
import torch
from torch import Tensor

from counterpoint.blocks.cross_attention import CrossAttention, cross_reach
from counterpoint.blocks.rope import rope_tables, rotate
from counterpoint.streams.clock import Span

BLOCK = 4


def build() -> CrossAttention:
    block = CrossAttention(12, 10, 2)
    with torch.no_grad():
        for weight in block.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return block


def naive(block: CrossAttention, x: Tensor, coarse: Tensor, span: Span, first: int) -> Tensor:
    """Every query and head by itself: null key, then the coarse steps of its span."""
    rows = []
    for row in range(x.shape[0]):
        steps = []
        for t in range(x.shape[1]):
            normed = block.norm(x[row, t])
            query = block.query(normed).view(2, 6)
            kv = block.key_value(coarse[row]).view(-1, 2, 2, 6)
            seen = range(int(span.start[row, t]), int(span.stop[row, t]))
            heads = []
            for h in range(2):
                # Rotating both by their ticks is rotating the query by the distance.
                scores, values = [query[h] @ block.null[0, h, 0]], [block.null[1, h, 0]]
                for step in seen:
                    distance = torch.tensor([[first + t - ((step + 1) * BLOCK - 1)]])
                    turned = rotate(query[h].view(1, 1, 1, 6), *rope_tables(distance, 6)).flatten()
                    scores.append(turned @ kv[step, 0, h])
                    values.append(kv[step, 1, h])
                weights = torch.softmax(torch.stack(scores) / math.sqrt(6), 0)
                gate = 2 * torch.sigmoid(block.gate(normed)[h])
                heads.append(gate * (weights[:, None] * torch.stack(values)).sum(0))
            steps.append(block.out(torch.cat(heads)))
        rows.append(torch.stack(steps))
    return torch.stack(rows)


@pytest.mark.parametrize("steps", [1, 63, 100])
@pytest.mark.parametrize("first", [0, 1000])
def test_cross_attention_matches_loops(steps: int, first: int) -> None:
    """Wherever in a row: what counts is the distance, and the null key stands nowhere."""
    block = build()
    x = torch.randn(2, steps, 12, requires_grad=True)
    coarse = torch.randn(2, 7, 10, requires_grad=True)
    start = torch.randint(0, 4, (2, steps))
    span = Span(start, start + torch.randint(-1, 4, (2, steps)))  # some see nothing
    span.stop[0, 0] = span.start[0, 0] + 2
    cos, sin = rope_tables(first + torch.arange(steps)[None], 6)
    reach = cross_reach(cos, sin, span, torch.arange(7)[None])
    tick = (torch.arange(7)[None] + 1) * BLOCK - 1
    ours = block(x, block.remember(coarse, tick), reach)
    theirs = naive(block, x, coarse, span, first)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=3e-5 if not first else 1e-3)
    inputs, pull = [x, coarse, *block.parameters()], torch.randn_like(ours)
    gradients = torch.autograd.grad(ours, inputs, pull)
    expected = torch.autograd.grad(theirs, inputs, pull)
    for mine, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-3 if not first else 2e-2)


def test_cross_attention_weights_are_on_what_is_visible() -> None:
    block, x, memory = build(), torch.randn(1, 3, 12), torch.randn(1, 2, 2, 5, 6)
    span = Span(torch.tensor([[0, 1, 2]]), torch.tensor([[0, 3, 9]]))
    reach = cross_reach(*rope_tables(torch.arange(3)[None], 6), span, torch.arange(5)[None])
    weights = block.weights(x, memory, reach)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 3))
    expected = [[1, 0, 0, 0, 0, 0], [1, 0, 1, 1, 0, 0], [1, 0, 0, 1, 1, 1]]
    assert (weights != 0).long().tolist() == [[expected] * 2]


def test_cross_attention_without_anything_visible_reads_the_null_value() -> None:
    block, x = build(), torch.randn(1, 3, 12)
    nothing = torch.zeros(1, 3, dtype=torch.long)
    tables = rope_tables(torch.arange(3)[None], 6)
    for count in (0, 5):  # no coarse step exists, or none may be read
        reach = cross_reach(*tables, Span(nothing, nothing), torch.arange(count)[None])
        ours = block(x, torch.randn(1, 2, 2, count, 6), reach)
        gate = 2 * torch.sigmoid(block.gate(block.norm(x)))[..., None]
        theirs = block.out((gate * block.null[1].view(2, 6)).flatten(2))
        torch.testing.assert_close(ours, theirs)


def test_cross_attention_gates_start_at_one_and_null_at_nothing() -> None:
    block, x = CrossAttention(12, 10, 2), torch.randn(1, 3, 12)
    assert torch.equal(2 * torch.sigmoid(block.gate(x)), torch.ones(1, 3, 2))
    nothing = torch.zeros(1, 3, dtype=torch.long)
    reach = cross_reach(
        *rope_tables(torch.arange(3)[None], 6), Span(nothing, nothing), nothing[:, :0]
    )
    assert not block(x, torch.zeros(1, 2, 2, 0, 6), reach).any()
