"""What every benchmark records beside its numbers, and how it prints them."""

import json
import platform
import subprocess
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")


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


def resumed(work: Callable[[T], Any], items: Mapping[str, T], path: Path) -> list[Any]:
    """Return what comes of every item, as JSON; what a run that was stopped did is not done again.

    Args:
        work: Does an item, and returns what JSON can hold.
        items: The items by name.
        path: File in which the results are kept by name.
    """
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for number, (name, item) in enumerate(items.items(), 1):
        if name not in kept:
            kept[name] = work(item)
            path.write_text(json.dumps(kept))
            print(f"{path.stem}: {number} of {len(items)}", flush=True)
    return [kept[name] for name in items]


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
