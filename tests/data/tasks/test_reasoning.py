"""Reasoning items are pure, sound, balanced and checked step by step, and their knobs are exact."""

import json
import math
import random
import re
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise, permutations
from typing import Any

import pytest

from counterpoint.config_json import decode, encode
from counterpoint.data.tasks.items import HELD_OUT_SEED, ScoredTask, always, commonest, floors
from counterpoint.data.tasks.reasoning.corpus import Reasoning, answer_floors
from counterpoint.data.tasks.reasoning.families import FAMILIES
from counterpoint.data.tasks.reasoning.item import (
    ReasoningItem,
    answer_reward,
    judge,
    process_reward,
)
from counterpoint.data.tasks.source import TaskData
from counterpoint.errors import UserError
from tests.test_architecture import ROOT

PUBLISHED = ROOT / "docs" / "results" / "reasoning_floors.json"
each_family = pytest.mark.parametrize("name", FAMILIES)


def made(task: Reasoning, count: int, seed: int = 0) -> list[ReasoningItem]:
    return [task.item(seed, number) for number in range(count)]


@each_family
def test_items_are_pure_and_their_spans_cover_the_text(name: str) -> None:
    task: ScoredTask = Reasoning(families=(name,))
    items = made(Reasoning(families=(name,)), 40)
    assert items == [task.item(0, number) for number in reversed(range(40))][::-1]
    assert items != made(Reasoning(families=(name,)), 40, seed=1)
    for item in items:
        prompt, thought, answer = (item.text[slice(*span)] for span in item.spans.values())
        assert prompt + thought + answer == item.text
        assert (prompt, thought + answer) == (item.prompt, item.solution)
        (told,) = item.answers
        assert answer == f"#{told.text}\n"
        assert item.text.startswith(told.text, told.start)
        assert item.text.isascii()
        assert len(item.text) <= task.most_symbols
        starts = [label.start for label in item.whole]
        assert starts == sorted(starts)
        assert item.thought_start < starts[0] <= starts[-1] <= item.answer_start


@each_family
@pytest.mark.parametrize("operations", [1, 3, 12, 24])
def test_clean_solutions_are_sound_and_complete(name: str, operations: int) -> None:
    task = Reasoning(families=(name,), operations=(operations, operations), most_symbols=9000)
    for item in made(task, 8):
        verdict = judge(item, item.solution)
        assert item.is_correct
        assert verdict.is_sound
        assert verdict.num_steps == verdict.num_needed >= operations - (name == "graphs")
        assert answer_reward(item, item.solution) == process_reward(item, item.solution) == 1


@each_family
def test_every_template_gives_back_the_statement(name: str) -> None:
    family = FAMILIES[name]
    statement = family.statement(3, random.Random(1), random.Random(2))
    questions = {family.question(statement, number) for number in range(len(family.wordings))}
    assert len(questions) == len(family.wordings) == 8
    assert {family.statement_of(question) for question in questions} == {statement}


@each_family
def test_a_fault_in_a_step_is_found_where_it_is(name: str) -> None:
    """The check finds exactly the steps with planted faults, although later steps go on."""
    rng = random.Random(5)
    found = 0
    for item in made(Reasoning(families=(name,), operations=(4, 4)), 30):
        family = FAMILIES[name]
        solver = family.solve(family.statement_of(item.prompt[:-1]))
        step = next(solver)
        lines = []
        faults = []
        try:
            while True:
                faults.append(rng.random() < 0.5)
                result = step.wrong(rng) if faults[-1] else step.result
                lines.append(f"{step.given}{result};")
                step = solver.send(result)
        except StopIteration as end:
            answer = end.value
        verdict = judge(item, "".join(lines) + f"#{answer}\n")
        assert verdict.num_steps - verdict.num_valid == sum(faults)
        assert verdict.is_right == (answer == item.answers[0].text)
        found += any(faults)
    assert found > 20


@each_family
def test_answers_have_no_majority(name: str) -> None:
    """The most frequent answer of some items, on others, is no better than chance."""
    task = Reasoning(families=(name,))
    most = commonest(made(task, 200, seed=1))
    items = made(task, 200, seed=2)
    chance = {"graphs": 0.5, "equations": (1 / 5 + 1 / 7 + 1 / 11) / 3, "listops": 0.1}
    floor = task.score(items, [always(most, item) for item in items])["answer"]
    assert floor <= chance.get(name, 0.08) + 0.08


@each_family
def test_the_oracle_solves_what_a_part_does_not(name: str) -> None:
    found = floors(Reasoning(families=(name,)), 100, seed=3)
    assert found["oracle"]["answer"] == 1
    assert found["part"]["answer"] < 0.6


