import io
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterpoint.blocks.low_rank import LowRankConfig
from counterpoint.blocks.ramp import RampConfig
from counterpoint.data.text.corpus import DataConfig, Folder
from counterpoint.evaluate.report.report import write_report
from counterpoint.evaluate.results import EvaluationConfig, load_evaluation
from counterpoint.locks import locked
from counterpoint.progress import Progress
from counterpoint.recipes.budget import Plan, RunTiming, time_run
from counterpoint.recipes.first_run import first_run, two_stream_system
from counterpoint.recipes.study import Study, run_study, training_flops
from counterpoint.recipes.two_stream_controls import two_stream_controls
from counterpoint.systems import sketch
from counterpoint.systems.two_stream import TwoStream
from counterpoint.train import threads
from counterpoint.train.checkpoint import checkpoint_paths, read_manifest
from counterpoint.train.config import FineTuneConfig, TrainConfig
from counterpoint.train.distributed import World
from counterpoint.train.metrics import read_metrics
from counterpoint.train.run import Run
from counterpoint.train.threads import computing
from tests.evaluate.tiny import single_config, two_config

PICTURES = ("curves.png", "positions.png", "streams.png")


def tiny_study(folder: Path, num_steps: int = 4) -> Study:
    """Two arms on five short books; FLOPs differ, which the study is told to accept."""
    books = folder / "books"
    books.mkdir(exist_ok=True)
    for i in range(5):
        line = f"In book {i} the {'ox' * (i + 1)} & the <ass> went up the hill. "
        text = "".join(f"\n\n## Chapter {c}\n\n" + line * (2 + c) for c in range(3))
        (books / f"book{i}.md").write_text(f"# book{i}{text}")
    data = DataConfig(
        source=Folder(path=str(books)),
        row_ticks=64,
        held_out=("book1", "book3"),
        cache_folder=str(folder / "cache"),
    )
    settings = TrainConfig(num_steps=num_steps, batch_rows=2, checkpoint_every=2)
    systems: dict[str, Any] = {"single_stream": single_config(), "two_stream": two_config()}
    return Study(
        name="tiny",
        arms=tuple(
            Run(name=name, system=system, train=settings, data=data)
            for name, system in systems.items()
        ),
        evaluation=EvaluationConfig(
            whole_ticks=64, passage_ticks=24, passage_start=40, prompt_ticks=64,
            continuation_ticks=8,
        ),
        max_flops_difference=1.0,
    )  # fmt: skip


class KilledError(Exception):
    """Stands for the end of the process."""


class Memory(io.BytesIO):
    name = "memory"


class Screen(io.TextIOWrapper):
    """A text stream that remembers, and that ends the process when a line starts with a text."""

    mode = "w"

    def __init__(self, last: str = "") -> None:
        super().__init__(Memory(), encoding="utf-8")
        self.text = ""
        self.last = last

    def write(self, text: str) -> int:
        if self.last and text.startswith(self.last):
            raise KilledError
        self.text += text
        return super().write(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path, str, str]:
    """A study that ran to its end: itself, its folder, its progress and its output."""
    base = tmp_path_factory.mktemp("study")
    study, folder = tiny_study(base), base / "runs" / "tiny"
    progress, output = Screen(), Screen()
    with pytest.MonkeyPatch.context() as patch, computing(2):
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.delenv(name, raising=False)
        patch.setattr(threads, "_num_cores", lambda: 2)
        patch.setattr(threads, "time_threads", lambda systems, numbers: {1: 1.0, 2: 40.0})
        run_study(study, folder, command="train tiny", progress=Progress(progress), output=output)
    return study, folder, progress.text, output.text


def test_study_prints_a_table_and_its_paths(finished: tuple[Study, Path, str, str]) -> None:
    _, folder, progress, output = finished
    assert "single_stream" in output
    assert "two_stream" in output
    assert "held-out bits/byte" in " ".join(output.split())
    for name in ("report.html", "summary.json", *PICTURES):
        assert (folder / name).stat().st_size > 100
        assert str(folder / name) in output
    for step in (
        "preparing",
        "single_stream: 4/4 steps",
        "two_stream: held-out text: ",
        "exchanging",
        "report",
    ):
        assert step in progress


