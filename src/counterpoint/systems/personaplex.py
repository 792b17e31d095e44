"""PersonaPlex: Moshi that has been given a role and a voice before the conversation.

Source: PersonaPlex (arXiv:2602.06053) and its published code. The model is Moshi with both speakers
predicted; what is new is the hybrid prompt, a past that never was: the agent speaks a sample of its
voice, then reads its role in the text stream, while the user's channel hums.
Deviations: the prompt is read in one pass (`FrameSessions.start`), not frame by frame; an empty
role leaves its segment out, where the published code fails. The constants are those of the
published code; no published weight file was opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from counterpoint.streams.spec import Role, Ticks
from counterpoint.systems.moshi import moshi_7b
from counterpoint.systems.moshi_streams import TEXT, MoshiConfig, speaker_streams, two_speakers

TAG = "<system>"
"""Opens and closes a role; plain text to the tokeniser."""

SILENCE = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)
"""Mimi codes of a silent frame."""

SINE = (430, 1268, 381, 1611, 1095, 1495, 56, 472)
"""Mimi codes of a frame of a 440 Hz sine of amplitude 0.5."""


def personaplex_7b() -> MoshiConfig:
    """The published model: Moshi with 16 predicted codebooks, and the loss weights of its training.

    Acoustic codebooks weigh 1/50 of semantic ones, text padding 0.3.
    """
    return replace(moshi_7b(16), audio=two_speakers(7, semantic_weight=50.0), text_light_weight=0.3)


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


def check_voice(config: MoshiConfig, num_frames: float) -> None:
    """Refuse a sample of a voice that no prompt can hold, before the work of encoding it.

    Raises:
        ValueError: It is not shorter than the model's window.
    """
    if num_frames >= config.temporal.window:
        raise ValueError(
            f"A prompt must be shorter than the model's window of {config.temporal.window} frames: "
            f"got a voice of {num_frames:.0f}. Take a shorter voice."
        )


def hybrid_prompt(
    config: MoshiConfig,
    role_ids: Sequence[int],
    voice: Int[Tensor, "T K"] | None = None,
    fillers: Fillers | None = None,
) -> Ticks:
    """The past that gives a session its voice and its role.

    Voice, pause, role (one text id a frame), pause. In training nothing of it carries loss.

    Args:
        config: Of the model.
        role_ids: Text ids of `tagged_role`; empty for no role.
        voice: Codes of a sample of the voice (the published ones are of -24 LUFS); ``None`` leaves
            the voice to the model.
        fillers: What is said where nothing is; by default the published model's.

    Returns:
        One row in content order of all streams, as `FrameSessions.start` and `Moshi.frames` take
        it: text (1, P), audio (1, P, K).

    Raises:
        ValueError: Codes do not fit the model's codebooks, or the prompt its window.
    """
    fillers = fillers or Fillers()
    agent, user = (torch.tensor([codes]) for codes in (fillers.agent, fillers.user))
    said = agent[:0] if voice is None else voice.cpu()
    pause = int(fillers.pause_s * config.tick_hz)
    padding = config.text_padding_id
    text = [padding] * (len(said) + pause) + [*role_ids] + [padding] * pause
    channels = {
        Role.SPOKEN: torch.cat((said, agent.expand(len(text) - len(said), -1))),
        Role.HEARD: user.expand(len(text), -1),
    }
    if len(text) >= config.temporal.window:
        raise ValueError(
            f"A prompt must be shorter than the model's window of {config.temporal.window} frames: "
            f"got {len(text)}. Shorten the voice ({len(said)} frames) or the role "
            f"({len(role_ids)} ids)."
        )
    prompt = {TEXT: torch.tensor([text], dtype=torch.long)}
    for role, codes in channels.items():
        prompt |= speaker_streams(config, role, codes[None])
    return prompt
