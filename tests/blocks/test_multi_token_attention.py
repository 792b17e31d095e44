"""Multi-Token Attention against its definition, for pairs of all options."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from counterpoint.blocks import multi_token_attention_lifted as lifted_module
from counterpoint.blocks import multi_token_attention_ring as ring_module
from counterpoint.blocks import multi_token_attention_rows as rows_module
from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.mixer import MixerShape
from counterpoint.blocks.multi_token_attention import MultiTokenAttention, MultiTokenConfig
from counterpoint.blocks.multi_token_attention_lifted import attend_lifted
from counterpoint.blocks.multi_token_attention_reference import attend_naively
from counterpoint.blocks.multi_token_attention_retrofit import retrofit
from counterpoint.blocks.multi_token_attention_rows import Kernels, RowReach, attend_chunked
from counterpoint.blocks.rope import RopeConfig
from counterpoint.blocks.transformer import Tower, TowerConfig
from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.systems.single_stream import SingleStream
from tests.blocks.multi_token_cases import CASES, config_of, random_kernels, starts
from tests.systems.tiny_models import randomised, single

every_pair = pytest.mark.parametrize("case", CASES, ids=str)


def tower_of(case: dict[str, Any], num_layers: int = 1, **changes: Any) -> Tower:
    config = TowerConfig(
        width=16,
        num_layers=num_layers,
        num_heads=4,
        mlp_hidden=5,
        window=case["window"],
        mixer=config_of(case, **changes),
    )
    tower = randomised(Tower(config).double())
    assert isinstance(tower, Tower)
    return tower


def pair_by_pair(q: Tensor, k: Tensor, v: Tensor, kernels: Kernels, start: Tensor) -> Tensor:
    """One row and head after the other, written as equations 5 and 6 say."""
    num_heads, num_steps, width = q.shape

    def convolved(x: Tensor, kernel: Tensor | None) -> Tensor:
        if kernel is None:
            return x
        y = torch.zeros_like(x)
        _, num_queries, num_keys = kernel.shape
        for i in range(num_steps):
            for j in range(int(start[i]), i + 1):
                for a in range(num_queries):
                    for b in range(-(num_keys // 2), num_keys // 2 + 1):
                        x_, y_ = i - a, j + b
                        if start[i] <= y_ <= x_:  # read by the query, and by the other query
                            tap = kernel[:, num_queries - 1 - a, b + num_keys // 2]
                            y[:, i, j] += tap * x[:, x_, y_]
        return y

    def mixed(x: Tensor, maps: Tensor | None) -> Tensor:
        if maps is None:
            return x
        size = maps.shape[1]
        return torch.stack(
            [
                torch.einsum("g,gij->ij", maps[h // size, h % size], x[h // size * size :][:size])
                for h in range(num_heads)
            ]
        )

    seen = torch.tensor([[start[i] <= j <= i for j in range(num_steps)] for i in range(num_steps)])
    x = torch.einsum("hie,hje->hij", q, k) / math.sqrt(width) * seen
    x = mixed(convolved(x, kernels.conv_before), kernels.mix_before)
    x = torch.softmax(x.masked_fill(~seen, -math.inf), -1)
    x = mixed(convolved(x, kernels.conv_after) * seen, kernels.mix_after)
    return x @ v


@every_pair
def test_the_naive_form_is_the_definition(case: dict[str, Any]) -> None:
    q, k, v = torch.randn(3, 1, 4, 14, 2, dtype=torch.float64).unbind()
    kernels = random_kernels(case)
    start = starts(1, 14, case["packed"])
    start = torch.maximum(start, torch.arange(14) - case["window"] + 1)
    found = attend_naively(q, k, v, kernels, start)
    expected = pair_by_pair(q[0], k[0], v[0], kernels, start[0])
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-12)


def reach_of(case: dict[str, Any], num_rows: int, num_steps: int) -> RowReach:
    """Random documents where the case has them, and its window."""
    document = starts(num_rows, num_steps, case["packed"])
    start = torch.maximum(document, torch.arange(num_steps) - case["window"] + 1)
    return RowReach(start, case["window"], is_plain=not start.any())


def rows_of(
    case: dict[str, Any], num_rows: int, num_steps: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values, in float64."""
    num_groups = case["num_kv_heads"] or 4
    q = torch.randn(num_rows, 4, num_steps, width, dtype=torch.float64)
    k, v = torch.randn(2, num_rows, num_groups, num_steps, width, dtype=torch.float64).unbind()
    return q, k, v


