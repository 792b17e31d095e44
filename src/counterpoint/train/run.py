"""A run: everything that decides what is trained, on what and how, as one frozen value."""

import json
from dataclasses import dataclass, field

from counterpoint.data.config import DataConfig
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.systems.two_stream import TwoStreamConfig
from counterpoint.train.config import TrainConfig
from counterpoint.train.config_json import decode, encode

SystemConfig = SingleStreamConfig | TwoStreamConfig
"""The config of any system."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One training run.

    Attributes:
        name: Names its folder and its curves.
        system: Config of the model.
        data: What it learns from.
        train: How it learns.
    """

    name: str
    system: SystemConfig
    train: TrainConfig
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        if not self.name or self.name.startswith(".") or "/" in self.name or "\\" in self.name:
            raise ValueError(
                f"`name` must serve as a folder name: got {self.name!r}. "
                "Use letters, digits, '-' and '_'."
            )


def to_json(run: Run) -> str:
    """Lossless JSON text of a run."""
    return json.dumps(encode(run), indent=1)


def from_json(text: str) -> Run:
    """Read back what `to_json` wrote.

    Raises:
        ValueError: Not JSON, an unknown field (the nearest is named), or a value of another type.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as problem:
        raise ValueError(f"A run must be JSON: {problem}. Give a file that was saved.") from None
    run = decode(Run, data, "run")
    if not isinstance(run, Run):
        raise AssertionError("decode returns what it is asked for")
    return run
