"""Files of tensors from strangers: right ones are read, hostile ones refused in one line, soon."""

import os
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from counterpoint.errors import UserError
from counterpoint.formats.plain_tensors import read_plain_tensors

ROWS = torch.arange(12.0).view(3, 4)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "older pt"])
def test_plain_tensors_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind.split()[-1]}"
    if kind == "safetensors":
        save_file({"a": ROWS}, path)
    else:
        torch.save({"a": ROWS}, path, _use_new_zipfile_serialization=kind == "pt")
    assert torch.equal(read_plain_tensors(path)["a"], ROWS)


class Runs:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch ran",)


def packed(path: Path) -> None:
    """A file of 0.8 MB that unpacks to 800 MB."""
    torch.save({"a": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in held.items():
            archive.writestr(name, bytes(8_000_000) if name.endswith("/0") else content)


def countless(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(70_000):
            archive.writestr(zipfile.ZipInfo(f"x/{number}"), b"")


def stretched(path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10_000_000, 4096)}, path)


def half(path: Path) -> None:
    torch.save({"a": ROWS}, path)
    os.truncate(path, 700)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "code": lambda path: torch.save({"a": Runs()}, path),
    "plain pickle": lambda path: path.write_bytes(pickle.dumps(Runs())),
    "packed": packed,
    "countless entries": countless,
    "stretched": stretched,
    "transposed": lambda path: torch.save({"a": ROWS.T}, path),
    "meta": lambda path: torch.save({"a": torch.zeros(3, device="meta")}, path),
    "float8": lambda path: torch.save({"a": ROWS.to(torch.float8_e4m3fn)}, path),
    "complex": lambda path: torch.save({"a": ROWS.to(torch.complex64)}, path),
    "sparse": lambda path: torch.save({"a": ROWS.to_sparse()}, path),
    "nested": lambda path: torch.save(
        {"a": torch.nested.nested_tensor([ROWS[0], ROWS[1, :2]], layout=torch.jagged)}, path
    ),
    "a list": lambda path: torch.save([ROWS], path),
    "a number": lambda path: torch.save({"a": 1}, path),
    "number names": lambda path: torch.save({1: ROWS}, path),
    "nothing": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "half": half,
    "missing": lambda path: None,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_one_line(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    HOSTILE[kind](path := tmp_path / "x.pt")
    begin = time.process_time()
    with pytest.raises(UserError, match=r"x\.pt must") as caught:
        read_plain_tensors(path)
    assert time.process_time() - begin < 2
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists()
