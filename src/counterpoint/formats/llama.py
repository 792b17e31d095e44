"""Models of the Llama family as a `SingleStream` without a convolution, read and written.

Folders are read as Hugging Face publishes them (config.json, safetensors in one or several files,
tokenizer.json), and GGUF files, which `transformers` converts to float32; folders are written.
Names are those of `transformers`' `LlamaForCausalLM`, for `model_type` "llama" and "mistral".
Checked against `transformers`: logits of tiny models of every shape, and of SmolLM2-135M-Instruct
(`tests/formats/test_llama.py`).

Source: Llama (arXiv:2302.13971, arXiv:2407.21783) and Mistral (arXiv:2310.06825), whose window is
the window of a tower.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from counterpoint.blocks.shapes_only import shapes_only
from counterpoint.errors import UserError
from counterpoint.files import read_json, whole_folder, write_json
from counterpoint.formats.llama_config import CONFIG, FAMILY, to_config, to_keys, whole_number
from counterpoint.formats.plain_tensors import read_plain_tensors
from counterpoint.formats.published import ChatIds, Companions, PublishedModel, PublishedText
from counterpoint.formats.sharded import weight_files, write_weights
from counterpoint.packages import optional_module
from counterpoint.systems.contract import System
from counterpoint.systems.single_stream import SingleStream, SingleStreamConfig

TOKENIZER = "tokenizer.json"
BESIDE = ("tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
"""Files of a folder that describe how to talk with its model."""

SHARD_BYTES = 5 * 10**9  # as in `transformers`

_LAYER_NAMES = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.out.weight": "self_attn.o_proj.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp.down.weight": "mlp.down_proj.weight",
}
_QKV = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
_GATE_UP = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"


class LlamaFiles(NamedTuple):
    """The content of a model's files.

    Attributes:
        keys: The keys of config.json.
        tensors: Tensors by their names in the files.
    """

    keys: Mapping[str, Any]
    tensors: dict[str, Tensor]


# ---------------------------------------------------------------------------------- the weights


def to_state(tensors: Mapping[str, Tensor], config: SingleStreamConfig) -> dict[str, Tensor]:
    """Return the state of a `SingleStream` from the tensors of a model.

    Raises:
        UserError: A tensor is missing, unknown or of another shape.
    """
    left = dict(tensors)

    def take(name: str) -> Tensor:
        if name not in left:
            raise UserError(f"The weights must hold {name}: it is missing.")
        return left.pop(name)

    state = {"embedding.weight": take(_EMBEDDING), "norm.weight": take("model.norm.weight")}
    if config.tied_head:
        left.pop(_HEAD, None)  # a copy of the embedding, in some files
    else:
        state["head.weight"] = take(_HEAD)
    for number in range(config.tower.num_layers):
        ours = f"tower.layers.{number}."
        theirs = f"model.layers.{number}."
        for name, name_there in _LAYER_NAMES.items():
            state[ours + name] = take(theirs + name_there)
        state[ours + "attention.qkv.weight"] = torch.cat([take(theirs + name) for name in _QKV])
        state[ours + "mlp.gate_up.weight"] = torch.cat([take(theirs + name) for name in _GATE_UP])
    unknown = [name for name in left if not name.endswith("rotary_emb.inv_freq")]
    if unknown:
        raise UserError(f"The weights must be those of the config: {unknown[0]} is not among them.")
    with shapes_only():
        expected = SingleStream(config).state_dict()
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise UserError(
                f"The weights must have the shapes of the config: {name} must be "
                f"{tuple(tensor.shape)}, got {tuple(state[name].shape)}."
            )
    return state


def to_tensors(state: Mapping[str, Tensor], config: SingleStreamConfig) -> dict[str, Tensor]:
    """Return the tensors of a `SingleStream` under the names of the family."""
    tensors = {
        _EMBEDDING: state["embedding.weight"],
        "model.norm.weight": state["norm.weight"],
    }
    if not config.tied_head:
        tensors[_HEAD] = state["head.weight"]
    for number in range(config.tower.num_layers):
        ours = f"tower.layers.{number}."
        theirs = f"model.layers.{number}."
        for name, name_there in _LAYER_NAMES.items():
            tensors[theirs + name_there] = state[ours + name]
        qkv = state[ours + "attention.qkv.weight"]
        shared = (len(qkv) - config.tower.width) // 2
        pieces = qkv.split((config.tower.width, shared, shared))
        tensors |= {theirs + name: piece for name, piece in zip(_QKV, pieces, strict=True)}
        pieces = state[ours + "mlp.gate_up.weight"].chunk(2)
        tensors |= {theirs + name: piece for name, piece in zip(_GATE_UP, pieces, strict=True)}
    return tensors


# ------------------------------------------------------------------------------------ the files


def matches(path: Path) -> bool:
    """Return whether a path is a GGUF file, or a folder with a model of the family."""
    if path.suffix == ".gguf":
        return True
    if not (path / CONFIG).is_file():
        return False
    keys = read_json(path / CONFIG)
    return isinstance(keys, Mapping) and keys.get("model_type") in FAMILY


def open_llama(path: Path) -> PublishedModel:
    """Open a folder or a GGUF file.

    Raises:
        UserError: It is no model of the family.
    """
    tokenizer = path
    if path.suffix != ".gguf":
        to_config(read_json(path / CONFIG))
        tokenizer = path / TOKENIZER
    return PublishedModel(
        load=partial(_load_published, path),
        shape=lambda: _shape(path),
        tokenizer=tokenizer,
        text=lambda: open_text(path),
        chat=lambda: open_chat(path),
        files=tuple(file for file in map(path.joinpath, BESIDE) if file.is_file()),
    )


def _shape(path: Path) -> SingleStreamConfig:
    if path.suffix != ".gguf":
        return to_config(read_json(path / CONFIG))
    with _reading_gguf(path) as transformers:
        config = transformers.AutoConfig.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True
        )
    return to_config(_in_decimals(config.to_dict()))


def _load_published(
    path: Path, dtype: torch.dtype | None = None, adapters: Path | None = None
) -> SingleStream:
    if adapters is not None:
        raise UserError(f"Adapters of {path} cannot be read: merge them first. Got {adapters}.")
    return load_llama(path, dtype=dtype or torch.float32)


def load(path: Path, like: System | None = None) -> SingleStream:
    """Load the model of a path, with the dtype and the window of another model."""
    if not isinstance(like, SingleStream):
        return load_llama(path)
    window = like.config.tower.window
    dtype = like.embedding.weight.dtype
    return load_llama(path, window=window, dtype=dtype)


def load_llama(
    path: Path, *, window: int | None = None, dtype: torch.dtype = torch.float32
) -> SingleStream:
    """Load the model of a folder or of a GGUF file, in evaluation mode.

    Args:
        path: The folder or the file.
        window: Number of most recent ticks that are read; ``None`` means the number with which the
            model was trained.
        dtype: Type of the weights.

    Raises:
        UserError: A file is missing or damaged, or the model is not of the family.
        MissingPackageError: A GGUF file needs `transformers`, `gguf` and `accelerate`.
    """
    keys, tensors = _read_gguf(path) if path.suffix == ".gguf" else _read_folder(path)
    config = to_config(keys, window)
    state = {name: tensor.to(dtype) for name, tensor in to_state(tensors, config).items()}
    with shapes_only():
        system = SingleStream(config)
    system.load_state_dict(state, assign=True)
    return system.eval().requires_grad_(True)


def save(system: System, folder: Path, companions: Companions, shard_bytes: int | None) -> None:
    """Write a folder as Hugging Face publishes it; see `save_llama`."""
    if not isinstance(system, SingleStream):
        raise AssertionError("the table of formats asks for the systems of this format")
    save_llama(system, folder, companions, shard_bytes or SHARD_BYTES)


def save_llama(
    system: SingleStream,
    folder: Path,
    companions: Companions | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model to a new folder, as `transformers` reads it.

    Args:
        system: The model.
        folder: A new or empty folder.
        companions: Its tokeniser and ids, with which the folder can generate text.
        shard_bytes: Largest size of a file of weights.

    Raises:
        UserError: The model has a part that the family does not have, or the folder cannot be
            written.
    """
    companions = companions or Companions()
    keys = {**companions.settings, **to_keys(system.config)}
    state = system.state_dict()
    keys["torch_dtype"] = str(next(iter(state.values())).dtype).removeprefix("torch.")
    text = companions.text
    if text is not None:
        keys |= {"bos_token_id": text.start_id, "eos_token_id": text.end_id}
    tensors = {name: t.contiguous() for name, t in to_tensors(state, system.config).items()}
    try:
        with whole_folder(folder) as partial:
            for file in companions.files:
                shutil.copyfile(file, partial / file.name)
            if text is not None:
                (partial / TOKENIZER).write_bytes(text.content)
            write_weights(partial, tensors, shard_bytes)
            write_json(partial / CONFIG, keys)
    except OSError as problem:
        reason = problem.strerror or problem
        raise UserError(
            f"{folder} must be a new folder on a disk with free space: {reason}. Choose another."
        ) from None


