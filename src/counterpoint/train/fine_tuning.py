"""Fine-tuning: a run that begins with other weights and trains all of them or adapters only.

Source: adapters as in Kyutai's moshi-finetune, whose files are read and written.
"""

import contextlib
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from counterpoint.blocks.low_rank import FACTOR_A, add_low_rank
from counterpoint.blocks.multi_token_attention_retrofit import added_names, as_begun
from counterpoint.config_json import decode, encode, first_difference
from counterpoint.errors import UserError
from counterpoint.formats import FORMATS, find_format
from counterpoint.systems import SYSTEMS, build_system, sketch
from counterpoint.systems.contract import System, SystemConfig
from counterpoint.train.checkpoint import (
    MANIFEST,
    load_weights,
    read_manifest,
    resolve,
)
from counterpoint.train.config import FineTuneConfig
from counterpoint.train.distributed import system_class


def begun_system(
    shape: SystemConfig,
    config: FineTuneConfig | None,
    seed: int,
    note: Callable[[str], None] | None = None,
) -> System:
    """Build the system with which a run begins, with its adapters, on the CPU.

    If the run begins with given weights, no random ones are made. If the weights below adapters are
    stored in a smaller type, those of a published model are never in memory in float32 as a whole.

    Args:
        shape: Config of the system.
        config: The weights and the adapters; ``None`` begins with random weights.
        seed: Seed of random weights and of the adapters.
        note: Is told which weights begin anew beside those that are given; ``None`` for nobody.

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
    fresh = begin_from(system, config, seed)
    if fresh and note is not None:
        state = system.state_dict()
        told = ", ".join(f"{name} {tuple(state[name].shape)}" for name in fresh)
        note(f"the run begins with {config.init_from}; only these weights are new: {told}")
    return system


def begin_from(system: nn.Module, config: FineTuneConfig, seed: int) -> tuple[str, ...]:
    """Load the weights with which a new system begins, and add its adapters, in place.

    Call this before the system is sharded.

    Args:
        system: The system, with any weights, on its device.
        config: The weights and the adapters. Weights that begin anew are trained beside adapters.
        seed: Seed of the adapters, and of weights that the other model has not; see
            `System.fresh_weights` and `System.on_backbone`. Where that model has plain attention, a
            mixer that begins as plain attention may stand (Multi-Token Attention).

    Returns:
        The names of the weights that begin anew.

    Raises:
        UserError: There are no weights, or they belong to another system.
    """
    path = Path(config.init_from).expanduser()
    found = _weights_of(path, system)

    def random() -> Mapping[str, Tensor]:
        return build_system(cast("System", system).config, seed).state_dict()

    weights, fresh = _begun_with(system, found, random, path)
    _take(system, weights, path)
    if config.low_rank is not None:
        add_low_rank(system, config.low_rank, seed, fresh)
    return fresh


def fresh_names(shape: SystemConfig, config: FineTuneConfig | None) -> tuple[str, ...]:
    """Return the names of weights that begin anew beside given ones; no weights are read.

    Args:
        shape: Config of the system.
        config: The weights with which it begins; ``None`` for none, beside which nothing is new.

    Raises:
        UserError: See `begin_from`. A system of which no part can be new beside given weights needs
            no files.
    """
    system = sketch(shape)
    if config is None or not config.init_from:
        return ()
    if not (system.fresh_weights or system.backbones or added_names(system)):
        return ()
    path = Path(config.init_from).expanduser()
    return _begun_with(system, _weights_of(path, system, names=True), system.state_dict, path)[1]


_Random = Callable[[], Mapping[str, Tensor]]
"""Returns random weights of a system by name."""


def _begun_with(
    system: nn.Module, found: "_Found", random: _Random, path: Path
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """Return the weights with which a system begins, and the names of those that are random."""
    own = encode(getattr(system, "config", None))
    if found.system == system_class(system).__name__:
        changed = _changed(system, found.config, own)
        free = {*getattr(system, "free_fields", ()), *changed}
        _check_config(without(found.config, free), without(own, free), path)
        added = tuple(name for name in added_names(system) if name not in found.weights)
        return _with_fresh(found.weights, random, {**changed, "mixer": added})
    return _on_backbone(cast("System", system), found, own, random, path)


def _check_config(found: Any, own: Any, path: Path) -> None:
    difference = first_difference(_with_all_heads(found), _with_all_heads(as_begun(found, own)))
    if difference is not None:
        raise UserError(
            f"`init_from` must name weights of a system like this: {path} differs in {difference}. "
            "Change `system`, or name another."
        )


def _with_all_heads(config: Any) -> Any:
    """Return an encoded config in which mixers of whole towers do not tell the number of heads.

    As many heads of keys as of queries are the same model as ``None``, their default.
    """
    if isinstance(config, list):
        return [_with_all_heads(item) for item in config]
    if not isinstance(config, dict):
        return config
    told = {name: _with_all_heads(value) for name, value in config.items()}
    mixer = told.get("mixer")
    if isinstance(mixer, dict) and mixer.get("num_kv_heads") == told.get("num_heads"):
        told["mixer"] = {**mixer, "num_kv_heads": None}
    return told


def _changed(system: nn.Module, found: Any, own: Any) -> dict[str, tuple[str, ...]]:
    """Return the fields that differ and whose weights begin anew, with the names of these."""
    fresh = getattr(system, "fresh_weights", {})
    return {field: names for field, names in fresh.items() if found.get(field) != own.get(field)}


def _with_fresh(
    weights: Mapping[str, Tensor], random: _Random, changed: Mapping[str, tuple[str, ...]]
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """Return given weights, with new ones where they begin anew, and the names of these."""
    begun = tuple(name for names in changed.values() for name in names)
    if not begun:
        return weights, ()
    kept = {name: weight for name, weight in weights.items() if not name.startswith(begun)}
    fresh = {name: weight for name, weight in random().items() if name.startswith(begun)}
    return kept | fresh, tuple(fresh)


def _on_backbone(
    system: System, found: "_Found", own: Mapping[str, Any], random: _Random, path: Path
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the weights of a system on a model of another one, and the names of the fresh ones."""
    there, here = (
        {field: without(config[field], system.free_fields) for field in found.shared(system)}
        for config in (found.config, own)
    )
    _check_config(there, here, path)
    begun = random()
    both = system.on_backbone(found.weights, begun)
    for name, weight in both.taken.items():
        if name not in begun or begun[name].shape != weight.shape:
            wanted = tuple(begun[name].shape) if name in begun else "not there"
            raise UserError(
                f"`system` must have the weights of its backbone {path}: there {name} is "
                f"{tuple(weight.shape)}, and here it is {wanted}. Change `system`, or name another."
            )
    return {**both.taken, **both.fresh}, tuple(both.fresh)


