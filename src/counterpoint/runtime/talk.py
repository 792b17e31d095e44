"""A live conversation: samples of the user in, the samples that sound meanwhile out.

Source: the schedule of Moshi (arXiv:2410.00037), section 3.4, as `FrameSessions` keeps it.

When things sound. A frame of the user is heard when its last sample has come. What a model of delay
m (of the latest stream that it says) then completes is frame f + 1 - m of its own, and can be
played at once. So its content frame c sounds from sample (c + m) * frame_samples on, and its text
at the same time: what a listener in the room hears from a computer without computing time. Before
frame m there is silence. What sounds in a frame depends on no sample of that frame.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.data.speech.dialogues import VOICE_LUFS
from counterpoint.data.speech.monologue import read_monologue
from counterpoint.data.speech.rows import codec_fillers
from counterpoint.data.speech.words import WordTokenizer
from counterpoint.formats.moshi.voice import Voice
from counterpoint.runtime.engine import pinned
from counterpoint.runtime.frames import FrameSampling, FrameSessions
from counterpoint.runtime.prompts import Prefix, behind_voice, read_voice_prefix
from counterpoint.speech.codec import Codec, check_channel
from counterpoint.speech.loudness import normalise_loudness
from counterpoint.streams.spec import Role, Ticks
from counterpoint.streams.timeline import Timeline
from counterpoint.systems.moshi import Moshi
from counterpoint.systems.moshi_streams import TEXT, MoshiConfig, speaker_streams
from counterpoint.systems.personaplex import Fillers, check_voice, hybrid_prompt, tagged_role

AGENT, USER = "agent", "user"
"""Names of the two speakers in timelines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speaker:
    """A model that talks, with what turns sound and words into its ids.

    Attributes:
        system: A Moshi with streams that are spoken, before those that are heard.
        codec: Of both speakers.
        tokenizer: Of the text.
        fillers: What a prompt carries where nothing is said; ``None`` for silence and a hum as the
            codec encodes them.

    Raises:
        ValueError: The model cannot talk; or rate, codebooks or ids of model and codec differ.
    """

    system: Moshi
    codec: Codec
    tokenizer: WordTokenizer
    fillers: Fillers | None = None

    def __post_init__(self) -> None:
        config, sizes = self.system.config, self.codec.codebook_sizes
        num_said = _num_agent_codebooks(config)
        said, heard = config.codebook_sizes[:num_said], config.codebook_sizes[num_said:]
        if not len(said) == len(heard) == len(sizes):
            raise ValueError(
                f"Agent and user must have the codec's {len(sizes)} codebooks each: got "
                f"{len(said)} and {len(heard)}."
            )
        for who, own, fits in (
            ("agent's codebooks must have at most", said, torch.le),
            ("user's codebooks must have at least", heard, torch.ge),
        ):
            if not fits(torch.tensor(own), torch.tensor(sizes)).all():
                raise ValueError(
                    f"The {who} the codec's {sizes} ids: got {own}. Give its streams "
                    "`codebook_sizes`."
                )
        if self.codec.frame_rate_hz != config.tick_hz:
            raise ValueError(
                f"The codec must have the model's {config.tick_hz} frames a second: it has "
                f"{self.codec.frame_rate_hz}."
            )


