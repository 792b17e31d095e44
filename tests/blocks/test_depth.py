import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from counterpoint.blocks.depth import CodebookEmbedding, DepthConfig, DepthDecoder, StepLinear

FIRST, VOCAB, CONTEXT = 9, 5, 14


def decoder(
    num_steps: int = 5, schedule: tuple[int, ...] = (), rank: int | None = None
) -> DepthDecoder:
    config = DepthConfig(
        width=12, num_layers=2, num_heads=3, mlp_hidden=7, schedule=schedule, embedding_rank=rank
    )
    model = DepthDecoder(
        config, context_width=CONTEXT, num_steps=num_steps, num_first_ids=FIRST, vocab_size=VOCAB
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return model


def frames(num_frames: int, num_steps: int = 5) -> tuple[Tensor, Tensor]:
    previous = torch.randint(-1, VOCAB + 1, (num_frames, num_steps))
    previous[:, 0] = torch.randint(-1, FIRST, (num_frames,))
    return torch.randn(num_frames, CONTEXT), previous


def by_loops(model: DepthDecoder, context: Tensor, previous: Tensor) -> Tensor:
    """One frame, one step, one head at a time."""
    config = model.config
    schedule = config.schedule or tuple(range(model.num_steps))

    def of_set(part: StepLinear, number: int) -> Tensor:
        return part.weight[number * part.out_features : (number + 1) * part.out_features]

    def embed(part: CodebookEmbedding, codebook: int, found: int) -> Tensor:
        if found < 0:
            return torch.zeros(config.width)
        x = part.table.weight[codebook * part.num_ids + found]
        return x if part.raise_rank is None else of_set(part.raise_rank, codebook) @ x

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean() + config.norm_epsilon) * weight

    logits = []
    seen: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in model.layers]
    for step, found in enumerate(previous.tolist()):
        number = schedule[step]
        token = (
            embed(model.embedding, step - 1, found)
            if step
            else embed(model.first_embedding, 0, found)
        )
        x = of_set(model.project, number) @ context + token
        for layer, (keys, values) in zip(model.layers, seen, strict=True):
            normed = norm(x, layer.attention_norm.weight)
            q, k, v = (of_set(layer.qkv, number) @ normed).view(3, config.num_heads, -1)
            keys.append(k)
            values.append(v)
            heads = []
            for head in range(config.num_heads):
                score = torch.stack([q[head] @ key[head] for key in keys]) / math.sqrt(4)
                share = score.softmax(0)
                heads.append(share @ torch.stack([value[head] for value in values]))
            x = x + of_set(layer.out, number) @ torch.cat(heads)
            gate, up = (of_set(layer.gate_up, number) @ norm(x, layer.mlp_norm.weight)).chunk(2)
            x = x + of_set(layer.down, number) @ (gate / (1 + torch.exp(-gate)) * up)
        logits.append(of_set(model.head, step) @ x)
    return torch.stack(logits)


SHAPES = [
    (5, (), None),
    (5, (0, 1, 1, 0, 2), 3),
    (1, (), None),
    (2, (0, 0), 20),
]


@pytest.mark.parametrize(("num_steps", "schedule", "rank"), SHAPES)
def test_decoder_matches_loops(num_steps: int, schedule: tuple[int, ...], rank: int | None) -> None:
    model = decoder(num_steps, schedule, rank)
    context, previous = frames(4, num_steps)
    logits, _ = model(context, previous)
    expected = torch.stack(
        [by_loops(model, one, ids) for one, ids in zip(context, previous, strict=True)]
    )
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    weights = [weight for weight in model.parameters() if weight.numel()]
    pull = torch.randn_like(logits)
    ours = torch.autograd.grad(logits, weights, pull)
    theirs = torch.autograd.grad(expected, weights, pull)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("num_steps", "schedule", "rank"), SHAPES)
@pytest.mark.parametrize("cuts", [1, 2, 3])
@torch.no_grad()
def test_steps_one_after_the_other_equal_all_at_once(
    num_steps: int, schedule: tuple[int, ...], rank: int | None, cuts: int
) -> None:
    model = decoder(num_steps, schedule, rank)
    context, previous = frames(7, num_steps)
    expected, _ = model(context, previous)
    pieces, past = [], None
    for first in range(0, num_steps, cuts):
        logits, past = model(context, previous[:, first : first + cuts], past)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_frames_do_not_touch_and_steps_see_only_earlier_ones() -> None:
    model = decoder(schedule=(0, 0, 1, 1, 2), rank=4)
    context, previous = frames(1)
    rows = previous.repeat(6, 1)
    for step in range(5):
        rows[step + 1, step] = (rows[step + 1, step] + 1) % VOCAB
    logits, _ = model(context.repeat(6, 1), rows)
    moved = (logits != logits[:1]).any(-1)
    for step in range(5):
        assert moved[step + 1].tolist() == [at >= step for at in range(5)]


@torch.no_grad()
def test_heads_start_at_zero_and_steps_at_the_scale_of_their_input() -> None:
    config = DepthConfig(width=64, num_layers=12, num_heads=4, mlp_hidden=171)
    model = DepthDecoder(
        config, context_width=32, num_steps=4, num_first_ids=FIRST, vocab_size=VOCAB
    )
    x = torch.randn(50, 4, 64)
    bias = torch.zeros(50, 1, 4, 4)
    y = x
    for layer in model.layers:
        y, _ = layer(y, bias, 0, None)
    assert 1 < float(y.std()) < 2
    context, previous = torch.randn(3, 32), torch.zeros(3, 4, dtype=torch.long)
    assert not model(context, previous)[0].any()


@pytest.mark.parametrize(("num_steps", "schedule", "rank"), SHAPES)
def test_flops_agree_with_counted_ones(
    num_steps: int, schedule: tuple[int, ...], rank: int | None
) -> None:
    model = decoder(num_steps, schedule, rank)
    context, previous = frames(8, num_steps)
    with FlopCounterMode(display=False) as counter:
        model(context, previous)
    assert counter.get_total_flops() == 8 * model.flops_per_frame()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "`num_heads` must divide `width`: got 5 and 12"),
        ({"num_layers": 0}, "`num_layers` must be >= 1: got 0"),
        ({"embedding_rank": 0}, "`embedding_rank` must be >= 1: got 0"),
        ({"schedule": (0, 2)}, r"first use: got \(0, 2\)"),
        ({"schedule": (1, 0)}, r"first use: got \(1, 0\)"),
    ],
)
def test_config_refuses_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"width": 12, "num_layers": 2, "num_heads": 3, "mlp_hidden": 7}
    with pytest.raises(ValueError, match=message):
        DepthConfig(**(fields | changes))


def test_schedule_must_name_every_step() -> None:
    with pytest.raises(ValueError, match="for each of the 5 steps: got 2"):
        decoder(5, (0, 1))
