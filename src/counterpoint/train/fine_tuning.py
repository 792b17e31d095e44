"""Fine-tuning: a run that begins with the weights of another, all of them trained or adapters only.

Source: adapters as in Kyutai's moshi-finetune, whose files are read and written.
"""

from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from counterpoint.blocks.low_rank import FACTOR_A, add_low_rank
from counterpoint.config_json import decode, encode, first_difference
from counterpoint.formats.moshi.checkpoint import load_moshi, save_adapters
from counterpoint.systems.moshi import Moshi, MoshiConfig
from counterpoint.train.checkpoint import (
    MANIFEST,
    WEIGHTS,
    adapters_of,
    check_files,
    load_weights,
    read_manifest,
    resolve,
)
from counterpoint.train.config import FineTuneConfig
from counterpoint.train.distributed import system_class

MAY_DIFFER = (
    *("loss_weight", "codebook_sizes", "text_light_ids", "text_light_weight"),
    *("window", "pinned_steps", "heard_dropout"),
)
"""Fields of configs that do not change what weights mean."""


def begin_from(system: nn.Module, config: FineTuneConfig, seed: int) -> None:
    """Give a new system the weights that it begins with, and its adapters, in place.

    Call it before the system is sharded.

    Args:
        system: With any weights, on its device.
        config: Where the weights are, and the adapters.
        seed: Decides how adapters begin.

    Raises:
        ValueError: There are no weights, or they are those of another system.
    """
    path = Path(config.init_from).expanduser()
    if (path / MANIFEST).is_file() or (path / "checkpoints").is_dir():
        path = resolve(path)
        manifest, name = read_manifest(path), system_class(system).__name__
        if manifest["system"] != name:
            raise ValueError(
                f"`init_from` must name weights of {name}: {path} has those of "
                f"{manifest['system']}. Name another."
            )
        found, weights = manifest["config"], load_weights(path)
    elif isinstance(system, Moshi):
        dtype, num_predicted = system.head.weight.dtype, system.config.num_predicted
        model = load_moshi(path, dtype=dtype, num_predicted=num_predicted)
        found, weights = encode(model.config), model.state_dict()
    else:
        raise ValueError(
            f"`init_from` must be a checkpoint or a run folder with one: {path} is neither. "
            "Check the path."
        )
    own = encode(getattr(system, "config", None))
    difference = first_difference(without(found, MAY_DIFFER), without(own, MAY_DIFFER))
    if difference is not None:
        raise ValueError(
            f"`init_from` must name weights of a system like this: {path} differs in {difference}. "
            "Change `system`, or name another."
        )
    _take(system, weights, path)
    if config.low_rank is not None:
        add_low_rank(system, config.low_rank, seed)


def check_begun(system: nn.Module, config: FineTuneConfig | None) -> None:
    """Check that a system has adapters just when a run asks for them.

    Raises:
        ValueError: It is not so: `begin_from` was not called, or of another run.
    """
    wanted = config is not None and config.low_rank is not None
    found = any(name.endswith(FACTOR_A) for name, _ in system.named_parameters())
    if found != wanted:
        raise ValueError(
            "A system must have adapters just when `fine_tune` asks for them: it "
            f"{'asks' if wanted else 'does not ask'} for them and the system has "
            f"{'some' if found else 'none'}. Call `begin_from` before `shard` and `train`."
        )


def export_adapters(path: Path, folder: Path) -> None:
    """Write the adapters of a run in the form that Kyutai's loaders and `load_moshi` read.

    Args:
        path: Checkpoint or run folder of a Moshi with adapters.
        folder: A new or empty folder.

    Raises:
        ValueError: It has no adapters, is of another system or damaged, or nothing can be written.
    """
    path = resolve(path)
    manifest, low_rank = read_manifest(path), adapters_of(path)
    if manifest["system"] != Moshi.__name__ or low_rank is None:
        raise ValueError(
            f"{path} must hold a Moshi with adapters: it has a {manifest['system']} "
            f"{'without' if low_rank is None else 'with'} adapters. Name another."
        )
    check_files(path, lambda name: name == WEIGHTS)
    with torch.device("meta"):
        model = Moshi(decode(MoshiConfig, manifest["config"]))
    add_low_rank(model.to_empty(device="cpu"), low_rank, seed=0)
    model.load_state_dict(load_file(path / WEIGHTS), assign=True)
    save_adapters(model, folder, low_rank)


def without(config: Any, names: Container[str]) -> Any:
    """An encoded config without the fields of some names, on all its levels."""
    if isinstance(config, dict):
        return {key: without(value, names) for key, value in config.items() if key not in names}
    return [without(item, names) for item in config] if isinstance(config, list) else config


def _take(system: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    try:
        system.load_state_dict(weights)
    except RuntimeError as problem:
        reason = " ".join(str(problem).split())[:300]
        raise ValueError(
            f"`init_from` must name weights that fit `system`: {path} does not ({reason}). "
            "Change `system`, or name another."
        ) from None
