"""The verb ``task``: tasks are written, answered by a checkpoint, and scored."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from counterpoint.cli.main import main
from counterpoint.data.tasks.exported import read_folder
from counterpoint.files import read_json_lines
from counterpoint.runtime.save import save
from counterpoint.systems.single_stream import SingleStream
from tests.data.tasks.real_data import write_questions
from tests.systems.tiny_models import single


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    words = ["--tasks", "hierarchy", "shuffle", "book_lm", "--num-items", "3"]
    assert main(["task", "export", "pw", *words]) == 0
    return tmp_path / "pw"


def test_what_is_written_is_answered_and_scored(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(read_folder(folder)) == {"hierarchy", "shuffle", "book_lm"}
    assert (folder / "score.py").exists()
    save(SingleStream(replace(single(8), vocab_size=258)), folder.parent / "model")
    assert main(["task", "answer", "model", "pw", "--quiet", "--out", "given.jsonl"]) == 0
    given = [line for _, line in read_json_lines(Path("given.jsonl"))]
    assert [len(line) for line in given] == [4] * 6 + [3] * 3
    capsys.readouterr()
    assert main(["task", "score", "pw", "given.jsonl", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    # A model that has learned nothing takes every byte to be as likely as any other.
    assert scores["book_lm"]["own"]["value"] == pytest.approx(8, abs=0.5)
    assert scores["hierarchy"]["bits, joint"]["value"] == pytest.approx(8, abs=0.5)
    assert scores["book_lm"]["absent minus own"]["value"] == pytest.approx(0, abs=0.1)
    assert set(scores["shuffle"]) >= {"all", "sentences shuffled"}
    assert main(["task", "score", "pw", "given.jsonl"]) == 0
    shown = capsys.readouterr().out
    assert "sentences shuffled" in shown
    first = next(line for line in shown.splitlines() if "hierarchy" in line)
    assert "joint (primary)" in first


def test_a_task_with_fewer_items_than_asked_says_how_many_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_questions(Path("data/trec-qc"))
    words = ["--data", "data", "--tasks", "questions", "--num-items", "20"]
    assert main(["task", "export", "pw", *words]) == 0
    told = capsys.readouterr()
    path = Path("pw/questions.jsonl")
    assert told.out == f"{path}\n"
    assert told.err == f"{path} has 12 lines and not 20: no item is written twice.\n"


def test_mistakes_are_told_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(SingleStream(single(8)), folder.parent / "small")
    for words, message in (
        (["write", "pw"], "export, answer, score"),
        (["export", "pw", "--tasks", "navn"], "got 'navn'"),
        (["export", "pw", "--data", "nowhere"], "must exist"),
        (["export", "new", "--num-items", "0"], "`--num-items` must be >= 1: got 0."),
        (["export", "new", "--num-items", "-5"], "`--num-items` must be >= 1: got -5."),
        (["answer", "small", "pw"], "reads and writes bytes"),
        (["score", "pw", "none.jsonl"], "none.jsonl"),
    ):
        assert main(["task", *words]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert len(told.splitlines()) == 1
    assert not Path("new").exists()
