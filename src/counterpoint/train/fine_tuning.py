"""Fine-tuning: a run that begins with other weights and trains all of them or adapters only.

Source: adapters as in Kyutai's moshi-finetune, whose files are read and written.
"""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from counterpoint.blocks.low_rank import FACTOR_A, add_low_rank
from counterpoint.config_json import encode, first_difference
from counterpoint.errors import UserError
from counterpoint.formats import FORMATS, find_format
from counterpoint.systems import build_system, sketch
from counterpoint.systems.contract import System, SystemConfig
from counterpoint.train.checkpoint import (
    MANIFEST,
    load_weights,
    read_manifest,
    resolve,
)
from counterpoint.train.config import FineTuneConfig
from counterpoint.train.distributed import system_class


def begun_system(shape: SystemConfig, config: FineTuneConfig | None, seed: int) -> System:
    """Build the system with which a run begins, with its adapters, on the CPU.

    If the run begins with given weights, no random ones are made. If the weights below adapters are
    stored in a smaller type, those of a published model are never in memory in float32 as a whole.

    Args:
        shape: Config of the system.
        config: The weights and the adapters; ``None`` begins with random weights.
        seed: Seed of random weights and of the adapters.

    Raises:
        UserError: See `begin_from`.
    """
    if config is None or not config.init_from:
        return build_system(shape, seed)
    system = sketch(shape)
    if not {name for name, _ in system.named_buffers()} <= system.state_dict().keys():
        system = build_system(shape, seed)  # it also makes the buffers, which no file holds
    low_rank = config.low_rank
    if low_rank is not None and low_rank.frozen != "float32" and not low_rank.train_embeddings:
        system.to(torch.bfloat16)
    begin_from(system, config, seed)
    return system


def begin_from(system: nn.Module, config: FineTuneConfig, seed: int) -> None:
    """Load the weights with which a new system begins, and add its adapters, in place.

    Call this before the system is sharded.

    Args:
        system: The system, with any weights, on its device.
        config: The weights and the adapters.
        seed: Seed of the adapters, and of weights that the other system has not; see
            `System.fresh_weights`.

    Raises:
        UserError: There are no weights, or they belong to another system.
    """
    path = Path(config.init_from).expanduser()
    found, weights = _weights_of(path, system)
    own = encode(getattr(system, "config", None))
    changed = _changed(system, found, own)
    free = {*getattr(system, "free_fields", ()), *changed}
    if changed and config.low_rank is not None:
        raise UserError(
            f"`low_rank` must be left out if `{next(iter(changed))}` is another than in {path}: "
            "weights that begin anew would stay random. Train all weights."
        )
    if changed:
        weights = _with_fresh(system, weights, seed, changed)
    difference = first_difference(without(found, free), without(own, free))
    if difference is not None:
        raise UserError(
            f"`init_from` must name weights of a system like this: {path} differs in {difference}. "
            "Change `system`, or name another."
        )
    _take(system, weights, path)
    if config.low_rank is not None:
        add_low_rank(system, config.low_rank, seed)


def _changed(system: nn.Module, found: Any, own: Any) -> dict[str, tuple[str, ...]]:
    """Return the fields that differ and whose weights begin anew, with the names of these."""
    fresh = getattr(system, "fresh_weights", {})
    return {field: names for field, names in fresh.items() if found.get(field) != own.get(field)}


def _with_fresh(
    system: nn.Module,
    weights: Mapping[str, Tensor],
    seed: int,
    changed: Mapping[str, tuple[str, ...]],
) -> dict[str, Tensor]:
    """Return given weights with random ones in place of those that begin anew."""
    begun = tuple(name for names in changed.values() for name in names)
    random = build_system(cast("System", system).config, seed).state_dict()
    kept = {name: weight for name, weight in weights.items() if not name.startswith(begun)}
    return kept | {name: weight for name, weight in random.items() if name.startswith(begun)}


def _weights_of(path: Path, system: nn.Module) -> tuple[Any, Mapping[str, Tensor]]:
    """Return config and weights of a path: a checkpoint of ours, or a published model."""
    name = system_class(system).__name__
    if (path / MANIFEST).is_file() or (path / "checkpoints").is_dir():
        path = resolve(path)
        manifest = read_manifest(path)
        _check_name(manifest["system"], name, path)
        return manifest["config"], load_weights(path)
    known = find_format(path)
    if known is None:
        raise UserError(
            f"`init_from` must be a checkpoint or a run folder with one, or a published model of a "
            f"known format ({', '.join(FORMATS)}): {path} is neither. Check the path."
        )
    # This check comes before gigabytes are read.
    _check_name(known.system, name, path)
    model = known.load(path, cast("System", system))
    return encode(model.config), model.state_dict()


def _check_name(found: str, name: str, path: Path) -> None:
    if found != name:
        raise UserError(
            f"`init_from` must name weights of {name}: {path} has those of {found}. Name another."
        )


def check_begun(system: nn.Module, config: FineTuneConfig | None) -> None:
    """Check that a system has adapters if, and only if, a run asks for them.

    Raises:
        UserError: It is not so: `begin_from` was not called, or it was called for another run.
    """
    wanted = config is not None and config.low_rank is not None
    found = any(name.endswith(FACTOR_A) for name, _ in system.named_parameters())
    if found != wanted:
        raise UserError(
            "A system must have adapters if, and only if, `fine_tune` asks for them: it "
            f"{'asks' if wanted else 'does not ask'} for them and the system has "
            f"{'some' if found else 'none'}. Call `begin_from` before `shard` and `train`."
        )


def without(config: Any, names: Container[str]) -> Any:
    """Return an encoded config without the fields of the given names, on all its levels."""
    if isinstance(config, dict):
        return {key: without(value, names) for key, value in config.items() if key not in names}
    return [without(item, names) for item in config] if isinstance(config, list) else config


def _take(system: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    try:
        system.load_state_dict(weights, assign=next(system.parameters()).is_meta)
    except RuntimeError as problem:
        reason = " ".join(str(problem).split())[:300]
        raise UserError(
            f"`init_from` must name weights that fit `system`: {path} does not ({reason}). "
            "Change `system`, or name another."
        ) from None
