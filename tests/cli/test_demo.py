"""The verb `demo`: what a newcomer sees first."""

import sys
from pathlib import Path

import pytest

from counterpoint.cli import demo
from counterpoint.cli.main import main as counterpoint
from counterpoint.evaluate.report.answer import ENDINGS, answer_files


def test_text_half_runs_where_the_codec_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "pycodec2", None)
    monkeypatch.setattr(demo, "_NUM_TICKS", 20)
    assert counterpoint(["demo"]) == 0
    shown = capsys.readouterr()
    assert "needs the package `pycodec2`: pip install 'counterpoint[speech]'" in shown.err
    assert "under its own whole it continues:" in shown.out
    words = shown.out.split("bits a byte")[0].split()
    more = shown.out.split("under the other one")[0].split()
    assert float(more[-1]) > float(words[-1]) + 0.5


@pytest.mark.slow
def test_whole_demo_is_heard_and_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert counterpoint(["demo"]) == 0
    shown = capsys.readouterr().out
    assert "agent  you said two and i wrote that number" in shown
    assert "agent  all right radio low and it will stay that way for you" in shown
    assert "The agent stayed silent while the user paused for 2.5 s." in shown
    files = answer_files(Path("counterpoint_demo") / "answer.wav")
    assert all(str(files[ending]) in shown for ending in (".wav", ".html", ".png"))
    assert all(files[ending].stat().st_size > 20 for ending in ENDINGS)