def test_type_and_threads_are_chosen_for_all_arms_and_told_in_one_line(
    finished: tuple[Study, Path, str, str],
) -> None:
    _, folder, progress, _ = finished
    told = [line for line in progress.splitlines() if "computing" in line]
    assert len(told) == 1
    assert told[0].startswith("computing in float32: a product")
    assert told[0].endswith("; with 1 thread: 2 take 40 times the time")
    for arm in ("single_stream", "two_stream"):
        assert read_manifest(checkpoint_paths(folder / arm)[0])["num_threads"] == 1
    assert " 1 threads" in json.loads((folder / "study.json").read_text())["machine"]


def test_summary_agrees_with_the_evaluations(finished: tuple[Study, Path, str, str]) -> None:
    _, folder, _, _ = finished
    summary = json.loads((folder / "summary.json").read_text())
    control, ours = summary["rows"]
    for row in (control, ours):
        found = load_evaluation(folder / row["name"])
        assert found is not None
        assert row["bits_per_unit"]["value"] == pytest.approx(sum(found.bits) / sum(found.sizes))
        assert row["num_parameters"] == found.num_parameters
        assert row["training_size"] == control["training_size"] > 0
        assert found.positions is not None
        inside = sum(sum(bits) for bits in found.positions.bits)
        assert inside == pytest.approx(sum(found.bits))
    ratio = ours["bits_per_unit"]["value"] / control["bits_per_unit"]["value"]
    change = ours["difference_percent"]
    assert change["value"] == pytest.approx(100 * ratio - 100)
    assert change["low"] <= change["value"] <= change["high"]
    assert control["swap_delta"] is None
    assert ours["swap_delta"]["low"] <= ours["swap_delta"]["value"]
    assert "on equal data" in summary["verdict"]


def test_any_declared_pair_is_compared(
    finished: tuple[Study, Path, str, str], tmp_path: Path
) -> None:
    study, done, _, _ = finished
    shutil.copytree(done, tmp_path / "tiny")
    study = replace(study, contrasts=(("single_stream", "two_stream"),))
    summary = run_study(study, tmp_path / "tiny", progress=Progress(Screen()), output=Screen())
    assert summary is not None
    (pair,) = summary.contrasts
    to_first = summary.rows[1].difference_percent
    assert to_first is not None
    ratio = 1 / (1 + to_first.value / 100)
    assert pair.difference_percent.value == pytest.approx(100 * ratio - 100)
    assert re.search(
        r"single_stream (needs|loses|and) .*two_stream.* on equal data", summary.verdict
    )
    page = (tmp_path / "tiny" / "report.html").read_text()
    assert "<h2>Declared contrasts</h2>" in page
    assert "Declared contrasts" not in (done / "report.html").read_text()
    for pair_of_names in (("single_stream", "three"), ("two_stream", "two_stream")):
        with pytest.raises(ValueError, match="pairs of two arms of single_stream, two_stream: got"):
            replace(study, contrasts=(pair_of_names,))


def test_a_study_folder_belongs_to_one_command(
    finished: tuple[Study, Path, str, str], tmp_path: Path
) -> None:
    study = finished[0]
    with (
        locked(tmp_path / ".study.lock", wait=False),
        pytest.raises(ValueError, match="must be used by one command at a time: process"),
    ):
        run_study(study, tmp_path, progress=Progress(Screen()), output=Screen())
    assert not (tmp_path / "single_stream").exists()


def test_report_needs_nothing_else(finished: tuple[Study, Path, str, str]) -> None:
    _, folder, _, _ = finished
    page = (folder / "report.html").read_text()
    assert len(re.findall(r'<figure role="img" aria-label="[^"]+">', page)) == len(PICTURES)
    assert page.count("<svg") == len(PICTURES) + 1  # learning has two panels
    for outside in ("http://", "https://", "//cdn", "<script", "<link", "@import", "src="):
        assert outside not in page
    assert not re.search(r"url\((?!#)", page)
    assert "train tiny" in page
    assert "own whole" in page
    assert "&lt;ass&gt;" in page
    assert "<ass>" not in page
    assert "batch_rows" in page


def test_report_is_made_anew_from_what_is_stored(
    finished: tuple[Study, Path, str, str],
) -> None:
    _, folder, _, _ = finished
    before = {name: (folder / name).read_bytes() for name in ("report.html", "summary.json")}
    for name in (*before, *PICTURES):
        (folder / name).unlink()
    write_report(folder)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert all((folder / name).exists() for name in PICTURES)


