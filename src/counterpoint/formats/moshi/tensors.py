"""The tensors of a model of the Moshi family: names, shapes, and the number of steps of depth.

Canonical names: those of `LMModel.state_dict()` in the `moshi` package 0.2.13, with one tensor a
step of depth (``in_projs.{k}.weight``), without conditioners and extra heads. Embeddings with a
norm (``norm_emb``), which no published model has, are not described.

Source: Moshi (arXiv:2410.00037), section 3.4.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from counterpoint.formats.moshi.config import ReferenceConfig, ReferenceTower

Shapes = dict[str, tuple[int, ...]]
"""Shape of every tensor, by its canonical name."""

_DEPTH_STEP = re.compile(
    r"((?:depformer\.layers\.\d+\.(?:self_attn\.\w+|gating)|depformer_\w+|linears)\.)(\d+)(\..+)"
)


def tensor_shapes(config: ReferenceConfig) -> Shapes:
    """Names and shapes of the tensors that a config calls for."""
    streams, tower, depth = config.streams, config.tower, config.depth
    audio, text = streams.card + 1, streams.text_card + 1
    demux = streams.demux_second_text_stream
    shapes: Shapes = {}
    for k in range(streams.n_q):
        shapes |= _embedding(f"emb.{k}", audio, tower.dim)
    shapes |= _embedding("text_emb", text, tower.dim, demux=demux)
    out = streams.text_card if streams.text_card_out is None else streams.text_card_out
    shapes |= _head("text_linear", out, tower.dim, streams.bias_proj)
    for layer in range(tower.num_layers):
        shapes |= _temporal_layer(f"transformer.layers.{layer}.", tower)
    shapes |= _norm("out_norm", tower.norm, tower.dim)

    for k in range(config.num_depth_inputs):
        shapes[f"depformer_in.{k}.weight"] = (depth.dim, tower.dim)
    if streams.dep_q == 0:
        return shapes
    rank = depth.low_rank_embeddings
    shapes |= _embedding("depformer_text_emb", text, depth.dim, rank=rank, demux=demux)
    # The last codebook is never read by a step of depth.
    for k in range(streams.dep_q - 1):
        shapes |= _embedding(f"depformer_emb.{k}", audio, depth.dim, rank=rank)
    for layer in range(depth.num_layers):
        shapes |= _depth_layer(f"depformer.layers.{layer}.", config)
    for k in range(streams.dep_q):
        if depth.norm is not None:
            shapes |= _norm(f"depformer_norms.{k}", depth.norm, depth.dim)
        shapes |= _head(f"linears.{k}", streams.card, depth.dim, streams.bias_proj)
    return shapes


def _temporal_layer(prefix: str, tower: ReferenceTower) -> Shapes:
    dim, hidden = tower.dim, int(tower.hidden_scale * tower.dim)
    shapes = _attention(prefix + "self_attn", dim, tower.num_heads, tower.kv_repeat)
    shapes |= _mlp(prefix, "gating.", tower.gating, dim, hidden)
    scales = ["layer_scale_1", "layer_scale_2"]
    if tower.cross_attention:
        shapes |= _attention(prefix + "cross_attention", dim, tower.num_heads, tower.kv_repeat)
        shapes |= _norm(prefix + "norm_cross", "layer_norm", dim)
        scales.append("layer_scale_cross")
    for name in ("norm1", "norm2"):
        shapes |= _norm(prefix + name, tower.norm, dim)
    return shapes | _scales(prefix, scales, tower.layer_scale, dim)


def _depth_layer(prefix: str, config: ReferenceConfig) -> Shapes:
    depth, count = config.depth, config.num_depth_weights
    hidden = depth.dim_feedforward
    if hidden is None:
        hidden = int(config.tower.hidden_scale * depth.dim)
    widths = hidden if isinstance(hidden, tuple) else (hidden,) * count
    shapes = _attention(prefix + "self_attn", depth.dim, depth.num_heads, depth.kv_repeat, count)
    for k, width in enumerate(widths):
        gate = f"gating.{k}." if depth.weights_per_step else "gating."
        shapes |= _mlp(prefix, gate, depth.gating, depth.dim, width)
    for name in ("norm1", "norm2"):
        shapes |= _norm(prefix + name, config.tower.norm, depth.dim)
    return shapes | _scales(
        prefix, ["layer_scale_1", "layer_scale_2"], depth.layer_scale, depth.dim
    )


def _attention(name: str, dim: int, num_heads: int, kv_repeat: int, count: int = 1) -> Shapes:
    width_kv = dim // num_heads * (num_heads // kv_repeat)
    shapes: Shapes = {}
    for k in range(count):
        shapes[f"{name}.in_projs.{k}.weight"] = (dim + 2 * width_kv, dim)
        shapes[f"{name}.out_projs.{k}.weight"] = (dim, dim)
    return shapes


def _mlp(prefix: str, gate: str, gating: str, dim: int, width: int) -> Shapes:
    if gating == "none":
        return {f"{prefix}linear1.weight": (width, dim), f"{prefix}linear2.weight": (dim, width)}
    hidden = mlp_hidden(dim, width)
    return {
        f"{prefix}{gate}linear_in.weight": (2 * hidden, dim),
        f"{prefix}{gate}linear_out.weight": (dim, hidden),
    }


def mlp_hidden(dim: int, width: int) -> int:
    """Hidden features of a gated MLP of ``dim`` features with ``dim_feedforward`` = ``width``.

    As in the `moshi` package, whose Rust sister rounds the special case to 11/4.
    """
    return 21 * dim // 8 if width == 4 * dim else 2 * width // 3


def _norm(name: str, norm: str, dim: int) -> Shapes:
    if norm.startswith("rms"):
        return {f"{name}.alpha": (1, 1, dim)}
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _scales(prefix: str, names: list[str], scale: float | None, dim: int) -> Shapes:
    return {} if scale is None else {f"{prefix}{name}.scale": (dim,) for name in names}


def _head(name: str, out: int, dim: int, bias: bool) -> Shapes:
    return {f"{name}.weight": (out, dim)} | ({f"{name}.bias": (out,)} if bias else {})


def _embedding(
    name: str, rows: int, dim: int, *, rank: int | None = None, demux: bool = False
) -> Shapes:
    width = dim if rank is None else rank
    shapes: Shapes = {f"{name}.weight": (rows, width)}
    for part in (["low_rank"] if rank is not None else []) + (["out1", "out2"] if demux else []):
        shapes[f"{name}.{part}.weight"] = (dim, width)
    return shapes


def check_shapes(found: Mapping[str, tuple[int, ...]], config: ReferenceConfig) -> None:
    """Check that a state has the tensors of a config, no others, in their shapes.

    Raises:
        ValueError: It has not.
    """
    shapes = tensor_shapes(config)
    hint = "Give the config.json that belongs to the weights."
    if missing := shapes.keys() - found.keys():
        raise ValueError(f"The weights must hold {listed(missing)}: missing. {hint}")
    if unknown := found.keys() - shapes.keys():
        raise ValueError(
            f"The weights must hold what their config asks for, not {listed(unknown)}. {hint}"
        )
    for name, shape in shapes.items():
        if found[name] != shape:
            raise ValueError(f"{name} must have the shape {shape}: got {found[name]}. {hint}")


def check_state(state: Mapping[str, Tensor], config: ReferenceConfig) -> None:
    """As `check_shapes`, of tensors."""
    check_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, config)


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    first, *rest = sorted(names)
    return f"{first} and {len(rest)} more" if rest else first


# ------------------------------------------------------------------------------------------ depth


def trim_depth(
    state: Mapping[str, Tensor], config: ReferenceConfig, num_steps: int
) -> tuple[dict[str, Tensor], ReferenceConfig]:
    """Keep the first steps of the depth transformer; what these predict stays the same.

    It is causal over its steps, so the steps of the other speaker (16 -> 8) can be left out when
    they are not asked for. Tensors are shared, not copied.

    Returns:
        Canonical state and config with ``num_steps`` steps.

    Raises:
        ValueError: There are fewer steps, or ``state`` does not fit ``config``.
    """
    check_state(state, config)
    if not 1 <= num_steps <= config.streams.dep_q or not config.tower.causal:
        raise ValueError(
            f"Depth can be trimmed to 1 up to its {config.streams.dep_q} steps, when `causal`: got "
            f"{num_steps}, and `causal` is {config.tower.causal}."
        )
    trimmed = config.with_depth(num_steps)
    return {name: state[name] for name in tensor_shapes(trimmed)}, trimmed


def extend_depth(
    state: Mapping[str, Tensor], config: ReferenceConfig, num_steps: int
) -> tuple[dict[str, Tensor], ReferenceConfig]:
    """Add steps to the depth transformer for the other speaker (8 -> 16), as copies of the first.

    Step ``dep_q + k`` starts as step ``k``. The embedding of the last codebook so far, which no
    step has read, starts as that of the first. Old tensors are shared.

    Returns:
        Canonical state and config with ``num_steps`` steps.

    Raises:
        ValueError: More steps than can be copied or than there are codebooks, steps that share
            weights, or ``state`` does not fit ``config``.

    Source: the 8 -> 16 copy of NVIDIA's PersonaPlex loader, which has no rule for the embedding of
        the last codebook; that rule is the one of nu-dialogue/moshi-finetune.
    """
    check_state(state, config)
    old = config.streams.dep_q
    most = min(2 * old, config.streams.n_q)
    if not 2 <= old < num_steps <= most or config.depth.weights_per_step_schedule is not None:
        raise ValueError(
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
