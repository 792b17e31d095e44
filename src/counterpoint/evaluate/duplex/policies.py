"""Agents without a model: baselines that react to nothing but loudness, and an oracle.

A measure of turn-taking is useful if the oracle passes it and each of the baselines fails. Like a
model's, their answers are spoken by a voice and passed through the codec.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.evaluate.duplex.live import LEAD_S, Conversations, is_loud
from counterpoint.evaluate.duplex.trials import Trial
from counterpoint.runtime.talk import AGENT
from counterpoint.speech.codec import Codec
from counterpoint.speech.voices import Speaker, Voice
from counterpoint.streams.timeline import Event, Timeline

BREATH_S = 0.2
_ORACLE_GAP_S = 0.5
_ORACLE_STOP_S = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class SpokenAnswer:
    """An answer as it sounds after the codec.

    Attributes:
        audio: Its samples.
        words: Pairs of a word and the second at which it begins.
    """

    audio: Float[Tensor, " N"]
    words: tuple[tuple[str, float], ...]


def speak_answer(
    phrases: Sequence[str], speaker: Speaker, voice: Voice, codec: Codec, *, coded: bool = True
) -> SpokenAnswer:
    """Synthesise an answer phrase by phrase, as in training.

    Args:
        phrases: The phrases of the answer.
        speaker: Speech engines.
        voice: Voice of the agent.
        codec: Codec through which the sound is passed.
        coded: Whether it is passed through the codec.
    """
    pieces = list[Tensor]()
    words = list[tuple[str, float]]()
    length = 0
    breath = torch.zeros(round(BREATH_S * codec.sample_rate))
    for phrase in phrases:
        spoken = speaker.speak(phrase, voice, codec.sample_rate)
        start_s = length / codec.sample_rate
        words += [(word.text, start_s + word.start_s) for word in spoken.words]
        pieces += [spoken.audio, breath]
        length += len(spoken.audio) + len(breath)
    audio = torch.cat(pieces)
    if coded:
        audio = codec.decode(codec.encode(audio[None]))[0].float()
    return SpokenAnswer(audio=audio, words=tuple(words))


@runtime_checkable
class _Row(Protocol):
    """The decisions of one conversation of a policy: which answer plays from when on."""

    def hear(self, now_s: float, loud: bool, playing: bool) -> "SpokenAnswer | bool":
        """Return an answer to begin it, True to continue what plays, or False to be silent."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """An agent whose rows are made by a function.

    Attributes:
        codec: Codec whose sample rate and frames are used.
        row: Function that makes the decisions in the conversation of a trial.
    """

    codec: Codec
    row: Callable[[Trial], _Row]

    @property
    def sample_rate(self) -> int:
        """Sample rate of the codec."""
        return self.codec.sample_rate

    @property
    def frame_samples(self) -> int:
        """Samples of a frame of the codec."""
        return self.codec.frame_samples

    def begin(self, trials: Sequence[Trial]) -> Conversations:
        """See `Agent`."""
        return _Played(self, [self.row(trial) for trial in trials])


class _Played:
    """Rows that play answers; the sound of a frame is decided before the frame."""

    def __init__(self, policy: Policy, rows: Sequence[_Row]) -> None:
        self._rows = rows
        self._policy = policy
        self._answers: list[SpokenAnswer | None] = [None for _ in rows]
        self._from = [0] * len(rows)  # sample at which the answer of a row began
        self._words = [list[tuple[str, float]]() for _ in rows]
        self._now = 0

    def hear(self, frames: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        num_samples = self._policy.frame_samples
        rate = self._policy.sample_rate
        sound = torch.zeros(len(self._rows), num_samples)
        for row, answer in enumerate(self._answers):
            if answer is not None:
                first = self._now - self._from[row]
                piece = answer.audio[first : first + num_samples]
                sound[row, : len(piece)] = piece
        self._now += num_samples
        now_s = self._now / rate
        for row, loud in enumerate(is_loud(frames).tolist()):
            answer = self._answers[row]
            if answer is not None and self._now - self._from[row] >= len(answer.audio):
                self._answers[row] = answer = None
            decided = self._rows[row].hear(now_s, loud, answer is not None)
            if isinstance(decided, SpokenAnswer):
                self._answers[row] = decided
                self._from[row] = self._now
                self._words[row] += [(text, now_s + start_s) for text, start_s in decided.words]
            elif not decided and answer is not None:
                self._answers[row] = None
                self._words[row] = [word for word in self._words[row] if word[1] < now_s]
        return sound

    def words(self, row: int) -> Timeline:
        return Timeline(
            events=tuple(
                Event(start_s=start_s, end_s=start_s, stream=AGENT, kind="word", text=text)
                for text, start_s in self._words[row]
            )
        )


def silent(codec: Codec) -> Policy:
    """Return a policy that never says anything."""
    return Policy(codec=codec, row=lambda _: _Always(None))


def talking(codec: Codec, answer: SpokenAnswer) -> Policy:
    """Return a policy that says one answer again and again."""
    return Policy(codec=codec, row=lambda _: _Always(answer))


def timeout(
    codec: Codec,
    answer: SpokenAnswer,
    silence_s: float,
    *,
    stops_after_s: float | None = None,
    longest_s: float | None = None,
) -> Policy:
    """Return a policy that says one answer after the user has spoken and then been silent.

    Args:
        codec: Codec whose sample rate and frames are used.
        answer: The answer.
        silence_s: Seconds of silence before the answer.
        stops_after_s: Seconds of the user's sound after which it stops; ``None`` ignores the user
            while it speaks.
        longest_s: Second at which the answer is cut off; ``None`` for never.
    """
    if longest_s is not None:
        answer = SpokenAnswer(
            audio=answer.audio[: round(longest_s * codec.sample_rate)],
            words=tuple(word for word in answer.words if word[1] < longest_s),
        )
    frame_s = codec.frame_samples / codec.sample_rate
    return Policy(codec=codec, row=lambda _: _Timeout(answer, silence_s, stops_after_s, frame_s))


def oracle(codec: Codec, answers: Mapping[tuple[str, ...], SpokenAnswer]) -> Policy:
    """Return a policy that knows the orders and gives the right answer 0.5 s after their end.

    Args:
        codec: Codec whose sample rate and frames are used.
        answers: Answers by their phrases.
    """
    return Policy(codec=codec, row=lambda trial: _Oracle(trial, answers, codec.sample_rate))


class _Always:
    def __init__(self, answer: SpokenAnswer | None) -> None:
        self._answer = answer

    def hear(self, now_s: float, loud: bool, playing: bool) -> SpokenAnswer | bool:
        if self._answer is None or playing:
            return playing
        return self._answer


class _Timeout:
    def __init__(
        self,
        answer: SpokenAnswer,
        silence_s: float,
        stops_after_s: float | None,
        frame_s: float,
    ) -> None:
        self._answer = answer
        self._silence_s = silence_s
        self._frame_s = frame_s
        self._stops_after_s = stops_after_s
        self._has_heard = False
        self._silent_s = self._heard_s = 0.0

    def hear(self, now_s: float, loud: bool, playing: bool) -> SpokenAnswer | bool:
        if playing:
            return self._goes_on(loud)
        if loud:
            self._has_heard = True
            self._silent_s = 0.0
            return False
        self._silent_s += self._frame_s
        # The silence counts as long enough from half a frame before, because sums of frames round.
        if self._has_heard and self._silent_s > self._silence_s - self._frame_s / 2:
            self._has_heard = False
            self._heard_s = 0.0
            return self._answer
        return False

    def _goes_on(self, loud: bool) -> bool:
        if self._stops_after_s is None:
            return True
        self._heard_s += self._frame_s * loud
        if self._heard_s < self._stops_after_s:
            return True
        self._has_heard = True
        self._silent_s = 0.0
        return False


class _Oracle:
    def __init__(
        self, trial: Trial, answers: Mapping[tuple[str, ...], SpokenAnswer], sample_rate: int
    ) -> None:
        self._trial = trial
        self._answers = answers
        self._rate = sample_rate
        self._due_s: float | None = LEAD_S + len(trial.audio) / sample_rate + _ORACLE_GAP_S
        self._order = trial.order
        self._stop_s: float | None = None

    def hear(self, now_s: float, loud: bool, playing: bool) -> SpokenAnswer | bool:
        second = self._trial.second
        if loud and playing and second is not None and self._stop_s is None:
            length_s = len(self._trial.second_audio) / self._rate
            self._stop_s = now_s + _ORACLE_STOP_S
            self._due_s = now_s + length_s + _ORACLE_GAP_S
            self._order = second
        if playing:
            return self._stop_s is None or now_s < self._stop_s
        if self._due_s is not None and now_s >= self._due_s:
            self._due_s = None
            if self._order is second:
                self._stop_s = math.inf  # this answer is played to its end
            return self._answers[self._order.phrases]
        return False
