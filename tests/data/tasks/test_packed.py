import numpy as np
import pytest
import torch

from counterpoint.blocks.transformer import TowerConfig
from counterpoint.data.tasks.items import Item, Trained, Writer
from counterpoint.data.tasks.packed import PackedItems
from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.source import item_rows
from counterpoint.data.text.packing import PackedRows
from counterpoint.data.text.shards import ShardWriter, TokenShards
from counterpoint.data.text.tokenizer import ByteTokenizer
from counterpoint.errors import UserError
from counterpoint.streams.spec import UNSET_ID
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
        assert [int(unit) for row in indices for unit in rows.items(int(row))] == [0, 1, 2, 3, 4]


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
