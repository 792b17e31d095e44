"""What a person sees while a model trains."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from counterpoint.data.progress import Output, spell_count, spell_duration
from counterpoint.packages import optional_module
from counterpoint.streams.batch import ContentUnit

# Dense bf16 FLOP/s on tensor cores, float32 FLOP/s: vendors' data sheets. The first match counts.
_GPU_PEAKS: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250e12, 75e12),
    ("H200", 989e12, 67e12),
    ("H100 PCIe", 756e12, 51e12),
    ("H100", 989e12, 67e12),
    ("A100", 312e12, 19.5e12),
    ("L40S", 362e12, 91.6e12),
    ("L4", 121e12, 30.3e12),
    ("A10G", 70e12, 35e12),
    ("RTX 4090", 165e12, 82.6e12),
    ("RTX 3090", 71e12, 35.6e12),
    ("V100", 125e12, 15.7e12),
    ("T4", 65e12, 8.1e12),
)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Highest FLOP/s of one device: by data sheet for a GPU, by a short matmul on the CPU.

    Returns:
        ``None`` for a GPU that is not in the table.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        row = next((row for row in _GPU_PEAKS if row[0] in name), None)
        if row is None:
            return None
        return row[1] if dtype == torch.bfloat16 else row[2]
    size = 512
    a = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    end = time.perf_counter() + 0.1
    while time.perf_counter() < end:
        begin = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One training step, as a reporter is told about it.

    Attributes:
        step: Steps done, this one included.
        num_steps: Steps of the whole run.
        loss: Loss in bits a unit.
        seconds: Length of the step.
        size: What it learned from, in ``unit``, over all processes.
        unit: Bytes of text, or frames of speech.
        flops: Training FLOPs of the step, over all processes.
        num_processes: Processes that shared them.
    """

    step: int
    num_steps: int
    loss: float
    seconds: float
    size: int
    unit: ContentUnit
    flops: float
    num_processes: int = 1


@runtime_checkable
class Reporter(Protocol):
    """Shows a run to a person."""

    def step(self, report: StepReport) -> None:
        """A step is done."""
        ...

    def note(self, text: str) -> None:
        """Something worth one line has happened."""
        ...

    def close(self) -> None:
        """The run has ended, or failed."""
        ...


class _Speed:
    """Running means over about the last 20 steps."""

    def __init__(self, peak: float | None) -> None:
        self.peak = peak
        self.weight = 0.0
        self.sums = (0.0, 0.0, 0.0, 0.0)  # seconds, size, flops, loss

    def add(self, report: StepReport) -> None:
        keep = 0.95
        new = (report.seconds, report.size, report.flops, report.loss)
        self.sums = tuple(keep * old + x for old, x in zip(self.sums, new, strict=True))  # type: ignore[assignment]
        self.weight = keep * self.weight + 1

    def text(self, report: StepReport) -> str:
        seconds, size, flops, loss = self.sums
        seconds = max(seconds, 1e-9)
        speed = spell_count(size / seconds)
        speed = f"{speed}B/s" if report.unit == "byte" else f"{speed.rstrip()} frames/s"
        parts = [f"{loss / self.weight:.4f} bits/{report.unit}", speed]
        if self.peak:
            parts.append(f"{flops / seconds / (self.peak * report.num_processes):.0%} of peak")
        left = (report.num_steps - report.step) * seconds / self.weight
        parts.append(f"{spell_duration(left)} left")
        return "  ".join(parts)


class LineReporter:
    """Plain lines, one every few seconds: for log files and machines without a terminal."""

    def __init__(
        self,
        stream: Output,
        every_seconds: float = 10.0,
        peak: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write to ``stream``; ``peak`` is the highest FLOP/s of one process's device."""
        self._stream = stream
        self._every_seconds = every_seconds
        self._clock = clock
        self._last: float | None = None
        self._speed = _Speed(peak)

    def step(self, report: StepReport) -> None:
        """See `Reporter.step`."""
        self._speed.add(report)
        now = self._clock()
        done = report.step == report.num_steps
        if done or self._last is None or now - self._last >= self._every_seconds:
            self._last = now
            self.note(f"step {report.step}/{report.num_steps}  {self._speed.text(report)}")

    def note(self, text: str) -> None:
        """See `Reporter.note`."""
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """See `Reporter.close`."""


class RichReporter:
    """A live bar on a terminal."""

    def __init__(self, title: str, stream: Output, peak: float | None = None) -> None:
        """Show ``title`` beside the bar.

        Raises:
            UserError: The package ``rich`` is missing.
        """
        rich = optional_module("rich.progress")
        self._progress: Any = rich.Progress(
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(bar_width=24),
            rich.TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[speed]}"),
            console=optional_module("rich.console").Console(file=stream, markup=False, emoji=False),
        )
        self._task = self._progress.add_task(title, total=1, speed="")
        self._speed = _Speed(peak)
        self._progress.start()

    def step(self, report: StepReport) -> None:
        """See `Reporter.step`."""
        self._speed.add(report)
        self._progress.update(
            self._task,
            completed=report.step,
            total=report.num_steps,
            speed=self._speed.text(report),
        )

    def note(self, text: str) -> None:
        """See `Reporter.note`."""
        self._progress.console.print(text, highlight=False)

    def close(self) -> None:
        """See `Reporter.close`."""
        self._progress.stop()


def make_reporter(
    title: str, stream: Output, peak: float | None = None
) -> RichReporter | LineReporter:
    """A bar when ``stream`` is a terminal, plain lines otherwise."""
    if stream.isatty():
        return RichReporter(title, stream, peak)
    return LineReporter(stream, peak=peak)
