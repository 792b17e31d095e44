"""Conversations of trials: a simulated user who reacts to what is heard, and an agent.

All trials of a batch run at the same time, frame by frame, so that a model reads them as one batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from counterpoint.data.speech.monologue import read_monologue
from counterpoint.errors import UserError
from counterpoint.evaluate.duplex.trials import STOP_S, Outcome, Trial
from counterpoint.evaluate.duplex.turns import Segment, measure_levels, speech_segments
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.sessions import Sessions
from counterpoint.runtime.talk import AGENT, Talker
from counterpoint.streams import schedule
from counterpoint.streams.spec import Role
from counterpoint.streams.timeline import Timeline

LEAD_S = 1.0
_SPEAKING_S = 0.12
_SPEAKING_DB = -45.0
_PATIENCE_S = 4.0
_REST_S = 6.0
_MUTED_REST_S = STOP_S + 0.5


@runtime_checkable
class Conversations(Protocol):
    """Conversations that run at the same time."""

    def hear(self, frames: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        """Hear a frame in each, and return what sounds meanwhile: it depends on earlier frames."""

    def words(self, row: int) -> Timeline:
        """Return what the agent has said in one of them, according to its text."""


@runtime_checkable
class Agent(Protocol):
    """An agent that answers in trials: a model, or a policy to compare it with."""

    @property
    def sample_rate(self) -> int:
        """Samples a second that it hears and says."""

    @property
    def frame_samples(self) -> int:
        """Number of samples of a frame."""

    def begin(self, trials: Sequence[Trial]) -> Conversations:
        """Begin the conversations of trials; only an oracle may look at the trials."""


@dataclass(frozen=True, kw_only=True)
class ModelAgent:
    """A model that talks.

    Attributes:
        talker: The model.
        sampling: Returns the sampling of the n-th trial of a batch, counted from 1.
    """

    talker: Talker
    sampling: Callable[[int], FrameSampling | None]

    @property
    def sample_rate(self) -> int:
        """Sample rate of the codec."""
        return self.talker.codec.sample_rate

    @property
    def frame_samples(self) -> int:
        """Samples of a frame of the codec."""
        return self.talker.codec.frame_samples

    def begin(self, trials: Sequence[Trial]) -> Conversations:
        """See `Agent`."""
        return _Modelled(self.talker, [self.sampling(n + 1) for n in range(len(trials))])


class _Modelled:
    """Rows of a model that hear and say a frame at each step; see `Conversation`."""

    def __init__(self, talker: Talker, samplings: Sequence[FrameSampling | None]) -> None:
        self._talker = talker
        codec = talker.codec
        system = talker.system.agent_alone()
        self._layout = system.layout
        if self._layout.slow:
            raise UserError(
                "In trials every stream must have an element in every frame: "
                f"{', '.join(stream.name for stream in self._layout.slow)} has fewer."
            )
        num_rows = len(samplings)
        self._encoder = codec.encoder(num_rows)
        self._decoder = codec.decoder(num_rows)
        self._sessions = Sessions(system, num_rows)
        self._text_ids = [list[int]() for _ in samplings]
        opening = {
            row: frame
            for row, sampling in enumerate(samplings)
            if (frame := self._sessions.start(row, sampling).opening) is not None
        }
        self._sound = self._decoded(opening)

    def hear(self, frames: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        sounding = self._sound
        heard = {}
        for row, codes in self._encoder.push(dict(enumerate(frames))).items():
            streams = self._layout.with_role(Role.HEARD, codes)
            heard[row] = {name: ids[0] for name, ids in streams.items()}
        self._sound = self._decoded(self._sessions.step(heard))
        return sounding

    def _decoded(self, said: dict[int, dict[str, Tensor]]) -> Float[Tensor, "B N"]:
        """Return the sound of frames; silence as long as the first frame is not complete."""
        sound = torch.zeros(len(self._text_ids), self._talker.codec.frame_samples)
        spoken = self._layout.by_role(Role.SPOKEN)
        codes = dict[int, Tensor]()
        for row, frame in said.items():
            self._text_ids[row].append(int(frame[self._layout.text.name]))
            codes[row] = torch.cat([frame[stream.name] for stream in spoken])[None]
        if codes:
            for row, samples in self._decoder.push(codes).items():
                sound[row] = samples.float().cpu()
        return sound

    def words(self, row: int) -> Timeline:
        padding_id = self._layout.text.padding_id or 0
        tokenizer = self._talker.tokenizer
        frame_rate_hz = self._talker.codec.frame_rate_hz
        ids = torch.tensor(self._text_ids[row], dtype=torch.long)
        said = read_monologue(
            ids.where(ids < tokenizer.vocab_size, padding_id),
            tokenizer.decode,
            frame_rate_hz,
            starts_word=tokenizer.starts_word,
            stream=AGENT,
            pad_id=padding_id,
        )
        said = replace(said, events=tuple(event for event in said if event.text))
        return said.shift(schedule.sounding_delay(self._layout) / frame_rate_hz)


def run_trials(agent: Agent, trials: Sequence[Trial]) -> list[Outcome]:
    """Hold conversations at the same time.

    Interruptions are also held with a user who stays silent instead of interrupting.
    """
    outcomes = _run(agent, trials)
    places = [n for n, trial in enumerate(trials) if trial.ability == "interruption"]
    if places:
        muted = _run(agent, [replace(trial, muted=True) for trial in trials], places)
        for place in places:
            outcomes[place] = replace(outcomes[place], undisturbed=muted[place].agent)
    return outcomes


def _run(
    agent: Agent, trials: Sequence[Trial], places: Sequence[int] | None = None
) -> list[Outcome]:
    """Hold conversations until those at ``places`` are over; by default until all are over.

    Every trial keeps its row, so that its random numbers stay the same.
    """
    waited_for = range(len(trials)) if places is None else places
    users = [User(trial, agent.sample_rate) for trial in trials]
    conversations = agent.begin(trials)
    heard = list[Tensor]()
    said = list[Tensor]()
    ends = [0] * len(trials)
    while not all(users[place].done for place in waited_for):
        heard.append(torch.stack([user.next_frame(agent.frame_samples) for user in users]))
        said.append(conversations.hear(heard[-1]))
        loud = is_loud(said[-1]).tolist()
        for place, user in enumerate(users):
            if not user.done:
                user.listen(loud[place], agent.frame_samples)
                ends[place] = len(said) * agent.frame_samples
    audio = torch.stack((torch.cat(said, 1), torch.cat(heard, 1)), 1)
    return [
        _outcome(trial, audio[row, :, : ends[row]], user, conversations.words(row), agent)
        for row, (trial, user) in enumerate(zip(trials, users, strict=True))
    ]


def _outcome(
    trial: Trial, audio: Float[Tensor, "2 N"], user: "User", words: Timeline, agent: Agent
) -> Outcome:
    levels = measure_levels([audio], agent.sample_rate)
    end_s = audio.shape[1] / agent.sample_rate
    return Outcome(
        trial=trial,
        audio=audio,
        words=replace(words, events=tuple(word for word in words if word.start_s < end_s)),
        agent=speech_segments(levels.loudness_db[0], levels.duration_s),
        turns=tuple(user.turns),
    )


def is_loud(frames: Float[Tensor, "B N"]) -> Bool[Tensor, " B"]:
    """Return whether a frame sounds like speech close to the microphone."""
    return 10 * frames.square().mean(1).clamp(min=1e-12).log10() > _SPEAKING_DB


class User:
    """Says the first turn, waits for the answer, interrupts if the trial says so, and listens.

    Args:
        trial: The trial, which says what the user says.
        sample_rate: Samples a second.

    Attributes:
        turns: Turns spoken so far, each from its first to its last sound.
        done: Whether the conversation is over.
    """

    def __init__(self, trial: Trial, sample_rate: int) -> None:
        self.turns = list[Segment]()
        self.done = False
        self._trial = trial
        self._rate = sample_rate
        self._now = 0
        self._audio = torch.zeros(0)
        self._spoke_s = 0.0  # seconds for which the agent has spoken since the first turn
        self._say(trial.audio, LEAD_S)

    def _say(self, audio: Float[Tensor, " N"], after_s: float) -> None:
        wait = round(after_s * self._rate)
        self._audio = torch.cat((torch.zeros(wait), audio))
        start = self._now + wait
        self.turns.append(Segment(start / self._rate, (start + len(audio)) / self._rate))

    def next_frame(self, num_samples: int) -> Float[Tensor, " N"]:
        """Return what the user says in the next samples."""
        frame = self._audio[:num_samples]
        self._audio = self._audio[num_samples:]
        self._now += num_samples
        return torch.cat((frame, torch.zeros(num_samples - len(frame))))

    def listen(self, is_speech: bool, num_samples: int) -> None:
        """Hear whether the agent spoke in the last samples, and decide what to do next."""
        now_s = self._now / self._rate
        last = self.turns[-1]
        if self._trial.muted and len(self.turns) == 2:
            self.done = now_s >= last.start_s + _MUTED_REST_S
        if now_s <= last.end_s:
            return
        comes_in = len(self._trial.second_audio) and len(self.turns) == 1
        if not comes_in:
            self.done = self.done or now_s >= last.end_s + _REST_S
            return
        self._spoke_s += is_speech * num_samples / self._rate
        if self._spoke_s > _SPEAKING_S:
            audio = self._trial.second_audio
            self._say(torch.zeros_like(audio) if self._trial.muted else audio, self._trial.after_s)
        else:
            self.done = now_s >= last.end_s + _PATIENCE_S
