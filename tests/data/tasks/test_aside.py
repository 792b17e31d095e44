"""Reasoning whose steps are labels of the whole."""

from counterpoint.data.tasks.reasoning.aside import WAITING, AsideReasoning
from counterpoint.data.tasks.reasoning.corpus import LABEL_SYMBOLS, Reasoning
from counterpoint.data.tasks.reasoning.item import judge
from counterpoint.data.tasks.source import label_stream, labels
from counterpoint.recipes.thought_stream import thought_stream_study
from counterpoint.systems import sketch

TASK = Reasoning(families=("arithmetic", "dyck"), operations=(3, 4), templates=(0, 1))


def test_every_step_has_a_block_of_its_own_after_the_question() -> None:
    system = dict(thought_stream_study().systems)["aside"]
    whole = label_stream(sketch(system).layout)
    assert whole is not None
    for number in range(50):
        inline = TASK.item(0, number)
        item = AsideReasoning(task=TASK).item(0, number)
        ids = labels(item, whole, len(item.text) + 1)
        shown = ["".join(map(chr, row[row > 0])) for row in ids]
        steps = [label.text for label in inline.whole]
        first = -(-(len(item.prompt) + 1) // 8)
        assert shown[:first] == [""] * first
        assert shown[first : first + len(steps)] == steps
        assert all(len(step) <= LABEL_SYMBOLS for step in steps)
        assert set(item.text[item.thought_start : item.answer_start]) == {WAITING}
        # The last thought is there when the answer begins.
        assert item.answer_start + 1 == 8 * (first + len(steps))


def test_answers_are_those_of_the_question() -> None:
    for number in range(20):
        inline = TASK.item(0, number)
        for has_thoughts in (True, False):
            item = AsideReasoning(task=TASK, has_thoughts=has_thoughts).item(0, number)
            (answer,) = item.answers
            assert item.text[answer.start :] == f"{answer.text}\n"
            assert item.prompt == inline.prompt
            assert judge(item, item.solution).is_right == inline.is_correct
