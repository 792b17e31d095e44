import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from counterpoint.errors import UserError
from counterpoint.evaluate.results import EvaluationConfig
from counterpoint.progress import Progress
from counterpoint.recipes import budget as budgets
from counterpoint.recipes.budget import FILE, Budget, Plan, RunTiming, find_budget, fitted
from counterpoint.recipes.duplex_small import duplex_small
from counterpoint.recipes.first_run import first_run
from counterpoint.train.config import ScheduleConfig
from counterpoint.train.distributed import World
from counterpoint.train.run import Run

ARMS = first_run().arms


def machine(monkeypatch: pytest.MonkeyPatch, *step_s: float, unit_s: float = 0.0) -> list[str]:
    """A machine on which steps take so long; gives the names of the runs that it times."""
    timed: list[str] = []

    def time_run(run: Run, *rest: object) -> RunTiming:
        timed.append(run.name)
        seconds = step_s[(len(timed) - 1) % len(step_s)]
        return RunTiming(step_s=seconds, unit_s=unit_s, unit_size=1000, num_units=200)

    monkeypatch.setattr(budgets, "time_run", time_run)
    return timed


def find(folder: Path, minutes: float | None = 5, plan: Plan | None = None) -> Budget | None:
    return find_budget(ARMS, minutes, folder, World(), Progress(io.StringIO()), plan)


def found(folder: Path, minutes: float = 5, plan: Plan | None = None) -> Budget:
    budget = find(folder, minutes, plan)
    assert budget is not None
    return budget


def test_all_arms_take_as_many_steps_as_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 0.4, 0.6)
    budget = found(tmp_path)
    assert budget.num_steps == dict.fromkeys(["single_stream", "two_stream"], 276)
    assert 276 * (0.4 + 0.6) <= 300 * 0.92
    assert budget.describe() == (
        "276 of the recipe's 1,100 steps (25%) in about 5 minutes; a step takes "
        "single_stream 0.4 s, two_stream 0.6 s"
    )
    arms = [budget.fit(arm) for arm in ARMS]
    assert [arm.train.num_steps for arm in arms] == [276, 276]
    assert arms[0].train.schedule.warmup_steps == 27


def test_a_fast_machine_runs_the_reference_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 0.01)
    budget = found(tmp_path)
    assert "1,100 of the recipe's 1,100 steps (all)" in budget.describe()
    assert [budget.fit(arm) for arm in ARMS] == list(ARMS)


def test_what_was_chosen_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = machine(monkeypatch, 0.5)
    first = found(tmp_path)
    assert timed == ["single_stream", "two_stream"]
    machine(monkeypatch, 5.0)
    assert found(tmp_path) == first
    told = io.StringIO()
    assert find_budget(ARMS, 9, tmp_path, World(), Progress(told)) == first
    assert "keeps the steps of its first call, which had 5 minutes" in told.getvalue()
    assert len(timed) == 2


def test_steps_that_are_given_end_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 0.5)
    found(tmp_path)
    assert find(tmp_path, None) is None
    assert not (tmp_path / FILE).exists()
    found(tmp_path)
    # The last run of a study, in whose folder the choice for all runs is.
    assert find_budget(ARMS[1:], None, tmp_path, World(), Progress(quiet=True)) is None
    assert (tmp_path / FILE).exists()


def test_measuring_has_a_quarter_of_the_time_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = EvaluationConfig(whole_units=20, whole_ticks=1000)
    machine(monkeypatch, 0.4, 0.6, unit_s=0.01)
    quick = found(tmp_path / "quick", plan=Plan(evaluation=evaluation))
    # 200 units, and 20 x 1000 ticks four times, which is as long as 80 units: for both arms 5.6 s
    assert quick.measured == 1
    assert quick.num_steps["two_stream"] == pytest.approx(276 - 5.6, abs=2)
    assert quick.measure(evaluation, 200) == evaluation
    machine(monkeypatch, 0.4, 0.6, unit_s=1.0)
    slow = found(tmp_path / "slow", plan=Plan(evaluation=evaluation))
    assert slow.measured == pytest.approx(75 / 560, abs=1e-3)
    assert slow.num_steps["two_stream"] == pytest.approx(276 - 75, abs=2)
    fewer = slow.measure(evaluation, 200)
    assert (fewer.max_units, fewer.whole_units) == (27, 8)
    assert slow.describe().endswith("; 13% of the recipe's measurements are made")


def test_what_else_is_measured_at_the_end_has_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = RunTiming(step_s=0.5, end_s=20.0)
    monkeypatch.setattr(budgets, "time_run", lambda *_: timing)
    steps = found(tmp_path, plan=Plan(num_seeds=2)).num_steps["two_stream"]
    assert steps == pytest.approx((0.92 * 300 - 2 * 2 * 20) / (2 * 2 * 0.5), abs=1)


def test_what_came_before_the_steps_is_part_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 0.5)
    monkeypatch.setattr("counterpoint.recipes.budget.time.perf_counter", lambda: 1000.0)
    begun = found(tmp_path, plan=Plan(begin=900.0, reserve_s=10.0))
    assert begun.num_steps["two_stream"] == pytest.approx((0.92 * 300 - 100 - 10) / 1.0, abs=1)
    assert (begun.before_s, begun.after_s) == (100, 10)
    assert "it takes longer" not in begun.describe()


def test_a_run_that_is_late_trains_for_a_tenth_of_its_time_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 0.5)
    monkeypatch.setattr("counterpoint.recipes.budget.time.perf_counter", lambda: 1000.0)
    late = found(tmp_path, plan=Plan(begin=500.0))
    assert late.num_steps["two_stream"] == 30
    assert late.describe().endswith(
        "; it takes longer, because 500 s were gone before the first step and measuring takes 0 s"
    )


def test_trials_that_take_long_are_made_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 0.5)
    budget = found(tmp_path, plan=Plan(measuring_s=300.0))
    assert budget.measured == 0.25
    assert [budget.some(count) for count in (100, 12, 5)] == [25, 8, 5]
    assert budget.num_steps["two_stream"] == pytest.approx(0.92 * 300 - 75, abs=1)


def test_seeds_share_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 0.5)
    assert found(tmp_path, plan=Plan(num_seeds=3)).num_steps["two_stream"] == 92


def test_stages_take_the_same_share_of_their_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 1.0)
    study = duplex_small()
    assert study.minutes is not None
    budget = find_budget(study.stages, study.minutes, tmp_path, World(), Progress(quiet=True))
    assert budget is not None
    shares = [budget.fit(run).train.num_steps / run.train.num_steps for run in study.stages]
    assert shares == pytest.approx([0.92 * 9000 / 10800] * 3, abs=1e-3)
    assert "2,147 of the recipe's 2,800" in budget.describe()


def test_a_shorter_run_warms_up_for_a_tenth_of_it_at_most() -> None:
    run = ARMS[0]
    train = replace(run.train, num_steps=1000, schedule=ScheduleConfig(warmup_steps=40))
    run = replace(run, train=train)
    warmups = [fitted(run, steps).train.schedule.warmup_steps for steps in (1000, 500, 100, 9)]
    assert warmups == [40, 40, 10, 0]


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_minutes_must_be_some(tmp_path: Path, minutes: float) -> None:
    with pytest.raises(UserError, match="`--minutes` must be above 0"):
        find(tmp_path, minutes)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"minutes": 5}))
    with pytest.raises(UserError, match="must say what its folder was begun with"):
        find(tmp_path)
