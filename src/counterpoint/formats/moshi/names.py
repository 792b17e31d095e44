"""Converting weights of a `Moshi` to the names of the reference implementation, and back.

The names are those of the `moshi` package 0.2.13, in which the weights of every depth step have
their own names. Here the rows of all steps, or of all codebooks, are stacked in one matrix.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.blocks.depth import DepthConfig
from counterpoint.errors import UserError
from counterpoint.systems.moshi import Moshi

Names = Mapping[str, tuple[str, ...]]
"""For each of our weights, the names of the weights that hold the same when stacked."""


def reference_names(
    num_layers: int, depth: DepthConfig, num_codebooks: int, num_steps: int
) -> dict[str, tuple[str, ...]]:
    """Return the reference's names of each weight.

    Args:
        num_layers: Number of layers of the temporal transformer.
        depth: Shape of the depth transformer.
        num_codebooks: Number of audio codebooks that are read.
        num_steps: Number of audio codebooks that are predicted.
    """

    def each(pattern: str, count: int) -> tuple[str, ...]:
        return tuple(pattern.format(i) for i in range(count))

    num_sets = len(set(depth.schedule)) or num_steps
    names = {
        "text_embedding.table.weight": ("text_emb.weight",),
        "audio_embedding.table.weight": each("emb.{}.weight", num_codebooks),
        "norm.weight": ("out_norm.alpha",),
        "head.weight": ("text_linear.weight",),
        "depth.project.weight": each("depformer_in.{}.weight", num_sets),
        "depth.first_embedding.table.weight": ("depformer_text_emb.weight",),
        "depth.embedding.table.weight": each("depformer_emb.{}.weight", num_steps - 1),
        "depth.head.weight": each("linears.{}.weight", num_steps),
    }
    if depth.embedding_rank is not None:
        low = "depformer_emb.{}.low_rank.weight"
        names["depth.first_embedding.raise_rank.weight"] = ("depformer_text_emb.low_rank.weight",)
        names["depth.embedding.raise_rank.weight"] = each(low, num_steps - 1)
    for i in range(num_layers):
        ours = f"temporal.layers.{i}."
        theirs = f"transformer.layers.{i}."
        names |= {
            ours + "attention_norm.weight": (theirs + "norm1.alpha",),
            ours + "attention.qkv.weight": (theirs + "self_attn.in_projs.0.weight",),
            ours + "attention.out.weight": (theirs + "self_attn.out_projs.0.weight",),
            ours + "mlp_norm.weight": (theirs + "norm2.alpha",),
            ours + "mlp.gate_up.weight": (theirs + "gating.linear_in.weight",),
            ours + "mlp.down.weight": (theirs + "gating.linear_out.weight",),
        }
    for i in range(depth.num_layers):
        ours = f"depth.layers.{i}."
        theirs = f"depformer.layers.{i}."
        names |= {
            ours + "attention_norm.weight": (theirs + "norm1.alpha",),
            ours + "qkv.weight": each(theirs + "self_attn.in_projs.{}.weight", num_sets),
            ours + "out.weight": each(theirs + "self_attn.out_projs.{}.weight", num_sets),
            ours + "mlp_norm.weight": (theirs + "norm2.alpha",),
            ours + "gate_up.weight": each(theirs + "gating.{}.linear_in.weight", num_sets),
            ours + "down.weight": each(theirs + "gating.{}.linear_out.weight", num_sets),
        }
    return names


def load_reference(model: Moshi, reference: Mapping[str, Tensor]) -> None:
    """Load the weights of the reference implementation, by its names with split steps.

    Raises:
        UserError: A weight is missing, unknown or of another shape.
    """
    heads = model.config.temporal.num_heads
    load_weights(model.state_dict(), reference, names_of(model), heads)


def reference_state_dict(model: Moshi) -> dict[str, Tensor]:
    """Return the weights of a model by the names of the reference implementation."""
    heads = model.config.temporal.num_heads
    return to_reference(model.state_dict(), names_of(model), heads)


def names_of(model: Moshi) -> dict[str, tuple[str, ...]]:
    """Return the reference's names for each weight of a model; see `reference_names`."""
    config = model.config
    return reference_names(
        config.temporal.num_layers, config.depth, config.num_codebooks, config.num_predicted
    )


@torch.no_grad()
def load_weights(
    weights: Mapping[str, Tensor], reference: Mapping[str, Tensor], names: Names, num_heads: int
) -> None:
    """Copy the reference's weights into ours.

    Args:
        weights: The weights of a `Moshi`, which are written in place.
        reference: The weights of the reference, by name.
        names: From `reference_names`.
        num_heads: Number of attention heads of the temporal transformer.

    Raises:
        UserError: A weight is missing, unknown or of another shape. Then nothing was written.
    """
    shapes = {
        name: weight.shape for name, weight in to_reference(weights, names, num_heads).items()
    }
    missing = sorted(set(shapes) - set(reference))
    unknown = sorted(set(reference) - set(shapes))
    if missing or unknown:
        raise UserError(
            f"Weights must have the {len(shapes)} names of this configuration: {len(missing)} "
            f"missing ({', '.join(missing[:3])}), {len(unknown)} unknown "
            f"({', '.join(unknown[:3])}). Build the model with the configuration of the file."
        )
    for name, shape in shapes.items():
        if reference[name].shape != shape:
            raise UserError(
                f"Weight {name!r} must have the shape {tuple(shape)}: got "
                f"{tuple(reference[name].shape)}. Build the model with the configuration of the "
                "file."
            )
    for ours, theirs in names.items():
        size = len(weights[ours]) // max(len(theirs), 1)
        for i, name in enumerate(theirs):
            part = reference[name]
            if ours.endswith("attention.qkv.weight"):
                part = halves_from_pairs(part, num_heads)
            rows = weights[ours][i * size : (i + 1) * size]
            rows.copy_(part.view_as(rows))


@torch.no_grad()
def to_reference(weights: Mapping[str, Tensor], names: Names, num_heads: int) -> dict[str, Tensor]:
    """Return our weights by the reference's names, mostly as views; see `load_weights`.

    ``num_heads`` is that of the layers, whose rotated features have another order there.
    """
    reference: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        weight = weights[ours]
        if ours.endswith("norm.weight"):
            weight = weight[None, None]
        elif ours.endswith("attention.qkv.weight"):
            weight = pairs_from_halves(weight, num_heads)
        if theirs:
            reference |= dict(zip(theirs, weight.chunk(len(theirs)), strict=True))
    return reference


def halves_from_pairs(qkv: Float[Tensor, "R D"], num_heads: int) -> Float[Tensor, "R D"]:
    """Reorder the rows of queries and keys for rotary positions.

    The reference rotates neighbouring features of a head together; `rotate` rotates the features i
    and i + E/2.
    """
    turned, value = qkv.split((2 * len(qkv) // 3, len(qkv) // 3))
    turned = turned.unflatten(0, (2 * num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    return torch.cat((turned, value))


def pairs_from_halves(qkv: Float[Tensor, "R D"], num_heads: int) -> Float[Tensor, "R D"]:
    """Undo `halves_from_pairs`."""
    turned, value = qkv.split((2 * len(qkv) // 3, len(qkv) // 3))
    turned = turned.unflatten(0, (2 * num_heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    return torch.cat((turned, value))