class _Found(NamedTuple):
    """A trained model: class name of its system, its encoded config, and its weights."""

    system: str
    config: Any
    weights: Mapping[str, Tensor]

    def shared(self, system: System) -> tuple[str, ...]:
        """Return the fields of the config that must be those of a system on this backbone."""
        return system.backbones[self.system]


def _weights_of(path: Path, system: nn.Module, *, names: bool = False) -> _Found:
    """Return the model of a path: a checkpoint of ours, or a published model.

    With ``names`` its weights have names and shapes only, and are not read.
    """
    if (path / MANIFEST).is_file() or (path / "checkpoints").is_dir():
        path = resolve(path)
        manifest = read_manifest(path)
        _check_name(manifest["system"], system, path)
        config = _as_now(manifest["system"], manifest["config"])
        weights = _sketched(manifest["system"], config) if names else load_weights(path)
        return _Found(manifest["system"], config, weights)
    known = find_format(path)
    if known is None:
        raise UserError(
            f"`init_from` must be a checkpoint or a run folder with one, or a published model of a "
            f"known format ({', '.join(FORMATS)}): {path} is neither. Check the path."
        )
    # This check comes before gigabytes are read.
    _check_name(known.system, system, path)
    like = cast("System", system)
    model = sketch(known.open(path).shape()) if names else known.load(path, like)
    return _Found(known.system, encode(model.config), model.state_dict())


def _sketched(name: str, config: Any) -> Mapping[str, Tensor]:
    """Return the weights of an encoded config without values."""
    cls: Any = next(system for system in SYSTEMS.values() if system.__name__ == name)
    return sketch(decode(cls.Config, config)).state_dict()


def _as_now(name: str, config: Any) -> Any:
    """Return a config as it is written now: fields that were added since then have defaults."""
    for system in SYSTEMS.values():
        if system.__name__ == name:
            with contextlib.suppress(ValueError):  # then it is compared as it was written
                return encode(decode(system.Config, config))
    return config


def _check_name(found: str, system: nn.Module, path: Path) -> None:
    names = [system_class(system).__name__, *getattr(system, "backbones", ())]
    if found not in names:
        raise UserError(
            f"`init_from` must name weights of {' or '.join(names)}: {path} has those of {found}. "
            "Name another."
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
