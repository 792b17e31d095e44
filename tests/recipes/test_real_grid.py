"""Grids on tasks with real texts: cells, resuming, stacks and reports as with synthetic ones."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from counterpoint.cli.main import main
from counterpoint.data.tasks.items import REPORTED_SEED
from counterpoint.data.tasks.named import data_digest, named_task
from counterpoint.errors import UserError
from counterpoint.evaluate.report.grid_findings import read_findings
from counterpoint.evaluate.report.grid_page import MARKDOWN, write_grid_report
from counterpoint.files import read_json
from counterpoint.progress import Progress
from counterpoint.recipes import grid_report as report_module
from counterpoint.recipes import grid_run
from counterpoint.recipes import grid_workers as workers_module
from counterpoint.recipes import stacks as stacks_module
from counterpoint.recipes.cells import (
    ITEMS_SEED,
    WORK,
    Cell,
    cell_items,
    cell_path,
    cell_run,
    curve_items,
    run_cell,
    run_cell_elsewhere,
)
from counterpoint.recipes.grid import Grid, GridArm, costs
from counterpoint.recipes.grid_pilot import pilot
from counterpoint.recipes.grid_report import report_grid
from counterpoint.recipes.grid_run import run_grid
from counterpoint.recipes.grid_workers import Workers
from counterpoint.recipes.stacks import recorded_run, run_stack, stacks
from counterpoint.systems import build_system
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.train.config import ScheduleConfig, TrainConfig
from tests.data.tasks.real_data import write_data
from tests.systems.tiny_models import tower

TASKS = ("questions", "dialogues_small", "paragraphs_small", "book_lm_small")

NUM_SCORED = {"questions": 12, "dialogues_small": 8, "paragraphs_small": 20, "book_lm_small": 6}
"""Number of items of each task that are scored if 20 are wanted."""


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def work(work: Any, items: Any, num_processes: int) -> Any:
        yield from map(work, items)

    for module in (workers_module, stacks_module):
        monkeypatch.setattr(module, "work_in_processes", work)
    monkeypatch.setattr(report_module, "work_in_processes", work)
    # A thousand ticks, one by one, would take longer than all else.
    monkeypatch.setattr(report_module, "_measure_latency", lambda grid, folder, progress: None)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # of the cache of tokenised text


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def real_grid(place: Path | str, **changes: Any) -> Grid:
    fields: dict[str, Any] = {
        "name": "real",
        "arms": (GridArm(name="a", system=SingleStreamConfig(tower=tower(8, 1, 2, 8))),),
        "tasks": TASKS,
        "train": TrainConfig(
            num_steps=2,
            batch_rows=2,
            precision="float32",
            schedule=ScheduleConfig(warmup_steps=1),
        ),
        "seeds": (0,),
        "num_items": 20,
        "data": str(place),
    }
    return Grid(**(fields | changes))


def cell(task: str, seed: int = 0) -> Cell:
    return Cell(task=task, arm="a", learning_rate=2e-3, seed=seed)


def quiet() -> Progress:
    return Progress(quiet=True)


def test_a_grid_runs_on_every_real_task(data: Path, tmp_path: Path) -> None:
    grid = real_grid(data)
    records = run_grid(grid, tmp_path, progress=quiet())
    assert [record["task"] for record in records] == sorted(TASKS)
    for record in records:
        task = named_task(record["task"], str(data))
        assert record["data"] == data_digest(task)
        assert task.primary in {one["name"] for one in record["scores"]}
        assert len(record["numerators"]) == NUM_SCORED[record["task"]]
        above, below = sum(record["numerators"]), sum(record["denominators"])
        assert record["score"] == pytest.approx(above / below)


def test_a_report_has_the_floors_of_real_tasks(data: Path, tmp_path: Path) -> None:
    grid = real_grid(data, tasks=("questions", "book_lm_small"))
    records = run_grid(grid, tmp_path, progress=quiet())
    found = report_grid(grid, tmp_path, progress=quiet())
    text = (tmp_path / MARKDOWN).read_text()
    for task in grid.tasks:
        policies = {row.arm for row in found.of_task(task) if row.is_policy}
        assert "constant" in policies
        assert len(policies) > 1
        assert all(f"| {policy} |" in text for policy in policies)
    for record in records:
        assert f"The digest of its data begins with {record['data'][:12]}." in text
    assert "on 12 items that no run has learned from" in text
    assert read_findings(tmp_path).rows == found.rows


def test_what_a_cell_learns_from_is_not_what_any_cell_is_asked(data: Path) -> None:
    grid = real_grid(data, learning_rates=(1e-3, 2e-3))
    for task in ("questions", "dialogues_small"):
        own = named_task(task, str(data))
        learned = {own.item(seed, n).text for seed in (0, 100) for n in range(300)}
        reported = {item.text for item in cell_items(grid, cell(task))}
        others = {item.text for item in cell_items(grid, cell(task, 100))}
        others |= {item.text for item in curve_items(grid, cell(task))}
        assert ITEMS_SEED == REPORTED_SEED
        assert not learned & (reported | others)
        assert not reported & others


def test_seeds_change_the_order_of_what_is_learned(data: Path) -> None:
    grid = real_grid(data)
    for task in TASKS:
        texts = []
        for seed in (0, 0, 1):
            run = cell_run(grid, cell(task, seed))
            system = build_system(run.system, 0)
            batch = run.data.prepare(system).batches(4, run.train.seed).batch(0)
            texts.append(batch.ticks["part"].tolist())
        assert texts[0] == texts[1] != texts[2]


def test_a_resumed_grid_refuses_other_texts_and_takes_the_same_ones_elsewhere(
    data: Path, tmp_path: Path
) -> None:
    grid = real_grid(data, tasks=("questions", "paragraphs_small"))
    first = run_grid(grid, tmp_path / "run", progress=quiet())
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    elsewhere = replace(grid, data=str(copy))
    assert run_grid(elsewhere, tmp_path / "run", progress=quiet()) == first
    file = copy / "trec-qc" / "train.txt"
    file.write_text(file.read_text().replace("thing 20", "thing twenty"))
    with pytest.raises(UserError, match=r"another data of task\.questions"):
        run_grid(elsewhere, tmp_path / "run", progress=quiet())


def test_a_cell_that_was_begun_is_run_where_its_texts_are_in_another_place_now(
    data: Path, tmp_path: Path
) -> None:
    tasks = ("questions", "book_lm_small")
    grid = real_grid(data, tasks=tasks)
    folder = tmp_path / "run"
    first = run_grid(grid, folder, progress=quiet())
    for task in tasks:
        run_cell(grid, folder / WORK, cell(task))  # it ends before its record is kept
        cell_path(folder, cell(task)).unlink()
    shutil.copytree(data, tmp_path / "copy")
    assert run_grid(replace(grid, data=str(tmp_path / "copy")), folder, progress=quiet()) == first


def test_a_report_is_refused_where_its_texts_have_changed(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    grid = real_grid(copy, tasks=("questions",))
    run_grid(grid, tmp_path / "run", progress=quiet())
    report_grid(grid, tmp_path / "run", progress=quiet())
    (copy / "trec-qc" / "test.txt").write_text("NUM:date When ?\n")
    with pytest.raises(UserError, match="texts of 'questions' must be those of the study"):
        write_grid_report(tmp_path / "run")


def test_a_cell_of_a_machine_with_other_texts_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(grid: Grid, work: Path, cell: Cell) -> Any:
        outcome = run_cell(grid, work, cell)
        return replace(outcome, record={**outcome.record, "data": "0" * 64})

    monkeypatch.setattr(workers_module, "run_cell", elsewhere)
    with pytest.raises(UserError, match="All machines must have the same data"):
        run_grid(real_grid(data, tasks=("questions",)), tmp_path, progress=quiet())


def test_a_cell_gives_the_same_record_where_the_folder_of_the_grid_is_not(
    data: Path, tmp_path: Path
) -> None:
    grid = real_grid(data)
    for task in ("dialogues_small", "book_lm_small"):
        here = run_cell(grid, tmp_path, cell(task)).record
        assert run_cell_elsewhere(grid, cell(task)).record == here


def test_a_stack_of_cells_on_questions_and_text_gives_what_cells_alone_give(
    data: Path, tmp_path: Path
) -> None:
    """Lanes have unequal numbers of items; those that learn from text make a stack of their own.

    Choices between passages are left out: after two steps rounding decides them.
    """
    train = replace(real_grid(data).train, evaluate_every=2, log_every=1)
    grid = real_grid(data, train=train)
    lanes = [("questions", 0), ("dialogues_small", 0), ("book_lm_small", 0), ("book_lm_small", 1)]
    cells = [cell(task, seed) for task, seed in lanes]

    def batches(run: Any) -> Any:
        return recorded_run(run, tmp_path / "batches")

    groups = stacks(grid, cells)
    assert groups == [tuple(cells[:2]), tuple(cells[2:])]
    for one in [one for group in groups for one in run_stack(grid, batches, "cpu", group).cells]:
        alone = run_cell(grid, tmp_path, one.cell).record
        assert one.record["score"] == pytest.approx(alone["score"], abs=1e-4)
        assert one.record["numerators"] == pytest.approx(alone["numerators"], rel=1e-4)
        assert one.record["curve"][-1]["score"] == pytest.approx(
            alone["curve"][-1]["score"], abs=1e-4
        )


def test_real_tasks_have_costs_and_times(data: Path) -> None:
    grid = real_grid(data)
    for task in TASKS:
        assert costs(grid, task)["a"].flops > 0
    timings = pilot(grid, Workers(), 0.01, quiet())
    assert len(timings) == len(TASKS)
    assert all(timing.step_s > 0 for timing in timings)


def test_a_grid_without_its_texts_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data FOLDER"):
        run_grid(real_grid(""), tmp_path, progress=quiet())
    with pytest.raises(UserError, match="`tasks` must be some of"):
        real_grid("", tasks=("riddles",))


def test_the_command_takes_a_folder_of_data(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from tests.recipes.test_real_grid import real_grid\n"
        "def mine():\n"
        "    return real_grid('', tasks=('questions',))\n"
    )
    shutil.copytree(data, tmp_path / "mydata")
    command = ["study", "mine.py", "--data", "mydata", "--folder", "out", "--quiet"]
    assert main(command) == 0
    assert "most frequent in training" in (tmp_path / "out" / MARKDOWN).read_text()
    assert read_json(tmp_path / "out" / grid_run.GRID)["grid"]["data"] == str(tmp_path / "mydata")
    capsys.readouterr()
    assert main([*command[:2], *command[4:]]) == 2
    assert "--data FOLDER" in capsys.readouterr().err
