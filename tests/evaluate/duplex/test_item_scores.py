"""Scores of held-out items, and the verb that prints them."""

from pathlib import Path

import pytest

from counterpoint.cli.main import main
from counterpoint.data.tasks.items import HELD_OUT_SEED
from counterpoint.data.tasks.part_whole import FORMS
from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.reasoning.item import ReasoningItem, judge
from counterpoint.data.tasks.source import TaskData
from counterpoint.data.tasks.spoken_maths.hearing import Heard
from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData
from counterpoint.data.text.corpus import DataConfig
from counterpoint.data.token_deal import MemberWeight
from counterpoint.errors import UserError
from counterpoint.evaluate.attempts import Attempts
from counterpoint.evaluate.duplex.item_scores import item_scores
from counterpoint.evaluate.duplex.spoken_maths import clock_of, made_by_program
from counterpoint.evaluate.duplex.thinking import Attempt
from counterpoint.evaluate.tasks import answer
from counterpoint.runtime.load import Loaded
from counterpoint.streams.timeline import Event, Timeline
from counterpoint.systems import build_system, shanks, sketch
from counterpoint.systems.contract import SystemConfig
from counterpoint.systems.shanks import Shanks
from counterpoint.train.config import TrainConfig
from counterpoint.train.phases import PhaseData, PhasedData, PhaseSource
from counterpoint.train.rewarded import RewardedData
from counterpoint.train.run import AnyData, Run
from tests.evaluate.tiny import single_config

LOGS = TaskData(task=FORMS["logbook_small"], num_held_out=40)


def test_answers_are_scored_beside_the_best_policy_and_the_oracle() -> None:
    system = build_system(single_config(), 0).eval()
    found = item_scores(system, LOGS)
    task = LOGS.task
    items = [task.item(HELD_OUT_SEED, place) for place in range(40)]
    scores = task.score(items, list(answer(system, items)))
    assert found[f"{task.primary}, after the true text"].value == pytest.approx(
        scores.pop(task.primary)
    )
    assert {f"{name}, after the true text" for name in scores} <= found.keys()
    (best,) = (value for name, value in found.items() if "of the best policy" in name)
    assert 0.1 < best.value < found[f"{task.primary} of the oracle"].value == 1.0
    fewer = item_scores(system, LOGS, most_items=8)
    assert fewer[f"{task.primary} of the oracle"].value == 1.0
    assert fewer != found


def test_the_maker_of_the_problems_reaches_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that made the problems listens in the place of the model."""
    monkeypatch.setattr(
        "counterpoint.evaluate.duplex.item_scores.listen",
        lambda _, data, problem: made_by_program(problem, clock_of(data)),
    )
    found = item_scores(Shanks(shanks.tiny()), SpokenMathsData(num_held_out=30))
    assert found["ceiling: found by the maker"].value > 0.9
    for name in (
        "wrong speakers interrupted, also too soon",
        "wrong step named (found)",
        "and corrected",
    ):
        assert found[name] == found["ceiling: found by the maker"]
    assert found["right ones interrupted (false alarms)"].value == 0
    assert 1 < found["median seconds from error to interruption"].value < 4


def test_every_share_counts_what_its_name_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script interrupts three wrong speakers, names two steps, corrects one; and one alarm."""
    data = SpokenMathsData(num_held_out=12)
    problems = [data.heard(place, held_out=True) for place in range(12)]
    wrong = [problem for problem in problems if problem.wrong_s is not None]
    right = [problem for problem in problems if problem.wrong_s is None]

    def scripted(_: object, __: object, problem: Heard) -> Attempt:
        place = next((n for n, one in enumerate(wrong) if one.words == problem.words), 9)
        speaks = place < 3 or problem.words == right[0].words
        at_s = 1.5 + (problem.wrong_s or 0.0)
        event = Event(start_s=at_s, end_s=at_s, stream="agent", kind="interruption")
        return Attempt(
            timeline=Timeline(events=(event,) if speaks else ()),
            wrong_s=problem.wrong_s,
            named=place < 2,
            corrected=place < 1,
        )

    monkeypatch.setattr("counterpoint.evaluate.duplex.item_scores.listen", scripted)
    found = {name: one.value for name, one in item_scores(Shanks(shanks.tiny()), data).items()}
    assert found["wrong speakers interrupted, also too soon"] == 3 / len(wrong)
    assert found["wrong step named (found)"] == 2 / len(wrong)
    assert found["and corrected"] == 1 / len(wrong)
    assert found["right ones interrupted (false alarms)"] == 1 / len(right)
    assert found["median seconds from error to interruption"] == pytest.approx(1.5)


def test_what_no_item_asks_has_no_score() -> None:
    """Few problems may all be wrong, and few items may lack the question that decides."""
    system = build_system(single_config(), 0).eval()
    for name in FORMS:
        data = TaskData(task=FORMS[name], num_held_out=40)
        found = item_scores(system, data, most_items=1)
        assert all(one.value == one.value for one in found.values())


