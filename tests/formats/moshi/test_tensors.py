"""Config, names and shapes, and the number of depth steps, without the reference package."""

import math
from typing import Any

import pytest
import torch

from counterpoint.formats.moshi.config import MOSHI_7B, ReferenceConfig
from counterpoint.formats.moshi.tensors import extend_depth, tensor_shapes, trim_depth
from tests.systems.tiny_moshi_weights import equal, random_state, tiny_keys


def tiny_config(dep_q: int = 8, **changes: Any) -> ReferenceConfig:
    return ReferenceConfig.from_json(tiny_keys(dep_q, **changes))


# ------------------------------------------------------------------------------------------ config


@pytest.mark.parametrize(("dep_q", "parameters"), [(8, 7_687_729_152), (16, 8_371_408_896)])
def test_the_published_models_have_their_size(dep_q: int, parameters: int) -> None:
    shapes = tensor_shapes(ReferenceConfig.from_json({"dep_q": dep_q}))
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters
    assert shapes["transformer.layers.31.gating.linear_in.weight"] == (22528, 4096)
    assert shapes[f"depformer.layers.5.gating.{dep_q - 1}.linear_out.weight"] == (1024, 2816)


def test_json_round_trip_keeps_every_key() -> None:
    keys = tiny_keys(depformer_low_rank_embeddings=4, bias_proj=True, kv_repeat=2)
    keys |= {"mimi_name": "m", "tts_config": {"a": [1, {"b": None}]}, "x": 1.5, "lora": True}
    config = ReferenceConfig.from_json(keys)
    assert config.to_json() == keys
    assert ReferenceConfig.from_json(config.to_json()) == config


def test_keys_of_the_temporal_tower_are_inherited_by_depth() -> None:
    keys = tiny_keys(kv_repeat=2, layer_scale=0.1)
    for name in ("depformer_layer_scale", "depformer_num_layers", "depformer_gating"):
        del keys[name]
    depth = ReferenceConfig.from_json(keys).depth
    assert (depth.kv_repeat, depth.layer_scale, depth.num_layers, depth.gating) == (
        2,
        0.1,
        2,
        "silu",
    )


def test_old_keys_are_read() -> None:
    old = tiny_keys(demux_second_stream=True, depformer_causal=True)
    config = ReferenceConfig.from_json(old)
    assert config == tiny_config(demux_second_text_stream=True)
    assert "depformer_causal" not in config.to_json()


