"""config.json of models of the Llama family, and the corresponding shape of a `SingleStream`.

Source: keys as in `transformers`' `LlamaConfig` and `MistralConfig`.
"""

from collections.abc import Mapping
from typing import Any

from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.rope import LinearScaling, Llama3Scaling, RopeConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.errors import UserError
from counterpoint.systems.single_stream import SingleStreamConfig

CONFIG = "config.json"
FAMILY = ("llama", "mistral")


def to_config(keys: Mapping[str, Any], window: int | None = None) -> SingleStreamConfig:
    """Return the shape of a model from the keys of its config.json.

    Args:
        keys: The keys of config.json.
        window: Number of most recent ticks that are read; ``None`` means the number with which the
            model was trained.

    Raises:
        UserError: A key is missing, or the model is not of the family or has a part that a
            `SingleStream` does not have.
    """
    _check_family(keys)
    num_heads = whole_number(keys, "num_attention_heads")
    longest = whole_number(keys, "max_position_embeddings")
    sliding = keys.get("sliding_window")
    longest = min(longest, sliding) if sliding else longest
    num_kv_heads = keys.get("num_key_value_heads")
    attention = AttentionConfig(
        num_kv_heads=None if num_kv_heads in (None, num_heads) else num_kv_heads,
        rope=_rope(keys),
    )
    tower = TowerConfig(
        width=whole_number(keys, "hidden_size"),
        num_layers=whole_number(keys, "num_hidden_layers"),
        num_heads=num_heads,
        mlp_hidden=whole_number(keys, "intermediate_size"),
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
        vocab_size=whole_number(keys, "vocab_size"),
        conv_taps=0,
        tied_head=bool(keys.get("tie_word_embeddings", False)),
    )


def to_keys(config: SingleStreamConfig) -> dict[str, Any]:
    """Return the config.json of a model from its shape.

    Raises:
        UserError: The model has a part that the family does not have.
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
    """Refuse models that would be read as something else."""
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


def whole_number(keys: Mapping[str, Any], name: str) -> int:
    """Return a whole number that config.json must hold.

    Raises:
        UserError: The number is missing.
    """
    value = keys.get(name)
    if type(value) is not int:
        raise UserError(f"{CONFIG} must hold `{name}`, a whole number: got {value!r}.")
    return value


def _rope(keys: Mapping[str, Any]) -> RopeConfig:
    """Return the rotation from newer files (``rope_parameters``) or older ones (``rope_theta``)."""
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
            f"{CONFIG} must hold {missing} if positions are scaled by {kind!r}."
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
