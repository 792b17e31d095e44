import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.mlp import GatedMLP
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.rope import (
    LinearScaling,
    Llama3Scaling,
    RopeConfig,
    rope_tables,
    rotate,
)
from counterpoint.blocks.transformer import Tower, TowerConfig
from counterpoint.config_json import decode, encode
from tests.blocks.retention import RetentionConfig


def agree(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    pull = torch.randn_like(ours)
    gradients = torch.autograd.grad(ours, inputs, pull)
    expected = torch.autograd.grad(theirs, inputs, pull)
    for mine, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 63, 100])
def test_rotation_matches_loops(steps: int) -> None:
    position = torch.randint(0, 500, (2, steps))
    x = torch.randn(2, 3, steps, 6, requires_grad=True)
    rows = []
    for row in range(2):
        for head in range(3):
            for t in range(steps):
                out = [torch.zeros(())] * 6
                for i in range(3):
                    angle = int(position[row, t]) * 10_000.0 ** (-2 * i / 6)
                    a, b = x[row, head, t, i], x[row, head, t, i + 3]
                    out[i] = a * math.cos(angle) - b * math.sin(angle)
                    out[i + 3] = b * math.cos(angle) + a * math.sin(angle)
                rows.append(torch.stack(out))
    expected = torch.stack(rows).view(2, 3, steps, 6)
    ours = rotate(x, *rope_tables(position, 6))
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-4)  # angles up to 500 in float32
    pull = torch.randn_like(ours)
    torch.testing.assert_close(
        *(torch.autograd.grad(y, x, pull)[0] for y in (ours, expected)), rtol=0, atol=2e-4
    )


def test_rotation_keeps_products_of_equal_distances() -> None:
    q, k = torch.randn(1, 1, 1, 6), torch.randn(1, 1, 1, 6)

    def product(at_q: int, at_k: int) -> Tensor:
        turned = (
            rotate(x, *rope_tables(torch.tensor([[at]]), 6)) for x, at in ((q, at_q), (k, at_k))
        )
        left, right = turned
        return (left * right).sum()

    torch.testing.assert_close(product(9, 4), product(105, 100), rtol=0, atol=1e-4)
    assert not torch.isclose(product(9, 4), product(9, 5))


@pytest.mark.parametrize("width", [1, 63, 100])
def test_norm_matches_loops(width: int) -> None:
    norm, x = RMSNorm(width), torch.randn(2, 3, width, requires_grad=True)
    torch.nn.init.normal_(norm.weight)
    rows = [y / torch.sqrt((y * y).sum() / width + 1e-6) for y in x.flatten(0, 1)]
    agree(norm(x), torch.stack(rows).view(2, 3, width) * norm.weight, [x, norm.weight])
    half = norm(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), norm(x.bfloat16().float()), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("width", [1, 63, 100])
def test_gated_mlp_matches_loops(width: int) -> None:
    block, x = GatedMLP(width, 7), torch.randn(2, 3, width, requires_grad=True)
    rows = []
    for y in x.flatten(0, 1):
        hidden = []
        for i in range(7):
            gate, up = block.gate_up.weight[i] @ y, block.gate_up.weight[7 + i] @ y
            hidden.append(gate / (1 + torch.exp(-gate)) * up)
        rows.append(block.down.weight @ torch.stack(hidden))
    expected = torch.stack(rows).view(2, 3, width)
    agree(block(x), expected, [x, *block.parameters()])


def test_tower_adds_branches_to_the_residual_stream() -> None:
    tower = Tower(TowerConfig(width=12, num_layers=2, num_heads=2, mlp_hidden=17, window=5))
    x = torch.randn(2, 23, 12)
    reach = tower.reach(torch.zeros(2, 23, dtype=torch.long))
    expected = x
    for layer in tower.layers:
        expected = expected + layer.attention(layer.attention_norm(expected), reach)
        expected = expected + layer.mlp(layer.mlp_norm(expected))
    assert torch.equal(tower(x, reach), expected)


def small_tower(**changes: Any) -> Tower:
    shape = {"width": 12, "num_layers": 3, "num_heads": 2, "mlp_hidden": 17, "window": 5}
    return Tower(TowerConfig(**(shape | changes)))


def test_ranges_of_layers_are_the_tower() -> None:
    tower, x = small_tower(), torch.randn(2, 23, 12)
    reach = tower.reach(torch.zeros(2, 23, dtype=torch.long))
    lower = tower(x, reach, layers=range(1))
    assert torch.equal(lower, tower.layers[0](x, reach))
    assert torch.equal(tower(lower, reach, layers=range(1, 3)), tower(x, reach))
    assert torch.equal(tower(x, reach, layers=range(0)), x)


