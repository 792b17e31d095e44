"""A grid in the minutes that there are."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from counterpoint.errors import UserError
from counterpoint.progress import Progress
from counterpoint.recipes import grid_budget, grid_run, grid_sizes, grid_workers
from counterpoint.recipes.grid import Grid
from counterpoint.recipes.grid_budget import fit_grid, grid_seconds, run_fitted
from counterpoint.recipes.grid_pilot import CellTiming, pilot
from counterpoint.recipes.grid_report import _unjudged
from counterpoint.recipes.grid_run import run_grid
from counterpoint.recipes.grid_sizes import expected_timings
from counterpoint.recipes.grid_workers import Workers
from counterpoint.train.config import ScheduleConfig
from tests.recipes.test_grid import quiet, tiny_grid

ONE = Workers(count=1)


def declared() -> Grid:
    """Two arms on a task, five seeds of 1,000 steps."""
    train = replace(
        tiny_grid().train,
        num_steps=1000,
        log_every=100,
        checkpoint_every=0,
        schedule=ScheduleConfig(warmup_steps=50),
    )
    return tiny_grid(train=train, seeds=(0, 1, 2, 3, 4))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 0.06 s, so that a cell takes a minute; all else takes nothing."""

    def timings(grid: Grid, *given: Any) -> list[CellTiming]:
        return [CellTiming(step_s=0.06, fixed_s=0.0) for _ in grid.arms]

    monkeypatch.setattr(grid_budget, "pilot", timings)
    monkeypatch.setattr(grid_budget, "_START_S", 0.0)
    monkeypatch.setattr(grid_budget, "_REPORT_S", 0.0)
    monkeypatch.setattr(grid_budget, "_REPORT_ROW_S", 0.0)
    monkeypatch.setattr(grid_budget, "_SLACK", 1.0)


@pytest.mark.parametrize(
    ("minutes", "seeds", "steps", "left_out"),
    [
        (11.0, 5, 1000, ""),
        (6.5, 3, 1000, "Left out for lack of time: 2 of 5 seeds."),
        (4.1, 2, 1000, "Left out for lack of time: 3 of 5 seeds."),
        (2.1, 2, 525, "Left out for lack of time: 3 of 5 seeds and 4"),
    ],
)
def test_seeds_are_left_out_first_and_then_steps(
    minutes: float, seeds: int, steps: int, left_out: str, tmp_path: Path, timed: None
) -> None:
    grid, said = fit_grid(declared(), minutes, tmp_path, ONE, quiet())
    assert grid.seeds == (0, 1, 2, 3, 4)[:seeds]
    assert grid.train.num_steps == pytest.approx(steps, abs=3)
    assert said.startswith(left_out)
    assert grid.arms == declared().arms
    assert grid.train.schedule.warmup_steps == pytest.approx(50 if steps == 1000 else 52, abs=3)
    assert grid.train.log_every == pytest.approx(0.1 * grid.train.num_steps, abs=1)
    assert grid.train.checkpoint_every == 0


def test_two_processes_do_twice_as_much(tmp_path: Path, timed: None) -> None:
    grid, _ = fit_grid(declared(), 5.1, tmp_path, Workers(count=2), quiet())
    assert len(grid.seeds) == 5


def test_what_does_not_fit_says_what_would(tmp_path: Path, timed: None) -> None:
    with pytest.raises(UserError, match="must be at least 1 for tiny here: its smallest") as caught:
        fit_grid(declared(), 0.3, tmp_path, ONE, quiet())
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="must be above 0"):
        fit_grid(declared(), 0.0, tmp_path, ONE, quiet())
    with pytest.raises(UserError, match="`--workers` is missing"):
        fit_grid(declared(), 1.0, tmp_path, Workers(ray="auto"), quiet())


@pytest.fixture
def smaller(monkeypatch: pytest.MonkeyPatch) -> Grid:
    """A grid whose recipe declares a smaller size: a tenth of the steps."""
    train = replace(declared().train, num_steps=100)
    small = replace(declared(), name="small", train=train, num_items=4)
    monkeypatch.setattr(grid_sizes, "load_recipe", {"small": small}.__getitem__)
    return replace(declared(), name="large", smaller="small")


