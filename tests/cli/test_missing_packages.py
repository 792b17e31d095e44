"""A verb whose extra is not installed says so before it works, and not when it has worked."""

import sys
from pathlib import Path

import pytest

from counterpoint.cli.main import main
from counterpoint.runtime.shipped import FOLDER, TALKS
from tests.cli.examples import without_loading

QUESTION = str(FOLDER / TALKS / "question.flac")
SCRIPT = '{"name": "d1", "turns": [{"speaker": "user", "text": "Hello, can you help me?"}]}\n'


@pytest.mark.parametrize(
    ("words", "module", "extra"),
    [
        (["train", "first_run"], "tensorboard", "train"),
        (["train", "finetune_moshi", "--base", "base", "--data", "calls"], "matplotlib", "train"),
        (["study", "part_whole"], "pyarrow", "data"),
        (["study", "front_loading"], "pyarrow", "data"),
        (["synthesize", "scripts.jsonl", "--out", "spoken"], "soundfile", "speech"),
        (["talk", "--input", QUESTION, "--output", "a.wav"], "matplotlib", "train"),
        (["talk", "shanks", "--input", QUESTION], "matplotlib", "train"),
        (["talk", "shanks", "--input", QUESTION], "xllamacpp", "offline"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else value,
)
def test_missing_package_is_told_before_any_work(
    words: list[str],
    module: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scripts.jsonl").write_text(SCRIPT)
    monkeypatch.setitem(sys.modules, module, None)
    assert main(words) == 2
    told = capsys.readouterr()
    assert without_loading(told.err) == (
        f"counterpoint: This needs the package `{module}`: pip install 'counterpoint[{extra}]'.\n"
    )
    assert told.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["scripts.jsonl"]
