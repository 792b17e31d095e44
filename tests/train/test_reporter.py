import io
from dataclasses import replace

import pytest
import torch

from counterpoint.progress import Progress
from counterpoint.train.reporter import RunReporter, StepReport, peak_flops


def report(step: int, seconds: float = 0.5) -> StepReport:
    return StepReport(
        step=step,
        num_steps=10,
        loss=3.5,
        seconds=seconds,
        size=1000,
        unit="byte",
        flops=4e9,
        num_processes=2,
    )


def shown(*reports: StepReport, peak: float | None = None) -> list[str]:
    stream = io.StringIO()
    reporter = RunReporter(Progress(stream, every_seconds=0), "arm", peak)
    for one in reports:
        reporter.step(one)
    return stream.getvalue().splitlines()


def test_speed_and_time_left_are_those_of_steps_behind_the_first() -> None:
    lines = shown(*map(report, range(1, 5)), peak=8e9)
    assert lines[0] == "arm: 1/10 steps  3.5000 bits/byte"
    # 4e9 FLOPs in half a second on two devices of 8e9 FLOP/s each; six steps of half a second left
    figures = "3.5000 bits/byte  2 kB/s  8 GFLOP/s  50% of peak"
    assert lines[3] == f"arm: 4/10 steps  {figures}  0:03 left"


def test_compilation_and_noise_do_not_stay_in_the_time_left() -> None:
    """The first step took 25 s here, and said that seven hours were left."""
    lines = shown(report(1, 25.0), report(2, 0.5), report(3, 0.5))
    assert lines[0].endswith("bits/byte")
    assert lines[2].endswith("0:04 left")


def test_speech_is_counted_in_frames() -> None:
    frames = [replace(report(step), unit="frame") for step in (1, 2)]
    assert "3.5000 bits/frame  2 k frames/s" in shown(*frames)[1]


def test_an_unknown_peak_is_left_out() -> None:
    assert "peak" not in shown(report(1), report(2))[1]
    assert peak_flops(torch.device("cpu"), "float32") is None


def test_a_known_gpu_has_the_peak_of_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    device = torch.device("cuda")
    assert peak_flops(device, "bfloat16") == 989e12
    assert peak_flops(device, "float32") == 67e12
