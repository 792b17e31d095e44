"""Lines that tell a person how far the preparation of data is."""

import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable


@runtime_checkable
class Output(Protocol):
    """Where text goes: a terminal, a file, `sys.stderr`."""

    def write(self, text: str, /) -> object:
        """Take some text."""
        ...

    def flush(self) -> object:
        """Pass on what was taken."""
        ...

    def isatty(self) -> bool:
        """Whether a person watches."""
        ...


def corpus_lines(
    stream: Output, every_seconds: float = 5.0, clock: Callable[[], float] = time.monotonic
) -> Callable[[int, int], None]:
    """Follow `counterpoint.data.text.corpus.prepare`: a line at once, then every few seconds."""
    write = few_lines(stream, every_seconds, clock)

    def show(num_documents: int, num_bytes: int) -> None:
        write(f"tokenised so far: {num_documents:,} documents, {spell_count(num_bytes)}B")

    return show


def recording_lines(
    stream: Output, every_seconds: float = 5.0, clock: Callable[[], float] = time.monotonic
) -> Callable[[float, float], None]:
    """Follow `counterpoint.data.speech.rows.prepare_speech`, as `corpus_lines` does text."""
    write = few_lines(stream, every_seconds, clock)

    def show(done_s: float, total_s: float) -> None:
        write(
            f"encoded so far: {spell_duration(done_s)} of {spell_duration(total_s)} of recordings"
        )

    return show


def few_lines(
    stream: Output, every_seconds: float = 5.0, clock: Callable[[], float] = time.monotonic
) -> Callable[[str], None]:
    """A function that writes the first line it is given, then one every few seconds."""
    last: float | None = None

    def write(line: str) -> None:
        nonlocal last
        now = clock()
        if last is None or now - last >= every_seconds:
            last = now
            stream.write(line + "\n")
            stream.flush()

    return write


def remaining_lines(
    stream: Output,
    what: str,
    every_seconds: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[int, int], None]:
    """A function that says how far something is and how long it will take: seldom, and at the end.

    Args:
        stream: Where lines go.
        what: What is done, such as "making dialogues".
        every_seconds: Time between two lines.
        clock: Gives seconds.
    """
    begin = clock()
    told = begin

    def show(done: int, total: int) -> None:
        nonlocal told
        now = clock()
        if now - told < every_seconds and done < total:
            return
        told = now
        left = (now - begin) / max(done, 1) * (total - done)
        stream.write(f"{what}: {done}/{total}, {left / 60:.1f} min left\n")
        stream.flush()

    return show


def spell_count(value: float) -> str:
    """A number with three digits and a prefix, such as ``2 M``."""
    for prefix in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} T"


def spell_duration(seconds: float) -> str:
    """A time as ``minutes:seconds``, or with hours before them."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
