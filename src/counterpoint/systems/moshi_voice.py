"""Voices: the frames of a speaker's sample that PersonaPlex hears before a conversation.

NVIDIA ships a voice as a pickle ``{"embeddings", "cache"}``, which is read with nothing but tensors
allowed, and kept as safetensors with the same two names.

Source: PersonaPlex (arXiv:2602.06053), voice prompt; the format is that of NVIDIA's loader.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from counterpoint.systems.moshi_config import ReferenceConfig
from counterpoint.systems.moshi_weights import flush

UNGENERATED = -2  # the lowest id in a ring: an entry that is yet to be predicted


@dataclass(frozen=True, kw_only=True, slots=True)
class Voice:
    """A voice prompt that a model has read already.

    Attributes:
        embeddings: Input of the temporal transformer at each frame, summed over the streams.
        cache: Ring of the last tokens, of text and audio: 1 + ``n_q`` streams, and
            ``max_delay + 3`` frames.
    """

    embeddings: Float[Tensor, "T 1 1 D"]
    cache: Int[Tensor, "1 S R"]


def read_voice(path: Path, config: ReferenceConfig) -> Voice:
    """Read a voice, `.pt` (tensors only) or `.safetensors`.

    Args:
        path: File.
        config: Of the model that shall hear it, which must be the one that made it.

    Returns:
        The voice, on the CPU, embeddings of the type that they were stored with.

    Raises:
        ValueError: The file holds anything else, or does not fit the model.
    """
    try:
        held = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except OSError as problem:
        raise ValueError(f"{path} must be readable: {problem}. Check the path.") from None
    except Exception as problem:  # a hostile file can make a reader fail in any way
        raise ValueError(
            f"{path} must be a whole file of plain tensors: reading it ended in "
            f"{type(problem).__name__}. What is no tensor could run code and is refused."
        ) from None
    if not isinstance(held, dict) or held.keys() != {"embeddings", "cache"}:
        names = sorted(map(str, held)) if isinstance(held, dict) else type(held).__name__
        raise ValueError(
            f"{path} must hold 'embeddings' and 'cache': got {names}. Name the file of a voice."
        )
    _check(held, config, str(path))
    return Voice(embeddings=held["embeddings"], cache=held["cache"])


def write_voice(voice: Voice, config: ReferenceConfig, path: Path) -> None:
    """Write a voice as safetensors, whole or not at all.

    Raises:
        ValueError: It does not fit ``config``, or cannot be written.
    """
    tensors = {"embeddings": voice.embeddings.cpu(), "cache": voice.cache.cpu()}
    _check(tensors, config, "the voice")
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
        flush(partial)
        partial.rename(path)
        flush(path.parent)
    except (OSError, SafetensorError) as problem:
        partial.unlink(missing_ok=True)
        raise ValueError(f"{path} must be writable: {problem}. Choose another.") from None


def _check(tensors: Mapping[str, Any], config: ReferenceConfig, name: str) -> None:
    """Check types, shapes and ranges: an id out of range would be looked up beyond its table."""
    embeddings, cache, streams = tensors["embeddings"], tensors["cache"], config.streams
    got = {
        key: tuple(tensor.shape)
        for key, tensor in tensors.items()
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided
    }
    expected = {
        "embeddings": (*got.get("embeddings", ())[:1], 1, 1, config.tower.dim),
        "cache": (1, streams.n_q + 1, config.max_delay + 3),
    }
    hint = "Use a voice made for this model."
    if got != expected or got["embeddings"][0] == 0:
        raise ValueError(f"{name} must have the shapes {expected}: got {got}. {hint}")
    if not embeddings.is_floating_point() or not embeddings.isfinite().all():
        raise ValueError(f"'embeddings' of {name} must be finite floats: they are not. {hint}")
    highest = torch.tensor([streams.text_card, *[streams.card] * streams.n_q])[:, None]
    if cache.dtype != torch.int64 or not ((cache >= UNGENERATED) & (cache <= highest)).all():
        raise ValueError(f"'cache' of {name} must hold int64 ids of the model: not so. {hint}")
