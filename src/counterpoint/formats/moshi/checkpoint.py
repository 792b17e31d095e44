"""Loading a `Moshi` from a checkpoint of the Moshi family, and writing one.

Source: Moshi (arXiv:2410.00037). The files are those that the `moshi` package 0.2.13 reads and
writes; `tests/formats/moshi/test_checkpoint.py` compares with it.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch

from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.depth import DepthConfig
from counterpoint.blocks.low_rank import FACTOR_A, FACTOR_B, LowRankConfig
from counterpoint.blocks.shapes_only import shapes_only
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.config_json import decode, difference, encode, merged
from counterpoint.errors import UserError
from counterpoint.formats.moshi.config import MOSHI_7B, ReferenceConfig
from counterpoint.formats.moshi.names import (
    load_reference,
    pairs_from_halves,
    reference_names,
    reference_state_dict,
)
from counterpoint.formats.moshi.tensors import extend_depth, mlp_hidden, trim_depth
from counterpoint.formats.moshi.weights import (
    read_checkpoint,
    read_reference_config,
    write_adapters,
    write_checkpoint,
)
from counterpoint.formats.published import Companions
from counterpoint.streams.spec import Role
from counterpoint.systems.moshi import AudioStream, Moshi, MoshiConfig

EPSILON = 1e-8  # of the reference's root mean square norms
SEMANTIC_WEIGHT = 100.0
MODEL_ID = "model_id"
OWN = "counterpoint"
"""Keys of config.json, nested, for fields of `MoshiConfig` for which it has no key.

Kyutai's loader passes unknown keys on to its layers, which refuse them; it ignores this one.
"""


def load_moshi(
    path: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    num_predicted: int | None = None,
    lora_path: Path | None = None,
    adapt: Callable[[MoshiConfig], MoshiConfig] | None = None,
) -> Moshi:
    """Build the model of a checkpoint and take its weights.

    Args:
        path: A folder, or a file of weights; see `read_checkpoint`.
        dtype: Type of the weights.
        num_predicted: Number of codebooks that the model predicts; by default that of the file.
            With fewer, its predictions stay the same. Additional ones begin as copies that must be
            trained.
        lora_path: Adapters to merge into the weights.
        adapt: Changes the config of the file into that of the model, with weights of the same
            shapes, such as `counterpoint.formats.moshi.parity.personaplex_window`.

    Raises:
        UserError: The file is not one of the family, or it holds a model that is no `Moshi`.
    """
    config, state = read_checkpoint(path, dtype=dtype, lora_path=lora_path)
    if num_predicted is not None and num_predicted != config.streams.dep_q:
        change = trim_depth if num_predicted < config.streams.dep_q else extend_depth
        state, config = change(state, config, num_predicted)
    shape = moshi_config(config)
    if adapt is not None:
        shape = adapt(shape)
    with shapes_only():  # no memory for weights that are replaced below
        model = Moshi(shape).to(dtype)
    model.to_empty(device="cpu")
    load_reference(model, state)
    return model.eval()


def read_config(path: Path) -> MoshiConfig:
    """Read the config of a checkpoint; only names and shapes of its tensors are read.

    Raises:
        UserError: See `load_moshi`.
    """
    return moshi_config(read_reference_config(path))


def save_moshi(
    model: Moshi,
    folder: Path,
    companions: Companions | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Write a checkpoint that the reference implementation reads; see `write_checkpoint`.

    `load_moshi` restores the same `MoshiConfig`. The reference always computes with a
    `norm_epsilon` of 1e-8 and without pinned steps. Adapters are not written: merge them first, or
    see `save_adapters`.

    Args:
        model: A model whose weights are floats.
        folder: A new or empty folder.
        companions: Its codec, its tokeniser and further keys, with which the folder can talk.
        shard_bytes: Largest size of a file of weights; ``None`` writes one file.

    Raises:
        UserError: The reference has no such model, the folder is not empty, or it cannot be
            written.
    """
    if not all(tensor.is_floating_point() for tensor in model.state_dict().values()):
        raise UserError("A model must be saved with weights in floats: save before `store_int8`.")
    mixer = model.config.temporal.mixer
    if not isinstance(mixer, AttentionConfig):
        raise UserError(
            "The layout of the Moshi family has plain attention only: this model has a "
            f"{type(mixer).__name__}. Keep its run folder, or its checkpoint."
        )
    config = reference_config(model.config)
    write_checkpoint(reference_state_dict(model), config, folder, companions, shard_bytes)


