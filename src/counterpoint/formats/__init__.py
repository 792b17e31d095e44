"""Foreign files: weights, configs and voices of published models, read and written.

`FORMATS` is the table of all of them. Whoever has a path asks `find_format` and never names a
format; adding one is a module here and an entry in the table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from counterpoint.blocks.low_rank import LowRankConfig
from counterpoint.errors import UserError
from counterpoint.formats import llama
from counterpoint.formats.mimi import open_mimi
from counterpoint.formats.moshi import published as moshi
from counterpoint.formats.moshi.voice import FILES as VOICE_FILES
from counterpoint.formats.published import Companions as Companions
from counterpoint.formats.published import PublishedModel as PublishedModel
from counterpoint.speech.codec import Codec
from counterpoint.speech.codec2 import Codec2
from counterpoint.streams.spec import Ticks
from counterpoint.systems.contract import Prefix, System


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How the files of one family of published models are used.

    Attributes:
        system: Class name of the systems that they hold.
        matches: Whether a path (a folder, or a file of weights) is of the format.
        open: What a path holds, before its weights are read.
        load: The system of a path; like another one, where the format leaves a choice.
        save: Writes a system to a new folder with what belongs to it, in files of at most so many
            bytes; ``None``: this library cannot.
        save_adapters: Writes adapters of a system to a new folder; ``None``: it has none.
    """

    system: str
    matches: Callable[[Path], bool]
    open: Callable[[Path], PublishedModel]
    load: Callable[[Path, System | None], System]
    save: Callable[[System, Path, Companions, int | None], None] | None = None
    save_adapters: Callable[[System, Path, LowRankConfig], None] | None = None


FORMATS: dict[str, Format] = {
    "llama": Format(
        system="SingleStream",
        matches=llama.matches,
        open=llama.open_llama,
        load=llama.load,
        save=llama.save,
    ),
    "moshi": Format(
        system="Moshi",
        matches=moshi.matches,
        open=moshi.open_folder,
        load=moshi.load,
        save=moshi.save,
        save_adapters=moshi.save_low_rank,
    ),
}
"""Every format by name."""


def find_format(path: Path) -> Format | None:
    """The format of a path; ``None`` where it is of no published model."""
    return next((known for known in FORMATS.values() if known.matches(path)), None)


def is_voice(path: Path) -> bool:
    """Whether a path is named like a voice that a model has embedded already."""
    return path.suffix in VOICE_FILES


def open_voice(path: Path, system: System) -> tuple[Ticks, Prefix]:
    """The frames of a voice from its file, and what the model makes of them.

    Raises:
        UserError: The file is no voice, or not one of this model.
    """
    if type(system).__name__ != FORMATS["moshi"].system:
        raise UserError(
            f"{path} must be a voice of this model: voices of PersonaPlex are for models of its "
            "family. Give a recording instead."
        )
    return moshi.open_voice(path, system)


def open_codec(name: str, num_codebooks: int, device: torch.device | str = "cpu") -> Codec:
    """The codec "codec2", or Mimi with the weights of a file.

    Args:
        name: Name of the codec, or the path of Mimi's weights.
        num_codebooks: Codebooks in a frame of one speaker.
        device: Where Mimi computes.

    Raises:
        UserError: It cannot be used, or has other codebooks.
    """
    if name != "codec2":
        return open_mimi(name, num_codebooks, device)
    codec = Codec2()
    if len(codec.codebook_sizes) != num_codebooks:
        raise UserError(
            f"Codec2 has {len(codec.codebook_sizes)} codebooks: the model has {num_codebooks} for "
            "a speaker. Change the model's `audio`, or take another codec."
        )
    return codec