def test_finished_study_is_not_done_again(finished: tuple[Study, Path, str, str]) -> None:
    study, folder, _, _ = finished
    files = [*folder.rglob("metrics.jsonl"), *folder.rglob("evaluation.json")]
    before = [(file, file.read_bytes()) for file in files]
    progress = Screen()
    # The same command, because the report, which others read, is written anew.
    run_study(study, folder, command="train tiny", progress=Progress(progress), output=Screen())
    assert "4/4 steps" not in progress.text
    assert "held-out text" not in progress.text
    for file, content in before:
        assert file.read_bytes() == content


def test_killed_study_goes_on_and_ends_the_same(
    finished: tuple[Study, Path, str, str], tmp_path: Path
) -> None:
    """Stop in the second arm, before its evaluation and with half of its training lost."""
    study, folder, _, _ = finished
    control, ours = study.arms
    other = tmp_path / "other"

    screens = [Screen("two_stream: held"), Screen()]
    with pytest.raises(KilledError):
        run_study(study, other, progress=Progress(screens[0]), output=screens[1])
    assert load_evaluation(other / control.name) is not None
    assert load_evaluation(other / ours.name) is None
    shutil.rmtree(max((other / ours.name / "checkpoints").glob("step_*")))
    run_study(study, other, progress=Progress(screens[1]), output=screens[1])
    first, second = (json.loads((f / "summary.json").read_text()) for f in (folder, other))
    for key in ("bits_per_unit", "difference_percent", "swap_delta", "training_size"):
        assert [row[key] for row in first["rows"]] == [row[key] for row in second["rows"]]


def test_a_study_takes_as_many_steps_as_fit_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = replace(tiny_study(tmp_path, num_steps=100_000), minutes=0.01)
    monkeypatch.setattr("counterpoint.recipes.study._REPORT_S", 0.0)
    # The clock stands still, so that nothing of the 0.6 s is gone before the steps are shared out.
    monkeypatch.setattr("counterpoint.recipes.budget.time.perf_counter", lambda: 0.0)
    times = iter([0.01, 0.02])
    monkeypatch.setattr(
        "counterpoint.recipes.budget.time_run",
        lambda *_: RunTiming(step_s=next(times), num_units=6),
    )
    progress = Screen()
    summary = run_study(study, tmp_path / "run", progress=Progress(progress), output=Screen())
    assert summary is not None
    assert "18 of the recipe's 100,000 steps (0%) in about 0.01 minutes" in progress.text
    assert "18 of its 100,000 steps (0 %) were taken" in summary.verdict
    for arm in study.arms:
        assert len(read_metrics(tmp_path / "run" / arm.name / "metrics.jsonl")) == 18
    again = run_study(study, tmp_path / "run", progress=Progress(quiet=True), output=Screen())
    assert again is not None
    assert again.verdict == summary.verdict


def test_an_arm_is_timed_and_left_alone(finished: tuple[Study, Path, str, str]) -> None:
    study, folder, _, _ = finished
    before = sorted(folder.parents[1].rglob("*"))
    measured: list[bool] = []

    def also(system: nn.Module) -> dict[str, float]:
        measured.append(system.training)
        return {}

    plan = Plan(block_ticks=study.block_ticks, also=also)
    trial = time_run(study.arms[1], World(), Progress(quiet=True), plan, 0.0)
    assert sorted(folder.parents[1].rglob("*")) == before
    assert 0 < trial.step_s < 10
    assert 0 < trial.unit_s < 10
    assert measured == [False]
    assert 0 < trial.end_s < 10
    assert trial.num_units == 6
    assert 100 < trial.unit_size < 250
    assert trial.end_s > 6 * trial.unit_s  # the last evaluation, and what is measured beside it
    measured_later = replace(plan, evaluation=study.evaluation)
    later = time_run(study.arms[1], World(), Progress(quiet=True), measured_later, 0.0)
    assert later.end_s < trial.end_s


