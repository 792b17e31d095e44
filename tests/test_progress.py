import io
import re
import threading
import time

import pytest

from counterpoint.progress import Pace, Progress, spell_count, spell_duration, spell_minutes


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        """What was written, without what moves the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue())


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(seconds: list[float], total: int | None = 10) -> list[str]:
    """What a task of some pieces, of which each takes so long, shows."""
    stream, clock = io.StringIO(), Clock()
    task = Progress(stream, clock=clock).task("making", "things")
    for done, length in enumerate(seconds, 1):
        clock.now += length
        task(done, total)
    return stream.getvalue().splitlines()


def test_a_line_comes_after_a_second_then_every_ten_and_at_the_end() -> None:
    found = lines([0.5] + [4.0] * 9)
    assert [line.split()[1] for line in found] == ["2/10", "5/10", "8/10", "10/10"]
    assert found[0] == "making: 2/10 things  0:32 left"
    assert found[-1] == "making: 10/10 things"


def test_what_is_over_at_once_has_one_line() -> None:
    assert lines([0.01] * 10) == ["making: 10/10 things"]


def test_a_long_piece_shows_what_is_done_of_it() -> None:
    for stream in (io.StringIO(), Terminal()):
        clock = Clock()
        task = Progress(stream, clock=clock).task("run", "steps")
        for part in range(1, 5):
            clock.now += 8.0
            task.within(0, 3, f"{part} of 4 parts")
        for done in (1, 2, 3):
            clock.now += 32.0
            task(done, 3, "figures", 32.0)
        shown = stream.text if isinstance(stream, Terminal) else stream.getvalue()
        assert "0/3 steps  1 of 4 parts" in shown
        assert shown.rstrip().splitlines()[-1].endswith("run: 3/3 steps  figures")
        if not isinstance(stream, Terminal):  # which draws when there is time
            assert "2/3 steps  figures  0:32 left" in shown  # the speed is that of whole steps


def test_time_left_is_that_of_the_last_seconds() -> None:
    """A first piece that compiles for an hour, then slow ones, then fast ones."""
    found = lines([3600.0] + [20.0] * 5 + [2.0] * 20, total=100)
    assert found[0] == "making: 1/100 things"  # nothing is known yet
    assert found[1] == "making: 2/100 things  32:40 left"
    assert found[-1].endswith("things  2:28 left")
    assert found[-1].startswith("making: 26/100")


def test_without_a_total_there_is_no_time_left() -> None:
    assert lines([0.1, 2.0, 9.0], total=None) == ["making: 1 things", "making: 3 things"]


def test_the_next_of_several_things_begins_anew() -> None:
    stream, clock = io.StringIO(), Clock()
    task = Progress(stream, clock=clock, every_seconds=0).task("encoding")
    for done in (1, 2, 1):
        clock.now += 1
        task(done, 2)
    assert stream.getvalue().splitlines()[-1] == "encoding: 1/2"


def test_pace_is_that_of_its_window() -> None:
    pace = Pace(10)
    pace.add(60.0, 1.0)
    known = [pace.is_known]
    for _ in range(30):
        pace.add(1.0, 2.0)
        known.append(pace.is_known)
    assert known == [False] + [True] * 30
    for _ in range(10):
        pace.add(1.0, 4.0)
    assert (pace.rate(), pace.mean(), pace.seconds) == (4.0, 4.0, 10.0)


def test_pace_keeps_three_entries_however_long_they_are() -> None:
    pace = Pace(10)
    for amount in (9.0, 30.0, 40.0, 50.0, 60.0):
        pace.add(100.0, amount)
    assert pace.rate() == pytest.approx(0.5)


def test_a_bar_shows_the_same_on_a_terminal_and_leaves_a_line() -> None:
    stream = Terminal()
    with Progress(stream) as progress:
        task = progress.task("two_stream", "steps")
        task(4, 10, "3.5 [bits]")
        progress.note("evaluation: [nats] 2.5")
        task(10, 10, "3.4 [bits]")
    for text in ("two_stream", "4/10 steps", "3.5 [bits]", "[nats] 2.5"):
        assert text in stream.text
    assert stream.text.rstrip().endswith("two_stream: 10/10 steps  3.4 [bits]")


def test_a_board_stands_above_the_bars_and_is_written_once_a_minute_elsewhere() -> None:
    stream = Terminal()
    with Progress(stream) as progress:
        task = progress.task("making", "things")
        task(1, 10)
        progress.board("arm  score\na    1")
        progress.bars().refresh()
    assert stream.text.rindex("a    1") < stream.text.rindex("making")
    plain = io.StringIO()
    clock = Clock()
    progress = Progress(plain, clock=clock)
    for _ in range(100):
        clock.now += 1.5
        progress.board(f"at {clock.now}")
    assert plain.getvalue() == "at 60.0\nat 120.0\n"


def test_bars_go_when_the_work_fails() -> None:
    stream = Terminal()
    progress = Progress(stream)
    pieces = progress.over("x", (1 / x for x in (1, 0)), 3)
    with pytest.raises(ZeroDivisionError), progress:
        list(pieces)
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1


def test_what_takes_long_is_told_before_its_first_piece_and_every_ten_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, clock=clock)
    task = progress.task("training", "cells")
    with progress.doing("comparing costs"):
        for _ in range(13):
            clock.now += 1
            assert progress.remind()
    assert stream.getvalue().splitlines() == ["comparing costs ...", "comparing costs: 0:12 so far"]
    task(3, 100)
    for _ in range(21):
        clock.now += 1
        progress.remind()
    found = stream.getvalue().splitlines()[2:]
    assert found[:2] == ["training: 3/100 cells", "training: 3/100 cells  0:23 so far"]
    assert len(found) == 3
    task(100, 100)
    assert not progress.remind()  # nothing is left


def test_a_thread_tells_it_while_this_one_works_and_ends_with_the_task() -> None:
    stream = io.StringIO()
    progress = Progress(stream, every_seconds=0.1)
    with progress.doing("sleeping"):
        deadline = time.monotonic() + 30
        while len(stream.getvalue().splitlines()) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        (watch,) = (one for one in threading.enumerate() if one.name == "progress")
    watch.join(30)
    assert not watch.is_alive()
    assert stream.getvalue().startswith("sleeping ...\nsleeping: 0:0")


def test_a_task_that_nobody_holds_is_forgotten() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, clock=clock)
    task = progress.task("half")
    task(1, 2)
    del task
    clock.now += 30
    assert not progress.remind()
    assert stream.getvalue() == ""


def test_a_terminal_has_a_bar_before_the_first_piece() -> None:
    stream, clock = Terminal(), Clock()
    with Progress(stream, clock=clock) as progress:
        task = progress.task("slow", "things")
        clock.now += 2
        progress.remind()
        progress.bars().refresh()
        assert "slow" in stream.text
        task(2, 2)
    assert stream.text.rstrip().endswith("slow: 2/2 things")


def test_quiet_shows_nothing() -> None:
    for stream in (io.StringIO(), Terminal()):
        progress = Progress(stream, quiet=True)
        progress.note("a line")
        task = progress.task("x")
        task(1, 2)
        task(2, 2)
        assert list(progress.over("y", "abc", 3)) == ["a", "b", "c"]
        assert stream.getvalue() == ""


def test_pieces_are_passed_through() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, clock=clock, every_seconds=0)
    assert list(progress.over("talking", ["aa", "b"], 3, len, unit="s")) == ["aa", "b"]
    assert stream.getvalue().splitlines() == ["talking: 2/3 s", "talking: 3/3 s"]


@pytest.mark.parametrize(
    ("value", "text"), [(2, "2 "), (999.7, "1 k"), (2_000_000, "2 M"), (3.21e13, "32.1 T")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert spell_count(value) == text


def test_times_have_hours_where_they_are_needed() -> None:
    assert [spell_duration(s) for s in (59.7, 61, 3725)] == ["1:00", "1:01", "1:02:05"]


@pytest.mark.parametrize(
    ("minutes", "text"),
    [
        (0.5, "0.5 minutes"),
        (1.0, "1 minute"),
        (9.94, "9.9 minutes"),
        (119.0, "119 minutes"),
        (130.0, "2.2 hours"),
        (2900.0, "2 days"),
        (1e6, "694 days"),
    ],
)
def test_times_are_spelt_with_two_digits(minutes: float, text: str) -> None:
    assert spell_minutes(minutes) == text
