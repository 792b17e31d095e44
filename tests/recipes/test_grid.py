"""Grids: cells are kept, a killed grid ends with the same files, budgets and choices hold."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterpoint.blocks.ramp import RampConfig
from counterpoint.data.tasks.part_whole import FORMS
from counterpoint.data.tasks.part_whole.rhm import RandomHierarchy
from counterpoint.errors import UserError
from counterpoint.evaluate.report.grid_rows import grid_rows
from counterpoint.evaluate.statistics import seed_difference
from counterpoint.evaluate.tasks import respond
from counterpoint.files import read_json, write_json
from counterpoint.progress import Progress
from counterpoint.recipes import cells
from counterpoint.recipes import grid_workers as module
from counterpoint.recipes.cells import Cell, CellOutcome, cell_run, read_cells, run_cell
from counterpoint.recipes.grid import Grid, GridArm, Limits, check_costs, costs
from counterpoint.recipes.grid_budget import fit_grid
from counterpoint.recipes.grid_run import best_rates, run_grid
from counterpoint.recipes.grid_workers import Workers
from counterpoint.recipes.part_whole import part_whole
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.train.config import ScheduleConfig, TrainConfig
from counterpoint.train.loop import Trainer
from tests.systems.tiny_models import tower, two
from tests.test_architecture import ROOT


def tiny(width: int = 8) -> SingleStreamConfig:
    return SingleStreamConfig(tower=tower(width, 1, 2, 8))


def tiny_grid(**changes: Any) -> Grid:
    fields: dict[str, Any] = {
        "name": "tiny",
        "arms": (GridArm(name="a", system=tiny()), GridArm(name="b", system=tiny())),
        "tasks": ("hierarchy",),
        "train": TrainConfig(
            num_steps=3,
            batch_rows=2,
            precision="float32",
            checkpoint_every=1,
            schedule=ScheduleConfig(warmup_steps=1),
        ),
        "seeds": (0,),
        "num_items": 8,
    }
    return Grid(**(fields | changes))


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes cost seconds each; the slow test has them."""

    def work(work: Any, items: Any, num_processes: int) -> Any:
        yield from map(work, items)

    monkeypatch.setattr(module, "work_in_processes", work)


def quiet() -> Progress:
    return Progress(quiet=True)


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*.parquet"))}


def test_a_grid_that_was_killed_ends_with_the_same_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = tiny_grid()
    run_grid(grid, tmp_path / "whole", progress=quiet())
    folder = tmp_path / "killed"
    calls: list[str] = []

    def killed(*given: Any) -> CellOutcome:
        if calls:
            raise RuntimeError("killed")
        calls.append("")
        return run_cell(*given)

    monkeypatch.setattr(module, "run_cell", killed)
    with pytest.raises(RuntimeError):
        run_grid(grid, folder, progress=quiet())
    monkeypatch.setattr(module, "run_cell", run_cell)
    assert len(files(folder)) == 1
    run_grid(grid, folder, progress=quiet())
    assert files(folder) == files(tmp_path / "whole")