def test_every_stage_of_a_ramp_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the minutes would be planned with the slow steps of the beginning."""
    study = tiny_study(tmp_path)
    arm = study.arms[1]
    steps: list[int] = []
    at_step = TwoStream.at_step

    def seen(system: TwoStream, step: int, num_steps: int) -> None:
        steps.append(step)
        at_step(system, step, num_steps)

    monkeypatch.setattr(TwoStream, "at_step", seen)
    ramp = RampConfig(start_ticks=1, share=0.4)
    system = replace(two_config(), ramp=ramp)
    run = replace(arm, system=system, train=replace(arm.train, num_steps=15))
    time_run(run, World(), Progress(quiet=True), Plan(block_ticks=study.block_ticks), 0.0)
    assert steps == [0, 1, 2, 0, 3, 4, 5, 3, 6, 7, 8, 9]


def test_a_trial_learns_nothing_however_high_the_rate_of_a_later_stage_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first steps lack the warm-up, so a rate that the training bears could end the trial."""
    study = tiny_study(tmp_path)
    arm = study.arms[1]
    found: list[dict[str, Tensor]] = []
    at_step = TwoStream.at_step

    def seen(system: TwoStream, step: int, num_steps: int) -> None:
        found.append({name: weight.clone() for name, weight in system.state_dict().items()})
        at_step(system, step, num_steps)

    monkeypatch.setattr(TwoStream, "at_step", seen)
    optimizer = replace(arm.train.optimizer, lr=1e30, muon_lr=1e30)
    schedule = replace(arm.train.schedule, warmup_steps=6)
    train = replace(arm.train, num_steps=15, optimizer=optimizer, schedule=schedule)
    system = replace(two_config(), ramp=RampConfig(start_ticks=1, share=0.4))
    run = replace(arm, system=system, train=train)
    timing = time_run(run, World(), Progress(quiet=True), Plan(block_ticks=study.block_ticks), 0.0)
    assert timing.step_s > 0
    assert len(found) == 12
    assert all(torch.equal(one[name], found[0][name]) for one in found for name in one)


def test_minutes_are_those_of_the_study(tmp_path: Path) -> None:
    study = tiny_study(tmp_path)
    timed = tuple(replace(arm, minutes=1.0) for arm in study.arms)
    with pytest.raises(ValueError, match="`minutes` must be left out for an arm"):
        replace(study, arms=timed)


def test_unequal_flops_are_refused(tmp_path: Path) -> None:
    study = replace(tiny_study(tmp_path), max_flops_difference=0.02)
    with pytest.raises(ValueError, match="equal training FLOPs within 2%"):
        run_study(study, tmp_path / "run", progress=Progress(quiet=True))


def test_a_ramp_costs_flops_that_a_study_sees() -> None:
    """The first run's arms are equal; a beginning with short blocks makes one of them dearer."""
    control, ours = first_run().arms
    system = replace(two_stream_system(), ramp=RampConfig(start_ticks=2))
    study = replace(first_run(), arms=(control, replace(ours, system=system)))
    with pytest.raises(ValueError, match=r"'two_stream' \S+ \(\+13\.\d%\)"):
        training_flops(study)


def test_unequal_flops_of_a_named_arm_are_not_refused(tmp_path: Path) -> None:
    study = replace(tiny_study(tmp_path), max_flops_difference=0.02)
    control, ours = study.arms
    flops = training_flops(replace(study, unmatched=(ours.name,)))
    assert flops[ours.name] > 1.02 * flops[control.name]
    with pytest.raises(ValueError, match="`unmatched` must name arms"):
        replace(study, unmatched=("nobody",))


def test_unequal_data_is_refused(tmp_path: Path) -> None:
    study = tiny_study(tmp_path)
    control, ours = study.arms
    longer = replace(ours, train=replace(ours.train, num_steps=5))
    with pytest.raises(ValueError, match="`train.num_steps` is 4 for 'single_stream' and 5"):
        replace(study, arms=(control, longer))


def test_arms_need_different_names(tmp_path: Path) -> None:
    study = tiny_study(tmp_path)
    with pytest.raises(ValueError, match="no name twice"):
        replace(study, arms=study.arms[:1] * 2)


def test_report_of_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold a study"):
        write_report(tmp_path)


def test_report_of_an_unfinished_study_is_refused(
    finished: tuple[Study, Path, str, str], tmp_path: Path
) -> None:
    _, folder, _, _ = finished
    (tmp_path / "study.json").write_bytes((folder / "study.json").read_bytes())
    with pytest.raises(ValueError, match="must hold an evaluation"):
        write_report(tmp_path)


