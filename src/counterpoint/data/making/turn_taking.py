"""The timing of human speakers, and what it adds to a script.

The distributions are quantiles computed from the word alignments of 2438 Switchboard conversations
(259 h, MS-State transcripts); stretches of speech were joined over silences of up to 200 ms. A draw
inverts the distribution function, linearly between the quantiles. The outermost 1 % on either side
are drawn as the outermost quantile.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from counterpoint.data.making.scripts import Script, Turn
from counterpoint.errors import UserError

_LEVELS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantiles:
    """A distribution of seconds.

    Attributes:
        values: Seconds, increasing.
        levels: Share of all cases that are at most as long, one for each value.
    """

    values: tuple[float, ...]
    levels: tuple[float, ...] = _LEVELS

    def at(self, level: float) -> float:
        """Return the quantile of ``level``; beyond the levels, the first or last value."""
        right = bisect_right(self.levels, level)
        if right in (0, len(self.levels)):
            return self.values[min(right, len(self.values) - 1)]
        low = self.levels[right - 1]
        high = self.levels[right]
        share = (level - low) / (high - low)
        return self.values[right - 1] * (1 - share) + self.values[right] * share


def _quantiles(*values: float) -> Quantiles:
    return Quantiles(values=values)


FLOOR_TRANSFER = _quantiles(
    -0.994, -0.524, -0.355, -0.171, -0.040, 0.052, 0.131, 0.206, 0.293, 0.417, 0.650, 0.920, 1.672
)  # fmt: skip
"""Time from the end of a turn to the start of the other speaker's; negative if they overlap."""

PAUSE = _quantiles(
    0.206, 0.222, 0.249, 0.300, 0.354, 0.412, 0.476, 0.550, 0.644, 0.780, 1.022, 1.276, 1.963
)  # fmt: skip
"""Silences longer than 200 ms within the speech of one speaker."""

YIELD = _quantiles(
    0.004, 0.017, 0.036, 0.087, 0.134, 0.192, 0.261, 0.340, 0.440, 0.573, 0.814, 1.041, 1.536
)  # fmt: skip
"""Time for which a speaker who is interrupted continues."""

BACKCHANNEL = Quantiles(values=(-0.467, 0.047, 0.251), levels=(0.25, 0.5, 0.75))
"""Start of a backchannel after the end of a stretch of the other's speech: the middle half."""

BACKCHANNELS = ("yeah", "uh-huh", "right", "okay", "mm-hmm", "I see")

_SHORTEST_LONG_TURN = 8
_WORDS_PER_MINUTE = 170
_BOUNDARY_WEIGHT = 8.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Embellishment:
    """What is added to a script that says only who says what.

    Attributes:
        pauses_per_minute: Pauses within turns, a minute of speech. Engines also pause at some
            punctuation; together with those, the default gives the human 13.5 pauses a minute of
            dialogue.
        backchannels_per_minute: Backchannels of the user, a minute of the agent's speech in turns
            of at least 8 words. Humans have 2.27 a minute and side, and in a minute the other
            speaker talks for 25.6 s.
        interruption_share: Share of the user's turns after such a turn that interrupt it.
    """

    pauses_per_minute: float = 11.5
    backchannels_per_minute: float = 5.3
    interruption_share: float = 0.1

    def __post_init__(self) -> None:
        if self.pauses_per_minute < 0 or self.backchannels_per_minute < 0:
            raise UserError(f"Rates of an embellishment must be >= 0: got {self}.")
        if not 0 <= self.interruption_share <= 1:
            raise UserError(f"`interruption_share` must be 0 to 1: got {self.interruption_share}.")


PLAIN = Embellishment(pauses_per_minute=0, backchannels_per_minute=0, interruption_share=0)
"""Adds nothing."""


def embellish(script: Script, config: Embellishment, seed: int) -> Script:
    """Add pauses, and the user's backchannels and interruptions, drawn by seed and script name.

    Turns that declare more than who says what (kind, pauses, gap) are not changed.
    """
    turns = list[Turn]()
    floor: Turn | None = None
    for index, turn in enumerate(script.turns):
        rng = Random(f"{seed}/{script.name}/embellish/{index}")
        long_agent = floor is not None and floor.speaker == "agent" and _is_long(floor)
        if turn == Turn(speaker=turn.speaker, text=turn.text):
            if long_agent and turn.speaker == "user" and rng.random() < config.interruption_share:
                turn = replace(turn, kind="interruption")
            turn = replace(turn, pauses=_drawn_pauses(turn, config, rng))
        if long_agent and floor is not None and turn.kind == "turn" and turns[-1] is floor:
            minutes = len(floor.words) / _WORDS_PER_MINUTE
            if rng.random() < minutes * config.backchannels_per_minute:
                text = rng.choice(BACKCHANNELS)
                turns.append(Turn(speaker="user", text=text, kind="backchannel"))
        turns.append(turn)
        if turn.kind != "backchannel":
            floor = turn
    return replace(script, turns=tuple(turns))


def _is_long(turn: Turn) -> bool:
    return turn.kind == "turn" and len(turn.words) >= _SHORTEST_LONG_TURN


def _drawn_pauses(turn: Turn, config: Embellishment, rng: Random) -> tuple[tuple[int, float], ...]:
    words = turn.words
    weights = boundary_weights(words)
    expected = len(words) / _WORDS_PER_MINUTE * config.pauses_per_minute
    return tuple(
        (index, round(PAUSE.at(rng.random()), 3))
        for index, weight in enumerate(weights, start=1)
        if rng.random() < expected * weight / sum(weights)
    )


def boundary_weights(words: Sequence[str]) -> list[float]:
    """Return the weight of an event after each word but the last: higher after punctuation."""
    return [_BOUNDARY_WEIGHT if word[-1] in ".,;:!?" else 1.0 for word in words[:-1]]
