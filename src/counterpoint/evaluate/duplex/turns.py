"""Who spoke when in a recording of two speakers, and how they took turns.

The rule (all its numbers are in `ConversationRule`):

- *Speech*: parts of 10 ms that are louder than a floor, measured about the channel's offset, and
  louder than the channel's own quiet parts by a margin. Gaps of up to 0.2 s are bridged; segments
  shorter than 0.1 s are not speech. This is an energy detector for one voice a channel, close to
  the microphone.
- A *turn* of the user is speech with pauses of up to 0.6 s. A turn that begins while the agent
  speaks and takes less than 1 s is a backchannel and needs no answer.
- The *answer* to a turn is the agent's first speech that begins after 0.3 s before the turn's end
  and before the user's next turn. Its latency is its start minus the turn's end; a negative latency
  is early. An agent that already spoke then, and continues after the turn's end, talked over it.
- An *overlap* is speech of both for 0.1 s or more. The first speaker *yields* if it had spoken for
  0.5 s and stops before the second, who speaks for more than 1 s.

Source: 0.2 s, as in dGSLM (arXiv:2203.16502); 0.6 s as Full-Duplex-Bench v1.5 (arXiv:2507.23159)
joins a user's speech. The other numbers are ours.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.runtime.talk import AGENT, USER
from counterpoint.streams.timeline import Event, Timeline

_SILENT_DB = -100.0
_PARTS_HZ = 100
_OFFSET_PARTS = 50  # half a second
_MOST_OFFSET = 0.1  # of full scale; microphones and sound cards have less
_CHUNK_PARTS = 4096  # limits the memory of windows
_ROUNDING_S = 1e-6  # times are multiples of 10 ms as floats: 0.3 - 0.1 must be 0.2

AnswerOutcome = Literal["answered", "talked over", "unanswered", "backchannel"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversationRule:
    """What counts as speech, as a turn and as an answer.

    Attributes:
        floor_db: Level that speech exceeds: root mean square in dB of full scale.
        contrast_db: Margin by which it also exceeds the level below which a tenth of the channel
            lies; digital silence after the channel's last sound does not count.
        bridged_s: Longest gap within a segment of speech, in seconds.
        shortest_s: Shortest segment of speech, and shortest overlap.
        pause_s: Longest pause within a turn.
        backchannel_s: Shortest turn that needs an answer if it begins while the agent speaks.
        early_s: Longest time by which an answer may begin before the end of a turn.
        spoken_s: Shortest time for which a speaker must have spoken to yield.
        taken_s: Shortest speech of the other speaker that makes a speaker yield.
    """

    floor_db: float = -50.0
    contrast_db: float = 12.0
    bridged_s: float = 0.2
    shortest_s: float = 0.1
    pause_s: float = 0.6
    backchannel_s: float = 1.0
    early_s: float = 0.3
    spoken_s: float = 0.5
    taken_s: float = 1.0


class Levels(NamedTuple):
    """Channels in parts of 10 ms.

    Attributes:
        loudness_db: Root mean square about the channel's offset, in dB of full scale, at least
            -100.
        low: Lowest sample.
        high: Highest sample.
        duration_s: Length of the recording; its last part may be incomplete.
    """

    loudness_db: Float[Tensor, "C T"]
    low: Float[Tensor, "C T"]
    high: Float[Tensor, "C T"]
    duration_s: float


class Segment(NamedTuple):
    """A time during which someone speaks, from ``start_s`` to ``end_s`` in seconds."""

    start_s: float
    end_s: float


class Answer(NamedTuple):
    """A turn of the user, and the agent's reaction.

    Attributes:
        turn: Time of the turn.
        outcome: The agent's reaction.
        start_s: Start of the answer; ``None`` without one.
    """

    turn: Segment
    outcome: AnswerOutcome
    start_s: float | None

    @property
    def latency_s(self) -> float | None:
        """Seconds from the end of the turn to the answer."""
        return None if self.start_s is None else self.start_s - self.turn.end_s


class Overlap(NamedTuple):
    """A time in which both speak.

    Attributes:
        start_s: Time at which the second speaker begins.
        end_s: Time at which one of the two stops.
        second: The speaker who began second: "agent" or "user".
        yields: Whether the first speaker yielded; that took ``end_s - start_s``.
    """

    start_s: float
    end_s: float
    second: str
    yields: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnTaking:
    """Turn-taking of agent and user; see the rule of the module.

    Attributes:
        agent: Speech of the agent, in order of time.
        user: Speech of the user, in order of time.
        answers: The user's turns and their answers.
        overlaps: Times in which both speak.
        duration_s: Length of the recording.
    """

    agent: tuple[Segment, ...]
    user: tuple[Segment, ...]
    answers: tuple[Answer, ...]
    overlaps: tuple[Overlap, ...]
    duration_s: float

    @property
    def latencies_s(self) -> list[float]:
        """Latencies of all answers, in order of time."""
        return [found for answer in self.answers if (found := answer.latency_s) is not None]

    @property
    def pauses(self) -> tuple[Segment, ...]:
        """Silences after which the user went on, because the agent had not answered.

        Whether the user only hesitated, or had waited for an answer, cannot be told from the sound.
        """
        return tuple(
            Segment(answer.turn.end_s, following.turn.start_s)
            for answer, following in pairwise(self.answers)
            if answer.outcome == "unanswered"
        )

    def pause_after(self, answer: Answer) -> float | None:
        """Return the seconds until the user went on after an unanswered turn, if that happened."""
        found = [one for one in self.pauses if one.start_s == answer.turn.end_s]
        return found[0].end_s - found[0].start_s if found else None

    @property
    def num_due(self) -> int:
        """Number of turns that need an answer."""
        return sum(answer.outcome != "backchannel" for answer in self.answers)


def measure_levels(blocks: Iterable[Float[Tensor, "C _N"]], sample_rate: int) -> Levels:
    """Measure loudness and extremes of a recording that is given in blocks of any length.

    Raises:
        UserError: There are no blocks, or the rate is not a multiple of 100 Hz.
    """
    if sample_rate < 1 or sample_rate % _PARTS_HZ:
        raise UserError(
            f"Levels need a sample rate that is a multiple of {_PARTS_HZ} Hz: got {sample_rate}. "
            "Resample the recording."
        )
    part = sample_rate // _PARTS_HZ
    pieces = list[_Parts]()
    rest = None
    num_samples = 0
    for block in blocks:
        num_samples += block.shape[1]
        pending = block if rest is None else torch.cat((rest, block), 1)
        stop = pending.shape[1] // part * part
        pieces.append(_measured(pending[:, :stop].unflatten(1, (-1, part))))
        rest = pending[:, stop:].clone()
    if rest is None:
        raise UserError("A recording must have at least one block of samples: got none.")
    if rest.shape[1]:
        pieces.append(_measured(rest[:, None], share=rest.shape[1] / part))
    parts = _Parts(*(torch.cat(kind, 1) for kind in zip(*pieces, strict=True)))
    loudness = 10 * _power(parts).clamp(min=10 ** (_SILENT_DB / 10)).log10()
    return Levels(loudness.float(), parts.low, parts.high, num_samples / sample_rate)


class _Parts(NamedTuple):
    """Channels in parts of 10 ms; missing samples of the last part count as zeros."""

    mean: Float[Tensor, "C T"]
    power: Float[Tensor, "C T"]
    share: Float[Tensor, "C T"]
    low: Float[Tensor, "C T"]
    high: Float[Tensor, "C T"]


def _measured(parts: Float[Tensor, "C n P"], share: float = 1.0) -> _Parts:
    samples = parts.double()
    mean = samples.mean(2) * share
    power = samples.square().mean(2) * share
    low, high = (parts.amin(2), parts.amax(2)) if parts.shape[1] else (mean.float(),) * 2
    return _Parts(mean, power, torch.full_like(mean, share), low, high)


def _power(parts: _Parts) -> Float[Tensor, "C T"]:
    """Return mean squares about the offset of the channel, a constant that sound cards add.

    The offset is the median of the means of the parts within half a second, so it may drift or
    jump. Digital silence within a recording with an offset stays silence.
    """
    around = F.pad(parts.mean, (_OFFSET_PARTS, _OFFSET_PARTS), "replicate")
    windows = around.unfold(1, 2 * _OFFSET_PARTS + 1, 1)
    offset = torch.cat([some.median(2).values for some in windows.split(_CHUNK_PARTS, 1)], 1)
    offset = offset.where(offset.abs() <= _MOST_OFFSET, 0)
    about = parts.power - 2 * offset * parts.mean + offset.square() * parts.share
    return torch.minimum(parts.power, about)


def speech_segments(
    loudness_db: Float[Tensor, " T"], duration_s: float, rule: ConversationRule | None = None
) -> tuple[Segment, ...]:
    """Return the times at which a channel holds speech, in seconds.

    Args:
        loudness_db: Loudness of equal parts of the channel; see `Levels`.
        duration_s: Duration of the recording, at which the last time ends at the latest.
        rule: How loud speech is, what pauses are bridged and how short speech may be.
    """
    rule = rule or ConversationRule()
    sounding = (loudness_db > _SILENT_DB + 1).nonzero()[:, 0]
    if not len(sounding):
        return ()
    recorded = loudness_db[: int(sounding[-1]) + 1]
    quiet = float(recorded.kthvalue(max(len(recorded) // 10, 1)).values)
    threshold = max(rule.floor_db, quiet + rule.contrast_db)
    loud = F.pad((loudness_db > threshold).int(), (1, 1)).diff()
    starts = (loud == 1).nonzero()[:, 0]
    stops = (loud == -1).nonzero()[:, 0]
    found = [
        Segment(start / _PARTS_HZ, min(stop / _PARTS_HZ, duration_s))
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
    ]
    return tuple(
        segment
        for segment in bridge_gaps(found, rule.bridged_s)
        if _at_least(segment.end_s - segment.start_s, rule.shortest_s)
    )


def bridge_gaps(segments: Sequence[Segment], longest_gap_s: float) -> tuple[Segment, ...]:
    """Return segments in order of time, with gaps of up to ``longest_gap_s`` bridged."""
    result = list[Segment]()
    for segment in segments:
        if result and not segment.start_s - result[-1].end_s > longest_gap_s + _ROUNDING_S:
            result[-1] = Segment(result[-1].start_s, max(result[-1].end_s, segment.end_s))
        else:
            result.append(segment)
    return tuple(result)


def take_turns(
    agent: Sequence[Segment],
    user: Sequence[Segment],
    duration_s: float,
    rule: ConversationRule | None = None,
) -> TurnTaking:
    """Return how two speakers took turns: their answers and their overlaps.

    Args:
        agent: When the agent speaks, in order of time.
        user: When the user speaks, in order of time.
        duration_s: Duration of the conversation.
        rule: What counts as an answer and an overlap; by default that of `ConversationRule`.
    """
    rule = rule or ConversationRule()
    return TurnTaking(
        agent=tuple(agent),
        user=tuple(user),
        answers=find_answers(agent, user, rule),
        overlaps=find_overlaps(agent, user, rule),
        duration_s=duration_s,
    )


def find_answers(
    agent: Sequence[Segment], user: Sequence[Segment], rule: ConversationRule
) -> tuple[Answer, ...]:
    """Return the user's turns and the agent's reaction to each."""
    turns = bridge_gaps(user, rule.pause_s)
    answers = list[Answer]()
    asking = [turn for turn in turns if not _is_backchannel(turn, agent, rule)]
    ends = {turn: following.start_s for turn, following in zip(asking, asking[1:], strict=False)}
    for turn in turns:
        if turn not in asking:
            answers.append(Answer(turn, "backchannel", None))
            continue
        opens = max(turn.end_s - rule.early_s, turn.start_s)
        if any(s.start_s < opens - _ROUNDING_S and s.end_s > turn.end_s for s in agent):
            answers.append(Answer(turn, "talked over", None))
            continue
        closes = ends.get(turn, math.inf)
        starts = [s.start_s for s in agent if opens - _ROUNDING_S <= s.start_s < closes]
        start_s = min(starts, default=None)
        answers.append(Answer(turn, "unanswered" if start_s is None else "answered", start_s))
    return tuple(answers)


def _is_backchannel(turn: Segment, agent: Sequence[Segment], rule: ConversationRule) -> bool:
    short = not _at_least(turn.end_s - turn.start_s, rule.backchannel_s)
    return short and any(s.start_s < turn.start_s < s.end_s for s in agent)


def find_overlaps(
    agent: Sequence[Segment], user: Sequence[Segment], rule: ConversationRule
) -> tuple[Overlap, ...]:
    """Return the times in which both speak, in order.

    Args:
        agent: When the agent speaks, in order of time.
        user: When the user speaks, in order of time.
        rule: Its ``shortest_s`` is the shortest overlap that counts. Whoever began first yields if
            they had spoken for ``spoken_s``, stop first, and the other goes on for more than
            ``taken_s``.
    """
    overlaps = list[Overlap]()
    mine = list(agent)
    theirs = list(user)
    while mine and theirs:
        (first, _), (second, name) = sorted(((mine[0], AGENT), (theirs[0], USER)))
        start_s = second.start_s
        end_s = min(first.end_s, second.end_s)
        if _at_least(end_s - start_s, rule.shortest_s):
            yields = (
                first.end_s < second.end_s
                and start_s - first.start_s >= rule.spoken_s
                and second.end_s - second.start_s > rule.taken_s
            )
            overlaps.append(Overlap(start_s, end_s, name, yields))
        # The segment that ends first overlaps with no further one.
        (mine if mine[0].end_s <= theirs[0].end_s else theirs).pop(0)
    return tuple(overlaps)


def as_timeline(found: TurnTaking) -> Timeline:
    """Return events of the kinds "speech", "turn" and "overlap"; other times are in the payload."""
    events = [
        Event(start_s=start_s, end_s=end_s, stream=stream, kind="speech")
        for stream, segments in ((AGENT, found.agent), (USER, found.user))
        for start_s, end_s in segments
    ]
    for answer in found.answers:
        payload = {"outcome": answer.outcome, "latency_s": _rounded(answer.latency_s)}
        start_s, end_s = answer.turn
        events.append(
            Event(start_s=start_s, end_s=end_s, stream=USER, kind="turn", payload=payload)
        )
    for overlap in found.overlaps:
        events.append(
            Event(
                start_s=overlap.start_s,
                end_s=overlap.end_s,
                stream=overlap.second,
                kind="overlap",
                payload={"yields": overlap.yields},
            )
        )
    return Timeline(events=tuple(events))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile; NaN if there are no values."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else math.nan


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _at_least(value: float, limit: float) -> bool:
    return value >= limit - _ROUNDING_S
