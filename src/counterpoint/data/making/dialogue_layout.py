"""Laying out a script and its utterances in time: two channels of audio, and a timeline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.data.making.scripts import Script, Turn
from counterpoint.data.making.turn_taking import (
    BACKCHANNEL,
    FLOOR_TRANSFER,
    PAUSE,
    YIELD,
    boundary_weights,
)
from counterpoint.errors import UserError
from counterpoint.speech.spoken_words import SpokenWord
from counterpoint.speech.voices import Spoken
from counterpoint.streams.timeline import Event, Timeline

_JOINED_S = 0.2
_SILENCE_S = 0.08  # a shorter gap between words is the sound of passing from one to the other
_FADE_S = 0.005
_CUT_FADE_S = 0.02
_SEARCH_S = 0.02


@dataclass(kw_only=True, slots=True)
class _Placed:
    """A turn in time. All numbers are samples; words and pauses count from the turn's start."""

    index: int
    turn: Turn
    start: int
    audio: Float[Tensor, " N"]
    words: list[tuple[str, int, int]]
    pauses: list[tuple[int, int]]
    payload: dict[str, Any] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        return self.start + len(self.audio)


def lay_out(
    script: Script,
    spoken: Sequence[Spoken],
    *,
    sample_rate: int,
    seed: int,
    lead_s: float = 0.5,
    tail_s: float = 1.5,
    header: Mapping[str, Any] | None = None,
) -> tuple[Float[Tensor, "2 N"], Timeline]:
    """Place the utterances of a script in time.

    What the script leaves open is drawn from a generator seeded by seed, name and turn. A turn
    starts a floor transfer time after the end of the turn before it (a pause time if the speaker is
    the same), but not before the middle of that turn. Nothing starts less than 0.2 s after the same
    speaker's last utterance. A backchannel does not take the floor. An interruption starts at the
    end of a word of the other speaker, who continues for a yield latency. The rest of that turn is
    silent and its words are left out; so is a word that is cut in its first half, although its
    sound is kept, because people stop within words.

    Args:
        script: The dialogue in text.
        spoken: One utterance for each turn.
        sample_rate: Sample rate of the utterances.
        seed: Seed of what is drawn.
        lead_s: Silence before the first turn, in seconds.
        tail_s: Silence after all speech, in seconds.
        header: Header of the timeline.

    Returns:
        The agent's channel and the user's channel, and the timeline with the streams "agent" and
        "user". Events of kind "turn", "backchannel" and "interruption" are utterances from the
        first to the last sound. Their payload is ``{"turn": index}``; a turn that was interrupted
        also has ``"cut_by": index``, and an interruption has ``"interrupts": index, "cut_s":
        seconds``, the time at which the other speaker stopped, or ``None`` if that turn had ended.
        "speech" events are the parts of utterances between pauses. "pause" events are silences
        between two words of an utterance of at least 200 ms, or as the script says. "word" events
        are the words that sound.
    """
    placed = list[_Placed]()
    floor: _Placed | None = None
    for index, (turn, utterance) in enumerate(zip(script.turns, spoken, strict=True)):
        rng = Random(f"{seed}/{script.name}/{index}")
        audio, words, pauses = _spliced(utterance, turn, sample_rate)
        new = _Placed(index=index, turn=turn, start=0, audio=audio, words=words, pauses=pauses)
        new.payload["turn"] = index
        own = max((other.stop for other in placed if other.turn.speaker == turn.speaker), default=0)
        earliest = own + round(_JOINED_S * sample_rate) if own else 0
        new.start = max(_start(turn, floor, rng, sample_rate, lead_s), earliest)
        if turn.kind == "interruption" and floor is not None:
            drawn_s = YIELD.at(rng.random())
            yield_s = drawn_s if turn.yield_s is None else turn.yield_s
            _interrupt(floor, new, round(yield_s * sample_rate), sample_rate)
        placed.append(new)
        if turn.kind != "backchannel":
            floor = new
    channels = _mixed(placed, round(tail_s * sample_rate))
    events = [event for one in placed for event in _events(one, sample_rate)]
    return channels, Timeline(events=tuple(events), header=header or {})


def _mixed(placed: Sequence[_Placed], tail: int) -> Float[Tensor, "2 N"]:
    """Add up the utterances of each speaker, with ``tail`` samples of silence behind the last."""
    channels = torch.zeros(2, max(one.stop for one in placed) + tail)
    for one in placed:
        channels[int(one.turn.speaker == "user"), one.start : one.stop] += one.audio
    return channels