def save_adapters(model: Moshi, folder: Path, low_rank: LowRankConfig) -> None:
    """Write the adapters of a model, and its embeddings if they are trained; see `write_adapters`.

    The reference implementation and `load_moshi` read them together with the weights that they
    change.

    Args:
        model: A model with all adapters of `counterpoint.blocks.low_rank.add_low_rank`.
        folder: A new or empty folder.
        low_rank: Shape of the adapters.

    Raises:
        UserError: The model has no adapters, the reference has no such model, the folder is not
            empty, or it cannot be written.
    """
    config = model.config
    state = model.state_dict()
    heads = config.temporal.num_heads
    tensors: dict[str, torch.Tensor] = {}
    for ours, theirs in reference_names(
        config.temporal.num_layers, config.depth, config.num_codebooks, config.num_predicted
    ).items():
        module = ours.removesuffix("weight")
        is_table = ours.endswith("table.weight")
        for end in ("weight",) if is_table and low_rank.train_embeddings else (FACTOR_A, FACTOR_B):
            weight = state.get(module + end)
            if weight is None or not theirs:
                continue
            if ours.endswith("attention.qkv.weight") and end == FACTOR_B:
                weight = pairs_from_halves(weight, heads)
            names = [name.removesuffix("weight") + end for name in theirs]
            tensors |= dict(zip(names, weight.chunk(len(names)), strict=True))
    if not any(name.endswith(FACTOR_A) for name in tensors):
        raise UserError("The model must have adapters to save them: it has none. Add them first.")
    reference = reference_config(config)
    write_adapters(tensors, reference, folder, rank=low_rank.rank, scaling=low_rank.scaling)


def moshi_config(reference: ReferenceConfig) -> MoshiConfig:
    """Return the shape of a `Moshi` that has the tensors of a reference configuration.

    Raises:
        UserError: The fields that only this library has do not fit it.
    """
    config = _published_config(reference)
    model_id = reference.other.get(MODEL_ID)
    if not isinstance(model_id, dict) or OWN not in model_id:
        return config
    where = f"`{MODEL_ID}.{OWN}` in config.json"
    try:
        config = decode(MoshiConfig, merged(encode(config), model_id[OWN]), OWN)
    except UserError as problem:
        raise UserError(
            f"{where} must hold fields of a MoshiConfig, and fit `num_predicted`: {problem}"
        ) from None
    delays = reference.streams.delays
    if _delays(config) != delays:
        raise UserError(
            f"{where} must have streams with the `delays` {list(delays)}: got "
            f"{list(_delays(config))}. Correct one of them."
        )
    return config


def _published_config(reference: ReferenceConfig) -> MoshiConfig:
    """Return the shape that the published keys describe."""
    streams = reference.streams
    tower = reference.tower
    depth = reference.depth
    return MoshiConfig(
        temporal=TowerConfig(
            width=tower.dim,
            num_layers=tower.num_layers,
            num_heads=tower.num_heads,
            mlp_hidden=mlp_hidden(tower.dim, int(tower.hidden_scale * tower.dim)),
            window=tower.context,
            norm_epsilon=EPSILON,
        ),
        depth=DepthConfig(
            width=depth.dim,
            num_layers=depth.num_layers,
            num_heads=depth.num_heads,
            mlp_hidden=mlp_hidden(depth.dim, depth.dim_feedforward),
            schedule=depth.weights_per_step_schedule or (),
            embedding_rank=depth.low_rank_embeddings,
            norm_epsilon=EPSILON,
        ),
        audio=tuple(_audio_streams(streams.delays[1:], streams.dep_q)),
        num_predicted=streams.dep_q,
        text_vocab_size=streams.text_card,
        audio_vocab_size=streams.card,
        text_delay_ticks=streams.delays[0],
        text_padding_id=streams.existing_text_padding_id,
        text_light_ids=(streams.existing_text_padding_id,),
    )


