"""`config.json` of a checkpoint from which a `Moshi` can be built.

Source: Moshi (arXiv:2410.00037); keys, their defaults and Moshi 7B as in the `moshi` package
0.2.13, whose `LMModel` takes them. Its other models (Hibiki, speech to text, text to speech) use
keys that a `Moshi` has no place for: such a file is refused and the key is named.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from types import UnionType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from counterpoint.errors import UserError

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
"""The `config.json` that is assumed for a checkpoint without one."""

DEPTH_PREFIX = "depformer_"


class Needed(NamedTuple):
    """The only value that a key may have for a `Moshi`, and a loader's default for the key."""

    value: Any
    default: Any


NEEDED: Mapping[str, Needed] = {
    "gating": Needed("silu", "none"),
    "norm": Needed("rms_norm_f32", "layer_norm"),
    "positional_embedding": Needed("rope", "sin"),
    "causal": Needed(True, True),
    "layer_scale": Needed(None, None),
    "max_period": Needed(10000, 10000),
    "kv_repeat": Needed(1, 1),
    "cross_attention": Needed(False, False),
    "bias_proj": Needed(False, False),
    "demux_second_text_stream": Needed(False, False),
    "text_card_out": Needed(None, None),
    # The values of the depth transformer default to those of the temporal one.
    "depformer_gating": Needed("silu", "silu"),
    "depformer_layer_scale": Needed(None, None),
    "depformer_kv_repeat": Needed(1, 1),
    "depformer_norm": Needed(None, None),
    "depformer_pos_emb": Needed("none", "sin"),
    "depformer_multi_linear": Needed(True, False),
    "depformer_weights_per_step": Needed(True, False),
}
"""Keys that distinguish the models of the family."""

_REQUIRED = ("num_layers", "context", "depformer_num_heads", "depformer_dim_feedforward")


# Far above any model of the family: larger numbers would only fill the memory or take for ever.
_MOST = 1 << 20
_FEW = (
    "num_layers",
    "num_heads",
    "kv_repeat",
    "n_q",
    "dep_q",
    "hidden_scale",
    "delays",
    "schedule",
)
_MOST_OF_FEW = 1024
_LONGEST_SHOWN = 80  # characters of a value in an error


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceStreams:
    """Tokens in and out, with the field names of `config.json`.

    Attributes:
        n_q: Number of audio codebooks of both speakers that are read.
        dep_q: Number of audio codebooks that are predicted, each by one depth step.
        card: Size of an audio codebook. The id ``card`` is its initial token.
        text_card: Size of the text vocabulary. The id ``text_card`` is its initial token.
        delays: Delay of the text, then of every audio codebook, in frames.
        existing_text_padding_id: Text id of a frame without text.
    """

    n_q: int = 8
    dep_q: int = 8
    card: int = 1024
    text_card: int = 32000
    delays: tuple[int, ...] = (0,)
    existing_text_padding_id: int = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceTower:
    """Temporal transformer, with the field names of `config.json`.

    Attributes:
        dim: Width.
        num_heads: Number of heads.
        num_layers: Number of layers.
        hidden_scale: Nominal width of the feed-forward layers over ``dim``; gated layers have about
            two thirds of it.
        context: Number of most recent frames that attention reads.
    """

    dim: int = 128
    num_heads: int = 8
    num_layers: int
    hidden_scale: float = 4
    context: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceDepth:
    """Depth transformer, with the field names of `config.json` without ``depformer_``.

    Attributes:
        dim: Width.
        num_heads: Number of heads.
        num_layers: Number of layers.
        dim_feedforward: Nominal width of the feed-forward layers; see ``hidden_scale``.
        weights_per_step_schedule: Number of the weights that each depth step uses; ``None`` gives
            every step its own.
        low_rank_embeddings: Width of the tables of embeddings, which are then mapped to ``dim``;
            ``None`` means tables of the full width.
    """

    dim: int = 256
    num_heads: int
    num_layers: int
    dim_feedforward: int
    weights_per_step_schedule: tuple[int, ...] | None = None
    low_rank_embeddings: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceConfig:
    """A `config.json` from which a `Moshi` can be built.

    Attributes:
        streams: Tokens in and out.
        tower: Temporal transformer.
        depth: Depth transformer.
        other: Keys that do not concern the tensors of the model, unchanged: names of other files,
            sampling, how the weights are stored.

    Raises:
        UserError: Two values contradict each other, or one has another type.
    """

    streams: ReferenceStreams
    tower: ReferenceTower
    depth: ReferenceDepth
    other: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        streams = self.streams
        tower = self.tower
        depth = self.depth
        _must(
            len(streams.delays) == streams.n_q + 1 and min(streams.delays) >= 0,
            f"`delays` must hold {streams.n_q + 1} frames >= 0, for text and each of `n_q` "
            f"codebooks: got {list(streams.delays)}",
        )
        _must(
            1 <= streams.dep_q <= streams.n_q,
            f"`dep_q` must be from 1 to `n_q` = {streams.n_q}: got {streams.dep_q}",
        )
        _must(
            tower.dim % tower.num_heads == 0,
            f"`num_heads` must divide `dim` = {tower.dim}: got {tower.num_heads}",
        )
        _must(
            depth.dim % depth.num_heads == 0,
            f"`depformer_num_heads` must divide `depformer_dim` = {depth.dim}: got "
            f"{depth.num_heads}",
        )
        schedule = depth.weights_per_step_schedule
        _must(
            schedule is None or len(schedule) == streams.dep_q and min(schedule, default=0) >= 0,
            f"`depformer_weights_per_step_schedule` must hold an index for each of {streams.dep_q} "
            f"steps: got {schedule}",
        )

    @property
    def num_depth_weights(self) -> int:
        """Number of weight sets in a layer of the depth transformer, and of projections to it."""
        schedule = self.depth.weights_per_step_schedule
        return max(schedule) + 1 if schedule else self.streams.dep_q

    def with_depth(self, num_steps: int) -> "ReferenceConfig":
        """Return the config with another number of depth steps; further ones are like the first."""
        schedule = self.depth.weights_per_step_schedule
        if schedule is not None:
            schedule = schedule[:num_steps]
        return replace(
            self,
            streams=replace(self.streams, dep_q=num_steps),
            depth=replace(self.depth, weights_per_step_schedule=schedule),
        )

    @classmethod
    def from_json(cls, keys: Mapping[str, Any]) -> "ReferenceConfig":
        """Read the keys of a `config.json`.

        If ``dim`` is missing, the keys do not describe the model, and Moshi 7B is assumed. The old
        name ``demux_second_stream`` is accepted. ``depformer_causal`` is ignored, as in the
        loaders.

        Raises:
            UserError: A key is missing, a value has another type, or the model is one of the family
                that a `Moshi` cannot be.
        """
        keys = dict(keys) if "dim" in keys else {**MOSHI_7B, **keys}
        keys.pop("depformer_causal", None)
        if "demux_second_stream" in keys:
            keys["demux_second_text_stream"] = keys.pop("demux_second_stream")
        for key, needed in NEEDED.items():
            _must(
                keys.get(key, needed.default) == needed.value,
                f"`Moshi` needs `{key}` = {needed.value!r}: got "
                f"{keys.get(key, needed.default)!r}. Other models of the family cannot be loaded",
            )
        for key in _REQUIRED:
            _must(key in keys, f"config.json must hold `{key}`")
        streams = _take(ReferenceStreams, keys, "")
        tower = _take(ReferenceTower, keys, "")
        inherited = {f"{DEPTH_PREFIX}num_layers": tower.num_layers}
        depth = _take(ReferenceDepth, inherited | keys, DEPTH_PREFIX)
        return cls(streams=streams, tower=tower, depth=depth, other=other_keys(keys))

    def to_json(self) -> dict[str, Any]:
        """Return the keys that Moshi 7B has, and others if they differ from their default."""
        own = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value, default in _entries(self.streams, self.tower, self.depth)
            if name in MOSHI_7B or value != default
        }
        needed = {name: key.value for name, key in NEEDED.items() if name in MOSHI_7B}
        return {**needed, **own, **self.other}


