"""The record of a run: ``metrics.jsonl``, and loggers that receive the same numbers."""

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from counterpoint.files import write_text
from counterpoint.packages import optional_module


class MetricsFile:
    """``metrics.jsonl``: one JSON object a line, in step order; no step twice after resuming.

    A training line has ``step size flops seconds loss lr grad_norm terms``, an evaluation line
    ``step size flops seconds evaluation``. ``size`` counts bytes of text, or frames of speech;
    ``loss`` is in bits a byte, or bits a frame. A number that is not finite is null.

    Attributes:
        evaluated_steps: Steps that have an evaluation line.
        num_damaged: Number of damaged lines that were dropped when the file was opened.
    """

    def __init__(self, path: Path, step: int) -> None:
        """Open the file for a run that continues after ``step``; drop later and partial lines."""
        found, self.num_damaged = _read(path)
        rows = [row for row in found if row["step"] <= step]
        self.evaluated_steps = {row["step"] for row in rows if "evaluation" in row}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(_line(row) for row in rows))
        # The file is unbuffered: a line is written when `write` returns, and `close` cannot lose
        # any.
        self._stream = path.open("ab", buffering=0)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line; it is visible to readers at once."""
        line = _line(row).encode()
        if self._stream.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if "evaluation" in row:
            self.evaluated_steps.add(row["step"])

    def sync(self) -> None:
        """Flush all lines to the disk, so that no line before a checkpoint can be lost."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all good lines of a ``metrics.jsonl``; damaged or partial lines are left out."""
    return _read(path)[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the good lines, and the number of complete lines that are damaged."""
    if not path.exists():
        return [], 0
    lines = path.read_bytes().split(b"\n")[:-1]  # a whole line ends with a newline
    rows = [row for line in lines if (row := _row(line)) is not None]
    return rows, len(lines) - len(rows)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and type(row.get("step")) is int
    return row if is_row else None


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(_finite(row), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Return the value with ``None`` in place of numbers that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@runtime_checkable
class MetricLogger(Protocol):
    """A receiver of the numbers of a run, such as TensorBoard."""

    def start(self, step: int) -> None:
        """The run begins or continues after ``step``; later numbers of earlier calls are void."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Receive numbers by name, such as ``train/loss`` or ``evaluation/bits_per_byte``."""

    def close(self) -> None:
        """The run has ended."""


class TensorBoardLogger:
    """Writes event files for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        """Write files below ``folder``.

        Raises:
            UserError: The package ``tensorboard`` is missing.
        """
        optional_module("tensorboard")
        self._folder = folder
        self._writer: Any = None

    def start(self, step: int) -> None:
        """See `MetricLogger.start`."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `MetricLogger.log`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See `MetricLogger.close`."""
        if self._writer is not None:
            self._writer.close()
