"""The tensors of a Moshi checkpoint: names, shapes, and the number of depth steps.

Canonical names are those of `LMModel.state_dict()` in the `moshi` package 0.2.13, in which every
depth step has its own tensors (``in_projs.{k}.weight``).

Source: Moshi (arXiv:2410.00037), section 3.4.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.formats.moshi.config import ReferenceConfig

Shapes = dict[str, tuple[int, ...]]
"""Shape of every tensor, by its canonical name."""

_DEPTH_STEP = re.compile(
    r"((?:depformer\.layers\.\d+\.(?:self_attn\.\w+|gating)|depformer_\w+|linears)\.)(\d+)(\..+)"
)


def tensor_shapes(config: ReferenceConfig) -> Shapes:
    """Return the name and the shape of every tensor of a config."""
    streams = config.streams
    tower = config.tower
    depth = config.depth
    audio_rows = streams.card + 1
    text_rows = streams.text_card + 1
    shapes: Shapes = {}
    for k in range(streams.n_q):
        shapes[f"emb.{k}.weight"] = (audio_rows, tower.dim)
    shapes["text_emb.weight"] = (text_rows, tower.dim)
    shapes["text_linear.weight"] = (streams.text_card, tower.dim)
    for layer in range(tower.num_layers):
        prefix = f"transformer.layers.{layer}."
        shapes |= _attention(prefix, tower.dim, 1)
        shapes |= _mlp(f"{prefix}gating.", tower.dim, int(tower.hidden_scale * tower.dim))
    shapes["out_norm.alpha"] = (1, 1, tower.dim)

    count = config.num_depth_weights
    for k in range(count):
        shapes[f"depformer_in.{k}.weight"] = (depth.dim, tower.dim)
    rank = depth.low_rank_embeddings
    shapes |= _embedding("depformer_text_emb", text_rows, depth.dim, rank)
    # The last codebook is never read by a depth step.
    for k in range(streams.dep_q - 1):
        shapes |= _embedding(f"depformer_emb.{k}", audio_rows, depth.dim, rank)
    for layer in range(depth.num_layers):
        prefix = f"depformer.layers.{layer}."
        shapes |= _attention(prefix, depth.dim, count)
        for k in range(count):
            shapes |= _mlp(f"{prefix}gating.{k}.", depth.dim, depth.dim_feedforward)
    for k in range(streams.dep_q):
        shapes[f"linears.{k}.weight"] = (streams.card, depth.dim)
    return shapes


def _attention(prefix: str, dim: int, count: int) -> Shapes:
    """Return the norms and projections of a layer with ``count`` weight sets."""
    shapes: Shapes = {f"{prefix}norm1.alpha": (1, 1, dim), f"{prefix}norm2.alpha": (1, 1, dim)}
    for k in range(count):
        shapes[f"{prefix}self_attn.in_projs.{k}.weight"] = (3 * dim, dim)
        shapes[f"{prefix}self_attn.out_projs.{k}.weight"] = (dim, dim)
    return shapes


def _mlp(prefix: str, dim: int, width: int) -> Shapes:
    hidden = mlp_hidden(dim, width)
    return {
        f"{prefix}linear_in.weight": (2 * hidden, dim),
        f"{prefix}linear_out.weight": (dim, hidden),
    }


def mlp_hidden(dim: int, width: int) -> int:
    """Return the hidden features of a gated MLP with ``dim_feedforward`` = ``width``.

    This is the rule of the `moshi` package. Its Rust version rounds the special case to 11/4.
    """
    return 21 * dim // 8 if width == 4 * dim else 2 * width // 3


def _embedding(name: str, rows: int, dim: int, rank: int | None) -> Shapes:
    if rank is None:
        return {f"{name}.weight": (rows, dim)}
    return {f"{name}.weight": (rows, rank), f"{name}.low_rank.weight": (dim, rank)}


def check_shapes(found: Mapping[str, tuple[int, ...]], config: ReferenceConfig) -> None:
    """Check that a state has the tensors of a config in their shapes, and no others.

    Raises:
        UserError: A tensor is missing, unknown or of another shape.
    """
    shapes = tensor_shapes(config)
    hint = "Give the config.json that belongs to the weights."
    if missing := shapes.keys() - found.keys():
        raise UserError(f"The weights must hold {listed(missing)}: missing. {hint}")
    if unknown := found.keys() - shapes.keys():
        raise UserError(
            f"The weights must hold what their config asks for, not {listed(unknown)}. {hint}"
        )
    for name, shape in shapes.items():
        if found[name] != shape:
            raise UserError(f"{name} must have the shape {shape}: got {found[name]}. {hint}")


def check_state(state: Mapping[str, Tensor], config: ReferenceConfig) -> None:
    """Check tensors; see `check_shapes`."""
    check_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, config)


def listed(names: Iterable[str]) -> str:
    """Return the first name and the number of the others."""
    first, *rest = sorted(names)
    return f"{first} and {len(rest)} more" if rest else first


# ------------------------------------------------------------------------------------------ depth


def trim_depth(
    state: Mapping[str, Tensor], config: ReferenceConfig, num_steps: int
) -> tuple[dict[str, Tensor], ReferenceConfig]:
    """Keep the first steps of the depth transformer; their predictions stay the same.

    The transformer is causal over its steps, so the steps of the other speaker can be left out (16
    to 8) if they are not needed. Tensors are shared, not copied.

    Returns:
        The canonical state and the config with ``num_steps`` steps.

    Raises:
        UserError: There are fewer steps, or ``state`` does not fit ``config``.
    """
    check_state(state, config)
    if not 1 <= num_steps <= config.streams.dep_q:
        raise UserError(
            f"Depth can be trimmed to 1 up to its {config.streams.dep_q} steps: got {num_steps}."
        )
    trimmed = config.with_depth(num_steps)
    return {name: state[name] for name in tensor_shapes(trimmed)}, trimmed


def extend_depth(
    state: Mapping[str, Tensor], config: ReferenceConfig, num_steps: int
) -> tuple[dict[str, Tensor], ReferenceConfig]:
    """Add depth steps for the other speaker (8 to 16), as copies of the first steps.

    Step ``dep_q + k`` starts as step ``k``. The embedding of the codebook that was the last, which
    no step has read, starts as that of the first. Old tensors are shared, not copied.

    Returns:
        The canonical state and the config with ``num_steps`` steps.

    Raises:
        UserError: There would be more steps than can be copied or than there are codebooks, steps
            share weights, or ``state`` does not fit ``config``.

    Source: the copy from 8 to 16 in NVIDIA's PersonaPlex loader, which has no rule for the
        embedding of the last codebook; that rule is the one of nu-dialogue/moshi-finetune.
    """
    check_state(state, config)
    old = config.streams.dep_q
    most = min(2 * old, config.streams.n_q)
    if not 2 <= old < num_steps <= most or config.depth.weights_per_step_schedule is not None:
        raise UserError(
            f"Depth can be extended from {old} steps to {old + 1} up to {most}, from at least 2, "
            f"without `depformer_weights_per_step_schedule`: got {num_steps}."
        )
    extended = config.with_depth(num_steps)
    return {
        name: state[name] if name in state else state[_copied_from(name, old)].clone()
        for name in tensor_shapes(extended)
    }, extended


def _copied_from(name: str, num_steps: int) -> str:
    match = _DEPTH_STEP.fullmatch(name)
    assert match is not None, name
    return f"{match[1]}{max(int(match[2]) - num_steps, 0)}{match[3]}"
