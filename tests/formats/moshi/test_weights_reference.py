"""Checkpoints against Kyutai's `moshi` package: names, shapes, and what its models compute."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from counterpoint.formats.moshi.config import MOSHI_7B, ReferenceConfig
from counterpoint.formats.moshi.tensors import extend_depth, tensor_shapes, trim_depth
from counterpoint.formats.moshi.weights import read_checkpoint, write_checkpoint
from tests.systems.tiny_moshi_weights import equal, fused, quantised, save, tiny_keys

with pytest.MonkeyPatch.context() as _patch:
    # Read when the package is imported.
    _patch.setenv("NO_TORCH_COMPILE", "1")
    loaders = pytest.importorskip("moshi.models.loaders")
    lm = pytest.importorskip("moshi.models.lm")
    lora = pytest.importorskip("moshi.modules.lora")

F32 = torch.float32


def reference(keys: dict[str, Any]) -> nn.Module:
    """A reference model with random weights, norms too."""
    model = lm.LMModel(**keys, dtype=F32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim != 2:
                parameter.copy_(1 + 0.1 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def logits(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Audio and text logits of fixed tokens, NaN where nothing is predicted."""
    generator = torch.Generator().manual_seed(5)
    audio = torch.randint(0, 12, (2, 16, 11), generator=generator)
    text = torch.randint(0, 20, (2, 1, 11), generator=generator)
    out = model(torch.cat([text, audio], 1))
    return out.logits, out.text_logits


def same_logits(found: nn.Module, expected: nn.Module) -> bool:
    return all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) and bool(b.nan_to_num().std() > 0.1)
        for a, b in zip(logits(found), logits(expected), strict=True)
    )


def load(folder: Path) -> nn.Module:
    """Load as Kyutai's server does: strictly, with the config.json in the folder."""
    info = loaders.CheckpointInfo.from_hf_repo(
        "no/repository",
        moshi_weights=folder / "model.safetensors",
        mimi_weights=folder / "absent",
        tokenizer=folder / "absent",
        config_path=folder / "config.json",
    )
    return info.get_moshi(dtype=F32)


# ---------------------------------------------------------------------------------- names, shapes


@pytest.mark.parametrize(("dep_q", "count"), [(8, 7_687_729_152), (16, 8_371_408_896)])
def test_names_and_shapes_of_the_published_models(dep_q: int, count: int) -> None:
    config = ReferenceConfig.from_json({"dep_q": dep_q})
    model = lm.LMModel(**{**loaders._lm_kwargs, "dep_q": dep_q}, device="meta")
    assert tensor_shapes(config) == {n: tuple(t.shape) for n, t in model.state_dict().items()}
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_moshi_7b_is_what_the_package_assumes() -> None:
    assert json.loads(json.dumps(MOSHI_7B)) == loaders._lm_kwargs


@pytest.mark.parametrize(
    "changes",
    [
        {"depformer_weights_per_step_schedule": [0, 1, 2, 3, 4, 4, 4, 4]},
        {"depformer_low_rank_embeddings": 3},
        {"hidden_scale": 4, "depformer_dim_feedforward": 32},
        {"n_q": 20, "dep_q": 12, "delays": [0] * 21},
    ],
)
def test_names_and_shapes_of_relatives(changes: dict[str, Any]) -> None:
    keys = tiny_keys() | changes
    shapes = {n: tuple(t.shape) for n, t in reference(keys).state_dict().items()}
    assert tensor_shapes(ReferenceConfig.from_json(keys)) == shapes


# --------------------------------------------------------------------------------------- both ways


@pytest.mark.parametrize("dep_q", [8, 16])
def test_what_we_read_and_write_is_what_the_package_computes(tmp_path: Path, dep_q: int) -> None:
    keys = tiny_keys(dep_q)
    model = reference(keys)
    state = model.state_dict()
    for names, folder in ((dict, "split"), (fused, "fused")):
        found = read_checkpoint(save(tmp_path / folder, names(state), keys), dtype=F32)
        assert equal(found.state, state)
    write_checkpoint(found.state, found.config, tmp_path / "written")
    assert same_logits(load(tmp_path / "written"), model)


def test_adapters_are_merged_as_the_package_merges_them(tmp_path: Path) -> None:
    keys = tiny_keys()
    settings = {"lora": True, "lora_rank": 4, "lora_scaling": 1.5}
    model = reference(keys)
    base = save(tmp_path / "base", fused(model.state_dict()), keys | settings)
    lora.replace_all_linear_with_lora(model, 4, 1.5)
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file({n: t for n, t in whole.items() if "lora" in n}, base / "lora.safetensors")
    with_frozen = save(tmp_path / "frozen", whole, keys | settings)
    lora.replace_lora_with_linear(model)

    for folder in (base, with_frozen):
        config, state = read_checkpoint(folder, dtype=F32)
        assert equal(state, model.state_dict())
    write_checkpoint(state, config, tmp_path / "written")
    assert same_logits(load(tmp_path / "written"), model)


def test_int8_computes_what_the_package_computes(tmp_path: Path) -> None:
    keys = tiny_keys()
    model = reference(keys)
    file = fused(model.state_dict())
    linear = [n for n, t in file.items() if t.ndim == 2 and "emb" not in n]
    for name in linear:
        file[name], file[f"{name}_scb"] = quantised(file[name])
    config, state = read_checkpoint(save(tmp_path / "a", file, keys), dtype=F32)
    write_checkpoint(state, config, tmp_path / "b")
    for found, expected in zip(logits(load(tmp_path / "b")), logits(model), strict=True):
        error = (found - expected).nan_to_num()
        assert 0 < error.norm() < 0.05 * expected.nan_to_num().norm()


# ------------------------------------------------------------------------------------------- depth


def test_trimming_leaves_all_logits_that_stay(tmp_path: Path) -> None:
    model = reference(tiny_keys(16))
    write_checkpoint(
        *trim_depth(model.state_dict(), ReferenceConfig.from_json(tiny_keys(16)), 8), tmp_path / "a"
    )
    (audio, text), (all_audio, all_text) = logits(load(tmp_path / "a")), logits(model)
    torch.testing.assert_close(audio, all_audio[:, :8], equal_nan=True)
    assert torch.equal(text, all_text)


def test_extending_leaves_all_logits_that_were(tmp_path: Path) -> None:
    model = reference(tiny_keys(8))
    write_checkpoint(
        *extend_depth(model.state_dict(), ReferenceConfig.from_json(tiny_keys(8)), 16),
        tmp_path / "a",
    )
    (all_audio, all_text), (audio, text) = logits(load(tmp_path / "a")), logits(model)
    assert all_audio.shape[1] == 16
    torch.testing.assert_close(all_audio[:, :8], audio, equal_nan=True)
    assert torch.equal(all_text, text)
