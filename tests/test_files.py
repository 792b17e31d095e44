"""Whole files and folders, and JSON in them."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from counterpoint import files
from counterpoint.errors import UserError


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_get_the_permissions_of_the_umask(umask: int, tmp_path: Path) -> None:
    files.write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)})
    files.write_text(tmp_path / "a.txt", "a")
    files.write_bytes(tmp_path / "a.bin", b"a")
    files.write_json(tmp_path / "a.json", {})
    with files.whole_folder(tmp_path / "folder") as partial:
        (partial / "in").mkdir()
        (partial / "in" / "a").write_text("a")
        (partial / "in" / "a").chmod(0o600)
    found = {path.name: permissions(path) for path in tmp_path.rglob("a*")}
    expected = 0o666 & ~umask
    assert found == dict.fromkeys(["a.safetensors", "a.txt", "a.bin", "a.json", "a"], expected)


def test_file_that_fails_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def fail() -> None:
        with files.whole_file(path) as partial:
            partial.write_text("ne")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_error_of_a_file_names_the_file_itself(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        files.write_text(tmp_path / "none" / "a.txt", "a")
    assert error.value.filename == str(tmp_path / "none" / "a.txt")


def test_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder"

    def fill(name: str) -> None:
        with files.whole_folder(path) as partial:
            (partial / name).write_text(name)
            assert not (path / name).exists()
            if name == "wrong":
                raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fill("wrong")
    assert list(path.parent.iterdir()) == []
    (path.parent / f".{path.name}.partial").mkdir()  # left by a process that was killed
    fill("a")
    assert [entry.name for entry in path.parent.rglob("*")] == ["folder", "a"]
    with pytest.raises(OSError, match="must be empty"):
        fill("b")
    assert [entry.name for entry in path.parent.rglob("*")] == ["folder", "a"]


def test_tensors_may_share_memory_and_be_views(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"whole": whole, "again": whole, "row": whole[1], "turned": whole.T}
    files.write_tensors(tmp_path / "a.safetensors", tensors, {"key": "value"})
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_json_and_lines_come_back_equal(tmp_path: Path) -> None:
    records = [{"a": "\u2028é", "b": [1, 2.5, None]}, {}]
    files.write_json_lines(tmp_path / "a.jsonl", records)
    found = list(files.read_json_lines(tmp_path / "a.jsonl"))
    assert [record for _, record in found] == records
    assert [place for place, _ in found] == [f"{tmp_path}/a.jsonl, line {n}" for n in (1, 2)]
    files.write_json(tmp_path / "a.json", records)
    assert files.read_json(tmp_path / "a.json") == records


def test_byte_order_marks_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n \n{"b": 2}')
    assert [record for _, record in files.read_json_lines(path)] == [{"a": 1}, {"b": 2}]
    assert files.read_text(path).startswith("{")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "a.jsonl, line 2 must be a JSON object: it is not JSON"),
        (b"[1]", "line 2 must be a JSON object: it is a list"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 2 .* nested too deeply"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "line 2 .* it is not JSON"),
        (b'{"a": "\xff"}', "must be UTF-8: .*line 2 has the byte 0xff at offset 7"),
    ],
)
def test_bad_lines_are_named(line: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps({}).encode() + b"\n" + line)
    with pytest.raises(UserError, match=message) as error:
        list(files.read_json_lines(path))
    assert "\n" not in str(error.value)


def test_bad_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"{]")
    with pytest.raises(UserError, match=r"a\.json must be JSON: it is not JSON"):
        files.read_json(tmp_path / "a.json")


def test_half_of_a_surrogate_pair_is_no_text() -> None:
    assert files.parse_json(r'"\ud83d\ude00 \\ud800"', "here") == "\N{GRINNING FACE} \\ud800"
    with pytest.raises(UserError, match=r"here must be JSON of text: it has half of a surrogate"):
        files.parse_json(r'{"a": ["\uD83D!"]}', "here")


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", ".."])
def test_names_in_a_config_stay_in_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must name files of its own folder"):
        files.inside(tmp_path, name)
    assert files.inside(tmp_path, "a/b.c") == tmp_path / "a" / "b.c"