def _start(turn: Turn, floor: _Placed | None, rng: Random, sample_rate: int, lead_s: float) -> int:
    """Return the first sample of a turn that may start at any time."""
    if floor is None:
        return round(lead_s * sample_rate)
    if turn.kind == "turn":
        same = turn.speaker == floor.turn.speaker
        drawn_s = (PAUSE if same else FLOOR_TRANSFER).at(rng.random())
        gap_s = drawn_s if turn.gap_s is None else turn.gap_s
        return max(floor.stop + round(gap_s * sample_rate), floor.start + len(floor.audio) // 2)
    words = floor.turn.words
    after = turn.after_word
    offset_s = 0.0
    if turn.kind == "backchannel":
        offset_s = BACKCHANNEL.at(0.25 + 0.5 * rng.random())
        if after is None:
            weights = boundary_weights(words) or [1.0]
            after = rng.choices(range(len(weights)), weights)[0]
    elif after is None:
        after = rng.randrange(len(words) // 4, max(3 * len(words) // 4, len(words) // 4 + 1))
    # If the turn was cut short, only the words that were said count.
    _, _, end = floor.words[min(after, len(floor.words) - 1)] if floor.words else ("", 0, 0)
    return max(floor.start + end + round(offset_s * sample_rate), floor.start)


def _interrupt(floor: _Placed, new: _Placed, latency: int, sample_rate: int) -> None:
    """Cut the turn that has the floor."""
    cut = new.start + latency - floor.start
    new.payload |= {"interrupts": floor.index, "cut_s": None}
    if cut >= len(floor.audio):
        return
    for start, stop in floor.pauses:
        if start <= cut < stop:
            cut = start  # it was silent already
    fade = min(round(_CUT_FADE_S * sample_rate), cut)
    floor.audio = _faded(floor.audio[:cut], 0, fade)
    floor.words = [
        (text, start, min(stop, cut))
        for text, start, stop in floor.words
        if start + (stop - start) / 2 <= cut
    ]
    floor.pauses = [pause for pause in floor.pauses if pause[1] <= cut]
    floor.payload["cut_by"] = new.index
    new.payload["cut_s"] = round((floor.start + cut) / sample_rate, 6)


def _spliced(
    spoken: Spoken, turn: Turn, sample_rate: int
) -> tuple[Float[Tensor, " N"], list[tuple[str, int, int]], list[tuple[int, int]]]:
    """Return audio, words and pauses of an utterance with the silences that its turn asks for."""
    if len(spoken.words) != len(turn.words):
        raise UserError(
            f"An utterance must have a word for each of the {len(turn.words)} pieces of "
            f"{turn.text!r}: got {len(spoken.words)}."
        )
    fade = round(_FADE_S * sample_rate)
    wanted = dict(turn.pauses)
    pieces = list[Tensor]()
    words = list[tuple[str, int, int]]()
    first = 0
    added = 0
    asked = set[int]()
    for index, word in enumerate(spoken.words):
        start = round(word.start_s * sample_rate)
        stop = round(word.end_s * sample_rate)
        if index in wanted:
            before = spoken.words[index - 1]
            place = max(_quietest(spoken.audio, before, word, sample_rate), first)
            text, word_start, word_stop = words[-1]
            if start + added - word_stop < round(_SILENCE_S * sample_rate):
                no_sound = word_start == word_stop
                word_stop = place + added
                start = place
                stop = max(stop, place)
                word_start = word_stop if no_sound else min(word_start, word_stop)
            words[-1] = (text, word_start, word_stop)
            there = start + added - words[-1][2]
            silence = max(round(wanted[index] * sample_rate) - there, 0)
            if silence:
                piece = _faded(spoken.audio[first:place], fade if first else 0, fade)
                pieces += [piece, torch.zeros(silence)]
                first = place
                added += silence
            asked.add(index)
        words.append((word.text, start + added, stop + added))
    pieces.append(_faded(spoken.audio[first:], fade if first else 0, 0))
    return torch.cat(pieces), words, _silences(words, asked, round(_JOINED_S * sample_rate))


def _silences(
    words: Sequence[tuple[str, int, int]], asked: set[int], shortest: int
) -> list[tuple[int, int]]:
    """Return the spans between words that are long enough, or that were asked for."""
    spans = list[tuple[int, int]]()
    last = None
    pending = False
    for index, (_, start, stop) in enumerate(words):
        pending |= index in asked
        if start == stop:
            continue
        if last is not None and start > last and (pending or start - last >= shortest):
            spans.append((last, start))
        last = max(stop, last or 0)
        pending = False
    return spans


def _quietest(
    audio: Float[Tensor, " N"], before: SpokenWord, after: SpokenWord, sample_rate: int
) -> int:
    """Return the middle of the quietest 5 ms between two words or just around their boundary."""
    search = round(_SEARCH_S * sample_rate)
    size = round(_FADE_S * sample_rate)
    low = round(before.end_s * sample_rate)
    high = round(after.start_s * sample_rate)
    if high - low < size:
        low = low - search
        high = high + search
    low, high = max(low, 0), min(max(high, low + size), len(audio))
    if high - low < size:
        return high
    power = audio[low:high].double().square().unfold(0, size, 1).sum(1)
    return low + int(power.argmin()) + size // 2


def _faded(audio: Float[Tensor, " N"], fade_in: int, fade_out: int) -> Float[Tensor, " N"]:
    faded = audio.clone()
    fade_in = min(fade_in, len(audio))
    fade_out = min(fade_out, len(audio))
    if fade_in:
        faded[:fade_in] *= torch.linspace(0, 1, fade_in)
    if fade_out:
        faded[-fade_out:] *= torch.linspace(1, 0, fade_out)
    return faded


def _events(one: _Placed, sample_rate: int) -> list[Event]:
    def event(kind: str, start: int, stop: int, text: str = "", **payload: Any) -> Event:
        times = (round((one.start + sample) / sample_rate, 6) for sample in (start, stop))
        start_s, end_s = times
        return Event(
            start_s=start_s,
            end_s=end_s,
            stream=one.turn.speaker,
            kind=kind,
            text=text,
            payload=payload,
        )

    index = one.index
    length = len(one.audio)
    sounding = [word for word in one.words if word[1] < word[2]]
    said = " ".join(text for text, _, _ in one.words)
    edges = [0, *(edge for pause in one.pauses for edge in pause), length]
    events = [event(one.turn.kind, 0, length, said, **one.payload)]
    events += [
        event("speech", start, stop, turn=index)
        for start, stop in zip(edges[::2], edges[1::2], strict=True)
        if start < stop
    ]
    events += [event("pause", start, stop, turn=index) for start, stop in one.pauses]
    return events + [event("word", start, stop, text) for text, start, stop in sounding]