class Conversation:
    """One conversation with a model, from its first sample on.

    Memory does not grow but for a text id and a time of each frame.

    Args:
        speaker: Who talks; a model that predicts both speakers says its own part.
        sampling: How it chooses; by default as the published Moshi does.
        prompt: What was before, of `opening`.
        prefix: What of the prompt has been read, of `opening_in_voice`.
        pin: Whether the prompt stays when the model's window has moved on; the rest of the window
            is for the newest frames.
        clock: Gives seconds, to time the steps.

    Attributes:
        text_ids: The text of each frame said so far.
        step_s: Seconds that each frame took: encode, read, write, decode.

    Raises:
        ValueError: The prompt does not fit the model, or leaves a pinned window no room.
    """

    def __init__(
        self,
        speaker: Speaker,
        sampling: FrameSampling | None = None,
        *,
        prompt: Ticks | None = None,
        prefix: Prefix | None = None,
        pin: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.speaker = speaker
        self.text_ids: list[int] = []
        self.step_s: list[float] = []
        system = agent_alone(speaker.system)
        if pin and prompt is not None:
            system = pinned(system, prompt[TEXT].shape[1])
        said = {TEXT, *(stream.name for stream in system.predicted)}
        self._delay = max(s.delay_ticks for s in system.layout.streams if s.name in said)
        self._clock = clock
        self._encoder, self._decoder = speaker.codec.encoder(), speaker.codec.decoder()
        self._sessions = FrameSessions(system, 1)
        # What sounds in the frame that is being heard, and how much of that has come.
        opening = self._sessions.start(0, sampling, prompt=prompt, prefix=prefix)
        self._sound = self._decoded(opening)
        self._num_heard = 0

    @property
    def delay_s(self) -> float:
        """Seconds by which the model's own frames sound later than their content."""
        return self._delay / self.speaker.codec.frame_rate_hz

    def hear(self, samples: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Hear further samples, any number, at the codec's rate; give what sounds meanwhile.

        Raises:
            UserError: They are no samples of one channel (see `check_channel`). Nothing was heard.
        """
        check_channel(samples)  # of all frames: the sound of those before would be lost
        sound, frame_samples = [self._sound[:0]], self.speaker.codec.frame_samples
        while len(samples):
            stop = min(self._num_heard + len(samples), frame_samples)
            sound.append(self._sound[self._num_heard : stop])
            piece, samples = samples[: len(sound[-1])], samples[len(sound[-1]) :]
            began = self._clock()
            codes = self._encoder.push({0: piece})[0]
            self._num_heard = stop % frame_samples
            if len(codes):
                self._sound = self._decoded(self._answer(codes))
                self.step_s.append(self._clock() - began)
        return torch.cat(sound)

    def words(self) -> Timeline:
        """What was said so far as events of kind "word" of the agent, when it sounds.

        A word begins with the frame of its first id and ends with that of its last, as in
        `read_monologue`; how long it sounds is not in the text.
        """
        config, tokenizer = self.speaker.system.config, self.speaker.tokenizer
        ids = torch.tensor(self.text_ids, dtype=torch.long)
        known = ids.where(ids < tokenizer.vocab_size, config.text_padding_id)
        said = read_monologue(
            known,
            tokenizer.decode,
            self.speaker.codec.frame_rate_hz,
            starts_word=tokenizer.starts_word,
            stream=AGENT,
            pad_id=config.text_padding_id,
        )
        said = replace(said, events=tuple(event for event in said if event.text))
        return said.shift(self.delay_s)

    def _answer(self, codes: Int[Tensor, "1 K"]) -> Mapping[str, Tensor] | None:
        """Hear one frame, and say what is complete then."""
        heard = speaker_streams(self.speaker.system.config, Role.HEARD, codes)
        return self._sessions.step({0: {name: ids[0] for name, ids in heard.items()}}).get(0)

    def _decoded(self, frame: Mapping[str, Tensor] | None) -> Float[Tensor, " N"]:
        """The sound of a frame; silence where the model's first is not complete yet."""
        codec = self.speaker.codec
        if frame is None:
            return torch.zeros(codec.frame_samples)
        self.text_ids.append(int(frame[TEXT]))
        spoken = [s.name for s in self.speaker.system.config.audio if s.role == Role.SPOKEN]
        codes = torch.cat([frame[name] for name in spoken])
        return self._decoder.push({0: codes[None]})[0].float().cpu()


def converse(
    conversation: Conversation, blocks: Iterable[Float[Tensor, "1 _N"]], tail_s: float = 0.0
) -> Iterator[Float[Tensor, "2 _N"]]:
    """Answer a recording block by block, however long it is.

    Args:
        conversation: Hears the recording.
        blocks: The recording at the codec's rate.
        tail_s: Seconds of silence that are heard behind it.

    Yields:
        For each block the agent (left) and the user as the model heard it (right).
    """
    rate = conversation.speaker.codec.sample_rate
    for block in blocks:
        yield torch.stack((conversation.hear(block[0]), block[0]))
    num_left = round(tail_s * rate)
    while num_left > 0:
        silence = torch.zeros(min(num_left, rate))
        num_left -= len(silence)
        yield torch.stack((conversation.hear(silence), silence))


def talk(
    speaker: Speaker,
    audio: Float[Tensor, " N"],
    sampling: FrameSampling | None = None,
    *,
    prompt: Ticks | None = None,
) -> tuple[Float[Tensor, "2 N"], Timeline]:
    """Answer a whole recording in memory.

    Args:
        speaker: Who answers.
        audio: The user, at the codec's rate.
        sampling: See `Conversation`.
        prompt: See `Conversation`.

    Returns:
        Agent (left) and user (right), and the words of the agent.
    """
    conversation = Conversation(speaker, sampling, prompt=prompt)
    both = torch.cat(list(converse(conversation, [audio[None]])), 1)
    return both, conversation.words()


def opening(
    speaker: Speaker, role: str = "", voice: Float[Tensor, " N"] | None = None
) -> Ticks | None:
    """The prompt that gives a conversation its role and voice; ``None`` without either.

    Args:
        speaker: Who shall have them.
        role: Text; put between tags as PersonaPlex reads it. Empty or blank for none.
        voice: A recording of the voice at the codec's rate; brought to -24 LUFS.

    Raises:
        ValueError: The voice is silent, or the prompt is longer than the model's window.
    """
    codec = speaker.codec
    if not tagged_role(role) and voice is None:
        return None
    codes = None
    if voice is not None:
        check_voice(speaker.system.config, len(voice) / codec.frame_samples)
        codes = codec.encode(normalise_loudness(voice[None], codec.sample_rate, VOICE_LUFS))[0]
    return _prompt(speaker, role, codes)


def opening_in_voice(speaker: Speaker, voice: Voice, role: str = "") -> tuple[Ticks, Prefix]:
    """The prompt that gives a conversation a voice of PersonaPlex, and a role.

    Args:
        speaker: Who shall have them.
        voice: From its file.
        role: As in `opening`.

    Returns:
        The prompt, and what of it has been read; a `Conversation` needs both.

    Raises:
        ValueError: The voice is another model's, or the prompt is longer than the model's window.
    """
    codes, prefix = read_voice_prefix(speaker.system, voice)
    prompt = behind_voice(codes, _prompt(speaker, role, None))
    num_frames, window = prompt[TEXT].shape[1], speaker.system.config.temporal.window
    if num_frames >= window:
        raise ValueError(
            f"A prompt must be shorter than the model's window of {window} frames: got "
            f"{num_frames}, {codes[TEXT].shape[1]} of them of the voice. "
            + ("Shorten the role." if tagged_role(role) else "Take a shorter voice.")
        )
    return prompt, prefix


def _prompt(speaker: Speaker, role: str, voice: Int[Tensor, "T K"] | None) -> Ticks:
    tagged = tagged_role(role)
    return hybrid_prompt(
        speaker.system.config,
        speaker.tokenizer.encode_word(tagged) if tagged else (),
        voice,
        speaker.fillers or codec_fillers(speaker.codec),
    )


def agent_alone(system: Moshi) -> Moshi:
    """The model that predicts the agent and hears everyone else.

    Raises:
        ValueError: It does not speak first and hear then, or does not predict what is spoken.
    """
    num_codebooks = _num_agent_codebooks(system.config)
    if system.config.num_predicted == num_codebooks:
        return system
    return system.trimmed(num_codebooks)


def _num_agent_codebooks(config: MoshiConfig) -> int:
    spoken = [stream for stream in config.audio if stream.role == Role.SPOKEN]
    depth = sum(stream.depth for stream in spoken)
    others = config.audio[len(spoken) :]
    if not spoken or not others or any(stream.role == Role.SPOKEN for stream in others):
        raise ValueError(
            "A model that talks must have audio streams that it speaks, then ones that it hears: "
            f"got {', '.join(f'{s.name} ({s.role.value})' for s in config.audio)}."
        )
    if depth > config.num_predicted:
        raise ValueError(
            f"A model that talks must predict the {depth} codebooks that it speaks: this one "
            f"predicts {config.num_predicted}."
        )
    return depth
