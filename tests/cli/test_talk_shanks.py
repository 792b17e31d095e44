"""The command `talk shanks`: what it writes, and what it refuses before anything is loaded."""

import base64
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from counterpoint.cli import talk_shanks
from counterpoint.cli.main import main
from counterpoint.cli.talk_shanks_options import ShanksOptions, rules_of
from counterpoint.runtime.cascade.lanes import TimedLane
from counterpoint.runtime.cascade.thinking import ClauseTrigger
from counterpoint.speech.audio import read_audio, write_audio
from counterpoint.streams.timeline import Timeline
from tests.cli.examples import without_loading
from tests.runtime.cascade.scripted import Stage, sounding_s


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
    contradiction = ["--after-listening", "--check-calls"]
    assert "leave one of them out" in complaint([*given, *contradiction], capsys)
    assert "`--tail` must be" in complaint([*given, "--tail", "-1"], capsys)
    assert "`--interrupt-at` must be" in complaint([*given, "--interrupt-at", "nan"], capsys)
    assert "must be an existing file" in complaint(["--input", str(tmp_path / "no.wav")], capsys)
    assert "must not overwrite" in complaint([*given[:2], "--output", str(recording)], capsys)
    assert '`--tools` must be "orders"' in complaint([*given, "--tools", "none.py"], capsys)
    bad = tmp_path / "bad.py"
    bad.write_text("TOOLS = [3]")
    assert "must define `TOOLS`" in complaint([*given, "--tools", str(bad)], capsys)
    bad.write_text("1 / 0")
    assert "ZeroDivisionError" in complaint([*given, "--tools", str(bad)], capsys)
    assert "`--llm` must be" in complaint([*given, "--llm", "nothing"], capsys)
    for address in ("http://[::1/v1", "http://127.0.0.1:abc/v1"):
        assert "The address must begin" in complaint([*given, "--llm", address], capsys)


def test_options_decide_about_thoughts_calls_and_interruptions() -> None:
    usual = rules_of(ShanksOptions())
    assert (usual.early_calls, usual.interrupt_at) == (True, 0.5)
    never = rules_of(ShanksOptions(interrupt_at=1.5, clauses=True, after_listening=True))
    assert (never.early_calls, never.interrupt_at) == (False, 1.5)
    assert isinstance(never.trigger, ClauseTrigger)
    assert not usual.checks_calls
    checked = rules_of(ShanksOptions(check_calls=True))
    assert (checked.early_calls, checked.checks_calls) == (True, True)


def test_missing_engine_is_named(
    recording: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    given = ["--input", str(recording), "--output", str(recording.with_name("out.wav"))]
    told = complaint([*given, "--llm", "http://127.0.0.1:9/v1"], capsys)
    assert "`silero-vad`: pip install 'counterpoint[offline]'" in told
    assert not recording.with_name("out.wav").exists()


def test_all_files_of_a_conversation_say_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines with a script hear a question, think, and answer it."""
    stage = Stage()
    said = "The number is seven, as you said."
    thought = "They want a number."
    engines = replace(stage.engines(said), think=stage.writer(thought))
    monkeypatch.setattr(talk_shanks, "language_model", lambda *_: None)
    monkeypatch.setattr(talk_shanks, "embedded_engines", lambda *_, **__: engines)
    monkeypatch.setattr(talk_shanks, "warm_up", lambda _: None)
    monkeypatch.setattr(talk_shanks, "TimedLane", lambda: TimedLane(stage.clock))
    question = "tell me now what is the number I said"
    user = stage.sound(question)
    write_audio(tmp_path / "question.wav", user[None], 16_000)
    words = ["talk", "shanks", "--input", str(tmp_path / "question.wav"), "--at-once", "--json"]
    words += ["--output", str(tmp_path / "out.wav"), "--chunk-s", "1", "--llm", "http://scripted"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    recording, lines, picture, page = map(Path, told["files"])
    assert recording == tmp_path / "out.wav"
    assert [path.name for path in (lines, picture, page)] == [
        *("out.timeline.jsonl", "out.png", "out.html")
    ]

    timeline = Timeline.read(lines)
    for stream, text in (("user", question), ("agent", said)):
        spoken = timeline.where(stream=stream, kind="word")
        assert " ".join(word.text for word in spoken) == text
    both = read_audio(recording, 16_000, 2)
    assert torch.allclose(both[1, : len(user)], user, atol=1e-4)
    heard = timeline.where(stream="agent", kind="word").events
    begins_s, ends_s = sounding_s(both[0])
    assert begins_s == pytest.approx(heard[0].start_s, abs=0.04)
    assert ends_s == pytest.approx(heard[-1].end_s, abs=0.04)

    assert told["numbers"]["thoughts"] == str(len(timeline.where(kind="thought")))
    assert told["numbers"]["thoughts"] != "0"
    html = page.read_text()
    for shown in (said, thought, *told["numbers"].values()):
        assert shown in html
    assert base64.b64encode(recording.read_bytes()).decode() in html
    assert picture.read_bytes().startswith(b"\x89PNG")
