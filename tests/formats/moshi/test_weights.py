"""Reading and writing checkpoints, without the reference package (see `..._reference.py`)."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from counterpoint import files
from counterpoint.formats.moshi.config import ReferenceConfig
from counterpoint.formats.moshi.tensors import tensor_shapes
from counterpoint.formats.moshi.weights import read_checkpoint, write_checkpoint
from tests.systems.tiny_moshi_weights import (
    equal,
    fused,
    quantised,
    random_state,
    save,
    tiny_keys,
)

F32 = torch.float32
QKV = "depformer.layers.1.self_attn.in_projs.3.weight"
HEAD = "text_linear.weight"


def tiny(dep_q: int = 8, **changes: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Keys of config.json and a random canonical state."""
    keys = tiny_keys(dep_q, **changes)
    return keys, random_state(ReferenceConfig.from_json(keys))


# ------------------------------------------------------------------------------------ both ways


@pytest.mark.parametrize("dep_q", [8, 16])
@pytest.mark.parametrize("names", [dict, fused], ids=["split", "fused"])
def test_names_of_both_kinds_give_the_same_state(tmp_path: Path, dep_q: int, names: Any) -> None:
    keys, state = tiny(dep_q)
    config, found = read_checkpoint(save(tmp_path / "a", names(state), keys), dtype=F32)
    assert equal(found, state)
    assert config == ReferenceConfig.from_json(keys)


def test_old_module_names_are_read(tmp_path: Path) -> None:
    # Once the fused projection was a Linear of its own, as in quantised files.
    keys, state = tiny()
    old = {name.replace("in_proj_weight", "in_proj.weight"): t for name, t in fused(state).items()}
    assert equal(read_checkpoint(save(tmp_path / "a", old, keys), dtype=F32).state, state)


def test_what_is_written_has_published_names_and_is_read_back(tmp_path: Path) -> None:
    keys, state = tiny()
    keys |= {"mimi_name": "mimi.safetensors", "lm_gen_config": {"temp": 0.8}, "quantize": False}
    config = ReferenceConfig.from_json(keys)
    write_checkpoint(state, config, tmp_path / "a")
    assert equal(load_file(tmp_path / "a" / "model.safetensors"), fused(state))
    written = json.loads((tmp_path / "a" / "config.json").read_text())
    assert written == {n: v for n, v in keys.items() if n != "quantize"} | {
        "moshi_name": "model.safetensors"
    }
    assert equal(read_checkpoint(tmp_path / "a", dtype=F32).state, state)


def test_weights_that_are_views_of_one_matrix_are_written(tmp_path: Path) -> None:
    keys, state = tiny()
    heads = torch.stack([state[f"linears.{k}.weight"] for k in range(8)])
    views = {f"linears.{k}.weight": heads[k] for k in range(8)}
    views |= {"emb.0.weight": torch.randn(16, 13).T}
    write_checkpoint(state | views, ReferenceConfig.from_json(keys), tmp_path / "a")
    assert equal(read_checkpoint(tmp_path / "a", dtype=F32).state, state | views)


def test_types_are_chosen_by_the_caller_and_kept_by_the_writer(tmp_path: Path) -> None:
    keys, state = tiny()
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    folder = save(tmp_path / "a", fused(state), keys)
    config, found = read_checkpoint(folder, dtype=torch.bfloat16)
    assert equal(found, half)
    write_checkpoint(found, config, tmp_path / "b")
    assert equal(load_file(tmp_path / "b" / "model.safetensors"), fused(half))
    whole = read_checkpoint(tmp_path / "b", dtype=F32).state
    assert equal(whole, {name: tensor.float() for name, tensor in half.items()})


def test_what_is_mapped_does_not_change_the_file(tmp_path: Path) -> None:
    keys, state = tiny()
    folder = save(tmp_path / "a", state, keys)
    for tensor in read_checkpoint(folder, dtype=F32).state.values():
        tensor.zero_()
    assert equal(load_file(folder / "model.safetensors"), state)


