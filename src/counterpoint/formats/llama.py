"""Models of the Llama family as a `SingleStream` without a convolution, read and written.

Read are folders as Hugging Face publishes them (config.json, safetensors in one file or several,
tokenizer.json) and GGUF files, which `transformers` brings back to float32; written are folders.
Names are those of `transformers`' `LlamaForCausalLM`, for `model_type` "llama" and "mistral".
Checked against `transformers`: logits of tiny models of every shape, and of SmolLM2-135M-Instruct
(`tests/formats/test_llama.py`).

Source: Llama (arXiv:2302.13971, arXiv:2407.21783) and Mistral (arXiv:2310.06825), whose window is
a tower's.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.rope import LinearScaling, Llama3Scaling, RopeConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.errors import UserError
from counterpoint.files import inside, read_json, whole_folder, write_json, write_tensors
from counterpoint.formats.plain_tensors import read_plain_tensors
from counterpoint.formats.published import PublishedModel, PublishedText
from counterpoint.packages import optional_module
from counterpoint.systems.contract import System
from counterpoint.systems.single_stream import SingleStream, SingleStreamConfig

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
FAMILY = ("llama", "mistral")

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
    """What the files of a model hold.

    Attributes:
        keys: The keys of config.json.
        tensors: By their names there.
    """

    keys: Mapping[str, Any]
    tensors: dict[str, Tensor]


# ------------------------------------------------------------------------------------ the shape


def to_config(keys: Mapping[str, Any], window: int | None = None) -> SingleStreamConfig:
    """The shape of a model, from the keys of its config.json.

    Args:
        keys: The keys of config.json.
        window: Most recent ticks that are read; ``None``: as many as the model was trained with.

    Raises:
        UserError: A key is missing, or the model is not of the family or has a part that a
            `SingleStream` has not.
    """
    _check_family(keys)
    num_heads = _number(keys, "num_attention_heads")
    longest = _number(keys, "max_position_embeddings")
    sliding = keys.get("sliding_window")
    longest = min(longest, sliding) if sliding else longest
    num_kv_heads = keys.get("num_key_value_heads")
    attention = AttentionConfig(
        num_kv_heads=None if num_kv_heads in (None, num_heads) else num_kv_heads,
        rope=_rope(keys),
    )
    tower = TowerConfig(
        width=_number(keys, "hidden_size"),
        num_layers=_number(keys, "num_hidden_layers"),
        num_heads=num_heads,
        mlp_hidden=_number(keys, "intermediate_size"),
        window=longest if window is None else window,
        norm_epsilon=float(keys.get("rms_norm_eps", 1e-6)),
        mixer=attention,
    )
    head_width = keys.get("head_dim")
    if head_width is not None and head_width * num_heads != tower.width:
        raise UserError(
            "The heads of a model of the Llama family must make up its width here: got "
            f"{num_heads} of {head_width} and {tower.width}."
        )
    return SingleStreamConfig(
        tower=tower,
        vocab_size=_number(keys, "vocab_size"),
        conv_taps=0,
        tied_head=bool(keys.get("tie_word_embeddings", False)),
    )


def to_keys(config: SingleStreamConfig) -> dict[str, Any]:
    """The config.json of a model, from its shape.

    Raises:
        UserError: The model has a part that the family has not.
    """
    tower = config.tower
    attention = config.tower.mixer
    if config.conv_taps or not isinstance(attention, AttentionConfig) or tower.pinned_steps:
        raise UserError(
            "A model of the Llama family has attention, and neither a convolution nor pinned "
            f"steps: got `conv_taps` {config.conv_taps}, `pinned_steps` {tower.pinned_steps} and "
            f"`mixer` {type(attention).__name__}. Only models that were made so can be written."
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_hidden,
        "max_position_embeddings": tower.window,
        "num_attention_heads": tower.num_heads,
        "num_hidden_layers": tower.num_layers,
        "num_key_value_heads": attention.num_kv_heads or tower.num_heads,
        "rms_norm_eps": tower.norm_epsilon,
        "rope_theta": attention.rope.base,
        "rope_scaling": _scaling_keys(attention.rope),
        "tie_word_embeddings": config.tied_head,
        "vocab_size": config.vocab_size,
    }


def _check_family(keys: Mapping[str, Any]) -> None:
    """Refuse what would be read as something else."""
    expected: dict[str, tuple[Any, ...]] = {
        "model_type": FAMILY,
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "partial_rotary_factor": (1, None),
    }
    for key, values in expected.items():
        value = keys.get(key)
        if value not in values and key in keys:
            known = " or ".join(repr(value) for value in values if value is not None)
            raise UserError(
                f"A model of the Llama family must have `{key}` {known}: got {value!r}."
            )
    if "model_type" not in keys:
        raise UserError(
            f"{CONFIG} must name a `model_type`, one of {', '.join(FAMILY)}: it does not."
        )
    stored = keys.get("quantization_config") or {}
    if stored.get("quant_method", "gguf") != "gguf":
        raise UserError(
            "Weights must be stored as plain numbers, or as GGUF: got "
            f"{stored['quant_method']!r}. Fetch the files that are not quantised."
        )


def _number(keys: Mapping[str, Any], name: str) -> int:
    value = keys.get(name)
    if type(value) is not int:
        raise UserError(f"{CONFIG} must say `{name}`, a whole number: got {value!r}.")
    return value


def _rope(keys: Mapping[str, Any]) -> RopeConfig:
    """Rotation, as newer files (``rope_parameters``) or older ones (``rope_theta``) tell it."""
    told = {"rope_theta": keys.get("rope_theta", 10_000.0)}
    told |= keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    kind = told.get("rope_type", told.get("type", "default"))
    scaling: LinearScaling | Llama3Scaling | None = None
    try:
        if kind == "linear":
            scaling = LinearScaling(factor=float(told["factor"]))
        elif kind == "llama3":
            scaling = Llama3Scaling(
                factor=float(told["factor"]),
                low_frequency_factor=float(told["low_freq_factor"]),
                high_frequency_factor=float(told["high_freq_factor"]),
                original_steps=told["original_max_position_embeddings"],
            )
        elif kind != "default":
            raise UserError(
                f"Rotary positions must be scaled as 'default', 'linear' or 'llama3': got {kind!r}."
            )
    except KeyError as missing:
        raise UserError(
            f"{CONFIG} must say {missing} where positions are scaled by {kind!r}."
        ) from None
    return RopeConfig(base=float(told["rope_theta"]), scaling=scaling)


def _scaling_keys(rope: RopeConfig) -> dict[str, Any] | None:
    match rope.scaling:
        case None:
            return None
        case LinearScaling():
            return {"rope_type": "linear", "factor": rope.scaling.factor}
        case Llama3Scaling():
            return {
                "rope_type": "llama3",
                "factor": rope.scaling.factor,
                "low_freq_factor": rope.scaling.low_frequency_factor,
                "high_freq_factor": rope.scaling.high_frequency_factor,
                "original_max_position_embeddings": rope.scaling.original_steps,
            }


# ---------------------------------------------------------------------------------- the weights


def to_state(tensors: Mapping[str, Tensor], config: SingleStreamConfig) -> dict[str, Tensor]:
    """The state of a `SingleStream`, from the tensors of a model.

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
    with torch.device("meta"):
        expected = SingleStream(config).state_dict()
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise UserError(
                f"The weights must have the shapes of the config: {name} must be "
                f"{tuple(tensor.shape)}, got {tuple(state[name].shape)}."
            )
    return state


