"""The verb ``info``: what a checkpoint, a recipe or a preset is made of and what it costs."""

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from counterpoint.cli.checkpoint import find_checkpoint, load_run
from counterpoint.recipes.loading import load_recipe
from counterpoint.recipes.overrides import parse, to_every_arm
from counterpoint.recipes.study import Study
from counterpoint.streams.clock import visible_stop
from counterpoint.streams.spec import Layout
from counterpoint.systems import SYSTEMS, AnySystem, SystemConfig, build_system
from counterpoint.systems.moshi_streams import MoshiConfig
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.systems.two_stream import TwoStreamConfig
from counterpoint.train.run import Run

_HELP = """usage: counterpoint info CKPT|RECIPE|SYSTEM.PRESET [--num-ticks N] [overrides]

Show layout, parameters, FLOPs a tick and state bytes a tick.

Example: counterpoint info first_run
"""
_WITH_PRESETS = (*SYSTEMS, "personaplex")  # modules of `counterpoint.systems`
_FEWEST_TICKS, _MOST_TICKS = 16, 72  # of the drawing
_DEFAULT_TICKS = 1024


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words that follow it."""
    target, *rest = arguments or ["--help"]
    if target in ("-h", "--help"):
        print(_HELP, end="")
        return 0
    fields: list[tuple[str, Any, Any]] = [("num_ticks", int | None, None)]
    command = f"info {target}"
    if Path(target).is_dir():
        value: Any = load_run(find_checkpoint(Path(target)))
        num_ticks = parse(fields, rest, command, _HELP).num_ticks
    elif target.partition(".")[0] in _WITH_PRESETS:
        value = load_preset(target)
        num_ticks = parse(fields, rest, command, _HELP).num_ticks
    elif "/" in target and ".py" not in target:
        raise ValueError(f"The folder of a checkpoint or a run must exist: {target!r} does not.")
    else:
        recipe = load_recipe(target)
        if isinstance(recipe, Study):
            rest = to_every_arm(rest, len(recipe.arms))
        chosen = parse([*fields, ("recipe", type(recipe), recipe)], rest, command, _HELP)
        value, num_ticks = chosen.recipe, chosen.num_ticks
    if num_ticks is not None and num_ticks < 1:
        raise ValueError(f"`--num-ticks` must be >= 1, got {num_ticks}.")
    console = Console(file=sys.stdout)
    for name, config, row_ticks in _systems(value, target):
        with torch.device("meta"), torch.random.fork_rng(devices=[]):  # shapes without memory
            system = build_system(config, seed=0)
        show(console, name, system, num_ticks or row_ticks or _DEFAULT_TICKS)
    return 0


def load_preset(name: str) -> SystemConfig:
    """The config of ``system.preset``, such as ``two_stream.small``.

    Raises:
        ValueError: The system has no such preset.
    """
    system, _, preset = name.partition(".")
    known = _presets(system)
    if preset not in known:
        near = get_close_matches(preset, known, n=1, cutoff=0)
        raise ValueError(
            f"A preset of {system} must be one of {', '.join(known)}: got {preset!r}. "
            f"The nearest is {near[0] if near else 'none'!r}."
        )
    return known[preset]()


def _presets(system: str) -> dict[str, Callable[[], SystemConfig]]:
    """The functions of a system's module that return a config when called without arguments."""
    module = importlib.import_module(f"counterpoint.systems.{system}")
    found: dict[str, Callable[[], SystemConfig]] = {}
    for name, function in inspect.getmembers(module, inspect.isfunction):
        signature = inspect.signature(function)
        needed = [p for p in signature.parameters.values() if p.default is p.empty]
        is_here = function.__module__ == module.__name__ and not name.startswith("_")
        if is_here and not needed and signature.return_annotation in get_args(SystemConfig):
            found[name] = function
    return found


