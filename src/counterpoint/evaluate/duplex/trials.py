"""Abilities of full-duplex speech, measured in live conversations about spoken orders.

A simulated user who reacts to what is heard gives an order of `counterpoint.data.making.orders`;
its wordings and dialogues are held out from training. Sound is scored, not the model's text; speech
is found by the rule of `counterpoint.evaluate.duplex.turns`. Times are those of a listener.

- *turn*: an order without pauses. The agent must answer: its first speech begins within 2 s of the
  user's last sound, and not more than 0.2 s before it.
- *pause*: an order with a pause of 0.4 to 1.6 s before it is complete. The agent must stay silent
  through all of it, and answer within 2 s of its end.
- *long pause*: the same with a pause of 2.2 to 3.5 s, which is longer than an answer may take.
- *late pause*: the same with a pause of 0.4 to 1.6 s after the last content word.
- *interruption*: while the agent answers, the user gives another order. The agent must have had
    more
  to say: in an equal conversation whose user then stays silent, it speaks 1 s later. It must be
  silent within 1 s of the order's first sound, and until 0.2 s before its end.
- *backchannel*: while the agent answers, the user says "mhm" or the like. The agent must say all of
  its answer. (This is a control: an agent that stops at every sound fails.)

An agent is *prompt and patient* if it waits through a pause and answers within 1 s of the end of
the order; a silence timeout cannot do both if pauses are longer than it. The *text* is right if the
agent's text stream says the answer to the last order word for word. The rules were written before
the runs (`docs/results/duplex-protocol.md`).
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.data.making.dialogue_layout import lay_out
from counterpoint.data.making.order_wordings import Split
from counterpoint.data.making.orders import (
    BACKCHANNELS,
    PAUSE_S,
    Order,
    Pairs,
    draw_order,
    draw_pause,
    interruption,
)
from counterpoint.data.making.scripts import Script, Turn
from counterpoint.evaluate.duplex.turns import Segment, bridge_gaps
from counterpoint.speech.voices import Speaker, Voice
from counterpoint.streams.timeline import Timeline

Ability = Literal["turn", "pause", "long pause", "late pause", "interruption", "backchannel"]

ABILITIES: tuple[Ability, ...] = (
    "turn",
    "pause",
    "long pause",
    "late pause",
    "interruption",
    "backchannel",
)
PAUSES: tuple[Ability, ...] = ("pause", "long pause", "late pause")

EARLY_S = 0.2
LATE_S = 2.0
PROMPT_S = 1.0
STOP_S = 1.0
_TRIAL_LONG_PAUSE_S = (2.2, 3.5)
_AFTER_S = (0.4, 1.2)  # of an answer, before the user speaks; an answer takes about 3 s
_BREATH_S = 0.3  # between two phrases of an answer


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One conversation to be held.

    Attributes:
        ability: The ability that it measures.
        order: What the user says first.
        audio: Sound of that order at the codec's rate, including pauses.
        pauses: Silences within it.
        second: The order that interrupts; ``None`` if the user only says "mhm", or nothing.
        second_audio: Sound that interrupts the answer; empty for nothing.
        after_s: Seconds for which the agent speaks before that.
        muted: Whether the user stays silent instead of interrupting.
    """

    ability: Ability
    order: Order
    audio: Float[Tensor, " N"]
    pauses: tuple[Segment, ...]
    second: Order | None
    second_audio: Float[Tensor, " M"]
    after_s: float
    muted: bool = False

    @property
    def due(self) -> Order:
        """The order that must finally be answered."""
        return self.order if self.second is None else self.second


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """A conversation that was held.

    Attributes:
        trial: The trial.
        audio: Agent (left) and user (right).
        words: What the agent said, according to its text stream.
        agent: Times at which the agent spoke.
        turns: Times at which the user spoke, from first to last sound.
        undisturbed: For an interruption, times at which the agent spoke in the same conversation
            without the interruption.
    """

    trial: Trial
    audio: Float[Tensor, "2 N"]
    words: Timeline
    agent: tuple[Segment, ...]
    turns: tuple[Segment, ...]
    undisturbed: tuple[Segment, ...] = ()

    @property
    def latency_s(self) -> float | None:
        """Seconds from the end of the last turn to the agent's next speech; ``None`` if none."""
        end_s = self.turns[-1].end_s
        starts = [s.start_s - end_s for s in self.agent if s.start_s >= end_s - EARLY_S]
        return min(starts, default=None)

    @property
    def stop_s(self) -> float | None:
        """Seconds from the first sound of the second turn until the agent is silent; 0 if it is.

        Speech that begins more than 1 s later, or less than 0.2 s before the end of that turn, does
        not count.
        """
        if len(self.turns) < 2:
            return None
        start_s, end_s = self.turns[1]
        latest_s = min(start_s + STOP_S, end_s - EARLY_S)
        ends = [s.end_s - start_s for s in self.agent if s.start_s < latest_s]
        return max(0.0, *ends, 0.0)

    @property
    def passed(self) -> bool:
        """Whether the ability was shown, by the rules of the module."""
        match self.trial.ability:
            case "turn" | "pause" | "long pause" | "late pause":
                return self._answered_within(LATE_S)
            case "interruption":
                return len(self.turns) == 2 and self.was_going_on and self._yielded()
            case "backchannel":
                return len(self.turns) == 2 and self.said_right

    @property
    def prompt_and_patient(self) -> bool:
        """Whether the agent waited for the end of the first order, and then at most 1 s."""
        return self._answered_within(PROMPT_S)

    @property
    def was_going_on(self) -> bool:
        """Whether the agent would have spoken 1 s after the beginning of the second turn."""
        if len(self.turns) < 2:
            return False
        at_s = self.turns[1].start_s + STOP_S
        return any(s.end_s > at_s and s.start_s < at_s + _BREATH_S for s in self.undisturbed)

    def _answered_within(self, limit_s: float) -> bool:
        end_s = self.turns[0].end_s
        waited = all(segment.start_s >= end_s - EARLY_S for segment in self.agent)
        return waited and any(s.start_s <= end_s + limit_s for s in self.agent)

    def _yielded(self) -> bool:
        begin, end = self.turns[1]
        stretches = bridge_gaps(self.agent, _BREATH_S)  # a breath does not count as silence
        if not any(s.start_s < begin <= s.end_s + _BREATH_S for s in stretches):
            return False
        quiet = Segment(begin + STOP_S, max(end - EARLY_S, begin + STOP_S))
        return not any(s.start_s < quiet.end_s and s.end_s > quiet.start_s for s in stretches)

    @property
    def said_right(self) -> bool:
        """Whether the text stream holds the due answer, and nothing else."""
        from_s = self.answer_from_s
        if from_s is None:
            return False
        said = " ".join(word.text for word in self.words if word.start_s >= from_s)
        return said == self.trial.due.reply

    @property
    def answer_from_s(self) -> float | None:
        """Time from which the due answer may be heard; ``None`` if its order was never given."""
        if self.trial.second is None:
            return 0.0
        return None if len(self.turns) < 2 else self.turns[1].end_s - EARLY_S