def test_first_run_compares_equals() -> None:
    study = first_run()
    control, ours = training_flops(study).values()
    assert math.isclose(control, ours, rel_tol=0.02)
    assert [run.name for run in study.arms] == ["single_stream", "two_stream"]
    assert study.arms[0].data == study.arms[1].data


def test_controls_of_two_stream_cost_what_it_costs() -> None:
    study = two_stream_controls()
    flops = training_flops(study)  # refuses what is not equal
    assert {name for name in flops if abs(flops[name] / flops["two_stream"] - 1) > 0.03} == {
        "as_many_parameters"
    }
    sizes = {
        arm.name: sum(weight.numel() for weight in sketch(arm.system).parameters())
        for arm in study.arms
    }
    assert math.isclose(sizes["as_many_parameters"], sizes["two_stream"], rel_tol=0.01)
    assert dict(study.contrasts).keys() == sizes.keys() - {"single_stream", "two_stream"}


def test_arms_begin_with_the_weights_that_they_name(tmp_path: Path) -> None:
    """Also with adapters, which are merged where the arm is measured."""
    study = tiny_study(tmp_path, num_steps=2)
    control = study.arms[0]
    run_study(
        replace(study, arms=(control,)),
        tmp_path / "base",
        progress=Progress(quiet=True),
        output=Screen(),
    )
    base = tmp_path / "base" / control.name
    begins = (
        FineTuneConfig(init_from=str(base)),
        FineTuneConfig(init_from=str(base), low_rank=LowRankConfig(rank=2)),
    )
    arms = tuple(
        replace(control, name=f"begun{i}", train=replace(control.train, fine_tune=begin))
        for i, begin in enumerate(begins)
    )
    more = replace(study, arms=(control, *arms))
    quiet = Progress(quiet=True)
    assert run_study(more, tmp_path / "more", progress=quiet, output=Screen()) is not None
    first, *begun = (
        [row["loss"] for row in read_metrics(tmp_path / "more" / arm.name / "metrics.jsonl")]
        for arm in more.arms
    )
    for losses in begun:
        assert losses[0] < first[0]
    scores = [load_evaluation(tmp_path / "more" / arm.name) for arm in more.arms]
    assert all(score is not None for score in scores)


def test_arm_that_begins_with_nothing_is_refused(tmp_path: Path) -> None:
    study = tiny_study(tmp_path)
    control, ours = study.arms
    begun = replace(control.train, fine_tune=FineTuneConfig(init_from=str(tmp_path / "none")))
    study = replace(study, arms=(replace(control, train=begun), ours))
    with pytest.raises(ValueError, match="`init_from` must be a checkpoint or a run folder"):
        run_study(study, tmp_path / "run", progress=Progress(quiet=True))


def test_arms_are_trained_with_every_seed(tmp_path: Path) -> None:
    """A seed of its own is what the arm with that seed is; intervals are over seeds as well."""
    study = replace(tiny_study(tmp_path, num_steps=2), seeds=(0, 3))
    summary = run_study(study, tmp_path / "both", progress=Progress(quiet=True), output=Screen())
    assert summary is not None
    assert "2 training seeds: the intervals cover them" in summary.verdict
    alone = tuple(replace(arm, train=replace(arm.train, seed=3)) for arm in study.arms)
    other_study = replace(study, arms=alone, seeds=())
    run_study(other_study, tmp_path / "alone", progress=Progress(quiet=True), output=Screen())
    for arm, row in zip(study.arms, summary.rows, strict=True):
        first, second = (
            load_evaluation(tmp_path / "both" / f"{arm.name}-seed{seed}") for seed in study.seeds
        )
        other = load_evaluation(tmp_path / "alone" / arm.name)
        assert first is not None
        assert second is not None
        assert other is not None
        assert second.bits == other.bits
        assert second.bits != first.bits
        bits = sum(first.bits) + sum(second.bits)
        assert row.bits_per_unit.value == pytest.approx(bits / 2 / sum(first.sizes))


def test_seeds_are_named_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`seeds` must name no seed twice"):
        replace(tiny_study(tmp_path), seeds=(1, 1))