def test_floors_by_family_are_those_of_the_items_themselves() -> None:
    tasks = [Reasoning(families=(name,)) for name in ("dyck", "arithmetic")]
    own = [made(task, 60, seed=HELD_OUT_SEED) for task in tasks]
    found = answer_floors([item for items in own for item in items])
    for task, items in zip(tasks, own, strict=True):
        (family,) = task.families
        constant = commonest(items)
        given = [always(constant, item) for item in items]
        assert found["constant answer"][family] == task.score(items, given)["answer"]
        part = task.policies()["part"]
        given = [part(item, random.Random(number)) for number, item in enumerate(items)]
        assert found["part of the question"][family] == task.score(items, given)["answer"]


@each_family
def test_published_floors_are_what_is_computed(name: str) -> None:
    """The table's own seed and first items give the table's own check."""
    published = json.loads(PUBLISHED.read_text())["families"][name]
    found = floors(Reasoning(families=(name,)), 100, seed=0)
    rounded = {
        policy: {kind: round(value, 3) for kind, value in scores.items()}
        for policy, scores in found.items()
    }
    assert rounded == published["first 100"]
    assert published["floors"]["oracle"] == {"answer": 1.0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7+9+0=16;4+8+1=13",  # no answer
        "#936",  # no end
        "#936\n#936\n",
        "7+9+0=x;#936\nmore",
        "\x00\n#",
        ";;;;#936",
    ],
)
def test_other_texts_are_judged_too(text: str) -> None:
    item = replace(
        made(Reasoning(families=("arithmetic",)), 1)[0], text="347+589\n", thought_start=8
    )
    verdict = judge(item, text)
    assert not verdict.is_right
    assert not verdict.is_ended
    assert answer_reward(item, text) == process_reward(item, text) == 0


def test_a_right_answer_after_a_wrong_step_is_right_but_not_sound() -> None:
    item = replace(
        made(Reasoning(families=("arithmetic",)), 1)[0], text="347+589\n", thought_start=8
    )
    right = "7+9+0=16;4+8+1=13;3+5+1=9;#936\n"
    assert judge(item, right) == (True, True, 3, 3, 3)
    assert judge(item, right.replace("=13", "=12")) == (True, True, 3, 2, 3)
    assert judge(item, "#936\n") == (True, True, 0, 0, 3)
    # A line that fits no step, and all after it.
    assert judge(item, "7+9+0=16;5+8+1=14;3+5+1=9;#936\n") == (True, True, 3, 1, 3)
    assert process_reward(item, right.replace("=13", "=12")) == 0
    assert process_reward(item, "7+9+0=16;3+5+1=9;#936\n") == 0  # a step is left out
    assert judge(item, "7+9+0=16;3+5+1=9;#936\n").is_sound
    assert answer_reward(item, "#936\n") == 1
    assert answer_reward(item, "#0936\n") == 0


@each_family
def test_a_bare_answer_is_right_and_earns_nothing_for_its_process(name: str) -> None:
    for item in made(Reasoning(families=(name,)), 40):
        bare = item.text[item.answer_start :]
        verdict = judge(item, bare)
        assert verdict.is_right
        assert verdict.num_needed > 0
        assert not verdict.is_sound
        assert not verdict.is_complete
        assert answer_reward(item, bare) == 1
        assert process_reward(item, bare) == 0


def test_the_steps_of_a_word_problem_have_one_order() -> None:
    """So no other order can be right: every quantity that is needed reads the one before it."""
    sentence = re.compile(r"The (\w+) has ([^.]+)\.")
    for item in made(Reasoning(families=("word_problems",), operations=(1, 10)), 200):
        reads = {name: set(text.split()) for name, text in sentence.findall(item.prompt)}
        names = [line.partition("=")[0] for line in item.solution.split(";")[:-1]]
        assert all(before in reads[after] for before, after in pairwise(names))


def test_word_problems_are_complete_in_every_order_that_derives_before_it_reads() -> None:
    sentence = re.compile(r"The (\w+) has ([^.]+)\.")
    num_complete = num_others = 0
    for item in made(Reasoning(families=("word_problems",), operations=(1, 4)), 30):
        reads = {name: set(text.split()) for name, text in sentence.findall(item.prompt)}
        lines = {line.partition("=")[0]: line for line in item.solution.split(";")[:-1]}
        for order in permutations(lines):
            derives_first = all(
                not reads[name] & set(order[place:]) for place, name in enumerate(order)
            )
            text = "".join(f"{lines[name]};" for name in order)
            verdict = judge(item, text + item.text[item.answer_start :])
            assert verdict.is_right
            assert verdict.is_complete == verdict.is_sound == derives_first
            num_complete += derives_first
            num_others += not derives_first
    assert num_complete >= 30
    assert num_others > 500


