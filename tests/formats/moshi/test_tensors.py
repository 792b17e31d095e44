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
    keys = tiny_keys(depformer_low_rank_embeddings=4)
    keys |= {"mimi_name": "m", "tts_config": {"a": [1, {"b": None}]}, "x": 1.5, "lora": True}
    config = ReferenceConfig.from_json(keys)
    assert config.to_json() == keys
    assert ReferenceConfig.from_json(config.to_json()) == config


def test_keys_of_the_temporal_tower_are_inherited_by_depth() -> None:
    keys = tiny_keys(num_layers=3)
    for name in ("depformer_layer_scale", "depformer_num_layers", "depformer_gating"):
        del keys[name]
    assert ReferenceConfig.from_json(keys).depth.num_layers == 3


def test_old_keys_are_read() -> None:
    old = tiny_keys(demux_second_stream=False, depformer_causal=True)
    config = ReferenceConfig.from_json(old)
    assert config == tiny_config(demux_second_text_stream=False)
    assert "depformer_causal" not in config.to_json()
    with pytest.raises(ValueError, match="needs `demux_second_text_stream` = False: got True"):
        ReferenceConfig.from_json(old | {"demux_second_stream": True})


def test_missing_keys_are_those_of_the_constructor_or_of_moshi_7b() -> None:
    keys = tiny_keys()
    del keys["existing_text_padding_id"]
    assert ReferenceConfig.from_json(keys).streams.existing_text_padding_id == 3
    for name, value in (("norm", "layer_norm"), ("positional_embedding", "sin")):
        missing = {key: found for key, found in keys.items() if key != name}
        with pytest.raises(ValueError, match=f"needs `{name}` = .*: got {value!r}"):
            ReferenceConfig.from_json(missing)
    config = ReferenceConfig.from_json({"n_q": 16})
    assert max(config.streams.delays) == 1
    assert config.to_json() == {name: config.to_json()[name] for name in MOSHI_7B}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "batch_norm"}, "needs `norm` = 'rms_norm_f32': got 'batch_norm'"),
        ({"norm": None}, "needs `norm` = 'rms_norm_f32': got None"),
        ({"gating": "swish"}, "needs `gating` = 'silu': got 'swish'"),
        ({"depformer_pos_emb": "alibi"}, "needs `depformer_pos_emb` = 'none': got 'alibi'"),
        ({"kv_repeat": 2}, "needs `kv_repeat` = 1: got 2. Other models of the family"),
        ({"bias_proj": True}, "needs `bias_proj` = False: got True"),
        ({"n_q": "16"}, "`n_q` must be int .* got '16'"),
        ({"dim": True}, "`dim` must be int"),
        ({"dim": 0}, "`dim` must be int .* got 0"),
        ({"context": 1.5}, "`context` must be int"),
        ({"causal": False}, "needs `causal` = True: got False"),
        ({"delays": [0, 1]}, "`delays` must hold 17 frames"),
        ({"delays": [-1] * 17}, "`delays` must hold 17 frames >= 0"),
        ({"delays": [0.5] * 17}, "`delays` must be tuple"),
        ({"dep_q": 17}, "`dep_q` must be from 1 to `n_q` = 16: got 17"),
        ({"dep_q": 0}, "`dep_q` must be int and in range: got 0"),
        ({"num_heads": 3}, "`num_heads` must divide `dim` = 16"),
        ({"depformer_num_heads": 3}, "`depformer_num_heads` must divide `depformer_dim` = 8"),
        ({"depformer_gating": "none"}, "needs `depformer_gating` = 'silu': got 'none'"),
        ({"depformer_weights_per_step_schedule": [0, 1]}, "an index for each of 8 steps"),
        ({"depformer_dim_feedforward": [33, 33]}, "`depformer_dim_feedforward` must be int"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as problem:
        tiny_config(**changes)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    "name", ["num_layers", "context", "depformer_num_heads", "depformer_dim_feedforward"]
)
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


def test_trimming_keeps_shared_weights() -> None:
    config = tiny_config(depformer_weights_per_step_schedule=[0, 1, 2, 2, 2, 3, 3, 3])
    trimmed, narrow = trim_depth(random_state(config), config, 4)
    assert narrow.depth.weights_per_step_schedule == (0, 1, 2, 2)
    assert {name: tuple(tensor.shape) for name, tensor in trimmed.items()} == tensor_shapes(narrow)


@pytest.mark.parametrize("num_steps", [0, 9])
def test_depth_cannot_be_trimmed_to_nothing_or_more(num_steps: int) -> None:
    config = tiny_config()
    with pytest.raises(ValueError, match=f"to 1 up to its 8 steps: got {num_steps}"):
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