def _read_folder(folder: Path) -> LlamaFiles:
    keys = read_json(folder / CONFIG)
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        tensors |= read_plain_tensors(file)
    return LlamaFiles(keys, tensors)


def _read_gguf(path: Path) -> LlamaFiles:
    """Read a GGUF file, with its weights in float32."""
    optional_module("accelerate")
    with _reading_gguf(path) as transformers:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True
        )
    return LlamaFiles(_in_decimals(model.config.to_dict()), dict(model.state_dict()))


def _in_decimals(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a GGUF file, whose numbers have 32 bits, with the numbers they are for.

    So 9.999999747378752e-06 becomes 1e-05.
    """
    return {
        key: float(str(np.float32(value))) if isinstance(value, float) else value
        for key, value in keys.items()
    }


@contextmanager
def _reading_gguf(path: Path) -> Iterator[Any]:
    """Give `transformers`; its errors about a file become one line."""
    optional_module("gguf")
    transformers = optional_module("transformers")
    try:
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        yield transformers
    except UserError:
        raise
    except Exception as error:  # `gguf` and `transformers` raise many classes
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} must be a GGUF file of a text model that `transformers` knows: {reason}."
        ) from error


# ----------------------------------------------------------------------------------------- text


def open_text(path: Path) -> PublishedText:
    """Open the tokeniser of a model, and the ids that the model uses.

    Raises:
        UserError: A file is missing, or does not name the id at which a text ends.
        MissingPackageError: A GGUF file needs `transformers` and `gguf`.
    """
    if path.suffix != ".gguf":
        content = _read_bytes(path / TOKENIZER)
        return _text(path, read_json(path / CONFIG), content)
    with _reading_gguf(path) as transformers:
        place = {"gguf_file": path.name, "local_files_only": True}
        keys = transformers.AutoConfig.from_pretrained(path.parent, **place).to_dict()
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **place)
    return _text(path, keys, tokenizer.backend_tokenizer.to_str().encode())


def open_chat(path: Path) -> ChatIds:
    """Open the template of conversations that came with a model.

    Raises:
        UserError: The model came without a template.
        MissingPackageError: `transformers` is not installed.
    """
    if path.suffix == ".gguf":
        with _reading_gguf(path) as transformers:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                path.parent, gguf_file=path.name, local_files_only=True
            )
    else:
        transformers = optional_module("transformers")
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    if not tokenizer.chat_template:
        raise UserError(
            f"{path} must hold a template of conversations to be talked with: it holds none. Give "
            "a prompt to continue."
        )

    def chat(messages: Sequence[Mapping[str, str]]) -> list[int]:
        ids = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=False
        )
        return [int(one) for one in ids]

    return chat


def _text(path: Path, keys: Mapping[str, Any], content: bytes) -> PublishedText:
    end = keys.get("eos_token_id")
    if isinstance(end, list):
        end = end[0] if end else None
    if end is None:
        raise UserError(f"{path} must say where a text ends (`eos_token_id`): it does not.")
    start = keys.get("bos_token_id")
    return PublishedText(
        content=content,
        start_id=end if start is None else start,
        end_id=end,
        num_ids=whole_number(keys, "vocab_size"),
    )


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path.parent} must hold the tokenizer {path.name} ({error.strerror}). Fetch it from "
            "where the model came from."
        ) from None
