"""A live conversation: samples of the user go in, samples of the agent come out meanwhile.

Source: the schedule of Moshi (arXiv:2410.00037), section 3.4, as `Sessions` implements it.

Timing of the sound. Frame f of the user is heard when its last sample has arrived. If m is the
delay of the latest stream that the model says, the model then completes frame f + 1 - m of its own,
which can be played at once. Its content frame c, sound and text, is therefore played from sample
(c + m) * frame_samples on: that is what a listener hears if computing takes no time. Before frame m
there is silence. The sound played during a frame depends on no sample of that frame.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.data.speech.dialogues import VOICE_LUFS
from counterpoint.data.speech.monologue import read_monologue
from counterpoint.data.speech.opening import (
    Fillers,
    check_voice,
    codec_fillers,
    hybrid_prompt,
    tagged_role,
)
from counterpoint.data.speech.words import WordTokenizer
from counterpoint.errors import UserError, absent
from counterpoint.formats import is_voice, open_voice
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.prefix import behind
from counterpoint.runtime.sessions import Sessions
from counterpoint.runtime.threads import threads_of_session
from counterpoint.speech.audio import inspect_audio, read_audio
from counterpoint.speech.codec import Codec, check_channel
from counterpoint.speech.loudness import normalise_loudness
from counterpoint.streams import schedule
from counterpoint.streams.spec import Layout, Role, Ticks
from counterpoint.streams.timeline import Timeline
from counterpoint.systems.contract import Prefix, System
from counterpoint.train.threads import computing

AGENT = "agent"
USER = "user"
"""Names of the two speakers in timelines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Talker:
    """A model that talks, with what converts sound and words to its ids.

    Attributes:
        system: A model whose spoken streams come before its heard streams.
        codec: Converts the sound of both speakers to ids and back.
        tokenizer: Converts text to ids and back.
        fillers: Content of a prompt where nothing is said; ``None`` for silence and a hum as the
            codec encodes them.

    Raises:
        UserError: The model cannot talk, or the rate, codebooks or ids of model and codec differ.
    """

    system: System
    codec: Codec
    tokenizer: WordTokenizer
    fillers: Fillers | None = None

    def __post_init__(self) -> None:
        layout = self.system.agent_alone().layout
        sizes = self.codec.codebook_sizes
        said = _sizes(layout, Role.SPOKEN)
        heard = _sizes(layout, Role.HEARD)
        if not len(said) == len(heard) == len(sizes):
            raise UserError(
                f"Agent and user must have the codec's {len(sizes)} codebooks each: got "
                f"{len(said)} and {len(heard)}."
            )
        hint = "Give its streams `codebook_sizes`."
        if any(own > size for own, size in zip(said, sizes, strict=True)):
            raise UserError(
                f"The agent's codebooks must have at most the codec's {sizes} ids: got {said}. "
                f"{hint}"
            )
        if any(own < size for own, size in zip(heard, sizes, strict=True)):
            raise UserError(
                f"The user's codebooks must have at least the codec's {sizes} ids: got {heard}. "
                f"{hint}"
            )
        periods = {schedule.sound_period(layout, role) for role in (Role.SPOKEN, Role.HEARD)}
        rates = {(layout.tick_hz or 0.0) / period for period in periods}
        if {self.codec.frame_rate_hz} != rates:
            raise UserError(
                f"The codec must have the model's {' and '.join(map(str, sorted(rates)))} frames a "
                f"second: it has {self.codec.frame_rate_hz}."
            )
        if self.codec.frame_samples % max(periods):
            raise UserError(
                "A frame of the codec must be a whole number of samples for each of the model's "
                f"{max(periods)} ticks: got {self.codec.frame_samples} samples."
            )


def _sizes(layout: Layout, role: Role) -> tuple[int, ...]:
    """Return the number of ids of each codebook of a speaker."""
    return tuple(size for stream in layout.by_role(role) for size in stream.sizes)


