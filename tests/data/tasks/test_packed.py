import numpy as np
import pytest
import torch

from counterpoint.blocks.transformer import TowerConfig
from counterpoint.data.loader import CountedRows
from counterpoint.data.tasks.items import Item, Trained, Writer
from counterpoint.data.tasks.packed import PackedItems, item_digest
from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.source import ItemRows, TaskData, item_rows
from counterpoint.data.text.packing import PackedRows
from counterpoint.data.text.shards import ShardWriter, TokenShards
from counterpoint.data.text.tokenizer import ByteTokenizer
from counterpoint.digests import ids_digest
from counterpoint.errors import UserError
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems import sketch
from counterpoint.systems.single_stream import SingleStream, SingleStreamConfig

REASONING = Reasoning(families=("arithmetic", "dyck"), unique=12, most_symbols=90)


def items(count: int = 20) -> list[Item]:
    return [REASONING.item(0, number) for number in range(count)]


@pytest.mark.parametrize("trained", ["all", "answer", "spans"])
def test_a_packed_item_costs_what_it_costs_alone(trained: Trained) -> None:
    """Whatever stands beside it: the loss of all rows is that of all items."""
    tower = TowerConfig(width=16, num_layers=1, num_heads=2, mlp_hidden=24, window=128)
    torch.manual_seed(0)
    system = SingleStream(SingleStreamConfig(tower=tower))
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    packed = PackedItems(items(), 256, 1, trained)
    together = packed.rows(np.arange(len(packed)))
    alone = item_rows(items(), system.layout, 90, trained)
    assert together.size == alone.size > 0
    costs = [system.losses(batch)["part"] for batch in (together, alone)]
    torch.testing.assert_close(costs[0].nats, costs[1].nats, rtol=1e-5, atol=1e-4)
    assert len(packed) < len(items())


def test_trained_symbols_are_those_of_the_policy() -> None:
    (item,) = items(1)
    for trained, text in (
        ("all", item.text),
        ("spans", item.text[item.spans["prompt"][1] :]),
        ("answer", item.answers[0].text),
    ):
        targets = PackedItems([item], 90, 1, trained).rows(np.array([0])).targets["part"]  # type: ignore[arg-type]
        assert bytes(targets[targets != UNSET_ID].tolist()).decode() == text


def test_rows_know_their_tokens_and_items() -> None:
    packed = PackedItems(items(), 256, 8, "all")
    every = packed.rows(np.arange(len(packed)))
    assert packed.tokens(np.arange(len(packed))).tolist() == (
        (every.targets["part"] != UNSET_ID).sum(1).tolist()
    )
    numbers = [int(number) for row in range(len(packed)) for number in packed.items(row)]
    assert len(numbers) == 20
    assert len(set(numbers)) == 12  # the corpus repeats after so many
    starts = every.document_start
    assert (starts % 8 == 0).all()
    assert (starts <= torch.arange(256)).all()


def test_packed_text_counts_its_tokens_and_units(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("shards") / "text"
    with ShardWriter(folder, ByteTokenizer()) as writer:
        for length in (3, 40, 1, 17, 90):
            writer.add("x" * length)
    for block_ticks in (1, 4):
        rows = PackedRows(TokenShards(folder), 32, block_ticks)
        indices = np.arange(len(rows))
        targets = rows.rows(indices).targets["part"]
        assert rows.tokens(indices).tolist() == (targets != UNSET_ID).sum(1).tolist()
        assert [int(unit) for row in indices for unit in rows.items(int(row))] == [
            ids_digest(np.full(length, ord("x"))) for length in (3, 40, 1, 17, 90)
        ]


def test_equal_content_is_one_item_in_whatever_rows(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("shards") / "text"
    with ShardWriter(folder, ByteTokenizer()) as writer:
        for item in items(3):
            writer.add(item.text)
    layout = SingleStreamConfig(
        tower=TowerConfig(width=16, num_layers=1, num_heads=2, mlp_hidden=24, window=128)
    )
    task = TaskData(task=REASONING, num_items=3)
    kinds: list[CountedRows] = [
        PackedRows(TokenShards(folder), 32, 4),
        PackedItems(items(3), 120, 8, "spans"),
        ItemRows(lambda number: items(3)[number], np.arange(3), task.prepare(sketch(layout))),
    ]
    for rows in kinds:
        found = [one for row in range(len(rows)) for one in rows.items(row).tolist()]
        assert found == [item_digest(item) for item in items(3)]


def test_the_rest_of_items_is_packed_anew() -> None:
    packed = PackedItems(items(), 256, 8, "all")
    alone = [items()[number] for number in (2, 3, 4, 11, 19)]
    rest = packed.rest(np.array([[2, 5], [11, 12], [19, 20]]))
    wanted = PackedItems(alone, 256, 8, "all")
    every = np.arange(len(wanted))
    assert len(rest) == len(wanted)
    for name in ("ticks", "targets"):
        assert torch.equal(
            getattr(rest.rows(every), name)["part"], getattr(wanted.rows(every), name)["part"]
        )
    assert torch.equal(rest.rows(every).document_start, wanted.rows(every).document_start)
    assert rest.tokens(every).tolist() == wanted.tokens(every).tolist()
    for row in range(len(rest)):
        assert rest.items(row).tolist() == wanted.items(row).tolist()
    assert rest.spans(every)[[0, -1], [0, 1]].tolist() == [2, 20]
    assert len(packed.rest(np.empty((0, 2), np.int64))) == 0


def test_the_rest_of_text_begins_where_other_rows_ended(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("shards") / "text"
    with ShardWriter(folder, ByteTokenizer()) as writer:
        for length in (3, 40, 1, 17, 90):
            writer.add("x" * length)
    rows = PackedRows(TokenShards(folder), 32, 4)
    # 168 ticks: the last row is filled up, and 12 ticks of the first span are no row.
    rest = rows.rest(np.array([[4, 48], [100, 168]]))
    every = np.arange(len(rest))
    assert rest.spans(every).tolist() == [[4, 36], [100, 132], [132, 164], [164, 168]]
    batch = rest.rows(every)
    whole = rows.rows(np.arange(len(rows)))
    padded = np.concatenate((whole.ticks["part"].numpy().ravel(), np.full(32, 257)))
    for row, (begin, end) in enumerate(rest.spans(every)):
        own = batch.ticks["part"][row].numpy()
        assert own[: end - begin].tolist() == padded[begin:end].tolist()
        assert set(own[end - begin :]) <= {ByteTokenizer().end_id}
    assert rest.tokens(every).tolist() == (batch.targets["part"] != UNSET_ID).sum(1).tolist()
    assert [len(rest.items(int(row))) for row in every] == [1, 0, 0, 0]


def test_items_that_do_not_fit_are_refused() -> None:
    writer = Writer()
    writer.write("x" * 20)
    item = writer.item()
    with pytest.raises(UserError, match="`row_ticks` must hold a whole item: one has 20 symbols"):
        PackedItems([item], 16, 1, "all")
    with pytest.raises(UserError, match="A source of items must have at least one"):
        PackedItems([], 16, 1, "all")
    with pytest.raises(UserError, match="`row_ticks` must be a multiple of the layout's block_t"):
        PackedItems(items(1), 100, 8, "all")
