"""Openings: the past that gives a session its voice and its role.

PersonaPlex's hybrid prompt, a past that never was: the agent speaks a sample of its voice, then
reads its role in the text stream, while the user's channel hums. It is content of all streams of a
layout, so any model with streams that are spoken and heard can be given one.

Source: PersonaPlex (arXiv:2602.06053) and its published code. Deviations: the prompt is read in one
pass (`Sessions.start`), not frame by frame; an empty role leaves its segment out, where the
published code fails.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.speech.codec import Codec
from counterpoint.streams.spec import Role, Ticks
from counterpoint.systems.contract import System

TAG = "<system>"
"""Opens and closes a role; plain text to the tokeniser."""

SILENCE = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)
"""Mimi codes of a silent frame, as published."""

SINE = (430, 1268, 381, 1611, 1095, 1495, 56, 472)
"""Mimi codes of a frame of a 440 Hz sine of amplitude 0.5, as published."""

PUBLISHED_SIZES = (2048,) * len(SILENCE)
"""Ids of the codebooks of the Mimi that these codes are of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fillers:
    """What the channels carry where a prompt says nothing; one code a codebook of a speaker.

    Attributes:
        agent: Codes of a silent frame.
        user: Codes of a hum.
        pause_s: Silence behind the voice and behind the role, in seconds.
    """

    agent: tuple[int, ...] = SILENCE
    user: tuple[int, ...] = SINE
    pause_s: float = 0.5


def codec_fillers(codec: Codec) -> Fillers:
    """Silence and the hum of PersonaPlex in the ids of any codec: a frame amid a second of it."""
    time_s = torch.arange(codec.sample_rate) / codec.sample_rate
    hum = 0.5 * torch.sin(2 * torch.pi * 440.0 * time_s)
    codes = codec.encode(torch.stack((torch.zeros_like(hum), hum)))
    agent, user = codes[:, codes.shape[1] // 2].tolist()
    return Fillers(agent=tuple(agent), user=tuple(user))


def tagged_role(role: str) -> str:
    """A role between tags, as the model was trained to read it.

    Tags that the role brings stay and are never doubled: where only one end has a tag, the other
    end gets one. A role that is blank, or a tag and nothing else, stays as it is.

    Source: the published code, which puts both tags around a role that has one of them. Deviation:
    no tag is written twice.
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
    """Refuse a sample of a voice that no prompt can hold, before the work of encoding it.

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
    """The past that gives a session its voice and its role.

    Voice, pause, role (one text id a frame), pause. In training nothing of it carries loss.

    Args:
        system: The model, with a text stream with padding and streams that are spoken and heard.
        role_ids: Text ids of `tagged_role`; empty for no role.
        voice: Codes of a sample of the voice (the published ones are of -24 LUFS); ``None`` leaves
            the voice to the model.
        fillers: What is said where nothing is; by default the published model's.

    Returns:
        One row in content order of all streams, as `Sessions.start` and `System.lay_out` take it:
        text (1, P), audio (1, P, K).

    Raises:
        UserError: Codes do not fit the model's codebooks, or the prompt its window; or a stream
            has steps of several ticks.
    """
    fillers = fillers or Fillers()
    layout = system.layout
    if layout.slow:
        raise UserError(
            "A voice and a role make a prompt where every stream has an element in every frame: "
            f"{', '.join(stream.name for stream in layout.slow)} has not. Give it by stream."
        )
    window_ticks = system.window_ticks
    agent = torch.tensor([fillers.agent])
    user = torch.tensor([fillers.user])
    said = agent[:0] if voice is None else voice.cpu()
    pause = [layout.text.padding_id] * int(fillers.pause_s * (layout.tick_hz or 0))
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