def other_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a `config.json` that do not concern the tensors of the model."""
    known = {*get_type_hints(ReferenceStreams), *get_type_hints(ReferenceTower), *NEEDED}
    known |= {DEPTH_PREFIX + name for name in get_type_hints(ReferenceDepth)}
    known |= {"depformer_causal", "demux_second_stream"}
    return {name: value for name, value in keys.items() if name not in known}


_Section = TypeVar("_Section", ReferenceStreams, ReferenceTower, ReferenceDepth)


def _take(cls: type[_Section], keys: Mapping[str, Any], prefix: str) -> _Section:
    """Build a section from its keys, after a check of their types and ranges."""
    own: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        if prefix + name in keys:
            value = keys[prefix + name]
            own[name] = tuple(value) if isinstance(value, list) else value
            _check_value(prefix + name, own[name], hint)
    return cls(**own)


def _entries(
    streams: ReferenceStreams, tower: ReferenceTower, depth: ReferenceDepth
) -> Iterator[tuple[str, Any, Any]]:
    """Yield every key, its value, and a loader's default for it."""
    for part in (streams, tower):
        for each in fields(part):
            yield each.name, getattr(part, each.name), each.default
    for each in fields(depth):
        default = tower.num_layers if each.name == "num_layers" else each.default
        yield DEPTH_PREFIX + each.name, getattr(depth, each.name), default


def _must(holds: bool, what: str) -> None:
    if not holds:
        raise UserError(f"{what}. Correct config.json.")


def _check_value(key: str, value: Any, hint: Any) -> None:
    allowed = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    kinds = tuple(get_origin(kind) or kind for kind in allowed)
    # In Python a bool is an int, and an int is no float; for these keys it is the other way round.
    fits = type(value) in kinds or (type(value) is int and float in kinds)
    if isinstance(value, tuple):
        fits = fits and all(type(item) is int for item in value)
    most = _MOST_OF_FEW if key.endswith(_FEW) else _MOST
    if fits and type(value) in (int, float):
        # 0 is an id, but no size.
        fits = 0 <= value <= most if key == "existing_text_padding_id" else 0 < value <= most
    if fits and isinstance(value, tuple):
        fits = all(item <= most for item in value) and len(value) <= _MOST_OF_FEW
    what = " or ".join(kind.__name__ for kind in kinds)
    _must(
        fits,
        f"`{key}` must be {what} and in range: got {_shown(value)}. At most {most:,} is possible",
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."