def test_int8_is_expanded_to_its_step(tmp_path: Path) -> None:
    keys, state = tiny()
    file: dict[str, Tensor] = {}
    for name, tensor in fused(state).items():
        if tensor.ndim == 2 and "emb" not in name:
            file[name], file[name + "_scb"] = quantised(tensor)
        else:
            file[name] = tensor.bfloat16()
    (tmp_path / "a").mkdir()
    save_file(file, tmp_path / "a" / "model.q8.safetensors")
    (tmp_path / "a" / "config.json").write_text(json.dumps(keys | {"quantize": True}))
    found = read_checkpoint(tmp_path / "a", dtype=F32).state
    for name in (QKV, HEAD, "linears.7.weight"):
        step = state[name].abs().amax(1, keepdim=True) / 127
        error = (found[name] - state[name]).abs()
        assert bool((error <= step / 2 + 1e-6).all())
        assert bool((error > 0).any())
    assert torch.equal(found["emb.3.weight"], state["emb.3.weight"].bfloat16().float())


# ------------------------------------------------------------------------------------------ LoRA


def adapters(state: dict[str, Tensor], rank: int = 3) -> dict[str, Tensor]:
    """Factors for two weights of each kind, with split names."""
    made: dict[str, Tensor] = {}
    for name in [n for n in state if "depformer.layers.1.self_attn" in n] + [HEAD]:
        rows, columns = state[name].shape
        made[name.replace("weight", "lora_A.weight")] = torch.randn(rank, columns)
        made[name.replace("weight", "lora_B.weight")] = torch.randn(rows, rank)
    return made


def merged(
    state: dict[str, Tensor], factors: dict[str, Tensor], scaling: float
) -> dict[str, Tensor]:
    result = dict(state)
    for name in state:
        if (a := name.replace("weight", "lora_A.weight")) in factors:
            change = factors[a.replace("lora_A", "lora_B")] @ factors[a]
            result[name] = state[name] + scaling * change
    return result


def fused_adapters(factors: dict[str, Tensor]) -> dict[str, Tensor]:
    made = {name: t for name, t in factors.items() if "self_attn" not in name}
    for joined in ("in_proj", "out_proj"):
        for factor in ("lora_A", "lora_B"):
            name = f"depformer.layers.1.self_attn.{joined}"
            steps = [factors[f"{name}s.{k}.{factor}.weight"] for k in range(8)]
            made[f"{name}.{factor}.weight"] = torch.cat(steps)
    return made


@pytest.mark.parametrize("names", [dict, fused_adapters], ids=["split", "fused"])
def test_adapters_are_merged(tmp_path: Path, names: Any) -> None:
    keys, state = tiny()
    factors = adapters(state)
    expected = merged(state, factors, 0.5)
    # Fine-tuning may have trained the embeddings too: these replace those of the weights.
    expected["emb.2.weight"] = torch.randn_like(state["emb.2.weight"])
    lora = names(factors) | {"emb.2.weight": expected["emb.2.weight"]}
    settings = {"lora": True, "lora_rank": 3, "lora_scaling": 0.5}

    own = save(tmp_path / "own", fused(state), keys | settings)
    save_file(lora, own / "lora.safetensors")
    assert equal(read_checkpoint(own, dtype=F32).state, expected)

    named = save(tmp_path / "named", state, keys | settings | {"lora_name": "mine.safetensors"})
    save_file(lora, named / "mine.safetensors")
    assert equal(read_checkpoint(named, dtype=F32).state, expected)

    base = save(tmp_path / "base", fused(state), keys)
    run = tmp_path / "run"
    run.mkdir()
    save_file(lora, run / "lora.safetensors")
    (run / "config.json").write_text(json.dumps(keys | settings))
    found = read_checkpoint(base, dtype=F32, lora_path=run / "lora.safetensors")
    assert equal(found.state, expected)
    write_checkpoint(found.state, found.config, tmp_path / "merged")
    assert equal(read_checkpoint(tmp_path / "merged", dtype=F32).state, expected)


def test_adapters_in_the_file_of_the_weights_are_merged(tmp_path: Path) -> None:
    keys, state = tiny()
    factors = adapters(state)
    frozen = {
        name.replace("weight", "frozen_W.weight") if "self_attn" in name else name: tensor
        for name, tensor in state.items()
    }
    folder = save(tmp_path / "a", frozen | factors, keys | {"lora": True})
    assert equal(read_checkpoint(folder, dtype=F32).state, merged(state, factors, 2.0))


def test_lora_without_adapters_warns(tmp_path: Path) -> None:
    keys, state = tiny()
    folder = save(tmp_path / "a", state, keys | {"lora": True})
    with pytest.warns(UserWarning, match="no adapters: taking the weights as merged"):
        assert equal(read_checkpoint(folder, dtype=F32).state, state)