def assert_naive(
    attend: Callable[[Tensor, Tensor, Tensor, Kernels, RowReach], Tensor],
    rows: tuple[Tensor, Tensor, Tensor],
    kernels: Kernels,
    reach: RowReach,
) -> None:
    """Outputs and gradients are those of the naive form."""
    inputs = [*rows, *(kernel for kernel in kernels if kernel is not None)]
    for one in inputs:
        one.requires_grad_()
    found = attend(*rows, kernels, reach)
    expected = attend_naively(*rows, kernels, reach.start)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    grad = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@every_pair
def test_the_chunked_form_and_its_gradient_are_those_of_the_naive_form(
    case: dict[str, Any],
) -> None:
    rows, kernels = rows_of(case, 2, 150, 3), random_kernels(case)
    assert_naive(attend_chunked, rows, kernels, reach_of(case, 2, 150))


@every_pair
def test_the_lifted_form_and_its_gradient_are_those_of_the_naive_form(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifted_module, "CHUNK_ROWS", 24)
    rows, kernels = rows_of(case, 2, 50, 2), random_kernels(case)
    assert_naive(attend_lifted, rows, kernels, reach_of(case, 2, 50))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("kernel", "window"), [((6, 11), 11), ((2, 3), 3), ((1, 5), 5), ((4, 1), 4)]
)
def test_the_lifted_form_reads_the_shortest_window_that_a_kernel_fits(
    kernel: tuple[int, int], window: int, packed: bool
) -> None:
    """Both ends of the window are in one kernel; a document begins there, before it or after it."""
    case = {"kernel": kernel, "window": window, "packed": packed, "num_kv_heads": 2}
    shape = MixerShape(width=16, num_heads=4, window=window - 1, capacity=600)
    with pytest.raises(UserError, match=f"Give the tower a `window` of {window} or more"):
        config_of(case).build(shape)
    assert_naive(
        attend_lifted, rows_of(case, 3, 40, 2), random_kernels(case), reach_of(case, 3, 40)
    )


@pytest.mark.parametrize("window", [20, 60])
@pytest.mark.parametrize("form", ["naive", "lifted"])
@torch.no_grad()
def test_a_tower_computes_the_same_in_every_form(form: Any, window: int) -> None:
    case = {"conv_before": True, "conv_after": True, "kernel": (6, 11), "window": window}
    tower = tower_of(case, num_layers=2)
    other = Tower(replace(tower.config, mixer=config_of(case, form=form))).double()
    other.load_state_dict(tower.state_dict())
    x = torch.randn(2, 60, 16, dtype=torch.float64)
    reach = tower.reach(starts(2, 60, packed=True))
    torch.testing.assert_close(other(x, reach), tower(x, reach), rtol=0, atol=1e-10)


