"""The coarse text of items: what it says, and where it stands beside the part."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from counterpoint.data.tasks.items import Item, ItemAnswer, WholeLabel
from counterpoint.data.tasks.part_whole import TASKS
from counterpoint.data.tasks.source import PreparedTask, TaskData, label_stream, labels
from counterpoint.data.text.tokenizer import ByteTokenizer
from counterpoint.errors import UserError
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream
from counterpoint.systems.single_stream import SingleStream
from tests.systems.tiny_models import single

PART = Stream(name="part", role=Role.PART, vocab_size=258, predicted=True)
WHOLE = Stream(
    name="whole",
    role=Role.WHOLE,
    vocab_size=258,
    depth=4,
    period_ticks=4,
    delay_ticks=4,
    padding_id=257,
    predicted=True,
)
ITEM = Item(
    "abcdefghi", (ItemAnswer("x", 8, "i"),), whole=(WholeLabel(3, "p"), WholeLabel(6, "qr"))
)


@pytest.mark.parametrize("name", TASKS)
def test_labels_are_short_and_said_once(name: str) -> None:
    for number in range(30):
        item = TASKS[name].item(5, number)
        starts = [label.start for label in item.whole]
        assert item.whole
        assert starts == sorted(set(starts))
        assert starts[-1] <= len(item.text)
        assert all(label.text.isascii() and 1 <= len(label.text) <= 4 for label in item.whole)
        pairs = zip(item.whole, item.whole[1:], strict=False)
        assert all(one.text != other.text for one, other in pairs)


def test_labels_follow_from_what_has_been_read() -> None:
    for number in range(20):
        item = TASKS["logbook"].item(1, number)
        for label in item.whole:
            counts = Counter(item.text[: label.start : 3])
            assert counts[label.text] == max(counts.values())
        item = TASKS["audit"].item(1, number)
        for label in item.whole:
            values = dict.fromkeys("abcd", 0)
            for word in item.text[: label.start].split():
                if word[1] == "+":
                    values[word[0]] = (values[word[0]] + int(word[2])) % 10
            assert label.text == "".join(map(str, values.values()))
        item = TASKS["acrostic"].item(1, number)
        assert item.whole[0].text == item.text[:4]
        item = TASKS["sections"].item(1, number)
        headers = [item.text[label.start - 2] for label in item.whole[:-1]]
        assert headers == [label.text for label in item.whole[:-1]]
        item = TASKS["navon"].item(1, number)
        assert [len(label.text) for label in item.whole] == [1, 2, 3, 4]


def test_a_slow_stream_has_the_label_that_holds_at_the_end_of_each_step() -> None:
    # Tick 0 begins the document: behind tick 3 three symbols have been read, behind tick 7 seven.
    found = labels(ITEM, WHOLE, 17).tolist()
    assert found[0] == [ord("p"), 257, 257, 257]
    assert found[1] == [ord("q"), ord("r"), 257, 257]
    assert found[2:] == [[UNSET_ID] * 4] * 2  # behind the text


def test_before_the_first_label_stands_padding_or_nothing() -> None:
    fast = replace(WHOLE, period_ticks=2, delay_ticks=0)
    assert labels(ITEM, fast, 6).tolist()[0] == [257] * 4
    assert labels(ITEM, replace(fast, padding_id=None), 6).tolist()[0] == [UNSET_ID] * 4


def test_where_steps_are_ticks_a_label_stands_once() -> None:
    found = labels(ITEM, replace(WHOLE, period_ticks=1, depth=2), 12).tolist()
    assert [step for step, ids in enumerate(found) if ids[0] == ord("p")] == [3]
    assert [step for step, ids in enumerate(found) if ids == [ord("q"), ord("r")]] == [6]
    assert found[4] == [257, 257]
    assert found[10] == [UNSET_ID] * 2


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="longest label, 2: got 1"):
        labels(ITEM, replace(WHOLE, depth=1), 12)
    with pytest.raises(UserError, match="fixed length"):
        labels(ITEM, replace(WHOLE, irregular=True), 12)
    more = replace(WHOLE, name="more")
    with pytest.raises(UserError, match="whole, more"):
        label_stream(Layout(streams=(PART, WHOLE, more)))


def test_rows_have_the_whole_where_it_arrives() -> None:
    data = TaskData(task=TASKS["logbook"])
    prepared = PreparedTask(data, Layout(streams=(PART, WHOLE)))
    item = data.task.item(0, 0)
    batch = prepared.batch([item])
    whole = batch.ticks["whole"][0]
    assert whole.shape == (prepared.num_ticks, 4)
    # The step of ticks 0 to 3 comes one block later: it stands in column 7.
    assert torch.equal(whole[7::4], torch.tensor(labels(item, WHOLE, prepared.num_ticks)[:-1]))
    stands = (whole != UNSET_ID).any(1).nonzero()[:, 0]
    assert set((stands % 4).tolist()) == {3}
    assert torch.equal(batch.targets["whole"][0, :-1], whole[1:])
    alone = PreparedTask(data, Layout(streams=(PART,))).batch([item])
    assert torch.equal(alone.ticks["part"], batch.ticks["part"])
    assert torch.equal(alone.targets["part"], batch.targets["part"])
    assert alone.size == batch.size
    assert list(alone.ticks) == ["part"]


def test_a_part_without_a_second_stream_reads_what_it_always_read() -> None:
    data = TaskData(task=TASKS["navon"], trained="all")
    prepared = data.prepare(SingleStream(replace(single(64), vocab_size=258)))
    item = data.task.item(0, 0)
    batch: Any = prepared.batch([item])
    assert batch.ticks["part"][0, 0] == ByteTokenizer().start_id
    assert bytes(batch.targets["part"][0].clamp(min=0).tolist()).rstrip(b"\0").decode() == item.text
    assert batch.size == len(item.text)
