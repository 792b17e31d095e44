"""Work in several processes."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

from counterpoint.errors import UserError
from counterpoint.files import whole_file
from counterpoint.processes import _started_by, work_in_processes

SCRIPT = """
import os, time
from counterpoint.processes import _started_by, work_in_processes

def work(item):
    if item:
        time.sleep(600)
    return os.getpid()

if __name__ == "__main__":
    for process in work_in_processes(work, [0, 1], 1):
        print(process, flush=True)
"""


class Worker:
    """Remembers what it has done, as an engine remembers that it is started."""

    def __init__(self) -> None:
        self.done = list[int]()

    def __call__(self, item: int) -> tuple[int, int, int, int]:
        self.done.append(item)
        return item, len(self.done), os.getpid(), torch.get_num_threads()


class PickyError(Exception):
    def __reduce__(self) -> str:
        raise TypeError("not to be sent")


def fail(item: int) -> int:
    if item == 1:
        raise UserError("one is refused")
    if item == 2:
        raise PickyError("two")
    if item == 3:
        os._exit(7)
    if item == 4:
        raise KeyboardInterrupt  # as training that was told to stop ends a cell of a grid
    return item


def test_all_is_done_elsewhere_by_workers_that_stay_ready() -> None:
    results = list(work_in_processes(Worker(), range(6), 2))
    assert sorted(item for item, *_ in results) == list(range(6))
    processes = {process for _, _, process, _ in results}
    assert os.getpid() not in processes
    assert max(count for _, count, _, _ in results) >= 6 // len(processes)
    assert {threads for *_, threads in results} == {1}
    assert not multiprocessing.active_children()


def test_no_more_processes_than_items_are_started() -> None:
    assert len(list(work_in_processes(Worker(), range(1), 64))) == 1
    assert list(work_in_processes(Worker(), (), 2)) == []


@pytest.mark.parametrize(
    ("item", "kind", "message"),
    [
        (1, UserError, "one is refused"),
        (2, RuntimeError, "PickyError: two"),
        (3, OSError, "ended with status 7"),
    ],
)
def test_what_goes_wrong_there_is_raised_here(
    item: int, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        list(work_in_processes(fail, [0, item], 1))
    assert not multiprocessing.active_children()


def test_a_process_that_is_told_to_stop_shows_no_traceback(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(OSError, match="ended with status 1"):
        list(work_in_processes(fail, [4], 1))
    assert "Traceback" not in capfd.readouterr().err


def test_closing_ends_the_processes() -> None:
    with closing(work_in_processes(time.sleep, [0.0, 600.0], 1)) as results:
        next(results)
    assert not multiprocessing.active_children()


def is_running(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the process in /proc")
def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(SCRIPT)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.kill()
        parent.wait()
    stop_s = time.monotonic() + 20
    while is_running(child) and time.monotonic() < stop_s:
        time.sleep(0.05)
    assert not is_running(child)


def write_until_ended(path: Path) -> None:
    """The first file is done when the second one has been begun, which never ends."""
    begun = path.with_name("begun")
    if path.name == "first":
        while not begun.exists():
            time.sleep(0.01)
        return
    with whole_file(path):
        begun.touch()
        time.sleep(60)


def test_processes_that_are_ended_leave_nothing_half_written(tmp_path: Path) -> None:
    paths = [tmp_path / "first", tmp_path / "second"]
    with closing(work_in_processes(write_until_ended, paths, 2)) as results:
        next(results)
        assert len(list(tmp_path.iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["begun"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_processes_are_found_while_threads_end() -> None:
    """A second Ctrl-C ends them all, also when a thread of this process ends just then."""
    is_over = threading.Event()

    def churn() -> None:
        while not is_over.is_set():
            threads = [threading.Thread(target=int) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    churning = threading.Thread(target=churn)
    with subprocess.Popen(["sleep", "600"]) as child:
        churning.start()
        try:
            assert all(child.pid in list(_started_by(os.getpid())) for _ in range(500))
        finally:
            is_over.set()
            churning.join()
            child.kill()
