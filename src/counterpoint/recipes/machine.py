"""Facts for a report about the programs and the machine that made it."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch


def machine_facts(device: torch.device | str) -> dict[str, Any]:
    """Return the versions of programs and a description of the machine, as JSON."""
    return {
        "versions": {
            "counterpoint": _version("counterpoint"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {device}",
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
