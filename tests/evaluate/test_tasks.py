"""How systems answer items: nothing is shifted, and a whole of text is the system's own."""

from collections.abc import Collection

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from counterpoint.data.tasks.items import (
    ExactMatch,
    GroupsSymbols,
    Item,
    ItemAnswer,
    ItemPolicy,
    ScoredTask,
    WholeLabel,
)
from counterpoint.data.tasks.part_whole import TASKS
from counterpoint.data.tasks.part_whole.rhm import RandomHierarchy
from counterpoint.evaluate.tasks import answer, answer_lines, group_nats, text_nats
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream, Ticks
from counterpoint.systems.contract import Choose, Logits, State, System
from tests.evaluate import tiny

PART = Stream(name="part", role=Role.PART, vocab_size=258, predicted=True)
WHOLE = Stream(name="whole", role=Role.WHOLE, vocab_size=258, period_ticks=4, predicted=True)


class Copies(System):
    """It answers with ids of the part a number of ticks ahead, or with the newest whole.

    Its whole is the newest symbol of the part.
    """

    def __init__(self, *streams: Stream, shift: int = 1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.layout = Layout(streams=streams)
        self.shift = shift
        self.columns: list[Ticks] = []

    def forward(self, batch: Batch) -> Logits:
        ids = batch.ticks["part"].roll(-self.shift, 1)
        if "whole" not in batch.ticks:
            return {"part": F.one_hot(ids, 258).float()}
        newest = batch.ticks["whole"].cummax(1).values  # labels of the test ascend
        return {"part": F.one_hot(newest.clamp(min=0), 258).float()}

    def initial_state(self, batch_size: int) -> State:
        return torch.zeros(batch_size)

    def read(
        self, ticks: Ticks, state: State, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        self.columns.append(ticks)
        whole = ticks["whole"][:, -1].float()
        state = torch.where(whole == UNSET_ID, state, whole)
        return torch.stack((ticks["part"][:, -1].float(), state), -1)[:, None], state

    def write(
        self, hidden: Tensor, choose: Choose, state: State | None = None
    ) -> dict[str, Tensor]:
        part, whole = F.one_hot(hidden.long(), 258).float().unbind(1)
        return {"part": choose("part", 0, whole), "whole": choose("whole", 0, part)}

    @property
    def window_ticks(self) -> int:
        return 1

    def flops_per_tick(
        self, num_ticks: int, *, training: bool = False, predicted: Collection[str] | None = None
    ) -> float:
        return 0.0


class TwoLetters(ExactMatch):
    """A task of one item."""

    name = "letters"
    primary = "x"
    most_symbols = 8

    def policies(self) -> dict[str, ItemPolicy]:
        return {}

    def item(self, seed: int, number: int) -> Item:
        answers = (ItemAnswer("x", 5, "c"), ItemAnswer("x", 7, "h"))
        return Item("abcdefgh", answers, whole=(WholeLabel(1, "y"), WholeLabel(5, "z")))


def test_a_model_that_knows_what_follows_is_scored_right() -> None:
    """A system whose scores are the true next ids gets everything right: no shift by one."""
    task = TASKS["sections"]
    items = [task.item(0, number) for number in range(5)]
    # The last answer ends the row's text, so a row that is rolled does not hold it.
    assert task.score(items, list(answer(Copies(PART), items)))["joint"] == 1.0
    assert task.score(items, list(answer(Copies(PART, shift=0), items)))["joint"] == 0.0


def test_a_whole_of_text_is_what_the_system_wrote_itself() -> None:
    task: ScoredTask = TwoLetters()
    system = Copies(PART, WHOLE)
    # Columns 3 and 7 have a whole; it was written behind columns 2 ("b") and 6 ("f").
    given = list(answer(system, [task.item(0, 0)] * 3))
    assert given == [{0: "b", 1: "f"}] * 3
    assert [int(ids["whole"][0, 0]) for ids in system.columns] == [
        *[UNSET_ID] * 3,
        ord("b"),
        *[UNSET_ID] * 3,
        ord("f"),
    ]
    assert [int(ids["part"][0, 0]) for ids in system.columns][1:] == list(b"abcdefg")


def test_a_system_can_be_told_the_true_whole() -> None:
    task: ScoredTask = TwoLetters()
    given = list(answer(Copies(PART, WHOLE), [task.item(0, 0)], true_whole=True))
    assert given == [{0: "y", 1: "z"}]


def test_a_text_costs_the_same_below_what_is_not_scored() -> None:
    """What stands above is read, and neither it nor the end is scored."""
    alone, below = text_nats(Copies(PART), ["abc", "abc"], ["", "xyz\u00e9"])
    assert alone.shape == below.shape == (3,)
    assert alone == pytest.approx(below)
    wrong = text_nats(Copies(PART, shift=0), ["abc"])[0]
    assert wrong == pytest.approx(alone + 1)


def test_lines_of_every_form_are_answered() -> None:
    system = Copies(PART)
    item = {
        "task": "t",
        "id": 3,
        "text": "ab=c ",
        "answers": [{"kind": "x", "start": 3, "text": "c"}],
    }
    told = next(answer_lines(system, [item]))
    assert told["answers"] == ["c"]
    assert told["nats"] == pytest.approx([text_nats(system, ["ab=c"])[0][3]])
    choice = {"task": "t", "id": 4, "kind": "k", "right": ["ab", "cd"], "wrong": ["ab", "dc"]}
    losses = next(answer_lines(system, [choice]))["losses"]
    each = [text_nats(system, [text])[0].sum() for text in ("ab", "cd", "dc")]
    assert losses == pytest.approx([each[0] + each[1], each[0] + each[2]])
    contexts = {"own": "x\n", "other": "", "absent": ""}
    line = {"task": "t", "id": 5, "contexts": contexts, "text": "a\u00e9Ruth", "names": [(2, 6)]}
    found = next(answer_lines(system, [line]))
    paid = text_nats(system, ["a\u00e9Ruth"], ["x\n"])[0]
    assert found["nats"]["own"] == pytest.approx(paid.sum())
    assert found["name_nats"]["own"] == pytest.approx(paid[3:].sum())  # two bytes of one letter


def test_symbols_are_grouped_by_the_smallest_tree_that_they_share_with_the_one_before() -> None:
    task = RandomHierarchy(num_levels=3, branching=2)
    item = task.item(0, 0)
    found = {place: name for name, places in task.groups(item).items() for place in places}
    expected = {}
    for place in set(range(1, 8)) - {item.facts["missing"]}:
        trees = [level for level in (1, 2, 3) if place >> level == (place - 1) >> level]
        expected[place] = f"level {min(trees)}"
    assert found == expected
    assert isinstance(task, GroupsSymbols)


def test_costs_of_a_group_are_those_of_its_symbols_after_the_true_text() -> None:
    task = RandomHierarchy(num_levels=3, branching=3, num_rules=2)
    items = [task.item(0, number) for number in range(5)]
    system = tiny.single()
    found = group_nats(system, task, items, batch_items=2)
    paid = text_nats(system, [item.text for item in items])
    assert found.keys() == {"level 1", "level 2", "level 3"}
    for name, mean in found.items():
        pairs = zip(items, paid, strict=True)
        own = [nats[place] for item, nats in pairs for place in task.groups(item)[name]]
        assert mean == pytest.approx(sum(own) / len(own), rel=1e-4)
