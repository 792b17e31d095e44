"""A stack of cells gives what cells give that are trained alone."""

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import counterpoint
from counterpoint.data.tasks.part_whole.logbook import Logbook
from counterpoint.data.tasks.source import TaskData
from counterpoint.data.text.corpus import DataConfig, Folder
from counterpoint.evaluate.report.grid_rows import DIVERGED
from counterpoint.progress import Progress
from counterpoint.recipes import cells as cells_module
from counterpoint.recipes import stacks as module
from counterpoint.recipes.cells import Cell, cell_run, curve, run_cell
from counterpoint.recipes.grid import Grid, GridArm
from counterpoint.recipes.part_whole_small import part_whole_small
from counterpoint.recipes.stacks import (
    record_batches,
    record_runs,
    recorded_run,
    run_stack,
    save_lane,
    stacks,
    train_further,
    train_lanes,
)
from counterpoint.streams.batch import Batch
from counterpoint.systems import build_system, sketch
from counterpoint.systems.contract import System
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.train.config import ScheduleConfig, TrainConfig
from counterpoint.train.run import Run
from tests.systems.tiny_models import tower, two

RATES = (1e-3, 4e-3)
GRID = Grid(
    name="tiny",
    arms=(GridArm(name="a", system=SingleStreamConfig(tower=tower(8, 1, 2, 8))),),
    tasks=("hierarchy", "logbook_small"),
    train=TrainConfig(
        num_steps=4,
        batch_rows=2,
        precision="float32",
        evaluate_every=2,
        schedule=ScheduleConfig(warmup_steps=1),
    ),
    learning_rates=RATES,
    seeds=(0, 1),
    num_items=8,
)


def cell(seed: int, rate: float = 1e-3, task: str = "hierarchy") -> Cell:
    return Cell(task=task, arm="a", learning_rate=rate, seed=seed)


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(work: Any, items: Any, num_processes: int) -> Any:
        yield from map(work, items)

    monkeypatch.setattr(module, "work_in_processes", work)
    monkeypatch.setattr(cells_module, "CURVE_ITEMS", 10)


def test_cells_of_an_arm_make_a_stack_and_those_that_choose_rates_another() -> None:
    chosen = [cell(seed, rate) for rate in RATES for seed in (100,)]
    reported = [cell(seed, task=task) for task in GRID.tasks for seed in GRID.seeds]
    assert stacks(GRID, [*chosen, *reported]) == [tuple(chosen), tuple(reported)]


def test_a_stack_that_is_full_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [cell(seed, task=task) for seed in GRID.seeds for task in GRID.tasks]
    monkeypatch.setattr(module, "MOST_TICKS", 2 * GRID.train.batch_rows * 30)
    found = stacks(GRID, cells)
    assert len(found) > 1
    assert sorted(one.key for group in found for one in group) == sorted(one.key for one in cells)
    assert all(len({one.task for one in group}) == 1 for group in found)  # rows of one length


def test_a_stack_gives_what_its_cells_give_alone(tmp_path: Path) -> None:
    cells = [cell(seed, task=task) for seed, task in zip(GRID.seeds, GRID.tasks, strict=True)]
    record_batches(GRID, tmp_path / "batches", cells, Progress(quiet=True))
    assert len(list((tmp_path / "batches").iterdir())) == len(cells)
    batches = partial(recorded_run, folder=tmp_path / "batches")
    outcomes = run_stack(GRID, batches, "cpu", cells).cells
    for one, together in zip(cells, outcomes, strict=True):
        alone = run_cell(GRID, tmp_path / "work", one).record
        record = dict(together.record)
        points = record.pop("curve")
        expected = dict(alone)
        for point, other in zip(points, expected.pop("curve"), strict=True):
            assert point.pop("score") == other.pop("score")
            assert point == pytest.approx(other, rel=1e-4)
        assert record == expected
    assert outcomes[0].facts["lanes"] == len(cells)


def test_a_system_that_writes_labels_is_also_scored_with_the_true_ones(tmp_path: Path) -> None:
    arm = next(arm for arm in part_whole_small().arms if arm.name == "two_stream_text")
    grid = replace(GRID, arms=(replace(arm, name="a"),), tasks=("hierarchy",), num_items=4)
    cells = [cell(seed) for seed in grid.seeds]
    alone = [run_cell(grid, tmp_path / "work", one).record for one in cells]
    together = run_stack(grid, partial(recorded_run, folder=tmp_path), "cpu", cells).cells
    for record, outcome in zip(alone, together, strict=True):
        names = [one["name"] for one in record["scores"]]
        half = len(names) // 2
        assert names[half:] == [f"{name}, true whole" for name in names[:half]]
        assert outcome.record["scores"] == record["scores"]


