"""What every benchmark records beside its numbers, and how it prints them."""

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def processor() -> str:
    """Name of the processor, as far as the machine tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x{len(names)}" if names else platform.machine()


def quantile(values: list[float], share: float) -> float:
    """Value below which this share of the values lies."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def this_commit() -> str:
    """Short name of the commit that is checked out."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return commit.stdout.strip() or "unknown"


def finish(question: str, results: dict[str, Any], out: str | None) -> None:
    """Print one JSON object as the last line, and write it to a file if one is named."""
    print(json.dumps(keep(question, results, out)))


def keep(question: str, results: dict[str, Any], out: str | None) -> dict[str, Any]:
    """Return the record of a benchmark, and write it to a file if one is named."""
    record = {
        "question": question,
        **results,
        "commit": this_commit(),
        "device": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
    }
    if out:
        Path(out).write_text(json.dumps(record, indent=1) + "\n")
    return record