def to_tensors(state: Mapping[str, Tensor], config: SingleStreamConfig) -> dict[str, Tensor]:
    """The tensors of a model under the names of the family, from the state of a `SingleStream`."""
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
    """Whether a path is a GGUF file, or a folder with a model of the family."""
    if path.suffix == ".gguf":
        return True
    if not (path / CONFIG).is_file():
        return False
    keys = read_json(path / CONFIG)
    return isinstance(keys, Mapping) and keys.get("model_type") in FAMILY


def open_llama(path: Path) -> PublishedModel:
    """What a folder or a GGUF file holds.

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
        chat=lambda words: chat_ids(path, words),
    )


def _shape(path: Path) -> SingleStreamConfig:
    if path.suffix == ".gguf":
        return load_llama(path).config
    return to_config(read_json(path / CONFIG))


def _load_published(
    path: Path, dtype: torch.dtype | None = None, adapters: Path | None = None
) -> SingleStream:
    if adapters is not None:
        raise UserError(f"Adapters of {path} cannot be read: merge them first. Got {adapters}.")
    return load_llama(path, dtype=dtype or torch.float32)


def load(path: Path, like: System | None = None) -> SingleStream:
    """The model of a path, with the dtype and the window of another one."""
    if not isinstance(like, SingleStream):
        return load_llama(path)
    window = like.config.tower.window
    dtype = like.embedding.weight.dtype
    return load_llama(path, window=window, dtype=dtype)


def load_llama(
    path: Path, *, window: int | None = None, dtype: torch.dtype = torch.float32
) -> SingleStream:
    """The model of a folder or of a GGUF file, in evaluation mode.

    Args:
        path: The folder or the file.
        window: Most recent ticks that are read; ``None``: as many as the model was trained with.
        dtype: Type of the weights.

    Raises:
        UserError: A file is missing or damaged, or the model is none of the family.
        MissingPackageError: A GGUF file is read with `transformers`, `gguf` and `accelerate`.
    """
    keys, tensors = _read_gguf(path) if path.suffix == ".gguf" else _read_folder(path)
    config = to_config(keys, window)
    state = {name: tensor.to(dtype) for name, tensor in to_state(tensors, config).items()}
    with torch.device("meta"):
        system = SingleStream(config)
    system.load_state_dict(state, assign=True)
    return system.eval().requires_grad_(True)


def save_llama(system: SingleStream, folder: Path) -> None:
    """Write a model to a new folder, as `transformers` reads it.

    Raises:
        UserError: The model has a part that the family has not, or the folder cannot be written.
    """
    keys = to_keys(system.config)
    state = system.state_dict()
    keys["torch_dtype"] = str(next(iter(state.values())).dtype).removeprefix("torch.")
    tensors = {name: t.contiguous() for name, t in to_tensors(state, system.config).items()}
    try:
        with whole_folder(folder) as partial:
            write_tensors(partial / WEIGHTS, tensors, {"format": "pt"})
            write_json(partial / CONFIG, keys)
    except OSError as problem:
        reason = problem.strerror or problem
        raise UserError(
            f"{folder} must be a new folder on a disk with room: {reason}. Choose another."
        ) from None


def _read_folder(folder: Path) -> LlamaFiles:
    keys = read_json(folder / CONFIG)
    names = [WEIGHTS]
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= read_plain_tensors(inside(folder, name))
    return LlamaFiles(keys, tensors)


def _read_gguf(path: Path) -> LlamaFiles:
    """What a GGUF file holds, its weights in float32."""
    optional_module("accelerate")
    with _reading_gguf(path) as transformers:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True
        )
    keys = model.config.to_dict()
    return LlamaFiles(keys, dict(model.state_dict()))


@contextmanager
def _reading_gguf(path: Path) -> Iterator[Any]:
    """`transformers`, whose complaints about a file become one line."""
    optional_module("gguf")
    transformers = optional_module("transformers")
    try:
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        yield transformers
    except UserError:
        raise
    except Exception as error:  # `gguf` and `transformers` raise what comes
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} must be a GGUF file of a model of text that `transformers` knows: {reason}."
        ) from error


# ----------------------------------------------------------------------------------------- text


def open_text(path: Path) -> PublishedText:
    """The tokeniser of a model and the ids that it uses.

    Raises:
        UserError: A file is missing, or does not say where a text ends.
        MissingPackageError: A GGUF file is read with `transformers` and `gguf`.
    """
    if path.suffix != ".gguf":
        content = _read_bytes(path / TOKENIZER)
        return _text(path, read_json(path / CONFIG), content)
    with _reading_gguf(path) as transformers:
        place = {"gguf_file": path.name, "local_files_only": True}
        keys = transformers.AutoConfig.from_pretrained(path.parent, **place).to_dict()
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **place)
    return _text(path, keys, tokenizer.backend_tokenizer.to_str().encode())


def chat_ids(path: Path, words: str) -> list[int]:
    """Ids of a conversation that begins with a user's words, up to where the model answers.

    The form of a conversation is the template that came with the model.

    Raises:
        UserError: The model came without one.
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
            f"{path} must hold the form of a conversation to be talked with: it holds none. Give a "
            "prompt to continue."
        )
    messages = [{"role": "user", "content": words}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return [int(one) for one in ids]


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
        num_ids=_number(keys, "vocab_size"),
    )


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path.parent} must hold the tokenizer {path.name} ({error.strerror}). Fetch it from "
            "where the model came."
        ) from None
