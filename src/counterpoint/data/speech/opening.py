"""Openings: a prompt that gives a session its voice and its role.

PersonaPlex's hybrid prompt is an invented past: the agent speaks a sample of its voice, then reads
its role in the text stream, while the user's channel holds a hum. The prompt is content of all
streams of a layout, so any model with spoken and heard streams can use it.

Source: PersonaPlex (arXiv:2602.06053) and its published code. Deviations: the prompt is read in one
pass (`Sessions.start`), not frame by frame; an empty role leaves its segment out, while the
published code fails.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.speech.codec import Codec
from counterpoint.streams.seconds import exact, num_complete
from counterpoint.streams.spec import Role, Ticks
from counterpoint.systems.contract import System

TAG = "<system>"
"""Marks the beginning and the end of a role; it is plain text for the tokeniser."""

SILENCE = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)
"""Mimi codes of a silent frame, as published."""

SINE = (430, 1268, 381, 1611, 1095, 1495, 56, 472)
"""Mimi codes of a frame of a 440 Hz sine of amplitude 0.5, as published."""

PUBLISHED_SIZES = (2048,) * len(SILENCE)
"""Number of ids of each codebook of the Mimi to which these codes belong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fillers:
    """Content of the channels where a prompt says nothing; one code for each codebook.

    Attributes:
        agent: Codes of a silent frame.
        user: Codes of a frame of a hum.
        pause_s: Silence after the voice and after the role, in seconds.
    """

    agent: tuple[int, ...] = SILENCE
    user: tuple[int, ...] = SINE
    pause_s: float = 0.5


def codec_fillers(codec: Codec) -> Fillers:
    """Encode silence and PersonaPlex's hum with any codec; the frames are cut from a second."""
    time_s = torch.arange(codec.sample_rate) / codec.sample_rate
    hum = 0.5 * torch.sin(2 * torch.pi * 440.0 * time_s)
    codes = codec.encode(torch.stack((torch.zeros_like(hum), hum)))
    agent, user = codes[:, codes.shape[1] // 2].tolist()
    return Fillers(agent=tuple(agent), user=tuple(user))


def tagged_role(role: str) -> str:
    """Put a role between tags, as the model was trained to read it.

    Tags in the role are kept and never doubled: if only one end has a tag, the other end gets one.
    A role that is blank, or only a tag, is not changed.

    Source: the published code, which adds both tags to a role that has one of them. Deviation: no
    tag is written twice.
    """
    role = role.strip()
    if not role or role == TAG:
        return role
    if not role.startswith(TAG):
        role = f"{TAG} {role}"
    if not role.endswith(TAG):
        role = f"{role} {TAG}"
    return role


def check_voice(window_ticks: int, num_frames: float) -> None:
    """Refuse a voice sample that no prompt can hold, before it is encoded.

    Raises:
        UserError: It is not shorter than the model's window.
    """
    if num_frames >= window_ticks:
        raise UserError(
            f"A prompt must be shorter than the model's window of {window_ticks} frames: "
            f"got a voice of {num_frames:.0f}. Take a shorter voice."
        )


def hybrid_prompt(
    system: System,
    role_ids: Sequence[int],
    voice: Int[Tensor, "T K"] | None = None,
    fillers: Fillers | None = None,
) -> Ticks:
    """Return the prompt that gives a session its voice and its role.

    It consists of voice, pause, role (one text id a frame) and pause. In training it carries no
    loss.

    Args:
        system: A model with spoken and heard streams, and a text stream with padding.
        role_ids: Text ids of `tagged_role`; empty for no role.
        voice: Codes of a voice sample (the published ones have a loudness of -24 LUFS); ``None``
            leaves the voice to the model.
        fillers: Content of the channels where nothing is said; by default the published model's.

    Returns:
        One row in content order of all streams, for `Sessions.start` and `System.lay_out`: text
        (1, P), audio (1, P, K).

    Raises:
        UserError: The codes do not fit the model's codebooks, the prompt does not fit its window,
            or a stream has steps of several ticks.
    """
    fillers = fillers or Fillers()
    layout = system.layout
    if layout.slow:
        raise UserError(
            "A prompt of a voice and a role needs an element of every stream in every frame: "
            f"{', '.join(stream.name for stream in layout.slow)} has fewer. Give it by stream."
        )
    window_ticks = system.window_ticks
    agent = torch.tensor([fillers.agent])
    user = torch.tensor([fillers.user])
    said = agent[:0] if voice is None else voice.cpu()
    pause_ticks = num_complete(fillers.pause_s, 1 / exact(layout.tick_hz)) if layout.tick_hz else 0
    pause = [layout.text.padding_id] * pause_ticks
    text = [layout.text.padding_id] * len(said) + pause + [*role_ids] + pause
    if len(text) >= window_ticks:
        raise UserError(
            f"A prompt must be shorter than the model's window of {window_ticks} frames: "
            f"got {len(text)}. Shorten the voice ({len(said)} frames) or the role "
            f"({len(role_ids)} ids)."
        )
    spoken = torch.cat((said, agent.expand(len(text) - len(said), -1)))
    heard = user.expand(len(text), -1)
    return {
        layout.text.name: torch.tensor([text], dtype=torch.long),
        **layout.with_role(Role.SPOKEN, spoken[None]),
        **layout.with_role(Role.HEARD, heard[None]),
    }
