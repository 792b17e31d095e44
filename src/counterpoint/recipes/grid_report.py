"""The report of a grid that was run, and the measurements that it needs."""

from contextlib import closing
from functools import partial
from pathlib import Path

from counterpoint.config_json import encode
from counterpoint.evaluate.latency import TickLatency, decode_latency
from counterpoint.evaluate.report.grid_findings import ABOUT, LATENCY, GridAbout, GridFindings
from counterpoint.evaluate.report.grid_page import write_grid_report
from counterpoint.files import json_value, read_json, write_json
from counterpoint.processes import work_in_processes
from counterpoint.progress import Progress
from counterpoint.recipes.cells import ITEMS_SEED
from counterpoint.recipes.grid import Grid, GridArm, costs
from counterpoint.recipes.grid_run import FEWEST_SEEDS, data_digests
from counterpoint.recipes.machine import machine_facts
from counterpoint.systems import build_system


def report_grid(
    grid: Grid,
    folder: Path,
    *,
    command: str = "",
    left_out: str = "",
    device: str = "cpu",
    progress: Progress | None = None,
) -> GridFindings:
    """Write the report of a grid that `counterpoint.recipes.grid_run.run_grid` has run.

    Args:
        grid: Grid that was run.
        folder: Its folder.
        command: Command that starts the grid again.
        left_out: Sentence that says what was left out for lack of time.
        device: Device on which cells were trained.
        progress: Shows how far the report is.

    Returns:
        The findings of the grid.
    """
    about = GridAbout(
        name=grid.name,
        arms=tuple(arm.name for arm in grid.arms),
        costs={task: costs(grid, task) for task in grid.tasks},
        num_items=grid.num_items,
        items_seed=ITEMS_SEED,
        purpose=grid.purpose,
        unmatched={arm.name: arm.unmatched for arm in grid.arms if arm.unmatched},
        left_out=left_out,
        unjudged=_unjudged(grid),
        command=command,
        machine=machine_facts(device),
        grid=encode(grid),
        data=grid.data,
        digests=data_digests(grid),
    )
    write_json(folder / ABOUT, json_value(encode(about)))
    _measure_latency(grid, folder, progress or Progress())
    return write_grid_report(folder)


def _unjudged(grid: Grid) -> str:
    """Return why a grid has no verdict; empty if it has one."""
    if grid.is_first_look:
        return f"runs of {grid.train.num_steps:,} steps are a first look, too little for one"
    if len(grid.seeds) < FEWEST_SEEDS:
        return f"{len(grid.seeds)} seed does not show how much seeds matter, and two are needed"
    return ""


def _measure_latency(grid: Grid, folder: Path, progress: Progress) -> None:
    """Measure the time of a tick of each arm, unless that was done, alone on the machine."""
    path = folder / LATENCY
    known = read_json(path) if path.is_file() else {}
    missing = [arm for arm in grid.arms if arm.name not in known]
    shown = progress.task("timing single ticks")
    num_ticks = max(grid.task(task).most_symbols for task in grid.tasks)
    # One process with one thread: the machine is measured, not its load by this grid.
    with closing(work_in_processes(partial(_timed, num_ticks), missing, 1)) as done:
        for number, (name, found) in enumerate(done, 1):
            if isinstance(found, str):
                progress.note(f"The ticks of {name!r} are not timed: {found}")
            else:
                known[name] = encode(found)
            shown(number, len(missing), figures=name)
    write_json(path, known)


def _timed(num_ticks: int, arm: GridArm) -> tuple[str, TickLatency | str]:
    """Return the name of an arm, and its time of a tick or the error that prevents measuring it."""
    try:
        return arm.name, decode_latency(build_system(arm.system, 0).eval(), num_ticks)
    except Exception as error:  # hours of training must not be lost for this number
        return arm.name, f"{type(error).__name__}: {' '.join(str(error).split())}"