def _systems(value: Any, name: str) -> list[tuple[str, SystemConfig, int]]:
    """Every system of what was named: its name, its config and the ticks of its rows (0: none)."""
    match value:
        case Study():
            return [system for run in value.arms for system in _systems(run, run.name)]
        case Run(system=MoshiConfig() as config):
            return [(value.name, config, round(value.speech_data.row_s * config.tick_hz))]
        case Run():
            return [(value.name, value.system, value.text_data.row_ticks)]
        case SingleStreamConfig() | TwoStreamConfig() | MoshiConfig():
            return [(name, value, 0)]
    raise ValueError(f"{name!r} must give a `Run` or a `Study`: got {type(value).__name__}.")


def show(console: Console, name: str, system: AnySystem, num_ticks: int) -> None:
    """Print the tables of one system."""
    rate = "" if system.layout.tick_hz is None else f", {system.layout.tick_hz:g} ticks a second"
    console.print(Text(f"\n{name}: {type(system).__name__}{rate}", style="bold"))
    streams = Table("stream", "role", "a step covers", "delay", "elements")
    for stream in system.layout.streams:
        kind = f"{stream.vocab_size} ids" if stream.is_discrete else f"vectors of {stream.width}"
        kind = f"{stream.depth} x {kind}" if stream.depth > 1 else kind
        most = "<= " if stream.irregular else ""
        covers = f"{most}{stream.period_ticks} tick{'s' * (stream.period_ticks > 1)}"
        delay = f"{most if stream.delay_ticks else ''}{stream.delay_ticks} ticks"
        streams.add_row(stream.name, stream.role.value, covers, delay, kind)
    console.print(streams)
    if system.layout.block_ticks > 1:
        console.print(Text(draw(system.layout)))
    parts = Table("part of the model", "parameters", "share")
    total = sum(parameter.numel() for parameter in system.parameters())
    for part, count in sorted(_parameters(system).items(), key=lambda item: -item[1]):
        parts.add_row(part, f"{count:,}", f"{count / total:.1%}")
    parts.add_section()
    parts.add_row("all", f"{total:,}", "")
    console.print(parts)
    costs = Table("cost a tick", f"over {num_ticks:,} ticks")
    costs.add_row("FLOPs, forward", f"{system.flops_per_tick(num_ticks):,.0f}")
    costs.add_row("FLOPs, training", f"{system.flops_per_tick(num_ticks, training=True):,.0f}")
    state_bytes = system.state_bytes_per_tick(num_ticks)
    costs.add_row("state bytes", f"{state_bytes:,.0f}")
    costs.add_row("state bytes of a session, in all", f"{state_bytes * num_ticks:,.0f}")
    console.print(costs)


def _parameters(system: nn.Module) -> dict[str, int]:
    """Parameters by the first part of their names."""
    counts: dict[str, int] = {}
    for name, parameter in system.named_parameters():
        part = name.split(".")[0]
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def draw(layout: Layout) -> str:
    """The clock: coarse steps above the ticks they cover, and what is read when a tick is written.

    One column is a tick. ``newest`` is the last step of a coarse stream that producing the element
    at this tick may read, by the rule of visibility. An irregular stream is drawn with its longest
    steps, as on content that ends none early.
    """
    irregular = [stream.name for stream in layout.streams if stream.irregular]
    longest = tuple(replace(stream, irregular=False) for stream in layout.streams)
    layout = replace(layout, streams=longest)
    fine = min(layout.streams, key=lambda stream: stream.period_ticks)
    num_ticks = min(max(3 * layout.block_ticks, _FEWEST_TICKS), _MOST_TICKS)
    labels, rows = ["tick"], [[str(tick % 10) for tick in range(num_ticks)]]
    for stream in layout.streams:
        if stream is fine:
            continue
        period = stream.period_ticks
        steps = [f"|{step}".ljust(period, "-")[:period] for step in range(num_ticks // period + 1)]
        labels.append(stream.name)
        rows.append(list("".join(steps)[:num_ticks]))
        stop = visible_stop(layout, fine.name, torch.arange(num_ticks), stream.name)
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