def test_a_cell_that_was_stopped_goes_on_with_the_same_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped between two steps, and then again before it has answered."""
    grid = tiny_grid(arms=tiny_grid().arms[:1], train=replace(tiny_grid().train, log_every=1))
    run_grid(grid, tmp_path / "whole", progress=quiet())
    step = Trainer.step
    taken: list[int] = []

    def stopped(self: Trainer, stop: Any) -> Any:
        taken.append(self.state.counters.step)
        if len(taken) == 3:
            raise RuntimeError("killed")
        return step(self, stop)

    def silent(*given: Any) -> Any:
        raise RuntimeError("killed")

    folder = tmp_path / "stopped"
    monkeypatch.setattr(Trainer, "step", stopped)
    with pytest.raises(RuntimeError):
        run_grid(grid, folder, progress=quiet())
    with monkeypatch.context() as patch:
        patch.setattr(cells, "respond", silent)
        with pytest.raises(RuntimeError):
            run_grid(grid, folder, progress=quiet())
    run_grid(grid, folder, progress=quiet())
    assert taken == [0, 1, 2, 2]
    assert files(folder) == files(tmp_path / "whole")


def test_cells_of_another_device_are_kept_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_grid(tiny_grid(), tmp_path, progress=quiet())
    run_grid(tiny_grid(), tmp_path, progress=Progress())
    assert "trained on" not in capsys.readouterr().err
    path = next((tmp_path / "cells").glob("*.json"))
    write_json(path, read_json(path) | {"device": "cuda"})
    run_grid(tiny_grid(), tmp_path, progress=Progress())
    assert "keeps 1 cells that were trained on cuda" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_items": 0}, "num_items"),
        ({"seeds": (-1,)}, "Seeds must be >= 0"),
        ({"learning_rates": (0.0,)}, "must be > 0"),
    ],
)
def test_numbers_are_checked_before_the_training(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        tiny_grid(**changes)


def test_a_grid_refuses_an_optimiser_whose_products_it_would_not_count() -> None:
    train = tiny_grid().train
    with_muon = replace(train, optimizer=replace(train.optimizer, muon_lr=0.01))
    with pytest.raises(UserError, match=r"AdamW alone.*got `muon_lr` 0.01. Leave it out"):
        tiny_grid(train=with_muon)


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = tiny_grid()
    first = run_grid(grid, tmp_path, progress=quiet())

    def again(*given: Any) -> CellOutcome:
        raise AssertionError("a cell is run again")

    monkeypatch.setattr(module, "run_cell", again)
    assert run_grid(grid, tmp_path, progress=quiet()) == first
    with pytest.raises(UserError, match=r"another grid.num_items \(8, here 9\)"):
        run_grid(replace(grid, num_items=9), tmp_path, progress=quiet())
    wider = (grid.arms[0], replace(grid.arms[1], system=tiny(16), unmatched="wider"))
    with pytest.raises(UserError, match=r"another grid.arms\[1\].system.tower.width \(8, here 16"):
        run_grid(replace(grid, arms=wider), tmp_path, progress=quiet())


def test_fields_that_are_new_since_a_grid_was_begun_have_their_defaults(tmp_path: Path) -> None:
    grid = tiny_grid()
    run_grid(grid, tmp_path, progress=quiet())
    path = tmp_path / "grid.json"
    kept = read_json(path)
    del kept["grid"]["tuning_share"]
    write_json(path, kept)
    run_grid(grid, tmp_path, progress=quiet())
    assert "tuning_share" in read_json(path)["grid"]


def test_learning_rates_are_chosen_on_seeds_and_items_that_are_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = tiny_grid(learning_rates=(1e-3, 1e-2), arms=tiny_grid().arms[:1])
    asked: list[list[str]] = []

    def answers(system: Any, items: Any) -> Any:
        asked.append([item.text for item in items])
        return respond(system, items)

    monkeypatch.setattr(cells, "respond", answers)
    records = run_grid(grid, tmp_path, progress=quiet())
    assert {record["seed"] for record in records} == {0}
    assert asked[0] == asked[1]
    assert not set(asked[0]) & set(asked[2])
    tuned = [
        Cell(task="hierarchy", arm="a", learning_rate=rate, seed=100)
        for rate in grid.learning_rates
    ]
    chosen = best_rates(read_cells(tmp_path, tuned))
    assert records[0]["learning_rate"] == chosen["hierarchy", "a"]
    with pytest.raises(UserError, match="must not be reported"):
        tiny_grid(tuning_seeds=(0,))


def test_a_record_keeps_how_the_cell_learned(tmp_path: Path) -> None:
    train = replace(tiny_grid().train, log_every=1, evaluate_every=2)
    grid = tiny_grid(train=train, arms=tiny_grid().arms[:1])
    curve = run_grid(grid, tmp_path, progress=quiet())[0]["curve"]
    assert [point["step"] for point in curve] == [1, 2, 3]
    assert curve[2]["flops"] == pytest.approx(3 * curve[0]["flops"])
    assert all(point["loss"] > 0 for point in curve)
    assert [point["score"] is None for point in curve] == [True, False, False]


def test_a_folder_is_refused_where_its_task_has_other_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = tiny_grid(arms=tiny_grid().arms[:1])
    run_grid(grid, tmp_path, progress=quiet())
    monkeypatch.setitem(FORMS, "hierarchy", RandomHierarchy(grammar=1))
    with pytest.raises(UserError, match="must belong to this grid"):
        run_grid(grid, tmp_path, progress=quiet())


def test_a_rate_that_diverges_is_not_chosen(tmp_path: Path) -> None:
    one = tiny_grid().arms[:1]
    grid = tiny_grid(learning_rates=(1e30, 1e-3), arms=one)
    assert run_grid(grid, tmp_path / "both", progress=quiet())[0]["learning_rate"] == 1e-3


def test_an_arm_that_diverges_does_not_end_the_study(tmp_path: Path) -> None:
    """It counts as wrong in everything, its row says so, and all other cells are run."""
    bad, good = GridArm(name="bad", system=tiny(), lr_factors=(("", 1e33),)), tiny_grid().arms[1]
    grid = tiny_grid(arms=(good, bad), seeds=(0, 3))
    records = run_grid(grid, tmp_path, progress=quiet())
    assert [record["arm"] for record in records] == ["b", "b", "bad", "bad"]
    assert [record["denominators"] for record in records] == [records[0]["denominators"]] * 4
    assert [sum(record["numerators"]) for record in records[2:]] == [0, 0]
    assert run_grid(grid, tmp_path, progress=quiet()) == records
    rows = {row.arm: row for row in grid_rows(records, "b")}
    assert rows["b"].diverged == ()
    assert rows["bad"].diverged == (0, 3)
    assert rows["bad"].score.high == 0


def test_rows_also_pair_the_seeds_that_both_arms_have() -> None:
    """Seed 9 has no partner; the scores of the others differ by 0.2, 0.3 and 0.4."""

    def record(arm: str, seed: int, score: float) -> dict[str, Any]:
        rights = [1.0] * round(10 * score) + [0.0] * (10 - round(10 * score))
        cell = {"task": "t", "arm": arm, "seed": seed, "score": score, "learning_rate": 1.0}
        return cell | {"numerators": rights, "denominators": [1.0] * 10}

    ours = [record("a", seed, score) for seed, score in ((0, 0.6), (1, 0.9), (2, 0.8))]
    theirs = [record("b", seed, score) for seed, score in ((2, 0.4), (0, 0.4), (1, 0.6), (9, 0.0))]
    alone = [record("c", 9, 0.1)]
    rows = {row.arm: row for row in grid_rows(ours + theirs + alone, "a")}
    interval, p_value = seed_difference(np.array([0.6, 0.9, 0.8]), np.array([0.4, 0.6, 0.4]))
    assert rows["b"].paired == interval
    assert rows["b"].paired_p_value == p_value  # the only pair, so nothing is corrected
    assert (rows["a"].paired, rows["c"].paired, rows["c"].paired_p_value) == (None,) * 3
    unjudged = {row.arm: row for row in grid_rows(ours + theirs, "a", is_judged=False)}
    assert (unjudged["b"].p_value, unjudged["b"].paired_p_value) == (None, None)


@pytest.mark.parametrize(
    "twice",
    [
        {"seeds": (0, 0)},
        {"tuning_seeds": (7, 7)},
        {"tasks": ("navon", "navon")},
        {"learning_rates": (1e-3, 1.00000001e-3)},
    ],
)
def test_what_stands_twice_is_refused(twice: dict[str, Any]) -> None:
    """It would be counted as two seeds, and the intervals would be too narrow."""
    with pytest.raises(UserError, match="must be different"):
        tiny_grid(**twice)


def test_the_better_rate_is_chosen_and_the_lower_of_two_equal_ones() -> None:
    def record(rate: float, score: float) -> dict[str, Any]:
        return {"task": "t", "arm": "a", "learning_rate": rate, "score": score}

    better = [record(1.0, 0.1), record(2.0, 0.3), record(1.0, 0.2)]
    assert best_rates(better) == {("t", "a"): 2.0}
    assert best_rates([record(2.0, 0.3), record(1.0, 0.3)]) == {("t", "a"): 1.0}


def test_arms_that_cost_more_are_refused_unless_it_is_said_why() -> None:
    arms = (GridArm(name="a", system=tiny()), GridArm(name="b", system=tiny(16)))
    with pytest.raises(UserError, match="parameters beside 'a'"):
        costs(tiny_grid(arms=arms), "hierarchy")
    with pytest.raises(UserError, match="flops beside 'a'"):
        costs(tiny_grid(arms=arms, limits=Limits(parameters=None)), "hierarchy")
    said = (arms[0], replace(arms[1], unmatched="a ceiling"))
    assert costs(tiny_grid(arms=said), "hierarchy")["b"].parameters > 0


@pytest.mark.timeout(300)
def test_the_arms_of_part_whole_have_equal_flops() -> None:
    grid = part_whole()
    for task in grid.tasks:
        found = costs(grid, task)
        assert set(found) == {arm.name for arm in grid.arms}
    close = costs(grid, "navon")
    assert close["window_as_large"].parameters == pytest.approx(
        close["two_stream"].parameters, rel=0.02
    )
    # It is unmatched only because it also learns from labels.
    text = close["two_stream_text"]
    assert text.flops == pytest.approx(close["two_stream"].flops, rel=0.05)


@pytest.mark.slow
def test_processes_give_what_one_process_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    grid = tiny_grid()
    run_grid(grid, tmp_path / "one", workers=Workers(count=1), progress=quiet())
    run_grid(grid, tmp_path / "two", workers=Workers(count=2), progress=quiet())
    assert files(tmp_path / "one") == files(tmp_path / "two")


KILLED = """
import sys
from pathlib import Path
from counterpoint.progress import Progress
from counterpoint.recipes.grid_run import run_grid
from tests.recipes.test_grid import two_cells

