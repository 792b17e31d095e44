"""Reading and writing checkpoints of the Moshi family, never as a pickle.

In memory a checkpoint has *canonical* names, as in `LMModel.state_dict()` of the `moshi` package:
every depth step has its own tensors (``in_projs.{k}.weight``). In files there are also

* *fused* names: ``in_proj_weight`` and ``out_proj.weight`` hold all steps, one below another.
  Published files have them, and both Kyutai's and NVIDIA's loaders read them, so they are used for
  writing;
* *int8*: ``X.weight`` is int8, and ``X.weight_scb`` has the largest magnitude of every row in
  float32;
* *LoRA*: ``X.lora_A.weight`` and ``X.lora_B.weight``, fused or not, are often in a separate file.
  The weight that they change is ``X.weight`` or ``X.frozen_W.weight``.

Source: Moshi (arXiv:2410.00037) and PersonaPlex (arXiv:2602.06053); the formats are those of the
`moshi` package 0.2.13, of moshi-finetune and of NVIDIA's loader. Layouts of Rust and MLX are not
read.
"""

import math
import re
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from counterpoint import files
from counterpoint.errors import UserError
from counterpoint.files import inside, whole_folder, write_json, write_tensors
from counterpoint.formats.moshi.config import ReferenceConfig
from counterpoint.formats.moshi.tensors import check_shapes, check_state, listed
from counterpoint.formats.published import Companions
from counterpoint.formats.sharded import INDEX, WEIGHTS, open_tensors, write_weights

CONFIG = "config.json"
MIMI = ("mimi_name", "tokenizer-e351c8d8-checkpoint125.safetensors")
TEXT = ("tokenizer_name", "tokenizer_spm_32k_3.model")
"""Keys of config.json that name Mimi and the text tokeniser, and the names assumed without them."""
WEIGHTS_INT8 = "model.q8.safetensors"
LORA = "lora.safetensors"
STORAGE_KEYS = ("moshi_name", "lora", "lora_rank", "lora_scaling", "lora_name", "quantize")
"""Keys of config.json that tell how the weights are stored."""

SCALE = ".weight_scb"
LORA_A = ".lora_A.weight"
LORA_B = ".lora_B.weight"
INT8_MAX = 127
LORA_SCALING = 2.0  # if config.json has ``lora`` but no scaling

_LAYER = r"(?:transformer|depformer)\.layers\.\d+\.\w+"
_FUSED = re.compile(rf"({_LAYER}\.(?:in|out)_proj)[._](.+)")
_SPLIT = re.compile(rf"({_LAYER}\.(?:in|out)_proj)s\.(\d+)\.weight")


class ReferenceCheckpoint(NamedTuple):
    """A checkpoint in memory.

    Attributes:
        config: Content of config.json, completed by the shapes in the file.
        state: The tensors of `tensor_shapes`, by canonical name.
    """

    config: ReferenceConfig
    state: dict[str, Tensor]


# ---------------------------------------------------------------------------------------- reading


def read_checkpoint(
    path: Path,
    *,
    dtype: torch.dtype,
    config_path: Path | None = None,
    lora_path: Path | None = None,
) -> ReferenceCheckpoint:
    """Read a checkpoint, one tensor after another. Adapters are merged and int8 is expanded.

    Args:
        path: A file of weights, or a folder that holds the ``moshi_name`` of its config.json, or
            otherwise `model.safetensors` or `model.q8.safetensors`.
        dtype: Type of the result. A tensor that has this type is mapped and not copied, so the file
            must not change.
        config_path: File to read instead of the config.json of the folder. If it has no ``dim``,
            the model is Moshi 7B with as many layers and vocabulary entries as the file has. The
            number of depth steps is always that of the file.
        lora_path: Adapters. Their scaling is that of the config.json in their folder, otherwise
            that of the weights. By default they are the ``lora_name`` of config.json, or
            `lora.safetensors` in the folder.

    Returns:
        The config and the state.

    Raises:
        UserError: A tensor is missing, unknown or of a wrong shape, a file is truncated, or a
            value of config.json is unknown.
    """
    weights, keys = _locate(path, config_path)
    if lora_path is None and keys.get("lora"):
        named = inside(weights.parent, str(keys.get("lora_name") or LORA))
        if named.is_file() or keys.get("lora_name"):
            lora_path = named
    with open_tensors(weights) as file:
        config = _fit_to_file(keys, file, weights)
        parts = _parts(file, config)
        if lora_path is None:
            return _read(parts, config, keys, dtype)
        beside = lora_path.with_name(CONFIG)
        settings = keys | (read_json(beside) if beside.is_file() else {})
        with open_tensors(lora_path) as adapters:
            return _read(parts | _parts(adapters, config), config, settings, dtype)


