"""Mimi's weights under one set of names, whichever file they come from.

Two kinds of files are read: those of Kyutai (``tokenizer-e351c8d8-checkpoint125.safetensors``, in
both spellings that its loader knows) and those of the `transformers` package (``kyutai/mimi``, in
its older form and in the newer one, whose encoder and decoder are separate models).
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from counterpoint.errors import UserError, absent
from counterpoint.speech.mimi import HEAD_WIDTH, LAYER_PARTS, Mimi

_CODEBOOK_PARTS = ("initialized", "cluster_usage", "embedding_sum")
_SIDES = ("encoder", "decoder")

_RENAMINGS = (
    # transformers
    (r"^(en|de)coder\.(en|de)coder_seanet\.layers\.", r"\1coder."),
    (r"^(?:en|de)coder\.(upsample|downsample|encoder_transformer|decoder_transformer)\.", r"\1."),
    (r"^(en|de)coder\.layers\.", r"\1coder."),
    (r"^(en|de)coder_transformer\.layers\.", r"\1coder_transformer."),
    (r"\.self_attn\.([qkv])_proj\.", r".\1."),
    (r"\.self_attn\.o_proj\.", ".out."),
    (r"\.input_layernorm\.", ".norm1."),
    (r"\.post_attention_layernorm\.", ".norm2."),
    (r"\.mlp\.fc([12])\.", r".linear\1."),
    (r"\.self_attn_layer_scale\.scale$", ".scale1"),
    (r"\.mlp_layer_scale\.scale$", ".scale2"),
    (r"^quantizer\.semantic_residual_vector_quantizer\.", "semantic."),
    (r"^quantizer\.acoustic_residual_vector_quantizer\.", "acoustic."),
    (r"\.layers\.(\d+)\.codebook\.", r".\1."),
    # Kyutai
    (r"^(en|de)coder\.model\.", r"\1coder."),
    (r"^(en|de)coder_transformer\.transformer\.layers\.", r"\1coder_transformer."),
    (r"\.self_attn\.(?:in_proj_weight|in_projs\.0\.weight)$", ".interleaved_qkv.weight"),
    (r"\.self_attn\.(?:out_proj|out_projs\.0)\.", ".out."),
    (r"\.layer_scale_([12])\.scale$", r".scale\1"),
    (r"^quantizer\.rvq_first\.", "semantic."),
    (r"^quantizer\.rvq_rest\.", "acoustic."),
    (r"\.vq\.layers\.(\d+)\._codebook\.", r".\1."),
    (r"\.(?:embed_sum|embed_avg)$", ".embedding_sum"),
    (r"\.cluster_size$", ".cluster_usage"),
    (r"\.(?:_initialized|inited)$", ".initialized"),
    # both
    (r"\.block\.([13])\.", r".block\1."),
    (r"(?:\.conv)+\.(weight|bias)$", r".\1"),
    (r"(?:\.convtr)+\.(weight|bias)$", r".\1"),
)


def open_mimi(path: str | Path, num_codebooks: int = 8, device: str | torch.device = "cpu") -> Mimi:
    """Open Mimi with the weights of a .safetensors file.

    Args:
        path: A file of Kyutai or of `transformers`.
        num_codebooks: Number of codebooks that are used, 1 to 32. Moshi uses 8.
        device: Device on which it computes.

    Raises:
        UserError: There is no such file, or it does not hold Mimi.
    """
    tensors = read_mimi_weights(path)
    return Mimi({name: tensor.to(device) for name, tensor in tensors.items()}, num_codebooks)


def mimi_weights(tensors: Mapping[str, Float[Tensor, "..."]]) -> dict[str, Float[Tensor, "..."]]:
    """Return the tensors of a file under the names that are used here.

    Queries, keys and values become one matrix, in which the features of a head that rotate together
    lie half a head apart.

    Raises:
        UserError: A name is not one of Mimi's, or one is missing.
    """
    weights = {_our_name(name): tensor for name, tensor in tensors.items()}
    for name in list(weights):
        if name.endswith(".interleaved_qkv.weight"):
            qkv = _rotated_by_halves(weights.pop(name))
            weights[name.replace("interleaved_qkv", "qkv")] = qkv
        elif name.endswith(".q.weight"):
            names = [name.replace(".q.", f".{part}.") for part in "qkv"]
            if all(part in weights for part in names):
                qkv = torch.cat([weights.pop(part) for part in names])
                weights[name.replace(".q.", ".qkv.")] = qkv
    expected = _expected_names(weights)
    if missing := sorted(expected - weights.keys()):
        raise UserError(f"Weights must be those of Mimi: {missing[0]!r} is missing.")
    if strange := sorted(weights.keys() - expected):
        raise UserError(f"Weights must be those of Mimi: {strange[0]!r} is not among them.")
    return weights


def read_mimi_weights(path: str | Path) -> dict[str, Float[Tensor, "..."]]:
    """Read the weights of a .safetensors file under the names that are used here.

    Raises:
        UserError: There is no such file, or it does not hold Mimi.
    """
    if not Path(path).is_file():
        raise UserError(absent("Mimi's weights", path))
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{str(path)!r} must be a safetensors file: {error}.") from error
    try:
        return mimi_weights(tensors)
    except ValueError as error:
        raise UserError(f"{str(path)!r}: {error}") from error


def _our_name(name: str) -> str:
    for pattern, replacement in _RENAMINGS:
        name = re.sub(pattern, replacement, name)
    return name


def _rotated_by_halves(qkv: Float[Tensor, "F D"]) -> Float[Tensor, "F D"]:
    """Move rotary pairs of queries and keys from neighbours to half a head apart."""
    q, k, v = qkv.chunk(3)
    q, k = (
        part.unflatten(0, (-1, HEAD_WIDTH // 2, 2)).transpose(1, 2).flatten(0, 2) for part in (q, k)
    )
    return torch.cat((q, k, v))


def _expected_names(names: Iterable[str]) -> set[str]:
    """Return the names of all weights of a Mimi with the sizes that these names tell."""
    names = list(names)
    num_stages = max(_count(names, r"encoder\.(\d+)\.") // 3 - 1, 0)
    expected = {"upsample.weight", "downsample.weight"}
    convolutions = [f"{side}.{place}" for side in _SIDES for place in (0, 3 * num_stages + 2)]
    for first in range(0, 3 * num_stages, 3):
        convolutions += [f"encoder.{first + 1}.block{k}" for k in (1, 3)]
        convolutions += [f"decoder.{first + 3}.block{k}" for k in (1, 3)]
        convolutions += [f"encoder.{first + 3}", f"decoder.{first + 2}"]
    expected |= {f"{name}.{part}" for name in convolutions for part in ("weight", "bias")}
    for side in _SIDES:
        for layer in range(max(_count(names, rf"{side}_transformer\.(\d+)\."), 1)):
            expected |= {f"{side}_transformer.{layer}.{part}" for part in LAYER_PARTS}
    for side in ("semantic", "acoustic"):
        expected |= {f"{side}.input_proj.weight", f"{side}.output_proj.weight"}
        for number in range(max(_count(names, rf"{side}\.(\d+)\."), 1)):
            expected |= {f"{side}.{number}.{part}" for part in _CODEBOOK_PARTS}
    return expected


def _count(names: Iterable[str], pattern: str) -> int:
    """Return one more than the largest number that a pattern finds in the names; 0 without one."""
    found = (re.match(pattern, name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)