def assert_gradients(
    attend: Callable[[Tensor, Tensor, Tensor, Kernels, RowReach], Tensor], case: dict[str, Any]
) -> None:
    """Gradients are those of differences."""
    num_steps = 17
    rows, kernels = rows_of(case, 1, num_steps, 2), random_kernels(case)
    inputs = [*rows, *(kernel for kernel in kernels if kernel is not None)]
    for one in inputs:
        one.requires_grad_()
    reach = reach_of(case, 1, num_steps)._replace(is_plain=False)

    def read(q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> Tensor:
        given = iter(others)
        own = Kernels(*(None if kernel is None else next(given) for kernel in kernels))
        return attend(q, k, v, own, reach)

    assert torch.autograd.gradcheck(read, tuple(inputs), fast_mode=True)


@every_pair
@pytest.mark.parametrize("whole_rows", [4, 100])
def test_gradients_are_those_of_differences(
    case: dict[str, Any], whole_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "WHOLE_ROWS", whole_rows)
    monkeypatch.setattr(rows_module, "FEW_HEADS_ROWS", 3)
    monkeypatch.setattr(rows_module, "GRADIENT_ROWS", 5)
    assert_gradients(attend_chunked, case)


@every_pair
def test_gradients_of_the_lifted_form_are_those_of_differences(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifted_module, "CHUNK_ROWS", 7)
    assert_gradients(attend_lifted, case)


@every_pair
@torch.no_grad()
def test_a_step_depends_on_its_document_up_to_itself_alone(case: dict[str, Any]) -> None:
    tower = tower_of(case)
    num_steps = 90
    start = starts(1, num_steps, case["packed"])
    reach = tower.reach(start)
    x = torch.randn(1, num_steps, 16, dtype=torch.float64)
    before = tower(x, reach)
    for at in (0, 1, 31, 32, 33, 50, 89):
        other = x.clone()
        other[:, at] += torch.randn(16)
        moved = (tower(other, reach) != before).any(-1)[0]
        step = torch.arange(num_steps)
        may_read = (step >= at) & (start[0] <= at) & (step - at < tower.config.reach_steps)
        assert not moved[~may_read].any()
        assert moved[at]


@every_pair
@torch.no_grad()
def test_a_session_reads_what_whole_rows_read(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring_module, "PIECE_KEYS", 2 * 4 * 16 * 2)  # two blocks of all heads
    tower = tower_of(case, num_layers=2)
    num_steps = 70
    x = torch.randn(2, num_steps, 16, dtype=torch.float64)
    expected = tower(x, tower.reach(torch.zeros(2, num_steps, dtype=torch.long)))
    state = tower.initial_state(2)
    position = torch.zeros(2, dtype=torch.long)
    while (left := num_steps - position).any():
        width = int(torch.randint(1, tower.chunk_steps + 1, ())) if torch.rand(()) < 0.3 else 1
        lengths = torch.minimum((torch.rand(2) * (width + 1)).long(), left)
        if torch.rand(()) < 0.5:
            lengths = torch.minimum(torch.full((2,), width), left)
        chunk = torch.randn(2, width, 16, dtype=torch.float64)
        for row in range(2):
            at = int(position[row])
            chunk[row, : lengths[row]] = x[row, at : at + int(lengths[row])]
        found = tower(chunk, tower.streaming_reach(position, width, lengths), state)
        for row in range(2):
            at, length = int(position[row]), int(lengths[row])
            torch.testing.assert_close(
                found[row, :length], expected[row, at : at + length], rtol=0, atol=1e-10
            )
        position = position + lengths


def test_identities_are_plain_attention() -> None:
    q, k, v = torch.randn(3, 2, 4, 150, 8, dtype=torch.float64).unbind()
    attention = MultiTokenConfig(conv_every=1).build(
        MixerShape(width=32, num_heads=4, window=200, capacity=300)
    )
    kernels = Kernels(
        *(None if one is None else one.detach().double() for one in attention.kernels)
    )
    reach = RowReach(torch.zeros(2, 150, dtype=torch.long), 200, is_plain=True)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(
        attend_chunked(q, k, v, kernels, reach), expected, rtol=0, atol=1e-12
    )


def test_layers_have_the_published_convolutions() -> None:
    config = MultiTokenConfig()
    assert [layer for layer in range(24) if config.has_convolution(layer)] == [2, 6, 10, 14, 18, 22]
    tower = Tower(
        TowerConfig(width=16, num_layers=5, num_heads=4, mlp_hidden=5, window=40, mixer=config)
    )
    layers = [cast(MultiTokenAttention, layer.attention) for layer in tower.layers]
    assert [layer.conv_before is not None for layer in layers] == [False, False, True, False, False]
    assert [layer.conv_after is not None for layer in layers] == [False, False, True, False, False]
    assert all(layer.mix_before is not None for layer in layers)
    scaled = [replace(config, head_norm="depth").build(shape).scale for shape in (
        MixerShape(width=16, num_heads=4, window=40, capacity=80, layer=0, num_layers=5),
        MixerShape(width=16, num_heads=4, window=40, capacity=80, layer=4, num_layers=5),
    )]  # fmt: skip
    assert scaled == pytest.approx([0.8, 0.2 + 0.6 * math.exp(-1.2)])


def test_bfloat16_under_autocast_is_close() -> None:
    tower = Tower(
        TowerConfig(
            width=16,
            num_layers=2,
            num_heads=4,
            mlp_hidden=5,
            window=30,
            mixer=MultiTokenConfig(conv_every=1),
        )
    )
    x = torch.randn(1, 70, 16)
    reach = tower.reach(starts(1, 70, packed=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tower(x, reach)
    found.float().square().sum().backward()
    kernel = cast(MultiTokenAttention, tower.layers[0].attention).conv_before
    assert kernel is not None
    assert kernel.grad is not None
    assert kernel.grad.isfinite().all()
    torch.testing.assert_close(found.float(), tower(x, reach), rtol=0.05, atol=0.05)


def plain_and_fitted(mixer: MultiTokenConfig) -> tuple[SingleStream, SingleStream]:
    config = single(40, heads=4)
    fitted = replace(config, tower=replace(config.tower, mixer=mixer))
    plain = randomised(SingleStream(config))
    assert isinstance(plain, SingleStream)
    return plain, SingleStream(fitted).eval()


@pytest.mark.parametrize("num_kv_heads", [None, 4])
@torch.no_grad()
def test_a_fitted_model_computes_what_the_plain_one_does(num_kv_heads: int | None) -> None:
    mixer = MultiTokenConfig(conv_every=2, head_norm="none", num_kv_heads=num_kv_heads)
    plain, fitted = plain_and_fitted(mixer)
    retrofit(fitted, plain)
    ids = torch.randint(0, 13, (2, 100))
    batch = Batch(ticks={"part": ids}, targets={}, document_start=torch.zeros_like(ids), size=200)
    ours, theirs = fitted(batch)["part"], plain(batch)["part"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert theirs.abs().max() > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 2}, "`num_heads` of 'tower' must be 4"),
        ({"window": 30}, "`window` of 'tower' must be 40"),
        ({"num_layers": 3}, "must have the config of the plain one"),
        ({"head_norm": "gate"}, "`head_norm` must be 'none', got 'gate'"),
        ({"num_kv_heads": 2}, "`num_kv_heads` of 'tower' must be 4, as in the old model, got 2"),
        ({"rope": RopeConfig(base=50.0)}, "`rope` of 'tower'"),
    ],
)
def test_only_a_model_that_fits_is_fitted(changes: dict[str, Any], message: str) -> None:
    own = {"num_kv_heads", "rope", "head_norm"}
    mixer = MultiTokenConfig(conv_every=1, head_norm="none")
    mixer = replace(mixer, **{name: value for name, value in changes.items() if name in own})
    plain, _ = plain_and_fitted(mixer)
    config = replace(plain.config, tower=replace(plain.config.tower, mixer=mixer))
    rest = {name: value for name, value in changes.items() if name not in own}
    model = SingleStream(replace(config, tower=replace(config.tower, **rest)))
    with pytest.raises(UserError, match=message) as raised:
        retrofit(model, plain)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("mixer", "tower", "message"),
    [
        ({"num_keys": 4}, {}, "`num_keys` must be odd: got 4"),
        ({"num_queries": 0}, {}, "`num_queries` must be a whole number >= 1"),
        ({"num_queries": 2.5}, {}, "`num_queries` must be a whole number >= 1: got 2.5"),
        ({"num_queries": True}, {}, "`num_queries` must be a whole number >= 1: got True"),
        ({"num_keys": math.nan}, {}, "`num_keys` must be a whole number >= 1: got nan"),
        ({"group_heads": 3}, {}, "`group_heads` must divide the 4 heads: got 3"),
        ({"group_heads": 2.0}, {}, "`group_heads` must divide the 4 heads: got 2.0"),
        ({"num_kv_heads": 3}, {}, "`num_kv_heads` must divide the 4 heads: got 3"),
        ({}, {"window": 10}, "must fit the window of 10 steps: got 6 queries and 11 keys"),
        ({"num_keys": 5}, {"window": 7}, "6 queries and 5 keys. Give the tower a `window` of 8"),
        ({}, {"num_layers": 2}, "no layer of 2 has a convolution"),
        ({}, {"pinned_steps": 3}, "`pinned_steps` must be 0, got 3"),
        ({}, {"num_heads": 3, "width": 15}, "must be an even whole number"),
    ],
)
def test_shapes_that_cannot_be_are_refused(
    mixer: dict[str, Any], tower: dict[str, Any], message: str
) -> None:
    fields = {"width": 16, "num_layers": 3, "num_heads": 4, "mlp_hidden": 5, "window": 40} | tower
    with pytest.raises(UserError, match=message) as raised:
        Tower(TowerConfig(**fields, mixer=MultiTokenConfig(**mixer)))
    assert "\n" not in str(raised.value)


def test_only_plain_attention_is_fitted() -> None:
    _, fitted = plain_and_fitted(MultiTokenConfig(conv_every=1, head_norm="none"))
    with pytest.raises(UserError, match="must have plain attention in the old model: got Multi"):
        retrofit(fitted, fitted)
    assert isinstance(single(7).tower.mixer, AttentionConfig)