if __name__ == "__main__":
    run_grid(two_cells(), Path(sys.argv[1]), progress=Progress(quiet=True))
"""


def two_cells() -> Grid:
    """Each takes a second or two."""
    return tiny_grid(
        train=replace(tiny_grid().train, num_steps=60, checkpoint_every=7, log_every=5)
    )


def kept_so_far(folder: Path) -> set[Path]:
    """Checkpoints and results; the names of checkpoints tell their steps."""
    return {*folder.glob("work/*/checkpoints/*"), *folder.glob("cells/*.parquet")}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform == "win32", reason="kills a group of processes")
def test_two_cells_that_are_killed_again_and_again_end_with_the_same_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five lives end a drawn time after they have kept something; the sixth goes on to the end."""
    run_grid(two_cells(), tmp_path / "whole", progress=quiet())
    script = tmp_path / "study.py"
    script.write_text(KILLED)
    folder = tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, str(script), str(folder)]
    rng = random.Random(5)
    states: set[frozenset[Path]] = set()
    for life in range(6):
        before = kept_so_far(folder)
        with subprocess.Popen(command, env=environment, start_new_session=True) as process:
            while process.poll() is None and (life == 5 or kept_so_far(folder) == before):
                time.sleep(0.01)
            try:
                process.wait(timeout=rng.uniform(0.0, 0.5))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode in (0, -signal.SIGKILL)
        states.add(frozenset(kept_so_far(folder)))
        if process.returncode == 0:
            break
    assert process.returncode == 0
    in_a_cell = [one for one in states if any("work" in path.parts for path in one)]
    assert len(in_a_cell) > 1, "it was hardly ever killed in the middle of a cell"
    assert files(folder) == files(tmp_path / "whole")
    assert not list(folder.glob("work/*"))


