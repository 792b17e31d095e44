"""Facts for a report about the programs and the machine that made it."""

import platform
from typing import Any

import torch

from counterpoint.packages import installed_version


def machine_facts(device: torch.device | str) -> dict[str, Any]:
    """Return the versions of programs and a description of the machine, as JSON."""
    return {
        "versions": {
            "counterpoint": installed_version("counterpoint"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {device}",
    }
