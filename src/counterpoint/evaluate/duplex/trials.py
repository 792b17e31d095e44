"""Four abilities of full-duplex speech, measured on live conversations about spoken orders.

A user who acts by what is heard gives an order of `counterpoint.data.making.orders`; wordings and
dialogues are held out from training. Scored is sound, not the model's text: speech is found by the
rule of `counterpoint.evaluate.duplex.turns`. Times count from what a listener would hear.

- *turn*: an order without pauses is answered: the agent's first speech begins within 2 s of the
  user's last sound, and not more than 0.2 s before it.
- *pause*: through an order with a pause of 0.4 to 1.6 s within, the agent stays silent.
- *interruption*: while the agent answers, the user gives another order. The agent is silent within
  1 s of its first sound, and until 0.2 s before its end; it must have been speaking before.
- *backchannel*: while the agent answers, the user says "mhm" or the like. The agent says all of its
  answer. (A control: who stops at every sound fails here.)

*Text* is right where the agent's text stream says the answer to the last order word for word.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.data.making.dialogue_layout import lay_out
from counterpoint.data.making.orders import (
    BACKCHANNELS,
    Order,
    draw_order,
    draw_pause,
    interruption,
)
from counterpoint.data.making.scripts import Script, Turn
from counterpoint.evaluate.duplex.turns import Segment, measure_levels, speech_segments
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.talk import Conversation
from counterpoint.runtime.talk import Talker as Agent
from counterpoint.speech.voices import Speaker, Voice
from counterpoint.streams.timeline import Timeline

Ability = Literal["turn", "pause", "interruption", "backchannel"]

ABILITIES: tuple[Ability, ...] = ("turn", "pause", "interruption", "backchannel")

_LEAD_S = 1.0
_EARLY_S, _LATE_S, _STOP_S = 0.2, 2.0, 1.0
_AFTER_S = (0.6, 1.6)  # of an answer, before the user comes in: it takes about 3 s
_SPEAKING_S, _SPEAKING_DB = 0.12, -45.0
_PATIENCE_S, _REST_S = 4.0, 6.0
_BREATH_S = 0.3  # between two phrases of an answer


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One conversation to be had.

    Attributes:
        ability: What it measures.
        order: What the user says first.
        audio: The same, at the codec's rate, pauses within.
        pauses: Silences within.
        second: The order that interrupts; ``None`` if the user only says "mhm", or nothing.
        second_audio: What comes into the answer; empty for nothing.
        after_s: How long the agent speaks before that.
    """

    ability: Ability
    order: Order
    audio: Float[Tensor, " N"]
    pauses: tuple[Segment, ...]
    second: Order | None
    second_audio: Float[Tensor, " M"]
    after_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """A conversation that was had.

    Attributes:
        trial: Which.
        audio: Agent (left) and user (right).
        words: What the agent said, by its text stream.
        agent: Where the agent spoke.
        turns: Where the user spoke, from first to last sound.
    """

    trial: Trial
    audio: Float[Tensor, "2 N"]
    words: Timeline
    agent: tuple[Segment, ...]
    turns: tuple[Segment, ...]

    @property
    def latency_s(self) -> float | None:
        """From the end of the last turn to the agent's next speech; ``None`` if there is none."""
        end_s = self.turns[-1].end_s
        starts = [s.start_s - end_s for s in self.agent if s.start_s >= end_s - _EARLY_S]
        return min(starts, default=None)

    @property
    def stop_s(self) -> float | None:
        """From the first sound of the second turn until the agent falls silent; 0 if it is.

        Speech that begins later than 1 s, or 0.2 s before the end of that turn, is another matter.
        """
        if len(self.turns) < 2:
            return None
        start_s, end_s = self.turns[1]
        latest_s = min(start_s + _STOP_S, end_s - _EARLY_S)
        ends = [s.end_s - start_s for s in self.agent if s.start_s < latest_s]
        return max(0.0, *ends, 0.0)

    @property
    def passed(self) -> bool:
        """Whether the ability was shown; see the rules of the module."""
        first = self.turns[0]
        opens = first.end_s - _EARLY_S
        waited = all(segment.start_s >= opens for segment in self.agent)
        match self.trial.ability:
            case "turn":
                return waited and any(s.start_s <= first.end_s + _LATE_S for s in self.agent)
            case "pause":
                return waited
            case "interruption":
                return len(self.turns) == 2 and self._yielded()
            case "backchannel":
                return len(self.turns) == 2 and self.said_right

    def _yielded(self) -> bool:
        begin, end = self.turns[1]
        if not any(s.start_s < begin <= s.end_s + _BREATH_S for s in self.agent):
            return False
        quiet = Segment(begin + _STOP_S, max(end - _EARLY_S, begin + _STOP_S))
        return not any(s.start_s < quiet.end_s and s.end_s > quiet.start_s for s in self.agent)

    @property
    def said_right(self) -> bool:
        """Whether the text stream holds the answer that is due, and nothing else."""
        second = self.trial.second
        if second is None:
            return self._said(0.0) == self.trial.order.reply
        return len(self.turns) == 2 and self._said(self.turns[1].end_s - _EARLY_S) == second.reply

    def _said(self, from_s: float) -> str:
        return " ".join(word.text for word in self.words if word.start_s >= from_s)


