"""Time that a system takes for the next tick of one session."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from counterpoint.runtime.sessions import Sessions
from counterpoint.streams.spec import Layout, Ticks
from counterpoint.systems.contract import System

_SKIPPED = 0.1  # share of the ticks; buffers are allocated in the first ones


@dataclass(frozen=True, kw_only=True, slots=True)
class TickLatency:
    """Milliseconds between two ticks that a session writes.

    Attributes:
        p50_ms: Median of the milliseconds.
        p95_ms: 95th percentile of the milliseconds.
        num_ticks: Number of ticks that the session wrote.
    """

    p50_ms: float
    p95_ms: float
    num_ticks: int


def decode_latency(system: System, num_ticks: int) -> TickLatency:
    """Let one session of a text model write on this machine, and measure its ticks.

    With one thread on the CPU the CPU time of the thread is measured, to which other programs on
    the machine add nothing.

    The written ids do not matter, so the weights may be random; only a system that learns where
    its blocks end makes other blocks with trained weights.

    Args:
        system: System in evaluation mode.
        num_ticks: Number of ticks to write.
    """
    sessions = Sessions(system, 1, sliding=True)
    sessions.start(0, prompt=_opening(system.layout))
    on_cpu = system.device.type == "cpu"
    now = time.thread_time if on_cpu and torch.get_num_threads() == 1 else time.perf_counter
    seconds = []
    for _ in range(num_ticks):
        begin = now()
        sessions.step()
        _settle(system.device)
        seconds.append(now() - begin)
    p50_ms, p95_ms = 1e3 * np.quantile(seconds[int(_SKIPPED * num_ticks) :], (0.5, 0.95))
    return TickLatency(p50_ms=float(p50_ms), p95_ms=float(p95_ms), num_ticks=num_ticks)


def _opening(layout: Layout) -> Ticks | None:
    """Return a block of what is written; a system with an initial frame begins with that."""
    if any(stream.initial_id is not None for stream in layout.predicted):
        return None
    return {
        stream.name: torch.zeros(
            1, layout.block_ticks // stream.period_ticks, *stream.element_shape, dtype=torch.long
        )
        for stream in layout.predicted
    }


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