def read_reference_config(path: Path) -> ReferenceConfig:
    """Read the config of a checkpoint like `read_checkpoint`, without reading a tensor.

    Raises:
        UserError: See `read_checkpoint`.
    """
    weights, keys = _locate(path, None)
    with open_tensors(weights) as file:
        return _fit_to_file(keys, file, weights)


def _locate(path: Path, config_path: Path | None) -> tuple[Path, dict[str, Any]]:
    """Find the file of the weights, and read the keys of config.json."""
    beside = path / CONFIG if path.is_dir() else path.with_name(CONFIG)
    if config_path is None and beside.is_file():
        config_path = beside
    keys = {} if config_path is None else read_json(config_path)
    if not path.is_dir():
        return path, keys
    names = [WEIGHTS, INDEX, WEIGHTS_INT8]
    if keys.get("moshi_name"):
        names = [str(keys["moshi_name"])]
    for name in names:
        if inside(path, name).is_file():
            return path / name, keys
    raise UserError(
        f"{path} must hold {' or '.join(names)}: it does not. Name the file of the weights."
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read the keys of a config.json.

    Raises:
        UserError: It cannot be read, or it is no object.
    """
    try:
        keys = files.read_json(path)
    except OSError as problem:
        raise UserError(f"{path} must be readable JSON: {problem}. Correct it.") from None
    if not isinstance(keys, dict):
        raise UserError(f"{path} must hold an object: got {type(keys).__name__}. Correct it.")
    return keys


def _fit_to_file(keys: Mapping[str, Any], file: Any, path: Path) -> ReferenceConfig:
    """Return the config of a file; numbers that its tensors tell override those of config.json."""
    names = set(file.keys())
    if not {"text_emb.weight", "emb.0.weight"} <= names:
        raise UserError(
            f"{path} must be weights of the Moshi family: it has no text_emb.weight or no "
            "emb.0.weight. Name another file."
        )
    told = {"dep_q": _count(names, r"linears\.(\d+)\..+")}
    if told["dep_q"]:  # a missing tensor does not reduce the steps: `check_shapes` names it
        told["dep_q"] = _count(names, r"(?:linears|depformer_in)\.(\d+)\..+")
    if "dim" not in keys:
        told["num_layers"] = _count(names, r"transformer\.layers\.(\d+)\..+")
        told["depformer_num_layers"] = _count(names, r"depformer\.layers\.(\d+)\..+")
        for key, name in (("card", "emb.0.weight"), ("text_card", "text_emb.weight")):
            # The last row is the initial token.
            told[key] = math.prod(file.get_slice(name).get_shape()[:1]) - 1
    for name, value in told.items():
        if keys.get(name, value) != value:
            warnings.warn(
                f"{CONFIG} says `{name}` = {keys[name]}, {path} holds {value}: taking {value}.",
                stacklevel=3,
            )
    return ReferenceConfig.from_json({**keys, **told})


def _count(names: Collection[str], pattern: str) -> int:
    """Return one more than the largest number that a pattern finds, at most the number of names."""
    numbers = (int(match[1]) for name in names if (match := re.fullmatch(pattern, name)))
    return min(max(numbers, default=-1) + 1, len(names))


@dataclass(frozen=True, slots=True)
class _Part:
    """A tensor in a file, or one of ``count`` equal parts of its rows."""

    file: Any
    name: str
    index: int = 0
    count: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        shape = tuple(self.file.get_slice(self.name).get_shape())
        return shape if self.count == 1 else (shape[0] // self.count, *shape[1:])

    def read(self) -> Tensor:
        if self.count == 1:
            return self.file.get_tensor(self.name)
        rows = self.shape[0]
        return self.file.get_slice(self.name)[self.index * rows : (self.index + 1) * rows]


def _parts(file: Any, config: ReferenceConfig) -> dict[str, _Part]:
    """Return the tensors of a file by canonical name."""
    parts: dict[str, _Part] = {}
    names = file.keys()  # no dict: it cannot be iterated
    for name in names:
        plain = name.replace(".frozen_W.", ".")
        found = {plain: _Part(file, name)}
        if fused := _FUSED.fullmatch(plain):
            count = max(config.num_depth_weights, 1) if name.startswith("depformer.") else 1
            shape = file.get_slice(name).get_shape()
            if not shape or shape[0] % count:
                raise UserError(
                    f"{name} must hold equal rows for {count} depth steps: its shape is {shape}. "
                    f"Give the {CONFIG} that belongs to the weights."
                )
            found = {
                f"{fused[1]}s.{k}.{fused[2]}": _Part(file, name, k, count) for k in range(count)
            }
        for canonical, part in found.items():
            if canonical in parts:
                raise UserError(
                    f"A tensor must be in a file once: {parts[canonical].name} and {name} are the "
                    "same. Remove one."
                )
            parts[canonical] = part
    return parts


def _read(
    parts: Mapping[str, _Part], config: ReferenceConfig, keys: Mapping[str, Any], dtype: torch.dtype
) -> ReferenceCheckpoint:
    """Check all names and shapes, then read the tensors."""
    tensors: dict[str, dict[str, _Part]] = {}
    for name, part in parts.items():
        role = next((role for role in (SCALE, LORA_A, LORA_B) if name.endswith(role)), "")
        target = f"{name.removesuffix(role)}.weight" if role else name
        tensors.setdefault(target, {})[role] = part
    for name, roles in tensors.items():
        _check_roles(name, roles, keys)
    check_shapes({name: roles[""].shape for name, roles in tensors.items()}, config)

    if keys.get("lora") and not any(LORA_A in roles for roles in tensors.values()):
        warnings.warn(
            f"{CONFIG} says `lora`, but there are no adapters: taking the weights as merged.",
            stacklevel=3,
        )
    scaling = keys.get("lora_scaling", LORA_SCALING)
    if type(scaling) not in (int, float):
        raise UserError(f"`lora_scaling` must be a number: got {scaling!r}. Correct {CONFIG}.")
    state = {name: _tensor(roles, scaling).to(dtype) for name, roles in tensors.items()}
    return ReferenceCheckpoint(config, state)


def _tensor(roles: Mapping[str, _Part], scaling: float) -> Tensor:
    """Compute a weight, with its scales and adapters, in float32."""
    tensor = roles[""].read()
    if SCALE in roles:
        tensor = tensor.float() * (roles[SCALE].read().float() / INT8_MAX)[:, None]
    if LORA_A in roles:
        change = roles[LORA_B].read().float() @ roles[LORA_A].read().float()
        tensor = tensor.float() + scaling * change
    return tensor


def _check_roles(name: str, roles: Mapping[str, _Part], keys: Mapping[str, Any]) -> None:
    """Check the scales and adapters of a weight."""
    if "" not in roles or (LORA_A in roles) != (LORA_B in roles):
        names = listed(part.name for part in roles.values())
        what = "both LoRA factors" if "" in roles else "the weight that they change"
        raise UserError(f"{names} must come with {what}: missing. Give files that match.")
    stored = roles[""].file.get_slice(roles[""].name).get_dtype()
    if (stored == "I8") != (SCALE in roles) or not stored.startswith(("F", "BF", "I8")):
        raise UserError(
            f"{name} must be of floats, or int8 with its {SCALE[1:]}: it is {stored}. Convert it."
        )
    if LORA_A in roles and not keys.get("lora"):
        raise UserError(
            f"{CONFIG} must say `lora` and its scaling, for {name} has adapters: it does not. "
            f"Name the {CONFIG} of the adapters."
        )
    got = {role: part.shape for role, part in roles.items()}
    expected = dict.fromkeys(got, got[""])
    if SCALE in roles:
        expected[SCALE] = got[""][:1]
    if LORA_A in roles:
        rank = keys.get("lora_rank", math.prod(got[LORA_A][:1]))
        expected[LORA_A] = (rank, *got[""][1:])
        expected[LORA_B] = (*got[""][:1], rank)
    if got != expected:
        raise UserError(
            f"What changes {name} must fit its shape and `lora_rank`: expected {expected}, "
            f"got {got}. Give files that match."
        )


# ---------------------------------------------------------------------------------------- writing


def write_checkpoint(
    state: Mapping[str, Tensor],
    config: ReferenceConfig,
    folder: Path,
    companions: Companions | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Write the weights with fused names, and config.json: Kyutai's and NVIDIA's layout.

    The folder appears with all its files, or not at all.

    Args:
        state: The canonical state, whose types are kept.
        config: Its config. Keys that tell how weights were stored are left out.
        folder: A new or empty folder.
        companions: What belongs to the model: Mimi and the tokeniser, which are copied and named in
            config.json, and further keys.
        shard_bytes: Largest size of a file of weights. ``None`` writes only `model.safetensors`,
            the only file that Kyutai's and NVIDIA's loaders read.

    Raises:
        UserError: ``state`` does not fit ``config``, the folder is not empty, or it cannot be
            written.
    """
    check_state(state, config)
    companions = companions or Companions()
    keys = _stored(config, companions.settings)
    copies: dict[str, Path] = {file.name: file for file in companions.files}
    named = ((companions.codec, *MIMI), (companions.tokenizer, *TEXT))
    for source, key, usual in named:
        if source is not None:
            # Mimi of `transformers` has the same name as our own weights.
            keys[key] = usual if source.name.startswith("model.") else source.name
            copies[keys[key]] = source
    tensors = _fused(state)
    with _whole_folder(folder) as partial:
        for name, source in copies.items():
            shutil.copyfile(source, partial / name)
        write_weights(partial, tensors, shard_bytes)
        if not (partial / INDEX).exists():
            keys["moshi_name"] = WEIGHTS
        write_json(partial / CONFIG, keys)


def write_adapters(
    tensors: Mapping[str, Tensor],
    config: ReferenceConfig,
    folder: Path,
    *,
    rank: int,
    scaling: float,
) -> None:
    """Write `lora.safetensors`, and a config.json with which a loader adds it to the weights.

    Args:
        tensors: Factors, and weights that replace those of the model, by canonical name.
        config: The model's config.
        folder: A new or empty folder, which appears with both files or not at all.
        rank: Number of features between the factors.
        scaling: Factor of every change.

    Raises:
        UserError: The folder is not empty, or it cannot be written.
    """
    lora = {"lora": True, "lora_rank": rank, "lora_scaling": scaling, "lora_name": LORA}
    with _whole_folder(folder) as partial:
        write_tensors(partial / LORA, tensors, {"format": "pt"})
        write_json(partial / CONFIG, _stored(config) | lora)


def _stored(config: ReferenceConfig, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the keys of config.json without those that tell how weights were stored.

    Keys that only ``settings`` has are kept, also one level below.
    """
    keys = {**(settings or {}), **config.to_json()}
    for name, value in (settings or {}).items():
        if isinstance(value, dict) and isinstance(keys[name], dict):
            keys[name] = {**value, **keys[name]}
    return {name: value for name, value in keys.items() if name not in STORAGE_KEYS}


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder that appears complete or not at all; errors become one line."""
    try:
        with whole_folder(folder) as partial:
            yield partial
    except OSError as problem:
        reason = problem.strerror or problem
        raise UserError(
            f"{folder} must be a new folder on a disk with free space: {reason}. Choose another."
        ) from None


def _fused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by their fused names instead of the canonical ones."""
    fused: dict[str, Tensor] = {}
    steps: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        if match := _SPLIT.fullmatch(name):
            joined = match[1] + ("_weight" if match[1].endswith("in_proj") else ".weight")
            steps.setdefault(joined, {})[int(match[2])] = tensor
        else:
            fused[name] = tensor
    for name, parts in steps.items():
        fused[name] = parts[0] if len(parts) == 1 else torch.cat([parts[k] for k in sorted(parts)])
    return fused
