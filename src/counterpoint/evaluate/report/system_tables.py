"""Streams, parameters and costs of a system, as tables for a terminal."""

from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from counterpoint.progress import spell_count
from counterpoint.streams.clock import span
from counterpoint.streams.spec import Layout, Stream
from counterpoint.systems.contract import System
from counterpoint.train.memory import TrainingMemory
from counterpoint.train.run import Run

_FEWEST_TICKS = 16
_MOST_TICKS = 72
"""Fewest and most ticks of a drawing."""


def show_system(console: Console, name: str, system: System, num_ticks: int) -> None:
    """Print the streams of a system, its parameters and its costs.

    Args:
        console: Console to which the tables are printed.
        name: Heading.
        system: The system; it may be on the device "meta", because nothing is computed.
        num_ticks: Ticks of the context over which costs are averaged.
    """
    layout = system.layout
    rate = "" if layout.tick_hz is None else f", {layout.tick_hz:g} ticks a second"
    console.print(Text(f"\n{name}: {type(system).__name__}{rate}", style="bold"))
    console.print(_streams(layout))
    if layout.block_ticks > 1:
        console.print(Text(draw_layout(layout)))
    console.print(_parameters(system))
    console.print(_costs(system, num_ticks))


def _streams(layout: Layout) -> Table:
    table = Table("stream", "role", "a step covers", "delay", "elements")
    for stream in layout.streams:
        most = "<= " if stream.irregular else ""
        covers = f"{most}{stream.period_ticks} tick{'s' * (stream.period_ticks > 1)}"
        # A delay of zero is exact for irregular steps, too.
        most = most if stream.delay_ticks else ""
        delay = f"{most}{stream.delay_ticks} tick{'s' * (stream.delay_ticks != 1)}"
        table.add_row(stream.name, stream.role.value, covers, delay, _elements(stream))
    return table


def _elements(stream: Stream) -> str:
    kind = f"{stream.vocab_size} ids" if stream.is_discrete else f"vectors of {stream.width}"
    return f"{stream.depth} x {kind}" if stream.depth > 1 else kind


def _parameters(system: nn.Module) -> Table:
    """Return the parameters by the first part of their names, the largest part first."""
    counts: dict[str, int] = {}
    for name, parameter in system.named_parameters():
        part = name.split(".")[0]
        counts[part] = counts.get(part, 0) + parameter.numel()
    total = sum(counts.values())
    table = Table("part of the model", "parameters", "share")
    for part, count in sorted(counts.items(), key=lambda item: -item[1]):
        table.add_row(part, f"{count:,}", f"{count / total:.1%}")
    table.add_section()
    table.add_row("all", f"{total:,}", "")
    return table


def _costs(system: System, num_ticks: int) -> Table:
    state_bytes = system.state_bytes_per_tick(num_ticks)
    table = Table("cost a tick", f"over {num_ticks:,} ticks")
    table.add_row("FLOPs, forward", f"{system.flops_per_tick(num_ticks):,.0f}")
    table.add_row("FLOPs, training", f"{system.flops_per_tick(num_ticks, training=True):,.0f}")
    table.add_row("state bytes", f"{state_bytes:,.0f}")
    table.add_row("state bytes of a session, in all", f"{state_bytes * num_ticks:,.0f}")
    return table


def show_memory(console: Console, memory: TrainingMemory, run: Run) -> None:
    """Print the memory that training a run needs on one device."""
    rows = max(run.train.batch_rows // run.train.accumulation, 1)
    table = Table("memory of training", f"{rows} row{'s' * (rows > 1)} at once")
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimiser": memory.optimizer,
        "activations": memory.activations,
    }
    for name, size in parts.items():
        table.add_row(name, "depends on the content" if size is None else f"{spell_count(size)}B")
    table.add_section()
    table.add_row("all, without working memory", f"{spell_count(memory.total)}B")
    console.print(table)


def draw_layout(layout: Layout) -> str:
    """Draw the clock: coarse steps above the ticks they cover, and which one a tick may read.

    One column is a tick. ``newest`` is the last step of a coarse stream that may be read to write
    the element at this tick, by the rule of visibility. An irregular stream is drawn with its
    longest steps, as if the content ended none early.
    """
    irregular = [stream.name for stream in layout.streams if stream.irregular]
    longest = tuple(replace(stream, irregular=False) for stream in layout.streams)
    layout = replace(layout, streams=longest)
    fine = min(layout.streams, key=lambda stream: stream.period_ticks)
    num_ticks = min(max(3 * layout.block_ticks, _FEWEST_TICKS), _MOST_TICKS)
    labels = ["tick"]
    rows = [[str(tick % 10) for tick in range(num_ticks)]]
    for stream in layout.streams:
        if stream is fine:
            continue
        period = stream.period_ticks
        steps = [f"|{step}".ljust(period, "-")[:period] for step in range(num_ticks // period + 1)]
        labels.append(stream.name)
        rows.append(list("".join(steps)[:num_ticks]))
        stop = span(layout, fine.name, stream.name, torch.arange(num_ticks)).stop
        labels.append("newest")
        rows.append([str((n - 1) % 10) if n else "." for n in stop.tolist()])
    width = max(map(len, labels))
    order = [*range(1, len(rows)), 0]  # blocks above ticks
    lines = [f"{labels[i]:>{width}}  {''.join(rows[i])}" for i in order]
    if len(rows) > 1:
        lines.append("newest: the last step above that may be read when a tick is written")
    for name in irregular:
        lines.append(f"{name}: drawn with its longest steps; the content may end them early")
    return "\n".join(lines)