class Conversation:
    """One conversation with a model, from its first sample on.

    Its memory grows only by a text id and a time for each frame. On a CPU it hears with as many
    threads as make ticks faster, unless the user has fixed their number (`threads_of_session`).

    Args:
        talker: The model. If it predicts both speakers, it says only its own part.
        sampling: How it chooses ids; by default as the published Moshi does.
        prompt: Earlier content, from `opening`.
        prefix: The part of the prompt that has been read already, from `begin`.
        pin: Whether the prompt stays readable when the model's window has moved on. The rest of the
            window is for the newest frames.
        clock: Returns seconds, to time the steps.

    Attributes:
        text_ids: Text id of each frame said so far.
        step_s: Seconds that each tick took: encode, read, write, decode.

    Raises:
        UserError: The prompt does not fit the model, ends within a step of a stream, or leaves no
            room in a window that pins it.
    """

    def __init__(
        self,
        talker: Talker,
        sampling: FrameSampling | None = None,
        *,
        prompt: Ticks | None = None,
        prefix: Prefix | None = None,
        pin: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.talker = talker
        self.text_ids: list[int] = []
        self.step_s: list[float] = []
        system = talker.system.agent_alone()
        if pin and prompt is not None:
            system = system.pinned(schedule.count_ticks(system.layout, prompt))
        self._layout = system.layout
        self._clock = clock
        self._num_threads = threads_of_session(system)
        self._encoder = talker.codec.encoder()
        self._decoder = talker.codec.decoder()
        self._sessions = Sessions(system, 1)
        # The sound of the frame that is being heard, and how much of that frame has arrived.
        period = schedule.sound_period(self._layout, Role.SPOKEN)
        self._tick_samples = talker.codec.frame_samples // period
        started = self._sessions.start(0, sampling, prompt=prompt, prefix=prefix)
        check_whole_steps(self._layout, started.num_prompt)
        self._num_unsaid = started.first_said - started.num_prompt
        self._sound = torch.zeros(0)
        self._num_heard = 0
        self._sound_next(started.opening)

    @property
    def delay_s(self) -> float:
        """Seconds between the start of a content frame and the time at which it is played."""
        return schedule.sounding_delay(self._layout) / (self._layout.tick_hz or 0.0)

    def hear(self, samples: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Hear any number of samples at the codec's rate, and return what sounds meanwhile.

        Raises:
            UserError: The samples are not of one channel (see `check_channel`). Then nothing was
                heard.
        """
        check_channel(samples)  # check all frames first, or the sound of earlier ones would be lost
        with computing(self._num_threads):
            return self._hear(samples)

    def _hear(self, samples: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        sound = [self._sound[:0]]
        while len(samples):
            stop = min(self._num_heard + len(samples), self._tick_samples)
            sound.append(self._sound[self._num_heard : stop])
            piece = samples[: len(sound[-1])]
            samples = samples[len(sound[-1]) :]
            began = self._clock()
            codes = self._encoder.push({0: piece})[0]
            self._num_heard = stop % self._tick_samples
            if not self._num_heard:  # the tick is over
                self._sound = self._sound[self._tick_samples :]
                self._sound_next(self._answer(codes))
                self.step_s.append(self._clock() - began)
        return torch.cat(sound)

    def words(self) -> Timeline:
        """Return the words said so far, as events of kind "word" at the time when they sound.

        A word begins with the frame of its first id and ends with that of its last id, as in
        `read_monologue`; the text does not say how long it sounds.
        """
        padding_id = self._layout.text.padding_id or 0
        text_hz = self._layout.rate_hz(self._layout.text.name)
        tokenizer = self.talker.tokenizer
        ids = torch.tensor(self.text_ids, dtype=torch.long)
        known = ids.where(ids < tokenizer.vocab_size, padding_id)
        said = read_monologue(
            known,
            tokenizer.decode,
            text_hz,
            starts_word=tokenizer.starts_word,
            stream=AGENT,
            pad_id=padding_id,
        )
        said = replace(said, events=tuple(event for event in said if event.text))
        unsaid_s = self._num_unsaid // self._layout.text.period_ticks / text_hz
        return said.shift(self.delay_s + unsaid_s)

    def _answer(self, codes: Int[Tensor, "_n K"]) -> Mapping[str, Tensor] | None:
        """Hear the frame that a tick has completed, if any, and return the frame to say."""
        heard = self._layout.with_role(Role.HEARD, codes) if len(codes) else {}
        return self._sessions.step({0: {name: ids[0] for name, ids in heard.items()}}).get(0)

    def _sound_next(self, frame: Mapping[str, Tensor] | None) -> None:
        """Play a frame from now on, or silence if none has begun yet."""
        frame = frame or {}
        if self._layout.text.name in frame:
            self.text_ids.append(int(frame[self._layout.text.name]))
        spoken = [stream.name for stream in self._layout.by_role(Role.SPOKEN)]
        if set(spoken) <= set(frame):
            codes = torch.cat([frame[name] for name in spoken])
            self._sound = self._decoder.push({0: codes[None]})[0].float().cpu()
        elif not len(self._sound):
            self._sound = torch.zeros(self._tick_samples)


def check_whole_steps(layout: Layout, num_ticks: int) -> None:
    """Refuse a prompt that ends within a step of a stream, because sound cannot continue there.

    Raises:
        UserError: The prompt ends within a step.
    """
    for stream in (*layout.predicted, *layout.heard):
        if num_ticks % stream.period_ticks:
            raise UserError(
                f"A prompt of a conversation must be whole steps of {stream.name!r}, of "
                f"{stream.period_ticks} ticks each: got {num_ticks} ticks."
            )


def converse(
    conversation: Conversation, blocks: Iterable[Float[Tensor, "1 _N"]], tail_s: float = 0.0
) -> Iterator[Float[Tensor, "2 _N"]]:
    """Answer a recording of any length, block by block.

    Args:
        conversation: The conversation that hears the recording.
        blocks: The recording at the codec's rate.
        tail_s: Seconds of silence that are heard after it.

    Yields:
        For each block, the agent (left) and the user as the model heard it (right).
    """
    rate = conversation.talker.codec.sample_rate
    for block in blocks:
        yield torch.stack((conversation.hear(block[0]), block[0]))
    num_left = round(tail_s * rate)
    while num_left > 0:
        silence = torch.zeros(min(num_left, rate))
        num_left -= len(silence)
        yield torch.stack((conversation.hear(silence), silence))


def talk(
    talker: Talker,
    audio: Float[Tensor, " N"],
    sampling: FrameSampling | None = None,
    *,
    prompt: Ticks | None = None,
) -> tuple[Float[Tensor, "2 N"], Timeline]:
    """Answer a whole recording in memory.

    Args:
        talker: The model that answers.
        audio: The user, at the codec's rate.
        sampling: See `Conversation`.
        prompt: See `Conversation`.

    Returns:
        Agent (left) and user (right), and the words of the agent.
    """
    conversation = Conversation(talker, sampling, prompt=prompt)
    both = torch.cat(list(converse(conversation, [audio[None]])), 1)
    return both, conversation.words()


def opening(
    talker: Talker, role: str = "", voice: Float[Tensor, " N"] | None = None
) -> Ticks | None:
    """Return the prompt of a conversation with a role and a voice; ``None`` without either.

    Args:
        talker: The model.
        role: Text of the role; it is put between tags, as PersonaPlex reads it. Empty or blank
            means no role.
        voice: A recording of the voice at the codec's rate; it is scaled to -24 LUFS.

    Raises:
        UserError: The voice is silent, or the prompt is longer than the model's window.
    """
    codec = talker.codec
    if not tagged_role(role) and voice is None:
        return None
    codes = None
    if voice is not None:
        check_voice(talker.system.window_ticks, len(voice) / codec.frame_samples)
        codes = codec.encode(normalise_loudness(voice[None], codec.sample_rate, VOICE_LUFS))[0]
    return _prompt(talker, role, codes)


def opening_behind(talker: Talker, codes: Ticks, role: str = "") -> Ticks:
    """Return the prompt that adds a role after the frames of a voice that was read already.

    Args:
        talker: The model.
        codes: Codes of the voice, such as those of `counterpoint.formats.open_voice`.
        role: See `opening`.

    Raises:
        UserError: The prompt is not shorter than the model's window.
    """
    text = talker.system.layout.text.name
    prompt = behind(codes, _prompt(talker, role, None))
    num_frames = prompt[text].shape[1]
    window = talker.system.window_ticks
    if num_frames >= window:
        raise UserError(
            f"A prompt must be shorter than the model's window of {window} frames: got "
            f"{num_frames}, of which {codes[text].shape[1]} are the voice. "
            + ("Shorten the role." if tagged_role(role) else "Take a shorter voice.")
        )
    return prompt


def check_opening(role: str, voice: Path | None, pin: bool) -> None:
    """Refuse a role and a voice that cannot be used, before the model is loaded.

    Raises:
        UserError: There is nothing to pin, or no such voice.
    """
    if pin and voice is None and not role.strip():
        raise UserError("`--pin` must have what it keeps: got none. Give `--prompt` or `--voice`.")
    if voice is None:
        return
    if not is_voice(voice):
        inspect_audio(voice)
    elif not voice.is_file():
        raise UserError(absent("`--voice`", voice))


def begin(
    talker: Talker, role: str = "", voice: Path | None = None
) -> tuple[Ticks | None, Prefix | None]:
    """Return the prompt of a role and of a voice file, and the part that has been read already.

    Args:
        talker: The model.
        role: See `opening`.
        voice: A recording of the voice, or a voice that a model has embedded already
            (`counterpoint.formats.is_voice`); ``None`` leaves the voice to the model.

    Raises:
        UserError: The voice cannot be used, or the prompt is longer than the model's window.
    """
    if voice is not None and is_voice(voice):
        codes, prefix = open_voice(voice, talker.system)
        return opening_behind(talker, codes, role), prefix
    sample = None
    if voice is not None:
        duration_s = inspect_audio(voice).duration_s  # checked first: reading an hour takes long
        check_voice(talker.system.window_ticks, duration_s * talker.codec.frame_rate_hz)
        sample = read_audio(voice, talker.codec.sample_rate, 1)[0]
    return opening(talker, role, sample), None


def _prompt(talker: Talker, role: str, voice: Int[Tensor, "T K"] | None) -> Ticks:
    tagged = tagged_role(role)
    return hybrid_prompt(
        talker.system,
        talker.tokenizer.encode_word(tagged) if tagged else (),
        voice,
        talker.fillers or codec_fillers(talker.codec),
    )
