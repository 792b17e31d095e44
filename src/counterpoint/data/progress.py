"""Lines and a bar that tell a person how far something is."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from counterpoint.packages import optional_module


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


def with_bar(
    what: str,
    pieces: Iterable[Float[Tensor, "C _N"]],
    duration_s: float,
    sample_rate: int,
    stream: Output,
) -> Iterator[Float[Tensor, "C _N"]]:
    """The same pieces of sound, with a bar of the seconds that have gone by.

    Args:
        what: Stands before the bar.
        pieces: Pieces of a recording, one after the other.
        duration_s: Length of all of them.
        sample_rate: Samples a second.
        stream: Where the bar is shown; nothing is left of it at the end.
    """
    rich = optional_module("rich.progress")
    columns = (
        rich.TextColumn(what, markup=False),
        rich.BarColumn(bar_width=24),
        rich.TextColumn("{task.completed:.0f}/{task.total:.0f} s"),
        rich.TimeRemainingColumn(),
    )
    console = optional_module("rich.console").Console(file=stream, markup=False, emoji=False)
    with rich.Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=duration_s)
        for piece in pieces:
            progress.advance(task, piece.shape[1] / sample_rate)
            yield piece