# ---------------------------------------------------------------------------------- without config


def sparse_file(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A file of zeros, which takes no room on the disk."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def test_without_config_moshi_7b_is_taken_and_the_file_counts(tmp_path: Path) -> None:
    small = {"num_layers": 1, "depformer_num_layers": 1, "card": 30, "text_card": 60, "dep_q": 16}
    shapes = tensor_shapes(ReferenceConfig.from_json(small))
    path = tmp_path / "model.safetensors"
    sparse_file(path, shapes)
    config, state = read_checkpoint(path, dtype=torch.bfloat16)
    assert config == ReferenceConfig.from_json(small)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes
    # Keys that say nothing about the model leave it a Moshi 7B.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "personaplex"}))
    config = read_checkpoint(tmp_path, dtype=torch.bfloat16).config
    assert config == ReferenceConfig.from_json(small | {"model_type": "personaplex"})


def test_other_widths_need_their_config(tmp_path: Path) -> None:
    _, state = tiny()
    folder = save(tmp_path / "a", state, None)
    with pytest.raises(ValueError, match="must have the shape .* Give the config.json"):
        read_checkpoint(folder, dtype=F32)


def test_the_file_decides_the_number_of_depth_steps(tmp_path: Path) -> None:
    keys, state = tiny(16)
    folder = save(tmp_path / "a", fused(state), keys | {"dep_q": 8})
    with pytest.warns(UserWarning, match="says `dep_q` = 8, .* holds 16: taking 16"):
        config, found = read_checkpoint(folder, dtype=F32)
    assert config.streams.dep_q == 16
    assert equal(found, state)
    config_path = tmp_path / "right.json"
    config_path.write_text(json.dumps(keys))
    found = read_checkpoint(folder / "model.safetensors", dtype=F32, config_path=config_path).state
    assert equal(found, state)


# ------------------------------------------------------------------------------------------- extra


@pytest.mark.parametrize(
    "name", ["condition_provider.conditioners.style.embed.weight", "extra_heads.0.weight"]
)
def test_tensors_that_a_moshi_has_no_place_for_are_refused(tmp_path: Path, name: str) -> None:
    keys, state = tiny()
    folder = save(tmp_path / "a", {**fused(state), name: torch.randn(3, 4)}, keys)
    with pytest.raises(ValueError, match=f"must hold what their config asks for, not {name}"):
        read_checkpoint(folder, dtype=F32)


# ------------------------------------------------------------------------------------------ errors


def without(name: str) -> Any:
    return lambda state: {n: t for n, t in state.items() if n != name}


def replaced(name: str, tensor: Tensor) -> Any:
    return lambda state: state | {name: tensor}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(HEAD), r"must hold text_linear\.weight: missing"),
        (without("text_emb.weight"), "must be weights of the Moshi family"),
        (without(QKV), "in_projs.3.weight: missing"),
        (replaced("spare", torch.zeros(1)), "must hold what their config asks for, not spare"),
        (replaced("emb.16.weight", torch.zeros(13, 16)), "asks for, not emb.16.weight"),
        (replaced(HEAD, torch.zeros(20, 17)), r"must have the shape \(20, 16\): got \(20, 17\)"),
        (replaced(HEAD, torch.zeros(20, 16, dtype=torch.int8)), "floats, or int8 .* it is I8"),
        (replaced(HEAD, torch.zeros(20, 16, dtype=torch.bool)), "it is BOOL"),
        (replaced(f"{HEAD}_scb", torch.ones(20)), "floats, or int8 .* it is F32"),
        (
            lambda s: s | {HEAD: s[HEAD].to(torch.int8), f"{HEAD}_scb": torch.ones(19)},
            "must fit its shape",
        ),
        (replaced("text_linear.lora_A.weight", torch.ones(3, 16)), "both LoRA factors: missing"),
        (
            lambda s: s | adapters(s) | {"text_linear.lora_A.weight": torch.ones(3, 15)},
            "must say `lora`",
        ),
        (replaced("text_linear.frozen_W.weight", torch.zeros(20, 16)), "in a file once"),
        (replaced("spare.lora_A.weight", torch.ones(3, 16)), "the weight that they change"),
        (
            replaced("depformer.layers.0.self_attn.in_proj_weight", torch.zeros(8 * 24, 8)),
            r"in a file once: .*in_proj_weight",
        ),
        (
            replaced("depformer.layers.0.self_attn.in_proj_weight", torch.zeros(190, 8)),
            "must hold equal rows for 8 depth steps",
        ),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, change: Any, message: str) -> None:
    keys, state = tiny()
    folder = save(tmp_path / "a", change(state), keys)
    with pytest.raises(ValueError, match=message) as problem:
        read_checkpoint(folder, dtype=F32)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize("names", [dict, fused], ids=["split", "fused"])
