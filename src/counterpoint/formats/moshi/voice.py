"""Voices: the frames of a speaker's sample that PersonaPlex hears before a conversation.

NVIDIA publishes a voice as a pickle ``{"embeddings", "cache"}``. It is read with only tensors
allowed, and stored as safetensors with the same two names. For T frames of a sample it holds the
summed embeddings of the columns 0 to T - 1, numbered as in `counterpoint.streams.schedule`, and the
newest ids of every stream in a ring: those of column c are in slot c modulo its size. A session
reads the embeddings and continues with column T, which is in the ring.

Source: PersonaPlex (arXiv:2602.06053), voice prompt; the format is that of NVIDIA's loader. Its
code never hears the first frame of a recording, so T is one less than the frames of the recording.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.files import whole_file, write_tensors
from counterpoint.formats.plain_tensors import read_plain_tensors
from counterpoint.streams import schedule
from counterpoint.streams.spec import UNSET_ID, Ticks
from counterpoint.systems.contract import Prefix
from counterpoint.systems.moshi import TEXT, Moshi, MoshiConfig

UNGENERATED = -2  # the lowest id in a ring: an entry that has not been predicted yet
PICKLED = ".pt"
FILES = (PICKLED, ".safetensors")
"""Endings of the names of voice files."""

_FARTHEST = 0.5  # rounding to bfloat16 moves a sum by 0.003 of its length, other weights by 1.4


@dataclass(frozen=True, kw_only=True, slots=True)
class VoicePrompt:
    """A voice prompt that a model has already embedded.

    Attributes:
        embeddings: Input of the temporal transformer at each frame, summed over the streams.
        cache: Ring of the last ids of text and audio, with 1 + ``n_q`` codebooks (S) and
            ``max_delay + 3`` frames (R).
    """

    embeddings: Float[Tensor, "T 1 1 D"]
    cache: Int[Tensor, "1 S R"]


@torch.no_grad()
def record_voice(system: Moshi, codes: Ticks) -> VoicePrompt:
    """Make the stored form of a voice from a sample.

    Args:
        system: The model that hears it.
        codes: Content of all streams meanwhile, one row in content order, such as
            `hybrid_prompt(system, (), sample, Fillers(pause_s=0))`.

    Raises:
        UserError: The codes do not fit the model.
    """
    columns = schedule.columns(system.layout, codes)
    num_frames = codes[TEXT].shape[1]
    embeddings = system.embed({name: ids[:, :num_frames] for name, ids in columns.items()})[0]
    audio = [columns[stream.name] for stream in system.audio]
    ids = torch.cat((columns[TEXT][..., None], *audio), 2)[0].T
    delays = _delays(system.config)
    newest = num_frames + delays[:, None]
    slot = torch.arange(_ring_size(system.config))
    column = (newest - (newest - slot) % len(slot)).to(ids.device)
    cache = ids.gather(1, column.clamp(min=0)).masked_fill(column < 0, UNGENERATED)
    return VoicePrompt(embeddings=embeddings[:, None, None], cache=cache[None])


@torch.no_grad()
def voice_prefix(voice: VoicePrompt, system: Moshi) -> tuple[Ticks, Prefix]:
    """Read a voice once for any number of sessions of this model, as PersonaPlex's own code does.

    Returns:
        The codes of the voice's frames, which come before a prompt
        (`counterpoint.runtime.prefix.behind`), and the prefix with which such a prompt begins.

    Raises:
        UserError: The voice belongs to another model.
    """
    codes = voice_codes(voice, system)
    num_ticks = codes[TEXT].shape[1]
    # The embeddings are those of the columns before the newest one, which the session itself reads.
    columns = {name: ids[:, :num_ticks] for name, ids in _columns(system, codes).items()}
    x = voice.embeddings[:, 0].to(system.text_embedding.table.weight).transpose(0, 1)
    hidden, state = system.read_embedded(x, system.initial_state(1))
    return codes, system.prefix(columns, num_ticks, hidden, state)


def _columns(system: Moshi, codes: Ticks) -> Ticks:
    """Return codes in arrival order, on the device of the model."""
    arrived = schedule.columns(system.layout, codes)
    return {name: ids.to(system.device) for name, ids in arrived.items()}


@torch.no_grad()
def voice_codes(voice: VoicePrompt, system: Moshi) -> Ticks:
    """Return the codes of the frames of a voice, one row in content order, as far as it has them.

    Returns:
        Codes of all streams; `UNSET_ID` if the ring has none and only the embeddings have them.

    Raises:
        UserError: The ring lacks the newest frames, or embeddings and ids do not fit the model.
    """
    num_frames = len(voice.embeddings)
    ring = voice.cache[0].cpu()
    delays = _delays(system.config)
    column = num_frames + torch.arange(-1, int(delays.max()) + 1)
    held = ring[:, column % ring.shape[1]]
    if (held[column <= num_frames + delays[:, None]] < 0).any():
        raise UserError(
            "'cache' of a voice must hold the ids of its newest frames: some are missing. Make the "
            "voice again."
        )
    _check_embedding(voice.embeddings[-1], held[:, :1], system)
    arrived: dict[str, Tensor] = {}
    for stream, own in zip(system.layout.streams, _by_stream(held, system), strict=True):
        ids = own.new_full((1, int(column[-1]) + 1, stream.depth), UNSET_ID)
        # The column before is only used for the comparison; entries to be predicted are unset.
        ids[0, num_frames:] = own[:, 1:].T.clamp(min=UNSET_ID)
        arrived[stream.name] = ids[..., 0] if stream.name == TEXT else ids
    return schedule.content(system.layout, arrived)


def _by_stream(ids: Int[Tensor, "S n"], system: Moshi) -> tuple[Int[Tensor, "K n"], ...]:
    return ids.split([stream.depth for stream in system.layout.streams])


def _check_embedding(
    given: Float[Tensor, "1 1 D"], column: Int[Tensor, "S 1"], system: Moshi
) -> None:
    """Refuse an embedding that the model does not compute from the ids of its column."""
    frame: dict[str, Tensor] = {}
    for stream, ids in zip(system.layout.streams, _by_stream(column, system), strict=True):
        ids = ids.to(system.text_embedding.table.weight.device)
        frame[stream.name] = ids if stream.name == TEXT else ids.T[None]
    own = system.embed(frame).float()
    if (given.to(own) - own).norm() > _FARTHEST * own.norm():
        raise UserError(
            "A voice must belong to the model that hears it: its last embedding is not what this "
            "model computes from its ids. Use a voice made for this model."
        )


def read_voice(path: Path, config: MoshiConfig) -> VoicePrompt:
    """Read a voice from a `.pt` (tensors only) or `.safetensors` file.

    Args:
        path: The file.
        config: Config of the model that will hear it, which must be the model that made it.

    Returns:
        The voice on the CPU. Its embeddings keep their stored type.

    Raises:
        UserError: The file holds anything else, or does not fit the model.
    """
    held = read_plain_tensors(path)
    if held.keys() != {"embeddings", "cache"}:
        raise UserError(
            f"{path} must hold 'embeddings' and 'cache': got {sorted(held)[:8]}. Name the file of "
            "a voice."
        )
    _check(held, config, str(path))
    return VoicePrompt(embeddings=held["embeddings"], cache=held["cache"])


def write_voice(voice: VoicePrompt, config: MoshiConfig, path: Path) -> None:
    """Write a voice; the file appears complete or not at all.

    A ``.pt`` file has the form that NVIDIA's loader reads: the loader takes the two tensors by
    name, feeds the rows of the embeddings to its bfloat16 model without changing their type, and
    copies the ring. Any other file is a safetensors file, with the embeddings in their own type.

    Raises:
        UserError: The voice does not fit ``config``, or cannot be written.
    """
    tensors = {
        "embeddings": voice.embeddings.detach().cpu().contiguous(),
        "cache": voice.cache.cpu().contiguous(),
    }
    _check(tensors, config, "the voice")
    try:
        if path.suffix == PICKLED:
            tensors["embeddings"] = tensors["embeddings"].to(torch.bfloat16)
            with whole_file(path) as partial:
                torch.save({name: own.clone() for name, own in tensors.items()}, partial)
        else:
            write_tensors(path, tensors)
    except OSError as problem:
        raise UserError(f"{path} must be writable: {problem}. Choose another.") from None


def _check(tensors: Mapping[str, Any], config: MoshiConfig, name: str) -> None:
    """Check types, shapes and ranges; an id out of range would be looked up beyond its table."""
    embeddings = tensors["embeddings"]
    cache = tensors["cache"]
    got = {
        key: tuple(tensor.shape)
        for key, tensor in tensors.items()
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided
    }
    expected = {
        "embeddings": (*got.get("embeddings", ())[:1], 1, 1, config.temporal.width),
        "cache": (1, config.num_codebooks + 1, _ring_size(config)),
    }
    hint = "Use a voice made for this model."
    if got != expected or got["embeddings"][0] == 0:
        raise UserError(f"{name} must have the shapes {expected}: got {got}. {hint}")
    if not embeddings.is_floating_point() or not embeddings.isfinite().all():
        raise UserError(f"'embeddings' of {name} must be finite floats: they are not. {hint}")
    initial = [config.text_vocab_size, *[config.audio_vocab_size] * config.num_codebooks]
    highest = torch.tensor(initial)[:, None]
    if cache.dtype != torch.int64 or not ((cache >= UNGENERATED) & (cache <= highest)).all():
        raise UserError(f"'cache' of {name} must hold int64 ids of the model: it does not. {hint}")


def _delays(config: MoshiConfig) -> Int[Tensor, " S"]:
    """Return the delay of the text and of every codebook, in the order of a frame."""
    audio = [stream.delay_ticks for stream in config.audio for _ in range(stream.depth)]
    return torch.tensor([config.text_delay_ticks, *audio])


def _ring_size(config: MoshiConfig) -> int:
    return int(_delays(config).max()) + 3
