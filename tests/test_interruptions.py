"""Ctrl-C as a terminal sends it: to a command and to all processes that it has started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from counterpoint.data.making.scripts import Script, Turn, write_scripts
from counterpoint.speech.voices import available_voices
from tests.cli import examples

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")

VERB = """
import hashlib, importlib, sys, time, types

def wait(words):
    print("ready", flush=True)
    time.sleep(600)

def clean_up(words):
    try:
        wait(words)
    finally:
        print("cleaning up", flush=True)
        time.sleep(600)

def compute(words):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"in one call that looks at no signal", b"", 10**9)

def load(name):  # as modules do that are optional to others
    try:
        wait(name)
    except BaseException:
        print("went on without a module", flush=True)

if sys.argv[1] == "load":
    importlib.import_module = load
sys.modules["counterpoint.cli.train"] = types.ModuleType("train")
sys.modules["counterpoint.cli.train"].main = globals()[sys.argv[1]]
from counterpoint.cli.main import main
sys.exit(main(["train"]))
"""

POOL = """
import os, signal, sys, time
from counterpoint import processes
from counterpoint.cli import main as command
from counterpoint.processes import work_in_processes

def say(word):
    os.write(1, f"{word}\\n".encode())  # in one piece, also where Python's output is unbuffered

def work(item):
    if item == "stubborn":
        signal.signal(signal.SIGTERM, lambda number, frame: say("told to end"))
    if item == sys.argv[1]:
        say("at work")
    if item != "first":
        time.sleep(600)

def verb(words):
    if sys.argv[2] == "2":  # the first interruption waits for the stubborn one, and not too short
        processes._PATIENCE_S = 600.0
    # Far more than a pipe holds: whoever ends must not wait for them to be taken.
    items = ["first", sys.argv[1], *(str(number) * 999 for number in range(999))]
    for _ in work_in_processes(work, items, 2):
        say("ready")

if __name__ == "__main__":
    command._run = verb
    sys.exit(command.main(["train"]))
