"""The record of a run: ``metrics.jsonl``, and writers that follow it."""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


class MetricsFile:
    """``metrics.jsonl``: one JSON object a line, in step order, each step once, however resumed.

    A training line has ``step size flops seconds loss lr grad_norm terms``, an evaluation line
    ``step size flops seconds evaluation``. ``size`` counts bytes of text, or frames of speech;
    ``loss`` is in bits a byte, or a frame.
    """

    def __init__(self, path: Path, step: int) -> None:
        """Open for a run that goes on after ``step``: later lines, and half ones, are dropped."""
        rows = [row for row in read_metrics(path) if row["step"] <= step]
        self.evaluated_steps = {row["step"] for row in rows if "evaluation" in row}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("w") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        # Unbuffered: a line is on its way once `write` returns, and `close` has nothing to lose.
        self._stream = path.open("ab", buffering=0)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line; it is visible to readers at once."""
        line = (json.dumps(row) + "\n").encode()
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
    """All whole lines of a ``metrics.jsonl``; a half-written last one is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]  # a whole line ends with a newline


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
            ValueError: The package ``tensorboard`` is missing.
        """
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            raise ValueError(
                "TensorBoard logging needs the package 'tensorboard', which is missing. "
                "Install it: pip install 'counterpoint[train]'"
            ) from None
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