def test_missing_keys_are_those_of_the_constructor_or_of_moshi_7b() -> None:
    keys = tiny_keys()
    for name in ("existing_text_padding_id", "norm", "positional_embedding"):
        del keys[name]
    tower = ReferenceConfig.from_json(keys).tower
    assert (tower.norm, tower.positional_embedding) == ("layer_norm", "sin")
    config = ReferenceConfig.from_json({"n_q": 16})
    assert (config.tower.norm, config.max_delay) == ("rms_norm_f32", 1)
    assert config.to_json() == {name: config.to_json()[name] for name in MOSHI_7B}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "batch_norm"}, "`norm` must be one of 'layer_norm', .* got 'batch_norm'"),
        ({"norm": None}, "`norm` must be one of"),
        ({"gating": "swish"}, "`gating` must be one of"),
        ({"depformer_pos_emb": "alibi"}, "`depformer_pos_emb` must be one of"),
        ({"n_q": "16"}, "`n_q` must be int .* got '16'"),
        ({"dim": True}, "`dim` must be int"),
        ({"dim": 0}, "`dim` must be int .* got 0"),
        ({"context": 1.5}, "`context` must be int or NoneType"),
        ({"causal": 1}, "`causal` must be bool"),
        ({"delays": [0, 1]}, "`delays` must hold 17 frames"),
        ({"delays": [-1] * 17}, "`delays` must hold 17 frames >= 0"),
        ({"delays": [0.5] * 17}, "`delays` must be tuple"),
        ({"dep_q": 17}, "`dep_q` must be from 0 to `n_q` = 16: got 17"),
        ({"num_heads": 3}, "`num_heads` must divide `dim` = 16"),
        ({"depformer_num_heads": 2, "depformer_kv_repeat": 4}, "`depformer_num_heads` must"),
        ({"depformer_gating": "none"}, "must not be 'none'"),
        ({"depformer_weights_per_step_schedule": [0, 1]}, "an index for each of 8 steps"),
        ({"depformer_dim_feedforward": [33, 33]}, "must be one width or 8"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as problem:
        tiny_config(**changes)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("name", ["num_layers", "depformer_num_heads"])
def test_a_needed_key_must_be_there(name: str) -> None:
    keys = tiny_keys()
    del keys[name]
    with pytest.raises(ValueError, match=f"must hold `{name}`"):
        ReferenceConfig.from_json(keys)


# ------------------------------------------------------------------------------------------- depth


def test_extended_depth_copies_every_step() -> None:
    config = tiny_config()
    state = random_state(config)
    extended, wide = extend_depth(state, config, 16)
    assert wide == tiny_config(16)
    assert {name: tuple(tensor.shape) for name, tensor in extended.items()} == tensor_shapes(wide)
    for template in (
        "depformer.layers.1.self_attn.in_projs.{}.weight",
        "depformer.layers.0.self_attn.out_projs.{}.weight",
        "depformer.layers.1.gating.{}.linear_in.weight",
        "depformer_in.{}.weight",
        "linears.{}.weight",
    ):
        for k in range(8):
            assert torch.equal(extended[template.format(k)], state[template.format(k)])
            assert torch.equal(extended[template.format(8 + k)], state[template.format(k)])
    # Seven embeddings become fifteen: the last agent codebook was never read before.
    sources = [*range(7), 0, *range(7)]
    for k, source in enumerate(sources):
        name = "depformer_emb.{}.weight"
        assert torch.equal(extended[name.format(k)], state[name.format(source)])
    # Copies must learn on their own.
    extended["linears.8.weight"].zero_()
    assert bool((state["linears.0.weight"] != 0).any())


def test_trimming_undoes_extending() -> None:
    config = tiny_config()
    state = random_state(config)
    trimmed, narrow = trim_depth(*extend_depth(state, config, 16), 8)
    assert narrow == config
    assert equal(trimmed, state)


def test_trimming_keeps_shared_and_uneven_weights() -> None:
    config = tiny_config(
        depformer_weights_per_step_schedule=[0, 1, 2, 2, 2, 3, 3, 3],
        depformer_dim_feedforward=[33, 30, 27, 24],
    )
    trimmed, narrow = trim_depth(random_state(config), config, 4)
    assert narrow.depth.weights_per_step_schedule == (0, 1, 2, 2)
    assert narrow.depth.dim_feedforward == (33, 30, 27)
    assert {name: tuple(tensor.shape) for name, tensor in trimmed.items()} == tensor_shapes(narrow)


@pytest.mark.parametrize(("num_steps", "causal"), [(0, True), (9, True), (4, False)])
def test_depth_cannot_be_trimmed_to_nothing_or_more(num_steps: int, causal: bool) -> None:
    config = tiny_config(causal=causal)
    with pytest.raises(ValueError, match=f"to 1 up to its 8 steps, .* got {num_steps}, .*{causal}"):
        trim_depth(random_state(config), config, num_steps)


@pytest.mark.parametrize(
    ("changes", "num_steps"),
    [
        ({}, 8),
        ({}, 17),
        ({"dep_q": 6}, 13),
        ({"dep_q": 1}, 2),
        ({"depformer_weights_per_step_schedule": [0, 1, 1, 1, 1, 1, 1, 1]}, 16),
    ],
)
def test_depth_is_extended_only_by_copies(changes: dict[str, Any], num_steps: int) -> None:
    config = tiny_config(**changes)
    with pytest.raises(ValueError, match=f"Depth can be extended .* got {num_steps}"):
        extend_depth(random_state(config), config, num_steps)


def test_a_state_of_another_config_is_refused() -> None:
    state = random_state(tiny_config(16))
    with pytest.raises(ValueError, match="must hold what their config asks for"):
        trim_depth(state, tiny_config(8), 4)
