"""Packages that would report home do not: what a run leaves in an empty home, without a network."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from counterpoint.packages import optional_module

SCRIPT = """
from counterpoint.cli.main import main
from pathlib import Path
Path("s.jsonl").write_text('{"name": "n", "turns": [{"speaker": "agent", "text": "Hi."}]}')
raise SystemExit(main(["synthesize", "s.jsonl", "--out", "o", "--agent", "piper:joe:1.0"]))
"""

SETTINGS = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED")


def test_packages_are_silent_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for setting in SETTINGS:
        monkeypatch.delenv(setting, raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    optional_module("json")
    assert [os.environ[setting] for setting in SETTINGS] == ["1", "1", "1"]
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    optional_module("json")
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("piper") is None, reason="Piper is not installed")
def test_speech_leaves_nothing_in_an_empty_home(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("home", "tmp", "work")}
    for folder in folders.values():
        folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment |= {"HOME": str(folders["home"]), "TMPDIR": str(folders["tmp"])}
    blocked = [] if shutil.which("unshare") is None else ["unshare", "-rn"]
    done = subprocess.run(
        [*blocked, sys.executable, "-c", SCRIPT],
        cwd=folders["work"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = [str(path) for name in ("home", "tmp") for path in folders[name].rglob("*")]
    assert written == []
    assert {path.name for path in folders["work"].iterdir()} == {"s.jsonl", "o"}