def order_trials(
    ability: Ability,
    num_trials: int,
    speaker: Speaker,
    voices: Sequence[Voice],
    sample_rate: int,
    seed: int = 0,
) -> Iterator[Trial]:
    """Trials of one ability, held-out wordings, a pure function of the arguments."""
    for number in range(num_trials):
        name = f"trial_{ability}_{seed}_{number}"
        rng = random.Random(name)
        voice = rng.choice(voices)
        order, pause = draw_order("held_out", rng), None
        while ability == "pause" and (pause := draw_pause(order, rng)) is None:
            order = draw_order("held_out", rng)
        first = Turn(speaker="user", text=order.text, pauses=() if pause is None else (pause,))
        second, coming = None, None
        if ability == "interruption":
            second = draw_order("held_out", rng)
            while second.reply == order.reply:
                second = draw_order("held_out", rng)
            coming = interruption(second, rng, None).text
        elif ability == "backchannel":
            coming = rng.choice(BACKCHANNELS)
        audio, timeline = lay_out(
            Script(name=name, turns=(first,)),
            [speaker.speak(first.text, voice, sample_rate)],
            sample_rate=sample_rate,
            seed=seed,
            lead_s=0.0,
            tail_s=0.0,
        )
        yield Trial(
            ability=ability,
            order=order,
            audio=audio[1],
            pauses=tuple(Segment(e.start_s, e.end_s) for e in timeline.where(kind="pause")),
            second=second,
            second_audio=(
                torch.zeros(0)
                if coming is None
                else speaker.speak(coming, voice, sample_rate).audio
            ),
            after_s=rng.uniform(*_AFTER_S),
        )


def run_trial(agent: Agent, trial: Trial, sampling: FrameSampling | None = None) -> Outcome:
    """Have a conversation, frame by frame; the user comes in when the agent has begun to answer."""
    codec = agent.codec
    conversation, user = Conversation(agent, sampling), _User(trial, codec.sample_rate)
    heard, said = list[Tensor](), list[Tensor]()
    while not user.done:
        frame = user.next_frame(codec.frame_samples)
        heard.append(frame)
        said.append(conversation.hear(frame))
        user.listen(said[-1])
    audio = torch.stack((torch.cat(said), torch.cat(heard)))
    levels = measure_levels([audio], codec.sample_rate)
    return Outcome(
        trial=trial,
        audio=audio,
        words=conversation.words(),
        agent=speech_segments(levels.loudness_db[0], levels.duration_s),
        turns=tuple(user.turns),
    )


class _User:
    """Says the first turn, waits until the agent answers, comes in if asked to, and listens."""

    def __init__(self, trial: Trial, sample_rate: int) -> None:
        self.turns = list[Segment]()
        self.done = False
        self._trial, self._rate = trial, sample_rate
        self._now = 0
        self._audio = torch.zeros(0)
        self._spoke_s = 0.0  # how long the agent has spoken since the first turn
        self._say(trial.audio, _LEAD_S)

    def _say(self, audio: Float[Tensor, " N"], after_s: float) -> None:
        wait = round(after_s * self._rate)
        self._audio = torch.cat((torch.zeros(wait), audio))
        start = self._now + wait
        self.turns.append(Segment(start / self._rate, (start + len(audio)) / self._rate))

    def next_frame(self, num_samples: int) -> Float[Tensor, " N"]:
        """What the user says in the next samples."""
        frame, self._audio = self._audio[:num_samples], self._audio[num_samples:]
        self._now += num_samples
        return torch.cat((frame, torch.zeros(num_samples - len(frame))))

    def listen(self, sound: Float[Tensor, " N"]) -> None:
        """Hear what sounded meanwhile, and decide what to do next."""
        now_s, last = self._now / self._rate, self.turns[-1]
        if now_s <= last.end_s:
            return
        comes_in = len(self._trial.second_audio) and len(self.turns) == 1
        if not comes_in:
            self.done = now_s >= last.end_s + _REST_S
            return
        loud = 10 * sound.square().mean().clamp(min=1e-12).log10() > _SPEAKING_DB
        self._spoke_s += float(loud) * len(sound) / self._rate
        if self._spoke_s > _SPEAKING_S:
            self._say(self._trial.second_audio, self._trial.after_s)
        else:
            self.done = now_s >= last.end_s + _PATIENCE_S
