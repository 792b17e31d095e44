"""Files of `save_moshi` for NVIDIA's loader of PersonaPlex, which is stated again here.

Written from its code, NVIDIA/personaplex at 3428dfd (`moshi/moshi/models/loaders.py`, `lm.py`,
`modules/transformer.py`), which is no package that could be installed beside Kyutai's. It does not
read config.json but has the numbers of the 7B model with 16 depth steps, knows fused names only,
fills steps 8 to 15 of a file of eight from steps 0 to 7, and passes over what is unknown.
Compared with that code itself once, by hand: constants, names and shapes of the 7B model are equal;
it loads both files of 16 steps below with our scores (1e-6), and not the one of eight.
"""

from collections.abc import Mapping
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from counterpoint.formats.moshi import weights as moshi_weights
from counterpoint.formats.moshi.checkpoint import load_moshi, moshi_config, save_moshi
from counterpoint.formats.moshi.config import ReferenceConfig
from counterpoint.formats.moshi.names import reference_state_dict
from counterpoint.systems.moshi import Moshi, moshi_7b
from tests.systems.tiny_models import randomised
from tests.systems.tiny_moshi_weights import equal, tiny_keys

PERSONAPLEX_7B: dict[str, Any] = {
    **{"dim": 4096, "num_heads": 32, "num_layers": 32, "hidden_scale": 4.125, "causal": True},
    **{"text_card": 32000, "existing_text_padding_id": 3, "card": 2048, "n_q": 16, "dep_q": 16},
    **{"context": 3000, "max_period": 10000, "positional_embedding": "rope", "layer_scale": None},
    **{"gating": "silu", "norm": "rms_norm_f32", "delays": [0, *[0, *[1] * 7] * 2]},
    **{"depformer_dim": 1024, "depformer_num_heads": 16, "depformer_num_layers": 6},
    **{"depformer_dim_feedforward": 4224, "depformer_gating": "silu", "depformer_context": 8},
    **{"depformer_max_period": 10000, "depformer_pos_emb": "none", "depformer_layer_scale": None},
    **{"depformer_multi_linear": True, "depformer_weights_per_step": True},
}
Shapes = dict[str, tuple[int, ...]]


def nvidia_shapes(keys: Mapping[str, Any]) -> Shapes:
    """The parameters of its model."""
    width, deep, steps = keys["dim"], keys["depformer_dim"], keys["dep_q"]
    text, audio = keys["text_card"] + 1, keys["card"] + 1
    shapes: Shapes = {
        "text_emb.weight": (text, width),
        "text_linear.weight": (text - 1, width),
        "out_norm.alpha": (1, 1, width),
        "depformer_text_emb.weight": (text, deep),
    }
    shapes |= {f"emb.{k}.weight": (audio, width) for k in range(keys["n_q"])}
    shapes |= {f"depformer_emb.{k}.weight": (audio, deep) for k in range(steps - 1)}
    shapes |= {f"depformer_in.{k}.weight": (deep, width) for k in range(steps)}
    shapes |= {f"linears.{k}.weight": (audio - 1, deep) for k in range(steps)}
    hidden = 2 * int(keys["hidden_scale"] * width) // 3
    for i in range(keys["num_layers"]):
        shapes |= layer(f"transformer.layers.{i}.", width, 1)
        shapes |= gated_mlp(f"transformer.layers.{i}.gating.", width, hidden)
    hidden = 2 * keys["depformer_dim_feedforward"] // 3
    for i, k in product(range(keys["depformer_num_layers"]), range(steps)):
        shapes |= layer(f"depformer.layers.{i}.", deep, steps)
        shapes |= gated_mlp(f"depformer.layers.{i}.gating.{k}.", deep, hidden)
    return shapes


