"""Published folders of the Moshi family: the model, Mimi and the text tokeniser."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from counterpoint.blocks.low_rank import LowRankConfig
from counterpoint.errors import UserError
from counterpoint.files import inside
from counterpoint.formats.moshi.checkpoint import (
    MODEL_ID,
    OWN,
    load_moshi,
    read_config,
    save_adapters,
    save_moshi,
)
from counterpoint.formats.moshi.config import other_keys
from counterpoint.formats.moshi.voice import read_voice, voice_prefix
from counterpoint.formats.moshi.weights import (
    CONFIG,
    LORA,
    MIMI,
    STORAGE_KEYS,
    TEXT,
    WEIGHTS_INT8,
    read_json,
)
from counterpoint.formats.published import Companions, PublishedModel
from counterpoint.formats.sharded import INDEX, WEIGHTS
from counterpoint.streams.spec import Ticks
from counterpoint.systems.contract import Prefix, System
from counterpoint.systems.moshi import Moshi

MIMI_FILE = MIMI[1]
TEXT_FILE = TEXT[1]
"""Names of Mimi's weights and of the text tokeniser in the folders of published models."""


def matches(path: Path) -> bool:
    """Return whether a path is a folder of the family, or a file of weights."""
    if path.is_dir():
        return any((path / name).is_file() for name in (CONFIG, WEIGHTS, INDEX, WEIGHTS_INT8))
    return path.suffix == ".safetensors"


def open_folder(path: Path) -> PublishedModel:
    """Open a folder, or the folder of a file of weights.

    Raises:
        UserError: Mimi or the tokeniser is missing, or is declared to be elsewhere.
    """
    folder = path if path.is_dir() else path.parent
    keys = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    names = {key: str(keys.get(key) or name) for key, name in (MIMI, TEXT)}
    for name in names.values():
        if not inside(folder, name).is_file():
            raise UserError(
                f"{folder} must hold the model, Mimi and the text tokeniser: {name} is missing. "
                "Fetch it from where the model came from."
            )
    return PublishedModel(
        load=partial(_load_published, path),
        shape=lambda: read_config(path),
        tokenizer=folder / names["tokenizer_name"],
        codec=folder / names["mimi_name"],
        settings=_settings(keys),
    )


def _load_published(
    path: Path, dtype: torch.dtype | None = None, adapters: Path | None = None
) -> Moshi:
    if adapters is not None and adapters.is_dir():
        named = read_json(adapters / CONFIG) if (adapters / CONFIG).is_file() else {}
        adapters = inside(adapters, str(named.get("lora_name") or LORA))
    return load_moshi(path, dtype=dtype or torch.bfloat16, lora_path=adapters)


def _settings(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a config.json that are kept with other weights of the model."""
    settings = other_keys(keys)
    for key in (MIMI[0], TEXT[0], *STORAGE_KEYS):
        settings.pop(key, None)
    own = settings.get(MODEL_ID)
    if isinstance(own, dict):  # the model itself provides this key
        settings[MODEL_ID] = {name: value for name, value in own.items() if name != OWN}
    return settings


def load(path: Path, like: System | None = None) -> Moshi:
    """Load the model of a path, with the dtype and the predicted codebooks of another model."""
    if not isinstance(like, Moshi):
        return load_moshi(path)
    dtype = like.head.weight.dtype
    num_predicted = like.config.num_predicted
    return load_moshi(path, dtype=dtype, num_predicted=num_predicted)


def save(system: System, folder: Path, companions: Companions, shard_bytes: int | None) -> None:
    """Write a folder as Kyutai publishes it: the model, Mimi and the text tokeniser.

    Raises:
        UserError: See `save_moshi`; or a file cannot be copied.
    """
    save_moshi(_moshi(system), folder, companions, shard_bytes)


def save_low_rank(system: System, folder: Path, low_rank: LowRankConfig) -> None:
    """Write adapters as Kyutai's loaders read them; see `save_adapters`."""
    save_adapters(_moshi(system), folder, low_rank)


def open_voice(path: Path, system: System) -> tuple[Ticks, Prefix]:
    """Return the frames of a PersonaPlex voice, and the prefix that the model makes of them."""
    model = _moshi(system)
    return voice_prefix(read_voice(path, model.config), model)


def _moshi(system: System) -> Moshi:
    if not isinstance(system, Moshi):
        raise AssertionError("the table of formats asks for the systems of this format")
    return system