@torch.no_grad()
def test_ranges_of_layers_share_a_state() -> None:
    tower, x = small_tower(), torch.randn(2, 4, 12)
    states, apart = tower.initial_state(2), tower.initial_state(2)
    position = torch.zeros(2, dtype=torch.long)
    for _ in range(4):
        reach = tower.streaming_reach(position, 4, None)
        expected = tower(x, reach, states)
        lower = tower(x, reach, apart, layers=range(2))
        assert torch.equal(tower(lower, reach, apart, layers=range(2, 3)), expected)
        position, x = position + 4, torch.randn(2, 4, 12)
    assert all(torch.equal(a, b) for a, b in zip(states, apart, strict=True))


def test_side_inputs_and_branches_come_before_their_layer() -> None:
    tower, x, side = small_tower(), torch.randn(2, 9, 12), torch.randn(2, 2, 9, 12)
    reach = tower.reach(torch.zeros(2, 9, dtype=torch.long))
    branch = torch.nn.Linear(12, 12)
    expected = tower.layers[1](x + side[0], reach)
    expected = expected + side[1]
    expected = tower.layers[2](expected + branch(expected), reach)
    layers, before = range(1, 3), {0: branch, 2: branch}
    ours = tower(x, reach, layers=layers, side_inputs=list(side), before=before)
    assert torch.equal(ours, expected)


def test_mixer_of_the_config_is_built_in_every_layer() -> None:
    rope = RopeConfig(base=50.0)
    tower = small_tower(mixer=AttentionConfig(num_kv_heads=1, rope=rope))
    assert [cache.shape for cache in tower.initial_state(2)] == [(2, 2, 1, 5 + 4 + 1, 6)] * 3
    reach = tower.reach(torch.zeros(2, 9, dtype=torch.long))
    assert torch.equal(reach.cos, rope_tables(torch.arange(9)[None], 6, rope)[0])
    streamed = tower.streaming_reach(torch.tensor([4]), 3, None)
    assert torch.equal(streamed.cos, rope_tables(torch.tensor([[4, 5, 6]]), 6, rope)[0])
    other = small_tower(mixer=RetentionConfig())
    assert [state.shape for state in other.initial_state(2)] == [(2, 2, 6, 6)] * 3


@pytest.mark.parametrize(
    "config",
    [
        small_tower().config,
        small_tower(mixer=AttentionConfig(num_kv_heads=1)).config,
        small_tower(
            mixer=AttentionConfig(rope=RopeConfig(base=5.0, scaling=LinearScaling(factor=2.0)))
        ).config,
        small_tower(mixer=AttentionConfig(rope=RopeConfig(scaling=Llama3Scaling()))).config,
    ],
)
def test_shape_of_a_tower_survives_json(config: TowerConfig) -> None:
    assert decode(TowerConfig, json.loads(json.dumps(encode(config)))) == config


def test_shape_of_a_tower_from_before_it_had_a_mixer_is_read() -> None:
    data = encode(small_tower().config)
    del data["mixer"]
    assert decode(TowerConfig, data) == small_tower().config


def test_tower_keeps_the_scale_of_its_input_at_the_start() -> None:
    for num_layers in (1, 12):
        config = TowerConfig(
            width=64, num_layers=num_layers, num_heads=4, mlp_hidden=171, window=50
        )
        tower, x = Tower(config), torch.randn(4, 40, 64)
        y = tower(x, tower.reach(torch.zeros(4, 40, dtype=torch.long)))
        assert 1 < float(y.detach().std()) < 2


def test_tower_normalises_with_its_epsilon() -> None:
    shape: dict[str, Any] = {"width": 12, "num_layers": 2, "num_heads": 2, "mlp_hidden": 17}
    cases: tuple[tuple[dict[str, Any], float], ...] = (({}, 1e-6), ({"norm_epsilon": 1e-8}, 1e-8))
    for changes, epsilon in cases:
        tower = Tower(TowerConfig(**shape, window=5, **changes))
        norms = [part.epsilon for part in tower.modules() if isinstance(part, RMSNorm)]
        assert norms == [epsilon] * 4


def test_pinned_steps_are_part_of_the_window_and_for_streaming() -> None:
    shape: dict[str, Any] = {
        "width": 8, "num_layers": 1, "num_heads": 2, "mlp_hidden": 8, "window": 5,
    }  # fmt: skip
    for pinned_steps in (-1, 5):
        with pytest.raises(ValueError, match=f"must be 0 to 4, less than .*got {pinned_steps}"):
            TowerConfig(**shape, pinned_steps=pinned_steps)
    tower = Tower(TowerConfig(**shape, pinned_steps=2))
    tower.reach(torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="must fit the window of 5: got 6 steps"):
        tower.reach(torch.zeros(1, 6, dtype=torch.long))