@pytest.mark.parametrize(("score", "is_right"), [(1.0, True), (0.99, False), (0.0, False)])
def test_an_item_of_reasoning_gym_is_judged_by_its_score(score: float, is_right: bool) -> None:
    """It has no steps that could be checked."""
    item = ReasoningItem("q\n#1\n", (), facts={"entry": {}}, thought_start=2, answer_start=2)
    verdict = judge(item, "why;#1\n", lambda item, solution: score)
    assert verdict == (is_right, True, 0, 0, 0)
    assert verdict.is_sound == verdict.is_complete == is_right
    assert not judge(item, "#1", lambda item, solution: 0.0).is_ended


def test_step_errors_and_skipped_steps_are_what_is_asked() -> None:
    for errors, skipped in ((0.2, 0.0), (0.0, 0.5), (0.3, 0.6)):
        items = made(Reasoning(step_errors=errors, skipped_steps=skipped, most_symbols=900), 400)
        verdicts = [judge(item, item.solution) for item in items]
        written = sum(one.num_steps for one in verdicts)
        valid = sum(one.num_valid for one in verdicts)
        needed = sum(one.num_needed for one in verdicts)
        assert valid / written == pytest.approx(1 - errors, abs=0.035)
        # A wrong step may make the search of a path end early.
        assert written / needed == pytest.approx(1 - skipped, abs=0.06 if errors else 0.035)
        assert [one.is_right for one in verdicts] == [item.is_correct for item in items]
        assert all(item.is_correct for item in items) == (errors == 0)


def test_diversity_and_length_are_what_is_asked() -> None:
    task = Reasoning(
        families=("arithmetic", "listops"),
        shares=(3.0, 1.0),
        templates=(2, 5),
        shapes=4,
        operations=(3, 4),
    )
    items = made(task, 600)
    counts = Counter(item.family for item in items)
    assert counts["arithmetic"] / 600 == pytest.approx(0.75, abs=0.06)
    assert {item.template for item in items} == {2, 5}
    assert {item.operations for item in items} == {3, 4}
    shapes = {(item.family, item.operations, item.shape) for item in items}
    assert len(shapes) == 2 * 2 * 4
    lists = [item for item in items if item.family == "listops"]
    forms = {"".join("d" if one.isdigit() else one for one in item.solution) for item in lists}
    assert len(forms) <= 8  # operations x shapes: only the digits differ
    longest = made(replace(task, longest_of=5), 60)
    each = [items[5 * place : 5 * place + 5] for place in range(60)]
    assert longest == [max(some, key=lambda item: len(item.solution)) for some in each]


def test_unique_items_repeat_and_folds_are_disjoint() -> None:
    task = Reasoning(unique=7)
    items = made(task, 21)
    assert items[:7] == items[7:14] == items[14:]
    assert len({item.id for item in items}) == 7
    # There are so few of these questions that folds would share some.
    few = Reasoning(families=("dyck",), operations=(2, 3))
    corpora = [
        made(replace(few, folds=(1, 2)), 200),
        made(replace(few, folds=(3,)), 200),
        made(few, 200, HELD_OUT_SEED),
    ]
    statements = [
        {FAMILIES["dyck"].statement_of(item.prompt[:-1]) for item in items} for items in corpora
    ]
    assert all(statements)
    assert not statements[0] & statements[1]
    assert not (statements[0] | statements[1]) & statements[2]


def test_items_for_scoring_have_no_faults_and_do_not_repeat() -> None:
    task = Reasoning(step_errors=0.5, skipped_steps=0.5, unique=2)
    items = made(task, 50, HELD_OUT_SEED)
    assert len({item.id for item in items}) == 50
    assert all(judge(item, item.solution).is_sound for item in items)


def test_a_corpus_is_a_config() -> None:
    data = TaskData(task=Reasoning(families=("sorting",), step_errors=0.1), num_items=10)
    assert decode(TaskData, encode(data)) == data
    assert asdict(data.task.item(0, 0))["family"] == "sorting"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"families": ("sortin",)}, "nearest is 'sorting'"),
        ({"shares": (1.0,)}, "one number for each"),
        ({"families": ("dyck",), "shares": (0.0,)}, "not all 0"),
        ({"families": ("dyck", "sorting"), "shares": (math.nan, 1.0)}, ">= 0"),
        ({"families": ("dyck", "sorting"), "shares": (math.inf, 1.0)}, "finite"),
        ({"families": ("dyck", "sorting"), "shares": (1e308, 1e308)}, "finite"),
        ({"templates": (8,)}, "0 to 7"),
        ({"operations": (3, 2)}, "smaller one first"),
        ({"operations": (1, 25)}, "1 to 24"),
        ({"folds": (0,)}, "1 to 7"),
        ({"step_errors": 1.5}, "0 to 1"),
        ({"longest_of": 0}, ">= 1"),
        ({"most_symbols": 0}, ">= 1"),
    ],
)
def test_wrong_knobs_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Reasoning(**wrong)


def test_items_that_cannot_be_short_enough_are_refused() -> None:
    with pytest.raises(UserError, match="most_symbols"):
        Reasoning(families=("word_problems",), most_symbols=40).item(0, 0)
