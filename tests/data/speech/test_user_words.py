"""Words of the user, from the files of recognisers and of dialogues."""

import json
from pathlib import Path
from typing import Any

import pytest

from counterpoint.data.speech.user_words import read_user_words
from counterpoint.errors import UserError


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (
            {"alignments": [["a", [0.5, 1.0], "S"], ["b", [1.0, 1.5], "T"]]},
            [("a", 0.5, 1), ("b", 1, 1.5)],
        ),
        ({"text": "a", "chunks": [{"text": " a", "timestamp": [2, None]}]}, [("a", 2, 2)]),
        ({"alignments": []}, []),
        (
            {"alignments": [["a", [0.5, 0.8], "SPEAKER_MAIN"], ["b", [1, 1.2], "SPEAKER_OTHER"]]},
            [("b", 1, 1.2)],
        ),
        ({"alignments": [["", [0.5, 0.8], "S"], ["b", [-0.01, 1.2], "S"]]}, [("b", 0, 1.2)]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mark", ["", "\N{ZERO WIDTH NO-BREAK SPACE}"])
def test_words_of_the_user_are_read(
    record: Any, words: list[tuple[str, float, float]], mark: str
) -> None:
    """Also behind a byte order mark."""
    Path("words.json").write_text(mark + json.dumps(record))
    found = read_user_words(Path("words.json"))
    assert [(word.text, word.start_s, word.end_s) for word in found] == words
    assert {word.stream for word in found} <= {"user"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"alignments": null}', "must hold words: its `alignments` are null"),
        (b'{"alignments": [["a", [0, 1], "SPEAKER_MAIN"]]}', "must hold words of the user"),
        (b'{"alignments": [[null, [0, 1], "S"]]}', "a word that is text: got None"),
        (b'{"chunks": [{"text": null, "timestamp": [0, 1]}]}', "a word that is text: got None"),
        (b'{"chunks": [{"text": "a"}]}', "each chunk .*KeyError"),
        (b'{"chunks": [{"text": "a", "timestamp": [null, 1]}]}', "times must be finite numbers"),
        (b"[]", "must be a JSON object with the field"),
        (b"{", "must be JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff", "must be UTF-8"),
        (None, "must be an existing file"),
    ],
)  # fmt: skip
def test_words_that_cannot_be_read_are_named(content: bytes | None, message: str) -> None:
    if content is not None:
        Path("words.json").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_user_words(Path("words.json"))
    assert "words.json" in str(caught.value)
