"""In a process of its own: the compiler cannot look through run-time type checks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_sessions_say_the_same_without_graph_breaks() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.compiled_sessions"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
