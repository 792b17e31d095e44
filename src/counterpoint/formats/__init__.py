"""Foreign files: weights, configs and voices of published models, read and written.

`FORMATS` is the table of all formats. Other code calls `find_format` with a path and never names a
format. To add a format, add a module here and an entry in the table.
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
        system: Class name of the systems in its files.
        matches: Returns whether a path (a folder, or a file of weights) has the format.
        open: Opens a path without reading its weights.
        load: Loads the system of a path; if the format leaves a choice, like another system.
        save: Writes a system and what belongs to it to a new folder, in files of a largest size in
            bytes; ``None`` if this library cannot.
        save_adapters: Writes adapters of a system to a new folder; ``None`` if the format has none.
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
"""All formats by name."""


def find_format(path: Path) -> Format | None:
    """Return the format of a path; ``None`` if it is no published model."""
    return next((known for known in FORMATS.values() if known.matches(path)), None)


def is_voice(path: Path) -> bool:
    """Return whether the name of a path is that of a voice that a model has already embedded."""
    return path.suffix in VOICE_FILES


def open_voice(path: Path, system: System) -> tuple[Ticks, Prefix]:
    """Return the frames of a voice file, and the prefix that the model computes from them.

    Raises:
        UserError: The file is no voice, or the voice of another model.
    """
    if type(system).__name__ != FORMATS["moshi"].system:
        raise UserError(
            f"{path} must be a voice of this model: voices of PersonaPlex are for models of its "
            "family. Give a recording instead."
        )
    return moshi.open_voice(path, system)


def open_codec(name: str, num_codebooks: int, device: torch.device | str = "cpu") -> Codec:
    """Open the codec "codec2", or Mimi with the weights of a file.

    Args:
        name: "codec2", or the path of Mimi's weights.
        num_codebooks: Number of codebooks in a frame of one speaker.
        device: Device on which Mimi computes.

    Raises:
        UserError: It cannot be used, or has another number of codebooks.
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
