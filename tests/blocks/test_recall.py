"""Recall against a loop over fine steps, and the shapes that it refuses."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from counterpoint.blocks.attention import score_bias
from counterpoint.blocks.recall import Candidates, Recall, RecallConfig, RecallReach
from counterpoint.blocks.rope import rope_tables
from counterpoint.errors import UserError

WIDTH, COARSE, HEADS, BLOCK = 12, 10, 3, 4
ENDS = (2, 5, 9, 10)  # blocks of 3, 3, 4 and 1 steps
SIZES = (3, 3, 4, 1)


class Example(NamedTuple):
    recall: Recall
    x: Tensor
    coarse: Tensor
    finished: list[int]
    reach: RecallReach


def example(num_blocks: int) -> Example:
    recall = Recall(WIDTH, COARSE, HEADS, RecallConfig(num_blocks=num_blocks, kept_blocks=4), BLOCK)
    with torch.no_grad():
        for weight in recall.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    x = torch.randn(1, 12, WIDTH)
    coarse = torch.randn(1, 4, COARSE)
    step = torch.arange(12)
    end = torch.tensor(ENDS)
    finished = (end <= step[:, None]).sum(1)
    visible = torch.arange(4) < finished[:, None]
    candidates = Candidates(
        recall.keys(coarse, end[None]),
        end[None],
        torch.tensor(SIZES)[None],
        score_bias(visible[None]),
    )
    memory = recall.reader.remember(x, step[None])
    cos, sin = rope_tables(step[None], WIDTH // HEADS)
    return Example(
        recall, x, coarse, finished.tolist(), RecallReach(candidates, memory, 12, cos, sin)
    )


def turned(x: Tensor, step: int) -> Tensor:
    """One vector, or one a head, as it stands at a step."""
    cos, sin = rope_tables(torch.tensor([[step]]), x.shape[-1])
    return x * cos[0, 0, 0] + x.roll(x.shape[-1] // 2, -1) * sin[0, 0, 0]


def expected(found: Example, tick: int) -> tuple[Tensor, list[int]]:
    """What a fine step reads, and of which blocks, written as one reads it."""
    recall, x = found.recall, found.x[0]
    reader = recall.reader
    pointer = turned(recall.query(recall.norm(x[tick])), tick) * (WIDTH // HEADS) ** -0.5
    scores = [
        (float(pointer @ turned(recall.key(found.coarse[0, block]), ENDS[block])), block)
        for block in range(found.finished[tick])
    ]
    best = sorted(scores, reverse=True)[: recall.num_blocks]
    normed = reader.norm(x[tick])
    query = reader.query(normed).view(HEADS, -1) * (WIDTH // HEADS) ** -0.5
    logits = [(query * reader.null[0, :, 0]).sum(-1)]
    values = [reader.null[1, :, 0]]
    for score, block in best:
        for step in range(ENDS[block] - SIZES[block] + 1, ENDS[block] + 1):
            key, value = reader.key_value(x[step]).view(2, HEADS, -1)
            logits.append((turned(query, tick) * turned(key, step)).sum(-1) + score)
            values.append(value)
    weights = torch.stack(logits).softmax(0)
    gate = 2 * torch.sigmoid(reader.gate(normed))
    read = (weights[..., None] * torch.stack(values)).sum(0) * gate[:, None]
    return reader.out(read.flatten()), [block for _, block in best]


@pytest.mark.parametrize("num_blocks", [1, 2, 3])
@torch.no_grad()
def test_reads_the_steps_of_the_best_blocks(num_blocks: int) -> None:
    torch.manual_seed(num_blocks)
    found = example(num_blocks)
    read = found.recall(found.x, found.reach)
    _, blocks = found.recall.point(found.x, found.reach)
    for tick in range(12):
        value, best = expected(found, tick)
        torch.testing.assert_close(read[0, tick], value, rtol=0, atol=1e-5)
        assert blocks[0, tick, : len(best)].tolist() == best


def test_gradients_teach_to_point() -> None:
    """More of a block that helps: its score rises with the gradient, that of the other falls."""
    torch.manual_seed(1)
    found = example(2)
    score = torch.zeros(1, 1, 12, 4, requires_grad=True)
    bias = found.reach.candidates.bias + score
    reach = found.reach._replace(candidates=found.reach.candidates._replace(bias=bias))
    found.recall(found.x, reach)[0, 11].square().sum().backward()
    assert score.grad is not None
    moved = score.grad[0, 0].nonzero().tolist()
    _, blocks = found.recall.point(found.x, found.reach)
    assert moved == [[11, block] for block in sorted(blocks[0, 11].tolist())]


@torch.no_grad()
def test_runs_over_stacked_models() -> None:
    """Under `vmap`, as several seeds of one model train at once."""
    torch.manual_seed(1)
    found = example(2)
    weights = {name: torch.stack((p, p * 2)) for name, p in found.recall.named_parameters()}

    def read(own: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(found.recall, own, (found.x, found.reach))

    both = torch.func.vmap(read)(weights)
    one = read({name: weight[1] for name, weight in weights.items()})
    torch.testing.assert_close(both[1], one, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("num_blocks", "kept", "message"),
    [(0, None, "`num_blocks` >= 1: got 0"), (2, 1, "got 1"), (2, 9, "the 8 that its whole")],
)
def test_shapes_that_cannot_be_are_refused(num_blocks: int, kept: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RecallConfig(num_blocks=num_blocks, kept_blocks=kept).beneath(8)