@pytest.mark.parametrize("step", [3, 15])
def test_a_missing_head_is_named(tmp_path: Path, with_config: bool, names: Any, step: int) -> None:
    """And is not taken for a model of fewer depth steps, to which the other tensors do not fit."""
    keys, state = tiny(16)
    tensors = names(without(f"linears.{step}.weight")(state))
    folder = save(tmp_path / "a", tensors, keys if with_config else None)
    with pytest.raises(ValueError, match=rf"must hold linears\.{step}\.weight: missing"):
        read_checkpoint(folder, dtype=F32)


def test_a_number_of_layers_without_end_is_refused_at_once(tmp_path: Path) -> None:
    state = tiny()[1] | {"transformer.layers.999999999999.norm1.alpha": torch.ones(1, 1, 16)}
    with pytest.raises(ValueError, match=r"must hold transformer\.layers\..* more: missing"):
        read_checkpoint(save(tmp_path / "a", state, None), dtype=F32)


@pytest.mark.parametrize(
    ("setting", "columns", "message"),
    [
        ({"lora_rank": 4}, 16, "must fit its shape and `lora_rank`"),
        ({}, 15, "must fit its shape and `lora_rank`"),
        ({"lora_scaling": "2"}, 16, "`lora_scaling` must be a number: got '2'"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(
    tmp_path: Path, setting: dict[str, Any], columns: int, message: str
) -> None:
    keys, state = tiny()
    lora = adapters(state) | {"text_linear.lora_A.weight": torch.ones(3, columns)}
    folder = save(tmp_path / "a", state | lora, keys | {"lora": True} | setting)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(folder, dtype=F32)


def test_damaged_and_absent_files_are_refused_in_one_line(tmp_path: Path) -> None:
    keys, state = tiny()
    folder = save(tmp_path / "a", state, keys)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-1])
    (folder / "short.safetensors").write_bytes(b"abc")
    (folder / "weights.pt").write_bytes(b"pickle")
    (folder / "list.json").write_text("[]")
    (folder / "bad.json").write_text("{")
    (folder / "hub.json").write_text(json.dumps(keys | {"moshi_name": "hf://a/b/c.safetensors"}))
    for name, config, message in (
        ("cut.safetensors", None, "must be a complete safetensors file"),
        ("short.safetensors", None, "must be a complete safetensors file"),
        ("absent.safetensors", None, "must be a complete safetensors file: No such file"),
        ("weights.pt", None, "must be a safetensors file: .* Pickles can run code"),
        ("model.safetensors", "list.json", "must hold an object: got list"),
        ("model.safetensors", "bad.json", "must be JSON: it is not JSON"),
        ("model.safetensors", "absent.json", "must be readable JSON: .*No such file"),
        (".", "hub.json", "must hold hf://a/b/c.safetensors: it does not"),
    ):
        with pytest.raises(ValueError, match=message) as problem:
            read_checkpoint(
                folder / name, dtype=F32, config_path=folder / config if config else None
            )
        assert "\n" not in str(problem.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match="must hold model.safetensors or .* or model.q8.safetensors"
    ):
        read_checkpoint(tmp_path / "empty", dtype=F32)
    (folder / "config.json").write_text(
        json.dumps(keys | {"lora": True, "lora_name": "absent.sft"})
    )
    with pytest.raises(ValueError, match=r"absent\.sft must be a complete safetensors file"):
        read_checkpoint(folder, dtype=F32)


def test_a_checkpoint_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, state = tiny()
    config = ReferenceConfig.from_json(keys)
    (tmp_path / "empty").mkdir()
    write_checkpoint(state, config, tmp_path / "empty")
    with pytest.raises(ValueError, match="must be a new folder .*: it must be empty, and is not"):
        write_checkpoint(state, config, tmp_path / "empty")
    with pytest.raises(ValueError, match=r"must hold text_linear\.weight: missing"):
        write_checkpoint(without(HEAD)(state), config, tmp_path / "b")

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(ValueError, match="on a disk with free space: No space left"):
        write_checkpoint(state, config, tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