def test_the_largest_declared_size_that_fits_is_run(
    smaller: Grid, tmp_path: Path, timed: None
) -> None:
    grid, said = fit_grid(smaller, 0.5, tmp_path / "few", ONE, quiet())
    assert (grid.name, len(grid.seeds), grid.train.num_steps) == ("small", 2, 100)
    assert said.startswith("Left out for lack of time: large (2 arms x 1 task x 5 seeds x 1 ")
    assert said.endswith("Run instead: its declared size small without 3 of 5 seeds.")
    assert fit_grid(smaller, 0.5, tmp_path / "few", ONE, quiet()) == (grid, said)
    with pytest.raises(UserError, match="must be one of tiny: budget.json there names its size"):
        fit_grid(declared(), 0.5, tmp_path / "few", ONE, quiet())
    grid, said = fit_grid(smaller, 6.5, tmp_path / "many", ONE, quiet())
    assert (grid.name, len(grid.seeds), said[-19:]) == ("large", 3, "time: 2 of 5 seeds.")
    with pytest.raises(UserError, match="smallest size, small with 2 seeds and 10 steps"):
        fit_grid(smaller, 0.03, tmp_path / "none", ONE, quiet())


def test_what_cannot_fit_is_not_timed_and_its_time_is_told(
    smaller: Grid, tmp_path: Path, timed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pilots = []

    def timings(grid: Grid, *given: Any) -> list[CellTiming]:
        pilots.append(grid.name)
        return [CellTiming(step_s=0.06, fixed_s=0.0) for _ in grid.arms]

    monkeypatch.setattr(grid_budget, "pilot", timings)
    fit_grid(smaller, 0.5, tmp_path / "few", ONE, quiet())
    assert pilots == ["small"]
    shown = io.StringIO()
    assert fit_grid(smaller, None, tmp_path / "all", ONE, Progress(shown)) == (smaller, "")
    told = " ".join(shown.getvalue().split())
    assert "takes about 10 minutes here. `--minutes N` runs the largest declared" in told
    assert pilots == ["small"] * 2


def test_times_are_expected_by_flops_and_symbols() -> None:
    timed = declared()
    twice = replace(timed, train=replace(timed.train, batch_rows=4), num_items=24)
    some = [CellTiming(step_s=0.1, fixed_s=1.0, batch_s=0.01)] * 2
    for one in expected_timings(twice, timed, some):
        assert one.step_s == pytest.approx(0.2)
        assert one.fixed_s == pytest.approx(3.0)
        assert one.batch_s == pytest.approx(0.02)


def test_few_steps_are_a_first_look_and_have_no_verdict(tmp_path: Path, timed: None) -> None:
    grid, _ = fit_grid(declared(), 2.1, tmp_path / "half", ONE, quiet())
    assert not grid.is_first_look
    grid, _ = fit_grid(declared(), 1.0, tmp_path / "few", ONE, quiet())
    assert grid.is_first_look
    assert "first look" in _unjudged(grid)
    assert _unjudged(declared()) == ""
    assert "two are needed" in _unjudged(replace(declared(), seeds=(0,)))


def test_a_grid_that_goes_on_keeps_its_size(
    tmp_path: Path, timed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fit_grid(declared(), 6.5, tmp_path, ONE, quiet())

    def again(*given: Any) -> Any:
        raise AssertionError("it is timed again")

    monkeypatch.setattr(grid_budget, "pilot", again)
    for minutes in (6.5, 100.0, None):
        shown = io.StringIO()
        assert fit_grid(declared(), minutes, tmp_path, ONE, Progress(shown)) == first
        assert ("keeps the size that `--minutes 6.5` chose" in shown.getvalue()) == (minutes != 6.5)


def test_a_grid_that_began_in_full_goes_on_in_full(tmp_path: Path, timed: None) -> None:
    (tmp_path / "grid.json").write_text("{}")
    shown = io.StringIO()
    assert fit_grid(declared(), 1.0, tmp_path, ONE, Progress(shown)) == (declared(), "")
    assert "continues in full" in shown.getvalue()
    assert fit_grid(declared(), None, tmp_path / "other", ONE, quiet()) == (declared(), "")


def test_cells_that_choose_rates_and_stacks_are_counted() -> None:
    grid = replace(declared(), learning_rates=(1e-3, 2e-3), tuning_share=0.5)
    timings = [CellTiming(step_s=0.1, fixed_s=2.0)] * 2
    alone = 2 * (5 * 100 * 0.1 + 2 * 50 * 0.1 + 7 * 2.0)
    assert grid_seconds(grid, timings, ONE, 5, 100) == pytest.approx(alone)
    together = 2 * (100 * 0.1 + 50 * 0.1 + 7 * 2.0)
    in_stacks = Workers(count=1, device="cuda")
    assert grid_seconds(grid, timings, in_stacks, 5, 100) == pytest.approx(together)


@pytest.mark.parametrize("device", ["cpu", "stacked"])
def test_a_pilot_times_every_arm_on_every_task(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(work: Any, items: Any, num_processes: int) -> Any:
        yield from map(work, items)

    monkeypatch.setattr(grid_workers, "work_in_processes", work)
    workers = ONE
    if device == "stacked":  # stacks also run on the CPU, where they are no faster
        monkeypatch.setattr(Workers, "in_stacks", True)
    grid = tiny_grid(seeds=(0, 1))
    timings = pilot(grid, workers, 0.0, quiet())
    assert len(timings) == 2
    assert all(0 < timing.step_s < 5 for timing in timings)
    assert all(timing.fixed_s > 0 for timing in timings)
    assert all((timing.batch_s > 0) == (device == "stacked") for timing in timings)
    fitted, _ = fit_grid(grid, 5.0, tmp_path, workers, quiet())
    assert fitted == grid
    if device == "cpu":
        assert len(run_grid(fitted, tmp_path, progress=quiet())) == 4


@pytest.mark.parametrize(
    ("seed_s", "minutes", "seeds"),
    [
        (60.0, 10.1, 5),  # as it was timed: 2 arms of 1 minute, in half of it because of 2 workers
        (150.0, 10.1, 4),
        (300.0, 10.1, 2),
        (900.0, 10.1, 2),  # two are never left out
    ],
)
def test_seeds_are_left_out_where_the_machine_becomes_slower(
    seed_s: float, minutes: float, seeds: int, tmp_path: Path, timed: None, monkeypatch: Any
) -> None:
    clock = [0.0]
    monkeypatch.setattr("counterpoint.recipes.grid_budget.time.perf_counter", lambda: clock[0])

    def run_cells(grid: Grid, folder: Path, cells: Any, *given: Any) -> None:
        clock[0] += seed_s
        ran.extend(sorted({cell.seed for cell in cells} - {*ran}))

    ran: list[int] = []
    monkeypatch.setattr(grid_run, "_run_cells", run_cells)
    monkeypatch.setattr(
        grid_run,
        "read_cells",
        lambda folder, cells: [{"cell": c.key, "seed": c.seed} for c in cells],
    )
    monkeypatch.setattr(grid_run, "write_records", lambda path, records: None)
    shown = io.StringIO()
    two = Workers(count=2)
    grid, said = run_fitted(declared(), minutes, tmp_path, two, Progress(shown))
    assert ran == [*grid.seeds] == [*range(seeds)]
    left_out = f"Left out for lack of time: {5 - seeds} of 5 seeds."
    assert said == (left_out if seeds < 5 else "")
    told = " ".join(shown.getvalue().split())
    assert (f"slower than when it was timed. {left_out}" in told) == (seeds < 5)
    assert ("longer than the minutes allow" in told) == (seeds * seed_s > 60 * minutes)
    again, _ = fit_grid(declared(), minutes, tmp_path, two, quiet())
    assert again == grid  # so it goes on with this size