def test_a_warm_up_longer_than_the_training_is_told_once(tmp_path: Path) -> None:
    run = cell_run(GRID, cell(0))
    long = replace(run.train, schedule=ScheduleConfig(warmup_steps=10))
    source = recorded_run(run, tmp_path)
    shown = io.StringIO()
    progress = Progress(shown)
    for config in (run.train, long, long):
        system = build_system(run.system, 0)
        train_further([system], [config], [source], "cpu", ["a"], progress)
    told = [line for line in shown.getvalue().splitlines() if "warm-up" in line]
    assert len(told) == 1
    assert "reaches 40% of its highest value" in told[0]


def test_a_cell_that_diverges_costs_no_other_cell(tmp_path: Path) -> None:
    cells = [cell(0), cell(1, 1e30)]
    found = run_stack(GRID, partial(recorded_run, folder=tmp_path), "cpu", cells)
    assert found.diverged == [cells[1].key]
    assert [outcome.cell for outcome in found.cells] == cells
    lost = found.cells[1].record
    assert lost["score"] == sum(lost["numerators"]) == 0
    assert lost["denominators"] == found.cells[0].record["denominators"]
    assert lost["scores"] == [{"name": DIVERGED, "value": 1.0}]


def test_trained_lanes_are_seen_on_the_way_and_loaded_again(tmp_path: Path) -> None:
    runs = [cell_run(GRID, cell(0)), cell_run(GRID, cell(1, 1e30, "logbook_small"))]
    record_runs(runs, tmp_path / "batches", Progress(quiet=True))
    sources = [recorded_run(run, tmp_path / "batches") for run in runs]
    seen: list[tuple[int, Tensor]] = []

    def visit(step: int, systems: Sequence[System]) -> bool:
        seen.append((step, next(systems[0].parameters()).detach().clone()))
        return step == 2

    trained, diverged = train_lanes(runs, sources, "cpu", visit=visit)
    assert diverged is None
    assert trained is not None
    assert [step for step, _ in seen] == [2]  # `visit` has ended the training
    save_lane(trained, runs[0], tmp_path / "saved")
    loaded = counterpoint.load(tmp_path / "saved").system
    assert torch.equal(next(loaded.parameters()), seen[0][1])
    assert loaded.config == runs[0].system


def equal(a: Batch, b: Batch) -> bool:
    same = torch.equal(a.document_start, b.document_start) and a.size == b.size
    return same and all(torch.equal(a.ticks[name], ids) for name, ids in b.ticks.items())


@pytest.mark.parametrize("first_is_whole", [False, True])
def test_systems_with_other_blocks_do_not_share_packed_rows(
    tmp_path: Path, first_is_whole: bool
) -> None:
    """Packed documents begin at the borders of blocks, so rows differ where all streams agree."""
    task = Logbook(num_events=12)
    data = TaskData(task=task, num_items=30, num_held_out=0, row_ticks=256)
    train = TrainConfig(num_steps=2, batch_rows=2)
    systems = [SingleStreamConfig(tower=tower(8, 1, 2, 8)), two("mean", 1, vocab_size=258)]
    runs = [Run(name="run", system=system, data=data, train=train) for system in systems]
    if first_is_whole:
        runs.reverse()
    for run in runs:
        found = recorded_run(run, tmp_path).batch(0)
        expected = data.prepare(sketch(run.system)).batches(2, 0).batch(0)
        assert equal(found, expected)


def test_batches_are_made_anew_where_anything_of_them_differs(tmp_path: Path) -> None:
    run = cell_run(GRID, cell(0))
    record_runs([run, run], tmp_path, Progress(quiet=True))
    assert len(list(tmp_path.iterdir())) == 1
    recorded_run(run, tmp_path, half_features=True)
    assert len(list(tmp_path.iterdir())) == 2
    recorded_run(replace(run, train=replace(run.train, batch_rows=1)), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_text_that_was_changed_is_recorded_again(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    data = DataConfig(
        source=Folder(path=str(folder)),
        row_ticks=32,
        held_out=(),
        cache_folder=str(tmp_path / "cache"),
    )
    train = TrainConfig(num_steps=1, batch_rows=1)
    run = Run(name="run", system=GRID.arms[0].system, data=data, train=train)
    found = []
    for text in ("a" * 99, "b" * 99):
        (folder / "one.txt").write_text(text)
        found.append(recorded_run(run, tmp_path / "batches").batch(0))
    assert not equal(*found)


def test_a_curve_has_the_loss_of_the_part_without_that_of_labels() -> None:
    terms = {"part_nats": 2 * math.log(2), "whole_text_nats": 40.0}
    row = {"step": 1, "flops": 5.0, "loss": 300.0}
    assert curve([row | {"terms": terms}])[0]["loss"] == pytest.approx(2)
    assert curve([row | {"terms": {}}])[0]["loss"] == 300