def order_trials(
    ability: Ability,
    num_trials: int,
    speaker: Speaker,
    voices: Sequence[Voice],
    sample_rate: int,
    *,
    seed: int = 0,
    split: Split = "held_out",
    pairs: Pairs = "trained",
) -> Iterator[Trial]:
    """Yield trials of one ability, a function of the arguments alone.

    Args:
        ability: The ability that they measure.
        num_trials: Number of trials.
        speaker: Speech engines of the user.
        voices: Voices of the user; each trial uses one.
        sample_rate: Sample rate of the sound.
        seed: Seed of the trials.
        split: Split of the wordings that the user says.
        pairs: Choice of devices and states; see `draw_order`.
    """
    for number in range(num_trials):
        name = f"trial_{ability}_{seed}_{number}"
        rng = random.Random(name)
        voice = rng.choice(voices)
        order, pauses = _first_order(ability, split, pairs, rng)
        first = Turn(speaker="user", text=order.text, pauses=pauses)
        second = None
        coming = None
        if ability == "interruption":
            second = draw_order(split, rng, pairs)
            while second.reply == order.reply:
                second = draw_order(split, rng, pairs)
            coming = interruption(second, rng, None).text
        elif ability == "backchannel":
            coming = rng.choice(BACKCHANNELS)
        audio, timeline = lay_out(
            Script(name=name.replace(" ", "_"), turns=(first,)),
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


def _first_order(
    ability: Ability, split: Split, pairs: Pairs, rng: random.Random
) -> tuple[Order, tuple[tuple[int, float], ...]]:
    """Return an order and its pauses; orders without a place for a pause are drawn again."""
    if ability not in PAUSES:
        return draw_order(split, rng, pairs), ()
    seconds = _TRIAL_LONG_PAUSE_S if ability == "long pause" else PAUSE_S
    while True:
        order = draw_order(split, rng, pairs)
        pause = draw_pause(order, rng, seconds, late=ability == "late pause")
        if pause is not None:
            return order, (pause,)


def recorded_trials(
    recordings: Sequence[tuple[Order, Float[Tensor, " N"]]],
) -> list[Trial]:
    """Return trials of *turn* whose orders are recordings, at the codec's rate."""
    return [
        Trial(
            ability="turn",
            order=order,
            audio=audio,
            pauses=(),
            second=None,
            second_audio=torch.zeros(0),
            after_s=0.0,
        )
        for order, audio in recordings
    ]
