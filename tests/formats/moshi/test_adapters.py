"""Adapters in files, as the reference implementation and we read them."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from counterpoint.blocks.low_rank import LowRankConfig, add_low_rank
from counterpoint.formats.moshi.checkpoint import (
    load_moshi,
    moshi_config,
    reference_config,
    save_adapters,
    save_moshi,
)
from counterpoint.formats.moshi.config import ReferenceConfig
from counterpoint.systems.moshi import Moshi
from tests.formats.moshi.test_checkpoint import calm_state, codes
from tests.systems.tiny_moshi_weights import fused, save, tiny_keys

os.environ.setdefault("NO_TORCH_COMPILE", "1")

PLAIN = LowRankConfig(rank=3, scaling=0.75)
WITH_TABLES = LowRankConfig(rank=2, scaling=2.0, train_embeddings=True)
SHAPES = {"agent": tiny_keys(8), "both": tiny_keys(16)}


def scores(model: Moshi, given: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(model(model.lay_out(given)))


def adapted(tmp_path: Path, shape: str, low_rank: LowRankConfig) -> tuple[Moshi, Path, Path]:
    """A model with random adapters (and tables), its base and its adapters in files."""
    base = tmp_path / "base"
    keys = SHAPES[shape]
    save(base, fused(calm_state(ReferenceConfig.from_json(keys))), keys)
    model = load_moshi(base, dtype=torch.float32)
    add_low_rank(model, low_rank, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    save_adapters(model, tmp_path / "adapters", low_rank)
    return model, base, tmp_path / "adapters" / "lora.safetensors"


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("low_rank", [PLAIN, WITH_TABLES], ids=["plain", "with_tables"])
def test_adapters_are_read_back(tmp_path: Path, shape: str, low_rank: LowRankConfig) -> None:
    model, base, lora = adapted(tmp_path, shape, low_rank)
    given = codes(model.config)
    expected, found = scores(model, given), load_moshi(base, dtype=torch.float32, lora_path=lora)
    before = scores(load_moshi(base, dtype=torch.float32), given)
    for name, value in scores(found, given).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(value, before[name], atol=1e-3)


@pytest.mark.parametrize("fuse", [False, True], ids=["unmerged", "merged"])
@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("low_rank", [PLAIN, WITH_TABLES], ids=["plain", "with_tables"])
def test_the_reference_loads_adapters_and_scores_alike(
    tmp_path: Path, shape: str, low_rank: LowRankConfig, fuse: bool
) -> None:
    """With the keys of the config.json beside them, as its server takes them."""
    reference = pytest.importorskip("moshi.models.loaders")
    model, base, lora = adapted(tmp_path, shape, low_rank)
    settings = json.loads(lora.with_name("config.json").read_text())
    keys = {key: value for key, value in settings.items() if key != "lora_name"}
    assert (keys["lora_rank"], keys["lora_scaling"]) == (low_rank.rank, low_rank.scaling)
    theirs = reference.get_moshi_lm(
        base / "model.safetensors",
        keys,
        device="cpu",
        dtype=torch.float32,
        lora_weights=lora,
        fuse_lora=fuse,
    )
    given = codes(model.config)
    rows = torch.cat([given["text"][:, None], *(given[s.name].mT for s in model.audio)], 1)
    with torch.no_grad():
        expected, ours = theirs(rows), scores(model, given)
    torch.testing.assert_close(ours["text"], expected.text_logits[:, 0], rtol=1e-5, atol=1e-5)
    # Theirs stand at the content's time: the acoustic ones a frame before they come.
    first = 0
    for stream in model.predicted:
        stop, late = first + stream.depth, stream.delay_ticks
        logits = expected.logits[:, first:stop].transpose(1, 2)
        found = ours[stream.name][:, late:]
        torch.testing.assert_close(found, logits[:, : found.shape[1]], rtol=1e-5, atol=1e-5)
        first = stop


def test_depth_steps_that_share_weights_share_adapters(tmp_path: Path) -> None:
    keys = tiny_keys(
        8,
        depformer_weights_per_step_schedule=[0, 1, 2, 2, 2, 2, 2, 2],
        depformer_low_rank_embeddings=4,
    )
    config = ReferenceConfig.from_json(keys)
    base = save(tmp_path / "base", fused(calm_state(config)), keys)
    model = load_moshi(base, dtype=torch.float32)
    add_low_rank(model, PLAIN, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    save_adapters(model, tmp_path / "adapters", PLAIN)
    lora = tmp_path / "adapters" / "lora.safetensors"
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(lora).items()}
    prefix = "depformer.layers.0.self_attn.in_projs."
    assert sorted(name for name in shapes if name.startswith(prefix)) == [
        f"{prefix}{k}.lora_{factor}.weight" for k in range(3) for factor in "AB"
    ]
    assert shapes[f"{prefix}0.lora_A.weight"] == (3, 8)
    assert shapes[f"{prefix}0.lora_B.weight"] == (24, 3)
    assert shapes["depformer_emb.6.low_rank.lora_B.weight"] == (8, 3)
    assert shapes["linears.7.lora_A.weight"] == (3, 8)
    found, given = load_moshi(base, dtype=torch.float32, lora_path=lora), codes(model.config)
    expected = scores(model, given)
    for name, value in scores(found, given).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_files_say_what_they_are(tmp_path: Path) -> None:
    model, _, lora = adapted(tmp_path, "agent", PLAIN)
    keys = json.loads(lora.with_name("config.json").read_text())
    stored = {key: keys.pop(key) for key in ("lora", "lora_rank", "lora_scaling", "lora_name")}
    assert stored == {
        "lora": True,
        "lora_rank": 3,
        "lora_scaling": 0.75,
        "lora_name": "lora.safetensors",
    }
    assert ReferenceConfig.from_json(keys) == reference_config(model.config)
    assert moshi_config(ReferenceConfig.from_json(keys)) == model.config
    names = load_file(lora).keys()
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names)
    with pytest.raises(ValueError, match="it must be empty, and is not"):
        save_adapters(model, lora.parent, PLAIN)


def test_models_without_adapters_have_none_to_save(tmp_path: Path) -> None:
    save_moshi(adapted(tmp_path, "agent", PLAIN)[0], tmp_path / "whole")  # without them
    model = load_moshi(tmp_path / "whole")
    with pytest.raises(ValueError, match="must have adapters to save them: it has none"):
        save_adapters(model, tmp_path / "none", PLAIN)
