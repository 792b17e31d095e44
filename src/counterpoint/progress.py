"""The progress of long commands, as the user sees it."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, runtime_checkable
from weakref import ref

_Piece = TypeVar("_Piece")

_BOARD_S = 60.0  # between two boards where they are written as lines
_WATCH_S = 0.25  # between two looks at whether a line is due
_PATIENCE_S = 2.0  # before a line about something of which no numbers are known


@runtime_checkable
class Output(Protocol):
    """A destination of text: a terminal, a file, or `sys.stderr`."""

    def write(self, text: str, /) -> object:
        """Write some text."""

    def flush(self) -> object:
        """Pass on what was written."""

    def isatty(self) -> bool:
        """Return whether it is a terminal."""


class Pace:
    """Speed over the last seconds of work.

    The first entry includes what happens only once, such as compilation, so it counts only until
    there is another entry.
    """

    def __init__(self, window_s: float = 10.0) -> None:
        """Forget entries from more than ``window_s`` seconds of work ago; three are kept."""
        self._window_s = window_s
        self._entries = deque[tuple[float, tuple[float, ...]]]()
        self._sums: tuple[float, ...] = ()
        self._is_first = True
        self.seconds = 0.0

    def add(self, seconds: float, *amounts: float) -> None:
        """Record amounts of work that were done in some seconds."""
        if self._is_first and self._entries:
            self._forget()
            self._is_first = False
        self._entries.append((seconds, amounts))
        self.seconds += seconds
        sums = self._sums or (0.0,) * len(amounts)
        self._sums = tuple(old + new for old, new in zip(sums, amounts, strict=True))
        while len(self._entries) > 3 and self.seconds - self._entries[0][0] >= self._window_s:
            self._forget()

    def _forget(self) -> None:
        seconds, amounts = self._entries.popleft()
        self.seconds -= seconds
        self._sums = tuple(old - gone for old, gone in zip(self._sums, amounts, strict=True))

    @property
    def is_known(self) -> bool:
        """Whether anything after the first entry was measured."""
        return not self._is_first and self.seconds > 0

    def rate(self, place: int = 0) -> float:
        """Return one of the amounts a second."""
        return self._sums[place] / max(self.seconds, 1e-9)

    def mean(self, place: int = 0) -> float:
        """Return the mean amount of an entry."""
        return self._sums[place] / max(len(self._entries), 1)


class Progress:
    """Shows notes and tasks: a bar on a terminal, otherwise a named line every ten seconds.

    The lines also come while a piece takes long: a thread writes them for the newest task that has
    not ended. It begins with the first task and ends when none is left.
    """

    def __init__(
        self,
        stream: Output | None = None,
        *,
        quiet: bool = False,
        bar: bool | None = None,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a display.

        Args:
            stream: Destination of the display; stderr by default.
            quiet: Whether to show nothing.
            bar: Whether bars are drawn; by default if ``stream`` is a terminal.
            every_seconds: Seconds between two lines of a task.
            clock: Returns seconds. With a clock of its own no thread watches; see `remind`.
        """
        self._stream: Output = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._draws = self._stream.isatty() if bar is None else bar
        self.every_seconds = every_seconds
        self.clock = clock
        self._live: Any = None
        self._board = ""
        self._next_board = clock() + _BOARD_S
        self._said = set[str]()
        self.lock = threading.RLock()  # two threads may show a task
        self._tasks = list[ref[Task]]()  # that have not ended; one that nobody holds is forgotten
        self._is_watched = False

    def __enter__(self) -> "Progress":
        """Show the progress until the block ends."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the bars."""
        self.close()

    def close(self) -> None:
        """Remove the bars; later output begins anew."""
        with self.lock:
            self._tasks.clear()
        self.remove_bars()

    def remove_bars(self) -> None:
        """Remove the bars, and those of tasks that nobody has ended."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._board = ""

    def note(self, text: str) -> None:
        """Show a line."""
        if self._quiet:
            return
        if self._live is not None:
            self._live.console.print(text, highlight=False, soft_wrap=True)
            return
        with self.lock:
            self._stream.write(text + "\n")
            self._stream.flush()

    def note_once(self, text: str) -> None:
        """Show a line, unless it was shown so before."""
        if text not in self._said:
            self._said.add(text)
            self.note(text)

    def board(self, text: str) -> None:
        """Show several lines that replace those of before, such as a table of results so far.

        On a terminal they stand above the bars; elsewhere they are written, but not often.
        """
        self._board = text
        if self._draws or self.clock() < self._next_board:
            return
        self._next_board = self.clock() + _BOARD_S
        self.note(text)

    def task(
        self, name: str, unit: str = "", spell: Callable[[float], str] = lambda x: f"{x:,.0f}"
    ) -> "Task":
        """Start the display of something that is done piece by piece.

        Args:
            name: Text before the numbers, such as "making dialogues".
            unit: What is counted, such as "dialogues".
            spell: Formats the amounts that are done and that there are.
        """
        return Task(self, name, unit, spell)

    @contextmanager
    def doing(self, name: str) -> Iterator[None]:
        """Show that the block does something of which no pieces are counted."""
        task = self.task(name)
        try:
            yield
        finally:
            task.end()

    def remind(self) -> bool:
        """Show the newest task if that is due; return whether there is any task."""
        with self.lock:
            tasks = [task for found in self._tasks if (task := found()) is not None]
            if tasks:
                tasks[-1].remind()
            return bool(tasks)

    def begin(self, task: "Task") -> None:
        """Show a task from now on until it ends."""
        if self._quiet:
            return
        with self.lock:
            self._tasks = [one for one in self._tasks if one() not in (None, task)]
            self._tasks.append(ref(task))
            if self._is_watched or self.clock is not time.monotonic:
                return
            self._is_watched = True
            threading.Thread(target=_watch, args=(ref(self),), name="progress", daemon=True).start()

    def stop_watching(self) -> bool:
        """Return whether no task is left, so that nothing is watched any more."""
        with self.lock:
            self._is_watched = self.remind()
            return not self._is_watched

    def finish(self, task: "Task") -> None:
        """Show no more of a task."""
        with self.lock:
            self._tasks = [one for one in self._tasks if one() not in (None, task)]

    def over(
        self,
        name: str,
        pieces: Iterable[_Piece],
        total: float,
        size: Callable[[_Piece], float] = lambda piece: 1.0,
        *,
        unit: str = "",
        spell: Callable[[float], str] = lambda x: f"{x:,.0f}",
    ) -> Iterator[_Piece]:
        """Yield the given pieces, and show the progress meanwhile.

        Args:
            name: Text before the numbers; see `task`.
            pieces: What is yielded.
            total: Sum of the sizes of all pieces.
            size: Size of a piece; by default 1.
            unit: What is counted.
            spell: Formats the amounts that are done and that there are.
        """
        task = self.task(name, unit, spell)
        done = 0.0
        for piece in pieces:
            done += size(piece)
            task(done, total)
            yield piece
        task.end()

    def bars(self) -> Any:
        """Return the bars, which are drawn from now on; ``None`` if lines are shown instead."""
        if self._live is None and self._draws and not self._quiet:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bars
            from rich.text import Text

            def board() -> str:
                return self._board

            class BarsBelowBoard(Bars):
                def get_renderables(self) -> Iterable[Any]:
                    if board():
                        yield Text(f"{board()}\n", no_wrap=True, overflow="ellipsis")
                    yield from super().get_renderables()

            self._live = BarsBelowBoard(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[text]}", markup=False),
                console=Console(file=self._stream, markup=False, emoji=False),  # type: ignore[arg-type]
                transient=True,
            )
            self._live.start()
        return self._live


def _watch(found: "ref[Progress]") -> None:
    """Remind of the tasks of a display as long as there are any."""
    while True:
        time.sleep(_WATCH_S)
        progress = found()
        if progress is None or progress.stop_watching():
            return
        del progress  # only those who show something keep it


class Task:
    """The display of something that is done piece by piece; made by `Progress.task`."""

    def __init__(
        self, progress: Progress, name: str, unit: str, spell: Callable[[float], str]
    ) -> None:
        self._progress = progress
        self._name = name
        self._unit = unit
        self._spell = spell
        self._pace = Pace()
        self._done: float | None = None
        self._shown = False
        self._is_told = True  # whether a line has the newest numbers
        self._begin = self._now = self._newest = progress.clock()
        # A task of less than a second needs only one line.
        self._next = self._now + min(1.0, progress.every_seconds)
        self._text_so_far = ""
        self._bar: Any = None
        progress.begin(self)

    def __call__(
        self,
        done: float,
        total: float | None = None,
        figures: str = "",
        seconds: float | None = None,
    ) -> None:
        """Show the progress.

        Args:
            done: Amount done of ``total``, including that of earlier calls of the command.
            total: Amount to do; ``None`` if it is not known.
            figures: Further numbers.
            seconds: Time of the newest piece; by default the time since the last call.
        """
        now = self._progress.clock()
        # The size of the first piece is not known, because a resumed run begins in the middle.
        if self._done is not None and done < self._done:
            self._pace = Pace()  # the next of several tasks under one name
            self._done = None
            self._progress.begin(self)
        piece = done if self._done is None else done - self._done
        self._pace.add(now - self._now if seconds is None else seconds, piece)
        self._done = done
        self._now = now
        self._show(done, total, figures, at_end=total is not None and done >= total)

    def within(self, done: float, total: float, figures: str) -> None:
        """Show figures of a piece that takes long, before it is done; the speed does not change.

        Args:
            done: Amount that is done before this piece.
            total: Amount to do.
            figures: Further numbers.
        """
        self._show(done, total, figures, at_end=False)

    def _show(self, done: float, total: float | None, figures: str, *, at_end: bool) -> None:
        """Draw the bar; without one, write a line if it is time."""
        now = self._progress.clock()
        text = self._text(done, total, figures)
        with self._progress.lock:  # the watching thread may show this task, too
            # Without a total the end is not known, so the first line comes at once.
            at_once = total is None and not self._shown
            self._text_so_far = text
            self._newest = now
            self._is_told = False
            bars = self._progress.bars()
            if at_end:
                self.end()
            elif bars is not None:
                self._draw(bars, done, total)
            elif at_once or now >= self._next:
                self._tell(now)

    def _tell(self, now: float) -> None:
        self._shown = self._is_told = True
        self._next = now + self._progress.every_seconds
        self._progress.note(f"{self._name}: {self._text_so_far}")

    def _draw(self, bars: Any, done: float, total: float | None) -> None:
        shown = {"completed": done, "total": total, "text": self._text_so_far}
        if self._bar is None:
            self._bar = bars.add_task(self._name, **shown)
        else:
            bars.update(self._bar, **shown)

    def remind(self) -> None:
        """Show what is known, if nothing was shown for a while because a piece takes long."""
        now = self._progress.clock()
        # Pieces that come often enough show themselves.
        wait_s = self._progress.every_seconds if self._text_so_far else _PATIENCE_S
        if now < max(self._next, self._newest + wait_s):
            return
        self._next = now + self._progress.every_seconds
        bars = self._progress.bars()
        if bars is not None:
            if self._bar is None:
                self._draw(bars, 0, None)
            return
        so_far = f"{spell_duration(now - self._begin)} so far" if self._shown else ""
        known = "  ".join(text for text in (self._text_so_far, so_far) if text)
        self._shown = True
        self._progress.note(f"{self._name}: {known}" if known else f"{self._name} ...")

    def end(self) -> None:
        """Remove the bar, and leave a line with the newest numbers."""
        self._progress.finish(self)
        bars = self._progress.bars() if self._bar is not None else None
        if bars is not None:
            bars.remove_task(self._bar)
            self._bar = None
            if not bars.tasks:
                self._progress.remove_bars()
        if not self._is_told:
            self._tell(self._progress.clock())

    def _text(self, done: float, total: float | None, figures: str) -> str:
        count = self._spell(done) if total is None else f"{self._spell(done)}/{self._spell(total)}"
        parts = [f"{count} {self._unit}".rstrip()]
        if figures:
            parts.append(figures)
        if total is not None and done < total and self._pace.is_known and self._pace.rate() > 0:
            parts.append(f"{spell_duration((total - done) / self._pace.rate())} left")
        return "  ".join(parts)


def spell_count(value: float) -> str:
    """Return a number with three digits and a prefix, such as ``2 M``."""
    for prefix in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} T"


def spell_duration(seconds: float) -> str:
    """Return a time as ``minutes:seconds``, or with hours before them."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def spell_minutes(minutes: float) -> str:
    """Return a time in minutes, hours or days, with two digits."""
    unit, size = next(
        ((name, size) for name, size in (("day", 1440), ("hour", 60)) if minutes >= 2 * size),
        ("minute", 1),
    )
    amount = minutes / size
    text = f"{amount:,.0f}" if amount >= 9.95 else f"{amount:.2g}"
    return f"{text} {unit}" if text == "1" else f"{text} {unit}s"