SUMS = TaskData(task=Reasoning(families=("arithmetic",), operations=(1, 2)), num_held_out=12)
ASKED = RewardedData(task=Reasoning(families=("sorting",), operations=(2, 2)), num_held_out=10)


def phased(held_out: tuple[str, ...] | None) -> PhasedData:
    sources = (PhaseSource(name="sums", data=SUMS), PhaseSource(name="logs", data=LOGS))
    reads = PhaseData(name="read", tokens=100, weights=(MemberWeight(member="sums", weight=1.0),))
    asks = PhaseData(name="reward", rewarded=ASKED, num_steps=1)
    return PhasedData(sources=sources, phases=(reads, asks), held_out=held_out)


def test_every_source_of_a_run_of_phases_is_judged() -> None:
    system = build_system(single_config(), 0).eval()
    found = item_scores(system, phased(None))
    logs = item_scores(system, LOGS)
    assert {f"logs: {name}": value for name, value in logs.items()}.items() <= found.items()
    assert found["sums: right answers, written freely"].value == 0
    rewarded = {f"phase reward: {name}": own for name, own in item_scores(system, ASKED).items()}
    assert rewarded
    assert rewarded.items() <= found.items()
    without = item_scores(system, phased(("sums",)))
    assert without == {name: value for name, value in found.items() if "logs" not in name}


def test_solutions_are_written_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The true solution of every third question, and its answer without steps of another one."""

    def written(system: object, items: list[ReasoningItem], **how: object) -> list[Attempts]:
        texts = [item.solution for item in items]
        texts[1::3] = [text[text.index("#") :] for text in texts[1::3]]
        texts[2::3] = ["#nothing\n" for _ in texts[2::3]]
        return [
            Attempts(item, [text], [judge(item, text)], [[]])
            for item, text in zip(items, texts, strict=True)
        ]

    monkeypatch.setattr("counterpoint.evaluate.duplex.item_scores.attempt", written)
    found = item_scores(build_system(single_config(), 0).eval(), SUMS)
    assert found["right answers, written freely"].value == pytest.approx(2 / 3)
    assert found["right with every step, written freely"].value == pytest.approx(1 / 3)


def test_pass_at_k_is_estimated_from_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 samples of each question one is right: k of them hold it with the chance k / 64."""

    def written(
        system: object, items: list[ReasoningItem], num_samples: int = 1, **how: object
    ) -> list[Attempts]:
        texts = [[item.solution, *["#?\n"] * (num_samples - 1)] for item in items]
        return [
            Attempts(item, own, [judge(item, text) for text in own], [[] for _ in own])
            for item, own in zip(items, texts, strict=True)
        ]

    monkeypatch.setattr("counterpoint.evaluate.duplex.item_scores.attempt", written)
    system = build_system(single_config(), 0).eval()
    found = item_scores(system, SUMS, num_samples=64)
    passes = {name: value.value for name, value in found.items() if name.startswith("pass@")}
    expected = {f"pass@{k}, from 64 samples": k / 64 for k in (1, 2, 4, 8, 16, 32, 64)}
    assert passes == pytest.approx(expected)
    with pytest.raises(UserError, match="solved in steps") as problem:
        item_scores(system, DataConfig(), num_samples=2)
    assert "\n" not in str(problem.value)


def test_running_text_is_judged_by_nobody() -> None:
    assert item_scores(build_system(single_config(), 0), DataConfig()) == {}


def run_on(system: SystemConfig, data: AnyData) -> Run:
    return Run(name="run", system=system, data=data, train=TrainConfig(num_steps=1, batch_rows=1))


@pytest.mark.parametrize(
    ("system", "data"),
    [
        (single_config(), LOGS),
        (shanks.tiny(), SpokenMathsData(num_held_out=2)),
    ],
    ids=["task", "spoken maths"],
)
def test_a_model_is_measured_on_the_data_of_its_run(system: SystemConfig, data: AnyData) -> None:
    """Once, whatever hears was taken for a model of recordings."""
    loaded = Loaded(path=Path("here"), system=sketch(system), run=run_on(system, data))
    assert loaded.measured_on() is data
    with pytest.raises(UserError, match="learned from .* Leave it out"):
        loaded.measured_on("list.jsonl")


def test_the_verb_prints_scores_of_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("logs.py").write_text(
        "from tests.evaluate.duplex.test_item_scores import LOGS, run_on, single_config\n"
        "def logs():\n"
        "    return run_on(single_config(), LOGS)\n"
    )
    assert main(["train", "logs.py", "--folder", "logs"]) == 0
    assert main(["evaluate", "logs", "--max-units", "4"]) == 0
    shown = capsys.readouterr().out
    assert f"{LOGS.task.primary}, after" in shown
    assert "of the oracle" in shown