"""


class Command:
    """A command in a process group of its own."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.process = subprocess.Popen(
            words,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # What a shell runs in the background ignores Ctrl-C, and so would this.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.printed = list[str]()

    def read_until(self, *parts: str) -> None:
        """Until all the parts have been printed, in any order: processes print side by side."""
        assert self.process.stdout is not None
        missing = set(parts)
        for line in self.process.stdout:
            self.printed.append(line)
            missing -= {part for part in missing if part in line}
            if not missing:
                return
        raise AssertionError("".join(self.printed))

    def press(self, number: int = signal.SIGINT) -> None:
        """What a terminal does at Ctrl-C; another one before it has come would be lost in it."""
        os.killpg(self.process.pid, number)
        while self.process.poll() is None and self._is_pending(number):
            time.sleep(0.01)

    def _is_pending(self, number: int) -> bool:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        pending = (line for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd")))
        return any(int(line.split()[1], 16) >> (number - 1) & 1 for line in pending)

    def end(self, within_s: float) -> str:
        """Wait until it and all that it has started have ended; what it printed since."""
        start_s = time.monotonic()
        rest, _ = self.process.communicate(timeout=within_s)
        while (alive := members(self.process.pid)) and time.monotonic() < start_s + within_s:
            time.sleep(0.02)
        assert alive == []
        return rest


def members(group: int) -> list[str]:
    """Command lines of the processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(stat.with_name("cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it has just ended
    return found


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[list[Command]]:
    """Whatever a test has started ends with it."""
    started = list[Command]()
    yield started
    for command in started:
        if command.process.poll() is None or members(command.process.pid):
            os.killpg(command.process.pid, signal.SIGKILL)
        command.process.communicate()


def start(commands: list[Command], folder: Path, *words: str) -> Command:
    commands.append(Command([sys.executable, *words], folder))
    return commands[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("verb", ["wait", "load"])
def test_one_interruption_ends_a_verb_and_says_how_to_go_on(
    verb: str, number: int, commands: list[Command], tmp_path: Path
) -> None:
    command = start(commands, tmp_path, "-c", VERB, verb)
    command.read_until("ready")
    command.press(number)
    assert command.end(20) == "Interrupted. Run the same command again to continue.\n"
    assert command.process.returncode == 130


def test_a_second_interruption_ends_the_cleaning_up(
    commands: list[Command], tmp_path: Path
) -> None:
    command = start(commands, tmp_path, "-c", VERB, "clean_up")
    command.read_until("ready")
    command.press()
    command.read_until("cleaning up")
    command.press()
    assert command.end(5) == ""
    assert command.process.returncode == 130


def test_two_interruptions_end_a_computation_that_looks_at_no_signal(
    commands: list[Command], tmp_path: Path
) -> None:
    command = start(commands, tmp_path, "-c", VERB, "compute")
    command.read_until("ready")
    time.sleep(0.1)
    command.press()
    time.sleep(0.1)
    assert command.process.poll() is None
    command.press()
    assert command.end(5) == ""
    assert command.process.returncode == 130


@pytest.mark.parametrize(("item", "times"), [("plain", 1), ("stubborn", 1), ("stubborn", 2)])
def test_processes_that_work_end_with_the_command(
    item: str, times: int, commands: list[Command], tmp_path: Path
) -> None:
    """A second interruption must find the first one at work, and the stubborn process started."""
    (tmp_path / "pool.py").write_text(POOL)
    command = start(commands, tmp_path, "pool.py", item, str(times))
    command.read_until("ready", "at work")
    command.press()
    if times == 2:
        command.read_until("told to end")
        command.press()
    rest = command.end(20)
    said = ["Interrupted. Run the same command again to continue."]
    lines = [line for line in rest.splitlines() if line != "told to end"]
    assert lines == said * (times == 1)
    assert command.process.returncode == 130


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_training_saves_at_the_first_and_leaves_at_the_second(
    times: int, commands: list[Command], tmp_path: Path
) -> None:
    examples.write(tmp_path)
    words = ("-m", "counterpoint", "train", "small.py", "--train.num-steps", "1000000")
    command = start(commands, tmp_path, *words)
    command.read_until("/1,000,000 steps")
    for number in range(times):
        time.sleep(0.1 * number)
        command.press()
    rest = command.end(20)
    assert command.process.returncode == 130
    if times == 1:
        assert "Run the same command to continue." in rest
        assert len(list((tmp_path / "runs/small/checkpoints").iterdir())) == 1
    else:
        assert "Traceback" not in rest


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["--workers 1", "--workers 2", "--workers 2 --ray local"])
@pytest.mark.parametrize("times", [1, 2])
def test_synthesis_leaves_nothing_running(
    kind: str, times: int, commands: list[Command], tmp_path: Path
) -> None:
    voices = available_voices()
    if not voices:
        pytest.skip("no voice is installed")
    if "--ray" in kind:
        pytest.importorskip("ray")
    turns = tuple(
        Turn(speaker="user" if number % 2 else "agent", text=f"This is the word number {number}.")
        for number in range(40)
    )
    scripts = [Script(name=f"d{number}", role=None, turns=turns) for number in range(400)]
    write_scripts(tmp_path / "scripts.jsonl", scripts)
    words = ("-m", "counterpoint", "synthesize", "scripts.jsonl", "--out", "out", *kind.split())
    command = start(commands, tmp_path, *words)
    made = tmp_path / "out"
    stop_s = time.monotonic() + 90
    while not list(made.glob("*.json")) and time.monotonic() < stop_s:
        assert command.process.poll() is None
        time.sleep(0.1)
    for number in range(times):
        time.sleep(0.3 * number)
        command.press()
    rest = command.end(20)
    # The second may come when Python itself is ending, which the signal then does.
    assert command.process.returncode in (130, -signal.SIGINT)[:times]
    assert "Traceback" not in rest
    if times == 1:
        assert rest.endswith("Interrupted. Run the same command again to continue.\n")
        assert list(made.glob(".*.partial")) == []