def layer(name: str, width: int, steps: int) -> Shapes:
    return {
        f"{name}norm1.alpha": (1, 1, width),
        f"{name}norm2.alpha": (1, 1, width),
        f"{name}self_attn.in_proj_weight": (steps * 3 * width, width),
        f"{name}self_attn.out_proj.weight": (steps * width, width),
    }


def gated_mlp(name: str, width: int, hidden: int) -> Shapes:
    return {
        f"{name}linear_in.weight": (2 * hidden, width),
        f"{name}linear_out.weight": (width, hidden),
    }


def as_nvidia_loads(file: Mapping[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
    """What its model has of a file; what is missing stays without values, and then it fails."""
    state = dict(file)
    for name, tensor in file.items():
        fused = "depformer" in name and "self_attn" in name
        if fused and name in shapes and tensor.shape != shapes[name]:
            state[name] = torch.cat([tensor, tensor])
    groups = ("gating", "linears", "depformer_in", "depformer_emb")
    for name, group, step in product(shapes, groups, range(8)):
        source = name.replace(f"{group}.{step + 8}.", f"{group}.{step}.")
        if name not in state and source != name and source in state:
            state[name] = state[source]
    return {name: tensor.bfloat16() for name, tensor in state.items() if name in shapes}


def saved(model: Moshi, folder: Path) -> dict[str, Tensor]:
    save_moshi(model, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    return load_file(folder / "model.safetensors")


def tiny(steps: int) -> Moshi:
    model = randomised(Moshi(moshi_config(ReferenceConfig.from_json(tiny_keys(steps)))))
    assert isinstance(model, Moshi)
    return model


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_published_model_is_written_as_nvidias_loader_builds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device, without the 16.7 GB."""
    written: list[Any] = []
    for function in ("write_weights", "write_json"):
        monkeypatch.setattr(moshi_weights, function, lambda *given: written.append(given))
    with torch.device("meta"):
        save_moshi(Moshi(moshi_7b(16)), tmp_path / "personaplex")
    (_, tensors, shard_bytes), (_, keys) = written
    assert shard_bytes is None
    assert keys["moshi_name"] == "model.safetensors"
    assert shapes_of(tensors) == nvidia_shapes(PERSONAPLEX_7B)
    assert len(tensors) == 475
    assert sum(prod(tensor.shape) for tensor in tensors.values()) == 8_371_408_896
    assert {key: keys[key] for key in PERSONAPLEX_7B} == PERSONAPLEX_7B


def test_a_model_of_both_speakers_is_read_whole_and_as_it_is(tmp_path: Path) -> None:
    model, shapes = tiny(16), nvidia_shapes(tiny_keys(16))
    file = saved(model, tmp_path / "both")
    assert shapes_of(file) == shapes
    assert equal(as_nvidia_loads(file, shapes), {n: t.bfloat16() for n, t in file.items()})
    split = reference_state_dict(model)
    for i, step in product(range(2), range(16)):  # the rows that its `multi_linear` takes
        attention = f"depformer.layers.{i}.self_attn."
        for fused, own in (("in_proj_weight", "in_projs"), ("out_proj.weight", "out_projs")):
            rows = file[attention + fused].unflatten(0, (16, -1))[step]
            assert torch.equal(rows, split[f"{attention}{own}.{step}.weight"])


def test_a_model_of_the_agent_must_be_extended_first(tmp_path: Path) -> None:
    """Of eight steps its rules leave out one embedding; ours give it, and the same elsewhere."""
    shapes = nvidia_shapes(tiny_keys(16))
    filled = as_nvidia_loads(saved(tiny(8), tmp_path / "agent"), shapes)
    assert shapes.keys() - filled.keys() == {"depformer_emb.7.weight"}
    both = load_moshi(tmp_path / "agent", dtype=torch.float32, num_predicted=16)
    loaded = as_nvidia_loads(saved(both, tmp_path / "both"), shapes)
    assert shapes_of(loaded) == shapes
    assert equal({name: loaded[name] for name in filled}, filled)
