"""A conversation as lines of text: who said what and when, and what was observed."""

from dataclasses import replace

from counterpoint.evaluate.duplex.turns import TurnTaking
from counterpoint.runtime.talk import USER
from counterpoint.streams.timeline import Event, Timeline

_APART_S = 1.0  # words of a speaker with a longer gap are put on two lines


def transcript_lines(words: Timeline) -> list[str]:
    """Return what each speaker said without a longer gap, in order of time."""
    stretches: list[Event] = []
    newest: dict[str, int] = {}  # place of each speaker's last stretch
    for word in words.where(kind="word"):
        place = newest.get(word.stream)
        if place is not None and word.start_s - stretches[place].end_s <= _APART_S:
            last = stretches[place]
            text = f"{last.text} {word.text}"
            stretches[place] = replace(last, end_s=max(last.end_s, word.end_s), text=text)
        else:
            newest[word.stream] = len(stretches)
            stretches.append(word)
    return [f"{one.start_s:5.1f} s  {one.stream:5}  {one.text}" for one in stretches]


def finding_lines(found: TurnTaking) -> list[str]:
    """Return what happened, one sentence each, as it was measured in the sound."""
    lines = []
    for start_s, end_s in found.pauses:
        lines.append(f"The agent stayed silent while the user paused for {end_s - start_s:.1f} s.")
    latencies = " and ".join(f"{seconds:.1f} s" for seconds in found.latencies_s)
    if latencies:
        lines.append(f"It answered {latencies} after the user had finished.")
    else:
        lines.append("It answered nothing.")
    for overlap in found.overlaps:
        if overlap.second == USER and overlap.yields:
            seconds = overlap.end_s - overlap.start_s
            lines.append(f"It fell silent {seconds:.1f} s after the user had come in.")
    return lines
