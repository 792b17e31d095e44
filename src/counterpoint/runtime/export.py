"""Exporting a run: its model or adapters as a folder that the programs of its family can read."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from counterpoint.blocks.low_rank import add_low_rank, maps_without_adapter
from counterpoint.blocks.shapes_only import shapes_only
from counterpoint.config_json import decode
from counterpoint.errors import UserError
from counterpoint.formats import FORMATS
from counterpoint.runtime.load import load
from counterpoint.runtime.save import companions_of, save_published
from counterpoint.systems import SYSTEMS
from counterpoint.systems.contract import System
from counterpoint.train.checkpoint import (
    WEIGHTS,
    adapters_of,
    check_files,
    read_manifest,
    resolve,
)


def has_adapters(path: Path) -> bool:
    """Return whether a checkpoint or run folder holds a system with adapters.

    Raises:
        CheckpointError: There is no checkpoint.
    """
    return adapters_of(resolve(path)) is not None


def export_model(path: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the model of a run in the format in which models of its system are published.

    Adapters are merged into the weights. The codec and the tokeniser of a speech run are copied, so
    that the exported model can talk.

    Args:
        path: Checkpoint or run folder.
        folder: A new or empty folder.
        dtype: Type of the weights.

    Raises:
        UserError: There is no format for the system, the checkpoint is damaged, a file of its codec
            or tokeniser is missing, or the folder cannot be written.
    """
    loaded = load(path)
    companions = companions_of(loaded)
    save_published(loaded.system.to(dtype), folder, companions)


def export_adapters(path: Path, folder: Path) -> None:
    """Write the adapters of a run in the format in which models of its system are published.

    Args:
        path: Checkpoint or run folder of a system with adapters.
        folder: A new or empty folder.

    Raises:
        UserError: There are no adapters, or other weights were trained beside them; there is no
            format for them, the checkpoint is damaged, or the folder cannot be written.
    """
    path = resolve(path)
    manifest = read_manifest(path)
    name = manifest["system"]
    low_rank = adapters_of(path)
    savers = {
        known.system: known.save_adapters for known in FORMATS.values() if known.save_adapters
    }
    if name not in savers or low_rank is None:
        raise UserError(
            f"{path} must hold a {' or a '.join(savers)} with adapters: it has a {name} "
            f"{'without' if low_rank is None else 'with'} adapters. Name another."
        )
    check_files(path, lambda file: file == WEIGHTS)
    cls: Any = next(cls for cls in SYSTEMS.values() if cls.__name__ == name)
    with shapes_only():
        system: System = cls(decode(cls.Config, manifest["config"]))
    weights = load_file(path / WEIGHTS)
    whole = maps_without_adapter(system, weights)
    if whole:
        raise UserError(
            f"Adapters must be all that a run has trained: {path} has also trained {whole[0]} as a "
            "whole. Export the whole model with `--merge`."
        )
    add_low_rank(system.to_empty(device="cpu"), low_rank, seed=0)
    system.load_state_dict(weights, assign=True)
    savers[name](system, folder, low_rank)
