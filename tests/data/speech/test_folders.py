import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from counterpoint.data.speech.dialogues import read_dialogues
from counterpoint.data.speech.folders import (
    FolderOfData,
    find_recordings,
    parse_folder,
    split,
    write_list,
    write_missing_words,
    write_unknown_words,
)
from counterpoint.speech.audio import write_audio
from counterpoint.speech.transcriber import HeardWord


def record(path: Path, channels: int = 2, seconds: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, 0.1 * torch.randn(channels, int(seconds * 8000)), 8000)


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """Three recordings, one of them with its words, and a voice."""
    folder = tmp_path / "calls"
    for name in ("b.wav", "a.wav", "deep/c.flac"):
        record(folder / name)
    record(folder / "a.voice.wav", channels=1)
    (folder / "b.json").write_text(json.dumps({"alignments": [["yes", [0, 0.2], "SPEAKER_MAIN"]]}))
    return folder


def say_hello(audio: Tensor, sample_rate: int) -> list[HeardWord]:
    assert (audio.ndim, sample_rate) == (1, 16_000)
    return [HeardWord("hello", 0.10004, 0.3)]


def test_recordings_of_a_folder_are_found_in_order(calls: Path) -> None:
    found = find_recordings(FolderOfData(name="calls", path=calls))
    assert [each.audio.name for each in found] == ["a.wav", "b.wav", "c.flac"]
    assert [each.words.name for each in found] == ["a.json", "b.json", "c.json"]
    assert found[0].duration_s == pytest.approx(0.5)


@pytest.mark.parametrize("beside", [True, False])
def test_missing_words_are_written_once(calls: Path, tmp_path: Path, beside: bool) -> None:
    folder = None if beside else tmp_path / "words"
    data = FolderOfData(name="calls", path=calls)
    told: list[tuple[float, float]] = []
    write_missing_words(find_recordings(data, folder), say_hello, lambda *all: told.append(all))
    assert told == [(0.5, 1.0), (1.0, 1.0)]
    assert (calls / "a.json").exists() == beside
    again = find_recordings(data, folder)
    assert all(each.words.is_file() for each in again)
    write_missing_words(again, say_hello, lambda *all: pytest.fail("all are written"))
    write_list(again, tmp_path / "lists" / "calls.jsonl")
    dialogues = read_dialogues(tmp_path / "lists" / "calls.jsonl")
    assert [[word.text for word in d.words or ()] for d in dialogues] == [
        ["hello"],
        ["yes"],
        ["hello"],
    ]
    assert json.loads(again[0].words.read_text())["alignments"] == [
        ["hello", [0.1, 0.3], "SPEAKER_MAIN"],
        ["hello", [0.1, 0.3], "SPEAKER_OTHER"],
    ]


def test_who_is_stopped_keeps_what_was_written(calls: Path) -> None:
    found = find_recordings(FolderOfData(name="calls", path=calls))

    def stop(audio: Tensor, sample_rate: int) -> list[HeardWord]:
        if (calls / "a.json").exists():
            raise KeyboardInterrupt
        return []

    with pytest.raises(KeyboardInterrupt):
        write_missing_words(found, stop, lambda *all: None)
    assert [each.words.is_file() for each in found] == [True, True, False]


def test_words_may_stay_unknown(calls: Path, tmp_path: Path) -> None:
    found = find_recordings(FolderOfData(name="calls", path=calls))
    write_unknown_words(found)
    write_list(found, tmp_path / "calls.jsonl")
    assert [d.words is None for d in read_dialogues(tmp_path / "calls.jsonl")] == [
        True,
        False,
        True,
    ]


def test_a_list_names_its_recordings(calls: Path) -> None:
    (calls / "some.jsonl").write_text('{"path": "deep/c.flac", "duration": 0.5}\n')
    found = find_recordings(FolderOfData(name="some", path=calls / "some.jsonl"))
    assert [each.audio.name for each in found] == ["c.flac"]


def test_data_is_named_with_its_weight(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(calls.parent)
    plain = FolderOfData(name="calls", path=Path("calls"))
    assert parse_folder("calls") == plain
    assert parse_folder("calls:2") == FolderOfData(name="calls", path=Path("calls"), weight=2.0)
    assert parse_folder("mine=calls:0.5") == FolderOfData(
        name="mine", path=Path("calls"), weight=0.5
    )
    with pytest.raises(ValueError, match="must be a number above 0: got 'x'"):
        parse_folder("calls:x")
    with pytest.raises(ValueError, match="'nowhere' is neither"):
        parse_folder("nowhere")


def test_data_may_have_any_path_and_no_name_of_another_file(
    calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(calls.parent)
    calls.rename("held_out")
    for word in ("held_out", "held_out=held_out", "../lists=held_out:2"):
        with pytest.raises(ValueError, match="that can be a file name and is not 'held_out'"):
            parse_folder(word)
    Path("held_out").rename("a=b")
    assert parse_folder("a=b").name == "a=b"
    path = Path("a=b")
    assert parse_folder("mine=a=b:2") == FolderOfData(name="mine", path=path, weight=2.0)


def test_what_is_no_dialogue_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"must hold recordings \(.wav, .flac, .ogg\)"):
        find_recordings(FolderOfData(name="empty", path=tmp_path / "empty"))
    record(tmp_path / "mono" / "a.wav", channels=1)
    with pytest.raises(ValueError, match="must have two channels.* has 1. Take it out"):
        find_recordings(FolderOfData(name="mono", path=tmp_path / "mono"))


@pytest.mark.parametrize(
    ("count", "share", "expected"), [(1, 0.5, 0), (2, 0.05, 1), (10, 0.25, 2), (10, 0.0, 0)]
)
def test_names_decide_what_is_held_out(
    tmp_path: Path, count: int, share: float, expected: int
) -> None:
    for number in range(count):
        record(tmp_path / f"{number}.wav", seconds=0.1)
    found = find_recordings(FolderOfData(name="all", path=tmp_path))
    learned, kept = split(found, share)
    assert (len(learned), len(kept)) == (count - expected, expected)
    assert {*learned, *kept} == {*found}
    assert {*split(found[::-1], share)[1]} == {*kept}
