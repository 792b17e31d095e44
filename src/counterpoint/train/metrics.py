"""The record of a run: ``metrics.jsonl``, and writers that follow it."""

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
    """``metrics.jsonl``: one JSON object a line, in step order, each step once, however resumed.

    A training line has ``step size flops seconds loss lr grad_norm terms``, an evaluation line
    ``step size flops seconds evaluation``. ``size`` counts bytes of text, or frames of speech;
    ``loss`` is in bits a byte, or a frame. A number that is not finite is null.

    Attributes:
        evaluated_steps: Steps that have an evaluation line.
        num_damaged: Lines that were no lines of a record when the file was opened: they are gone.
    """

    def __init__(self, path: Path, step: int) -> None:
        """Open for a run that goes on after ``step``: later lines, and half ones, are dropped."""
        found, self.num_damaged = _read(path)
        rows = [row for row in found if row["step"] <= step]
        self.evaluated_steps = {row["step"] for row in rows if "evaluation" in row}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(_line(row) for row in rows))
        # Unbuffered: a line is on its way once `write` returns, and `close` has nothing to lose.
        self._stream = path.open("ab", buffering=0)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line; it is visible to readers at once."""
        line = _line(row).encode()
        if self._stream.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if "evaluation" in row:
            self.evaluated_steps.add(row["step"])

    def sync(self) -> None:
        """Put all lines on the disk, so that none is lost that a checkpoint has passed."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All good lines of a ``metrics.jsonl``; damaged ones, and half a last one, are left out."""
    return _read(path)[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Good lines, and the number of whole lines that are damaged."""
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
    """The value with ``None`` for numbers that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@runtime_checkable
class MetricLogger(Protocol):
    """Something that follows the numbers of a run, such as TensorBoard."""

    def start(self, step: int) -> None:
        """The run begins, or goes on, after ``step``; what came later is void."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, such as ``train/loss`` or ``evaluation/bits_per_byte``."""
        ...

    def close(self) -> None:
        """The run has ended."""
        ...


class TensorBoardLogger:
    """Writes event files for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        """Write below ``folder``.

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
