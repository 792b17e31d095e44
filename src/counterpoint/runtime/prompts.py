"""Prompts: what all streams said before a session, and beginnings of them that are read once.

Column 0 of what a session reads is the initial frame; content frame f of a stream stands in column
f + 1 + its delay.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.formats.moshi.voice import Voice, voice_codes
from counterpoint.streams.spec import Ticks
from counterpoint.systems.moshi import Moshi, MoshiState
from counterpoint.systems.moshi_streams import TEXT


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefix:
    """The beginning of prompts, read once; see `read_prefix`.

    Attributes:
        columns: What was read: the initial frame and the content frames, late streams behind.
        z: What the model makes of the newest column.
        caches: The slots of the model's caches that they fill.
    """

    columns: Ticks
    z: Float[Tensor, "1 D"]
    caches: tuple[Tensor, ...]

    @property
    def num_frames(self) -> int:
        """Content frames."""
        return self.columns[TEXT].shape[1] - 1


@torch.no_grad()
def read_prefix(system: Moshi, codes: Ticks) -> Prefix:
    """Read the beginning of prompts, such as a voice, for any number of sessions of this model.

    Args:
        system: The model.
        codes: As a prompt of `FrameSessions.start`.

    Raises:
        ValueError: They do not fit the model.
    """
    columns, num_frames = prompt_columns(system, codes)
    columns = {name: ids[:, : num_frames + 1] for name, ids in columns.items()}
    z, state = system.read(columns, system.initial_state(1))
    return _kept(system, columns, z, state)


@torch.no_grad()
def read_voice_prefix(system: Moshi, voice: Voice) -> tuple[Ticks, Prefix]:
    """Read a voice for any number of sessions of this model, as PersonaPlex's own code does.

    Args:
        system: The model.
        voice: From its file.

    Returns:
        The codes of the voice's frames, to be put before a prompt (`behind_voice`), and the prefix
        with which such a prompt begins.

    Raises:
        ValueError: The voice is another model's.
    """
    codes = voice_codes(voice, system)
    columns, num_frames = prompt_columns(system, codes)
    x = voice.embeddings[:, 0].to(system.text_embedding.table.weight).transpose(0, 1)
    z, state = system.read_embedded(x, system.initial_state(1))
    return codes, _kept(system, {n: ids[:, :num_frames] for n, ids in columns.items()}, z, state)


def _kept(system: Moshi, columns: Ticks, z: Float[Tensor, "1 T D"], state: MoshiState) -> Prefix:
    num_slots = min(z.shape[1], system.temporal.capacity)
    caches = tuple(cache[:, :, :, :num_slots].clone() for cache in state.caches)
    return Prefix(columns=columns, z=z[:, -1], caches=caches)


def behind_voice(codes: Ticks, prompt: Ticks | None) -> Ticks:
    """A prompt that begins with the frames of a voice.

    Raises:
        ValueError: The prompt has other streams.
    """
    if prompt is None:
        return codes
    if set(prompt) != set(codes):
        raise ValueError(
            f"A prompt behind a voice must be of all streams ({', '.join(codes)}): got "
            f"{', '.join(prompt) or 'none'}."
        )
    return {name: torch.cat((ids, prompt[name].to(ids.device)), 1) for name, ids in codes.items()}


def prompt_columns(system: Moshi, prompt: Ticks | None) -> tuple[Ticks, int]:
    """The columns of a prompt behind the initial frame, late streams at their end; its frames.

    Raises:
        ValueError: The prompt does not fit the model.
    """
    if prompt is None:
        prompt = {name: ids[:, :0] for name, ids in system.initial_frame(1).items()}
    for name, ids in prompt.items():
        if not holds_whole_numbers(ids):
            raise ValueError(f"Ids of a prompt must be whole numbers: got {ids.dtype} for {name}.")
    if TEXT in prompt and (prompt[TEXT].ndim != 2 or len(prompt[TEXT]) != 1):
        raise ValueError(
            f"A prompt must be one row, of text (1, P): got text {tuple(prompt[TEXT].shape)}."
        )
    device = system.text_embedding.table.weight.device
    columns = {name: ids.to(device) for name, ids in system.frames(prompt).items()}
    return columns, prompt[TEXT].shape[1]


def check_prefix(prefix: Prefix, columns: Ticks, num_prompt: int) -> None:
    """Refuse a prefix with which the columns of a prompt do not begin.

    Raises:
        ValueError: They begin otherwise.
    """
    read = {name: ids[:, : prefix.num_frames + 1] for name, ids in columns.items()}
    if not all(torch.equal(ids, read[name]) for name, ids in prefix.columns.items()):
        raise ValueError(
            f"A prompt must begin with its prefix of {prefix.num_frames} frames: its {num_prompt} "
            "frames do not. Give both in one prompt, or no prefix."
        )


def holds_whole_numbers(ids: Tensor) -> bool:
    """Whether a tensor may hold ids; truth values may not."""
    return not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