def _audio_streams(delays: tuple[int, ...], num_predicted: int) -> Iterator[AudioStream]:
    """Yield the streams of the agent and the user, who have half of the codebooks each.

    If the number of predicted codebooks is neither half nor all of them, the agent has the
    predicted ones and the user has the others. A speaker's first codebook is the semantic one.
    Neighbouring codebooks with one delay form one stream.
    """
    num_codebooks = len(delays)
    paired = num_codebooks % 2 == 0 and num_predicted in (num_codebooks // 2, num_codebooks)
    cut = num_codebooks // 2 if paired else num_predicted
    speakers = (("agent", Role.SPOKEN, delays[:cut]), ("user", Role.HEARD, delays[cut:]))
    for speaker, role, (*own,) in speakers:
        if not own:
            continue
        yield AudioStream(
            name=f"{speaker}_semantic",
            role=role,
            depth=1,
            delay_ticks=own[0],
            loss_weight=SEMANTIC_WEIGHT,
        )
        runs = [(delay, len(list(run))) for delay, run in groupby(own[1:])]
        for number, (delay, depth) in enumerate(runs, 1):
            name = f"{speaker}_acoustic" + (f"_{number}" if len(runs) > 1 else "")
            yield AudioStream(name=name, role=role, depth=depth, delay_ticks=delay)


def reference_config(config: MoshiConfig) -> ReferenceConfig:
    """Return the configuration with which the reference implementation builds the same model.

    Fields for which it has no key are written under `MODEL_ID`, where `moshi_config` finds them.

    Raises:
        UserError: It cannot express the size of an MLP.
    """
    config = replace(  # settings of the training do not change what the model computes
        config,
        temporal=replace(config.temporal, checkpoint_activations=False),
        depth=replace(config.depth, checkpoint_activations=False),
    )
    reference = _published_reference(config)
    plain = _published_config(reference)
    own = difference(encode(config), encode(plain))
    return replace(reference, other={MODEL_ID: {OWN: own}}) if own else reference


def _delays(config: MoshiConfig) -> tuple[int, ...]:
    """Return the delay of the text, then of every codebook, in frames."""
    audio = (stream.delay_ticks for stream in config.audio for _ in range(stream.depth))
    return (config.text_delay_ticks, *audio)


def _published_reference(config: MoshiConfig) -> ReferenceConfig:
    """Return the part of a shape that the published keys can describe."""
    temporal = config.temporal
    depth = config.depth
    feedforward = _feedforward(depth.width, depth.mlp_hidden)
    wanted = _feedforward(temporal.width, temporal.mlp_hidden)
    scale = wanted / temporal.width
    if int(scale * temporal.width) != wanted:  # the reference rounds the product down
        scale = (wanted + 0.5) / temporal.width
    keys = {
        **MOSHI_7B,
        "dim": temporal.width,
        "num_layers": temporal.num_layers,
        "num_heads": temporal.num_heads,
        "hidden_scale": scale,
        "context": temporal.window,
        "text_card": config.text_vocab_size,
        "card": config.audio_vocab_size,
        "existing_text_padding_id": config.text_padding_id,
        "n_q": config.num_codebooks,
        "dep_q": config.num_predicted,
        "delays": _delays(config),
        "depformer_dim": depth.width,
        "depformer_num_layers": depth.num_layers,
        "depformer_num_heads": depth.num_heads,
        "depformer_dim_feedforward": feedforward,
        "depformer_weights_per_step_schedule": depth.schedule or None,
        "depformer_low_rank_embeddings": depth.embedding_rank,
    }
    return ReferenceConfig.from_json(keys)


def _feedforward(width: int, hidden: int) -> int:
    """Return a ``dim_feedforward`` for which the reference's MLP has ``hidden`` features."""
    for found in (-(-3 * hidden // 2), -(-3 * hidden // 2) + 1):
        if mlp_hidden(width, found) == hidden:
            return found
    if mlp_hidden(width, 4 * width) == hidden:
        return 4 * width
    raise UserError(
        f"The reference cannot express `mlp_hidden` = {hidden} at `width` = {width}. "
        "Take another, or write the model with `--form counterpoint`."
    )
