"""Locks keep others out, tell who holds them, and end with their process."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from counterpoint.locks import LockedError, locked

HOLD = """
import sys, time
from pathlib import Path
from counterpoint.locks import locked
with locked(Path(sys.argv[1]), wait=False):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], env=environment, stdout=subprocess.PIPE
    )
    assert first.stdout is not None
    with first.stdout:
        assert first.stdout.readline() == b"held\n"
    with (
        pytest.raises(LockedError, match=f"process {first.pid} on ") as caught,
        locked(path, wait=False),
    ):
        pass
    assert caught.value.holder.startswith(f"process {first.pid}")
    first.kill()
    first.wait()
    with locked(path, wait=False):  # what a killed process held is free
        assert path.exists()
    assert not path.exists()


def test_file_goes_also_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path / "lock", wait=True):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_only_one_is_in_at_a_time(tmp_path: Path) -> None:
    inside = list[int]()

    def work(number: int) -> int:
        with locked(tmp_path / "lock", wait=True):
            inside.append(number)
            count = len(inside)
            inside.remove(number)
            return count

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(200))) == [1] * 200
    assert not list(tmp_path.iterdir())
