"""Two commands in one run folder: the second is refused and told who is there."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from counterpoint.config_json import encode
from counterpoint.train.checkpoint import CheckpointError
from tests.train.tiny import rows, run_here, settings


def test_second_run_in_a_folder_is_refused(tmp_path: Path) -> None:
    config = settings(6)
    run_here(tmp_path / "alone", config, evaluate=None)
    words = [str(tmp_path / "run"), "8", "0.2", json.dumps(encode(config)), "0.4"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.Popen([sys.executable, "-m", "tests.train.tiny", *words], env=environment)
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.05)
    with pytest.raises(CheckpointError, match=f"one command at a time: process {first.pid} on "):
        run_here(tmp_path / "run", settings(6, seed=7))
    assert first.wait() == 0
    assert rows(tmp_path / "run") == rows(tmp_path / "alone")
    assert not list((tmp_path / "run").glob(".*"))  # the lock is gone with its process
    run_here(tmp_path / "run", settings(7))
