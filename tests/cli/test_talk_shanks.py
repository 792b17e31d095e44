"""The command `talk shanks`: what it refuses, in one line and before anything is loaded."""

import sys
from pathlib import Path

import pytest
import torch

from counterpoint.cli.main import main
from counterpoint.speech.audio import write_audio
from tests.cli.examples import without_loading


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "question.wav"
    write_audio(path, torch.full((1, 1), 0.1), 16_000)
    return path


def complaint(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["talk", "shanks", *words]) == 2
    told = without_loading(capsys.readouterr().err)
    assert told.count("\n") == 1
    return told


def test_input_must_be_one(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "either `--input` or `--microphone`" in complaint([], capsys)
    both = ["--input", str(recording), "--microphone"]
    assert "either `--input` or `--microphone`" in complaint(both, capsys)
    assert "in real time" in complaint(["--microphone", "--at-once"], capsys)


def test_options_and_files_are_checked_first(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--input", str(recording), "--output", str(tmp_path / "out.wav")]
    assert "`--tail` must be" in complaint([*given, "--tail", "-1"], capsys)
    assert "must be an existing file" in complaint(["--input", str(tmp_path / "no.wav")], capsys)
    assert "must not overwrite" in complaint([*given[:2], "--output", str(recording)], capsys)
    assert '`--tools` must be "orders"' in complaint([*given, "--tools", "none.py"], capsys)
    bad = tmp_path / "bad.py"
    bad.write_text("TOOLS = [3]")
    assert "must define `TOOLS`" in complaint([*given, "--tools", str(bad)], capsys)
    bad.write_text("1 / 0")
    assert "ZeroDivisionError" in complaint([*given, "--tools", str(bad)], capsys)
    assert "`--llm` must be" in complaint([*given, "--llm", "nothing"], capsys)


def test_missing_engine_is_named(
    recording: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    given = ["--input", str(recording), "--output", str(recording.with_name("out.wav"))]
    told = complaint([*given, "--llm", "http://127.0.0.1:9/v1"], capsys)
    assert "`silero-vad`: pip install 'counterpoint[offline]'" in told
    assert not recording.with_name("out.wav").exists()
