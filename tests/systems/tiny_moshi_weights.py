"""Tiny checkpoints of the Moshi family: keys of config.json, random states, files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from counterpoint.formats.moshi.config import MOSHI_7B, ReferenceConfig
from counterpoint.formats.moshi.tensors import tensor_shapes


def tiny_keys(dep_q: int = 8, **changes: Any) -> dict[str, Any]:
    """A config.json as of Moshi 7B, but small."""
    small = {"dim": 16, "num_heads": 2, "num_layers": 2, "card": 12, "text_card": 20, "context": 9}
    depth = {"dim": 8, "dim_feedforward": 33, "num_heads": 2, "num_layers": 2}
    depth_keys = {f"depformer_{name}": value for name, value in depth.items()}
    keys = {**MOSHI_7B, **small, **depth_keys, "dep_q": dep_q, **changes}
    return json.loads(json.dumps(keys))


def random_state(config: ReferenceConfig) -> dict[str, Tensor]:
    return {name: torch.randn(shape) for name, shape in tensor_shapes(config).items()}


def fused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of published files, made in another way than the code under test does."""
    state = dict(state)
    for first in [name for name in state if name.endswith("_projs.0.weight")]:
        module = first.removesuffix("s.0.weight")
        steps = sum(name.startswith(f"{module}s.") for name in state)
        joined = torch.cat([state.pop(f"{module}s.{k}.weight") for k in range(steps)])
        state[module + ("_weight" if "in_proj" in module else ".weight")] = joined
    return state


def save(folder: Path, tensors: Mapping[str, Tensor], keys: Mapping[str, Any] | None) -> Path:
    """A checkpoint folder; ``None``: without config.json."""
    folder.mkdir(exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    if keys is not None:
        (folder / "config.json").write_text(json.dumps(keys))
    return folder


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 by rows, and the largest magnitude of every row."""
    scale = weight.abs().amax(1)
    return (weight * 127 / scale[:, None]).round().to(torch.int8), scale


def equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Same names, same values, same types."""
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], value) and found[name].dtype == value.dtype
        for name, value in expected.items()
    )
