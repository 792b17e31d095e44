"""`config.json` of a checkpoint of the Moshi family.

Source: Moshi (arXiv:2410.00037); keys, their defaults and Moshi 7B as in the `moshi` package
0.2.13, whose `LMModel` takes them (also for Hibiki, speech to text and text to speech).
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

MOSHI_7B: Mapping[str, Any] = {
    "dim": 4096,
    "text_card": 32000,
    "existing_text_padding_id": 3,
    "n_q": 16,
    "dep_q": 8,
    "card": 2048,
    "num_heads": 32,
    "num_layers": 32,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "context": 3000,
    "max_period": 10000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 1024,
    "depformer_dim_feedforward": 4224,
    "depformer_num_heads": 16,
    "depformer_num_layers": 6,
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_context": 8,
    "depformer_max_period": 10000,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "delays": (0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1),
}
"""The `config.json` that a checkpoint without one stands for."""

DEPTH_PREFIX = "depformer_"
INHERITED_BY_DEPTH = ("num_layers", "gating", "layer_scale", "max_period", "kv_repeat")
KNOWN: Mapping[str, tuple[str, ...]] = {
    "norm": ("layer_norm", "layer_norm_f32", "rms_norm", "rms_norm_f32"),
    "gating": (
        *("none", "sigmoid", "tanh", "relu", "leaky_relu", "elu", "gelu", "silu", "mish"),
        *("softsign", "identity"),
    ),
    "positional_embedding": ("none", "sin", "rope", "sin_rope", "rope_concat"),
    "pos_emb": ("none", "sin", "rope", "sin_rope", "rope_concat"),
}
ZERO_IS_FINE = ("dep_q", "existing_text_padding_id", "existing_text_end_padding_id", "layer_scale")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceStreams:
    """Tokens in and out, with the field names of `config.json`.

    Attributes:
        n_q: Audio codebooks read, of both speakers.
        dep_q: Audio codebooks predicted: steps of the depth transformer.
        card: Size of an audio codebook; its id ``card`` is the initial token.
        text_card: Size of the text vocabulary; its id ``text_card`` is the initial token.
        text_card_out: Text ids that can be predicted; ``None``: all.
        delays: Delay of the text, then of every audio codebook, in frames.
        existing_text_padding_id: Text id that says nothing.
        existing_text_end_padding_id: Text id that comes before a word.
        demux_second_text_stream: Two text streams are packed into one.
        bias_proj: Whether the output heads have a bias.
    """

    n_q: int = 8
    dep_q: int = 8
    card: int = 1024
    text_card: int = 32000
    text_card_out: int | None = None
    delays: tuple[int, ...] = (0,)
    existing_text_padding_id: int = 3
    existing_text_end_padding_id: int = 0
    demux_second_text_stream: bool = False
    bias_proj: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceTower:
    """Temporal transformer, with the field names of `config.json`; ``context`` is in frames."""

    dim: int = 128
    num_heads: int = 8
    num_layers: int
    hidden_scale: float = 4
    gating: str = "none"
    norm: str = "layer_norm"
    layer_scale: float | None = None
    context: int | None = None
    max_period: float = 10000
    positional_embedding: str = "sin"
    causal: bool = True
    kv_repeat: int = 1
    cross_attention: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceDepth:
    """Depth transformer, with the field names of `config.json` less ``depformer_``.

    The loaders ignore ``context``: a depth transformer sees all its steps.
    """

    dim: int = 256
    num_heads: int = 8
    num_layers: int
    dim_feedforward: int | tuple[int, ...] | None = None
    gating: str = "none"
    layer_scale: float | None = None
    context: int | None = None
    max_period: float = 10000
    pos_emb: str = "sin"
    multi_linear: bool = False
    weights_per_step: bool = False
    weights_per_step_schedule: tuple[int, ...] | None = None
    low_rank_embeddings: int | None = None
    norm: str | None = None
    kv_repeat: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceConfig:
    """A `config.json` of the Moshi family.

    Attributes:
        streams: Tokens in and out.
        tower: Temporal transformer.
        depth: Depth transformer.
        other: Keys that say nothing about the tensors of the model, as they came: names of other
            files, sampling, conditioners, how the weights are stored.

    Raises:
        ValueError: Two values contradict each other, or one is unknown.
    """

    streams: ReferenceStreams
    tower: ReferenceTower
    depth: ReferenceDepth
    other: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        streams, depth = self.streams, self.depth
        _must(
            len(streams.delays) == streams.n_q + 1 and min(streams.delays) >= 0,
            f"`delays` must hold {streams.n_q + 1} frames >= 0, for text and each of `n_q` "
            f"codebooks: got {list(streams.delays)}",
        )
        _must(
            0 <= streams.dep_q <= streams.n_q,
            f"`dep_q` must be from 0 to `n_q` = {streams.n_q}: got {streams.dep_q}",
        )
        for part, prefix in ((self.tower, ""), (depth, DEPTH_PREFIX)):
            _must(
                part.dim % part.num_heads == 0 and part.num_heads % part.kv_repeat == 0,
                f"`{prefix}num_heads` must divide `{prefix}dim` = {part.dim}, and `kv_repeat` = "
                f"{part.kv_repeat} must divide it: got {part.num_heads}",
            )
        _must(
            not (depth.weights_per_step and depth.gating == "none"),
            "`depformer_gating` must not be 'none' with `depformer_weights_per_step`",
        )
        schedule = depth.weights_per_step_schedule
        _must(
            schedule is None or len(schedule) == streams.dep_q and min(schedule, default=0) >= 0,
            f"`depformer_weights_per_step_schedule` must hold an index for each of {streams.dep_q} "
            f"steps: got {schedule}",
        )
        hidden = depth.dim_feedforward
        _must(
            not isinstance(hidden, tuple) or len(hidden) == self.num_depth_weights,
            f"`depformer_dim_feedforward` must be one width or {self.num_depth_weights}: "
            f"got {hidden}",
        )

    @property
    def num_depth_weights(self) -> int:
        """Sets of weights in a layer of the depth transformer."""
        return self._num_scheduled if self.depth.weights_per_step else 1

    @property
    def num_depth_inputs(self) -> int:
        """Projections from the temporal to the depth transformer."""
        return self._num_scheduled if self.depth.multi_linear else 1

    @property
    def _num_scheduled(self) -> int:
        schedule = self.depth.weights_per_step_schedule
        return max(schedule) + 1 if schedule else self.streams.dep_q

    @property
    def max_delay(self) -> int:
        """Largest delay of a stream, in frames."""
        return max(self.streams.delays)

    def with_depth(self, num_steps: int) -> "ReferenceConfig":
        """The same model with the first ``num_steps`` steps of depth, or more like the first."""
        depth = self.depth
        schedule, hidden = depth.weights_per_step_schedule, depth.dim_feedforward
        if schedule is not None:
            schedule = schedule[:num_steps]
        if isinstance(hidden, tuple):
            hidden = (hidden + hidden)[: max(schedule) + 1 if schedule else num_steps]
        depth = replace(depth, weights_per_step_schedule=schedule, dim_feedforward=hidden)
        return replace(self, streams=replace(self.streams, dep_q=num_steps), depth=depth)

    @classmethod
    def from_json(cls, keys: Mapping[str, Any]) -> "ReferenceConfig":
        """Read the keys of a `config.json`.

        One without ``dim`` says nothing about the model: it gets the values of Moshi 7B. Old names
        are read: ``demux_second_stream``; ``depformer_causal`` is left out, as in the loaders.

        Raises:
            ValueError: A key is missing, or a value unknown.
        """
        keys = dict(keys) if "dim" in keys else {**MOSHI_7B, **keys}
        keys.pop("depformer_causal", None)
        if "demux_second_stream" in keys:
            keys["demux_second_text_stream"] = keys.pop("demux_second_stream")
        streams = _take(ReferenceStreams, keys, "")
        _must("num_layers" in keys, "config.json must hold `num_layers`")
        tower = _take(ReferenceTower, keys, "")
        _must(
            streams.dep_q == 0 or "depformer_num_heads" in keys,
            "config.json must hold `depformer_num_heads`",
        )
        inherited = {DEPTH_PREFIX + name: getattr(tower, name) for name in INHERITED_BY_DEPTH}
        depth = _take(ReferenceDepth, {**inherited, **keys}, DEPTH_PREFIX)
        known = {name for name, _, _ in _entries(streams, tower, depth)}
        other = {name: value for name, value in keys.items() if name not in known}
        return cls(streams=streams, tower=tower, depth=depth, other=other)

    def to_json(self) -> dict[str, Any]:
        """Keys of a `config.json`: those of Moshi 7B, and others where they are not the default."""
        keys = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value, default in _entries(self.streams, self.tower, self.depth)
            if name in MOSHI_7B or value != default
        }
        return {**keys, **self.other}


Section = TypeVar("Section", ReferenceStreams, ReferenceTower, ReferenceDepth)


def _take(cls: type[Section], keys: Mapping[str, Any], prefix: str) -> Section:
    """Build a section from its keys, each of which must be of its type and in its range."""
    own: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        if prefix + name in keys:
            value = keys[prefix + name]
            own[name] = tuple(value) if isinstance(value, list) else value
            _check_value(prefix, name, own[name], hint)
    return cls(**own)


def _entries(
    streams: ReferenceStreams, tower: ReferenceTower, depth: ReferenceDepth
) -> Iterator[tuple[str, Any, Any]]:
    """Key, value, and the value that a loader takes when the key is missing."""
    for part, prefix in ((streams, ""), (tower, ""), (depth, DEPTH_PREFIX)):
        values = asdict(part)
        for f in fields(part):
            inherits = part is depth and f.name in INHERITED_BY_DEPTH
            default = getattr(tower, f.name) if inherits else f.default
            yield prefix + f.name, values[f.name], default


def _must(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"{what}. Correct config.json.")


def _check_value(prefix: str, name: str, value: Any, hint: Any) -> None:
    allowed = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    kinds = tuple(get_origin(kind) or kind for kind in allowed)
    # Python takes a bool for an int, and not an int for a float: here it is the other way round.
    fits = type(value) in kinds or (type(value) is int and float in kinds)
    what = " or ".join(kind.__name__ for kind in kinds)
    if isinstance(value, tuple):
        fits = fits and all(type(item) is int for item in value)
    if fits and type(value) in (int, float):
        fits = value >= 0 if name in ZERO_IS_FINE else value > 0
    if name in KNOWN:
        fits = fits and (value is None or value in KNOWN[name])
        what = f"one of {', '.join(map(repr, KNOWN[name]))}"
    _must(fits, f"`{prefix}{name}` must be {what} and in range: got {value!r}")
