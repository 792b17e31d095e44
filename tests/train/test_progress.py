import io
import re
import sys
from dataclasses import replace

import pytest
import torch

from counterpoint.data.progress import corpus_lines, recording_lines
from counterpoint.train.progress import (
    LineReporter,
    RichReporter,
    StepReport,
    make_reporter,
    peak_flops,
)


def report(step: int, num_steps: int = 10) -> StepReport:
    return StepReport(
        step=step,
        num_steps=num_steps,
        loss=3.5,
        seconds=0.5,
        size=1000,
        unit="byte",
        flops=4e9,
        num_processes=2,
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_come_every_few_seconds_and_at_the_end() -> None:
    now = [0.0]
    stream = io.StringIO()
    reporter = LineReporter(stream, every_seconds=10, peak=8e9, clock=lambda: now[0])
    for step in range(1, 11):
        reporter.step(report(step))
        now[0] += 4
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/10", "4/10", "7/10", "10/10"]
    # 4e9 FLOPs in half a second on two devices of 8e9 FLOP/s each; six steps of half a second left
    assert lines[1] == "step 4/10  3.5000 bits/byte  2 kB/s  50% of peak  0:03 left"


def test_corpus_lines_come_at_once_and_every_few_seconds() -> None:
    now = [0.0]
    stream = io.StringIO()
    show = corpus_lines(stream, every_seconds=5, clock=lambda: now[0])
    for i in range(1, 8):
        show(1000 * i, 2_000_000 * i)
        now[0] += 2
    assert stream.getvalue().splitlines() == [
        "tokenised so far: 1,000 documents, 2 MB",
        "tokenised so far: 4,000 documents, 8 MB",
        "tokenised so far: 7,000 documents, 14 MB",
    ]


def test_speech_is_counted_in_frames() -> None:
    stream = io.StringIO()
    LineReporter(stream).step(replace(report(1), unit="frame"))
    assert "3.5000 bits/frame  2 k frames/s  0:04 left" in stream.getvalue()


def test_recordings_show_how_much_is_encoded() -> None:
    now, stream = [0.0], io.StringIO()
    show = recording_lines(stream, every_seconds=5, clock=lambda: now[0])
    for seconds in range(0, 12, 2):
        now[0] = seconds
        show(60.0 * seconds, 3600.0)
    assert stream.getvalue().splitlines() == [
        "encoded so far: 0:00 of 1:00:00 of recordings",
        "encoded so far: 6:00 of 1:00:00 of recordings",
    ]


def test_lines_leave_an_unknown_peak_out() -> None:
    stream = io.StringIO()
    LineReporter(stream).step(report(1))
    assert "peak" not in stream.getvalue()


def test_bar_shows_speed_and_notes_on_a_terminal() -> None:
    stream = Terminal()
    reporter = make_reporter("two_stream", stream, peak=8e9)
    assert isinstance(reporter, RichReporter)
    reporter.step(report(4))
    reporter.note("evaluation: [nats] 2.5")
    reporter.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    for text in ("two_stream", "4/10", "3.5000 bits/byte", "50% of peak", "[nats] 2.5"):
        assert text in shown


def test_other_streams_get_lines() -> None:
    assert isinstance(make_reporter("x", io.StringIO()), LineReporter)


def test_missing_rich_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(ValueError, match=r"needs the package `rich`.*counterpoint\[train\]"):
        RichReporter("x", Terminal())


def test_peak_is_not_below_a_matmul() -> None:
    a = torch.ones(256, 256)
    peak = peak_flops(torch.device("cpu"), torch.float32)
    assert peak is not None
    assert 1e8 < peak < 1e14
    assert a.shape == (256, 256)