def test_an_arm_may_learn_parts_of_its_system_slowly() -> None:
    arms = (GridArm(name="a", system=tiny(), lr_factors=(("head", 0.5), ("tower", 0.1))),)
    usual = replace(tiny_grid().train.optimizer, lr_factors=(("head", 2.0), ("embedding", 3.0)))
    grid = tiny_grid(arms=arms, train=replace(tiny_grid().train, optimizer=usual))
    check_costs(grid, Progress(quiet=True))
    run = cell_run(grid, Cell(task="hierarchy", arm="a", learning_rate=1e-3, seed=0))
    found = dict(run.train.optimizer.lr_factors)
    assert found == {"head": 0.5, "tower": 0.1, "embedding": 3.0}
    wrong = replace(grid, arms=(replace(arms[0], lr_factors=(("towr", 0.1),)),))
    with pytest.raises(UserError, match="'towr', which starts none. Did you mean 'tower'"):
        check_costs(wrong, Progress(quiet=True))
    usual = replace(usual, lr_factors=(("plan", 0.1),))  # a system of the other arm has one
    both = replace(wrong, arms=tiny_grid().arms, train=replace(grid.train, optimizer=usual))
    with pytest.raises(UserError, match="'plan', which starts none"):
        check_costs(both, Progress(quiet=True))


def test_rates_of_weights_that_an_arm_does_not_learn_are_refused_at_once() -> None:
    frozen = replace(two("mean", 0), whole_control="frozen")
    arms = (GridArm(name="a", system=frozen, lr_factors=(("merge", 0.1),)),)
    with pytest.raises(UserError, match="'merge', which starts none"):
        check_costs(tiny_grid(arms=arms), quiet())


def test_a_gpu_refuses_an_arm_that_changes_as_it_learns_before_any_cell(tmp_path: Path) -> None:
    ramp = RampConfig(start_ticks=1)
    arms = (*tiny_grid().arms, GridArm(name="rises", system=two("mean", 0, ramp=ramp)))
    grid = tiny_grid(arms=arms)
    gpu = Workers(device="cuda")
    for begin in (
        lambda: run_grid(grid, tmp_path / "grid", workers=gpu, progress=quiet()),
        lambda: fit_grid(grid, 1.0, tmp_path / "fitted", gpu, quiet()),
    ):
        with pytest.raises(UserError, match="'rises' trains in 3 stages.*--device cpu") as error:
            begin()
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    Workers().check(grid)
