"""What the user sees while a model trains."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from counterpoint.progress import Pace, Progress, spell_count
from counterpoint.streams.batch import ContentUnit

# Dense bf16 FLOP/s on tensor cores and float32 FLOP/s, from vendors' data sheets. The first match
# counts.
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


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the highest FLOP/s of one device by its data sheet.

    Returns:
        FLOP/s, or ``None`` for a GPU that is not in the table and for a CPU. The speed of CPU
        cores changes with their clock and with other programs, so a short measurement is no bound
        (steps have reached 280 % of one).
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    row = next((row for row in _GPU_PEAKS if row[0] in name), None)
    if row is None:
        return None
    return row[1] if precision == "bfloat16" else row[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One training step, as a reporter receives it.

    Attributes:
        step: Number of steps done, including this one.
        num_steps: Number of steps of the whole run.
        loss: Loss in bits a unit.
        seconds: Duration of the step.
        size: Amount that was learned from, in ``unit``, over all processes.
        unit: Bytes of text, or frames of speech.
        flops: Training FLOPs of the step, over all processes.
        num_processes: Number of processes that shared them.
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
        """Show a step that is done."""

    def part(self, step: int, num_steps: int, part: int, num_parts: int) -> None:
        """Show that some parts of a step are computed.

        Args:
            step: Number of steps that are done before it.
            num_steps: Number of steps of the run.
            part: Number of parts that are computed.
            num_parts: Number of parts of the step.
        """

    def note(self, text: str) -> None:
        """Show one line about an event."""

    def close(self) -> None:
        """End the display of a run that has ended or failed."""


class RunReporter:
    """Shows the steps of a run as a task of `Progress`, with the speed of the last ten seconds.

    Only the time of the steps counts, without evaluations and checkpoints between them.
    """

    def __init__(self, progress: Progress, title: str, peak: float | None = None) -> None:
        """Show ``title`` with the steps; ``peak`` is the highest FLOP/s of a process's device."""
        self._progress = progress
        self._task = progress.task(title, "steps")
        self._peak = peak
        self._pace = Pace()

    def step(self, report: StepReport) -> None:
        """See `Reporter.step`."""
        pace = self._pace
        pace.add(report.seconds, report.size, report.flops, report.loss)
        figures = [f"{pace.mean(2):.4f} bits/{report.unit}"]
        if pace.is_known:
            speed = spell_count(pace.rate(0))
            is_text = report.unit == "byte"
            figures.append(f"{speed}B/s" if is_text else f"{speed.rstrip()} frames/s")
            figures.append(f"{spell_count(pace.rate(1))}FLOP/s")
            if self._peak:
                figures.append(f"{pace.rate(1) / (self._peak * report.num_processes):.0%} of peak")
        self._task(report.step, report.num_steps, "  ".join(figures), report.seconds)

    def part(self, step: int, num_steps: int, part: int, num_parts: int) -> None:
        """See `Reporter.part`."""
        self._task.within(step, num_steps, f"{part} of {num_parts} parts of the next step")

    def note(self, text: str) -> None:
        """See `Reporter.note`."""
        self._progress.note(text)

    def close(self) -> None:
        """See `Reporter.close`."""
        self._task.end()
