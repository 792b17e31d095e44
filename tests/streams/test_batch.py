from dataclasses import replace

import pytest
import torch

from counterpoint.errors import UserError
from counterpoint.streams.batch import Amount, Batch, join_batches


def rows(first: int, num_rows: int) -> Batch:
    """Rows of four ticks whose ids tell them apart."""
    ids = 10 * (first + torch.arange(num_rows))[:, None] + torch.arange(4)
    return Batch(
        ticks={"part": ids},
        targets={"part": ids + 1},
        document_start=torch.zeros_like(ids),
        size=4 * num_rows,
        amounts={"a": Amount(rows=num_rows, items=1)},
        numbers={"reward": ids[:, :1].float()},
    )


def test_batch_moves_every_tensor_and_keeps_the_rest() -> None:
    batch = Batch(
        ticks={"part": torch.zeros(2, 8, dtype=torch.long), "whole": torch.ones(2, 2).long()},
        targets={"part": torch.ones(2, 8, dtype=torch.long)},
        document_start=torch.zeros(2, 8, dtype=torch.long),
        size=16,
    )
    moved = batch.to("meta")
    tensors = [*moved.ticks.values(), *moved.targets.values(), moved.document_start]
    assert [tensor.device.type for tensor in tensors] == ["meta"] * 4
    assert [tuple(tensor.shape) for tensor in tensors] == [(2, 8), (2, 2), (2, 8), (2, 8)]
    assert moved.size == 16
    assert batch.document_start.device.type == "cpu"


def test_joined_rows_keep_their_numbers_and_lengths() -> None:
    short = replace(rows(3, 1), lengths=torch.tensor([2]), amounts={"b": Amount(rows=1)})
    found = join_batches([rows(0, 2), short, rows(4, 1)])
    assert found.ticks["part"][:, 0].tolist() == [0, 10, 30, 40]
    assert found.targets["part"][:, 0].tolist() == [1, 11, 31, 41]
    assert found.numbers["reward"].tolist() == [[0.0], [10.0], [30.0], [40.0]]
    assert found.lengths is not None
    assert found.lengths.tolist() == [4, 4, 2, 4]
    assert found.size == 16
    assert found.amounts == {"a": Amount(rows=3, items=2), "b": Amount(rows=1)}
    taken = found.rows(torch.tensor([2, 0]))
    assert taken.ticks["part"][:, 0].tolist() == [30, 0]
    assert taken.numbers["reward"].tolist() == [[30.0], [0.0]]
    assert taken.lengths is not None
    assert taken.lengths.tolist() == [2, 4]


def test_joined_ticks_have_no_numbers_of_rows() -> None:
    one, other = (replace(rows(first, 1), numbers={}) for first in (0, 1))
    found = join_batches([one, other], 1)
    assert found.ticks["part"].tolist() == [[0, 1, 2, 3, 10, 11, 12, 13]]
    assert found.lengths is None
    for wrong in (rows(1, 1), replace(other, lengths=torch.tensor([4]))):
        with pytest.raises(UserError, match="neither numbers nor lengths|the same unit"):
            join_batches([one, wrong], 1)
    with pytest.raises(UserError, match="neither numbers nor lengths"):
        join_batches([rows(0, 1), rows(1, 1)], 1)


@pytest.mark.parametrize(
    "unlike",
    [
        replace(rows(0, 1), unit="frame"),
        replace(rows(0, 1), kind="rollouts"),
        replace(rows(0, 1), numbers={}),
        replace(rows(0, 1), targets={}),
    ],
)
def test_unlike_batches_are_not_joined(unlike: Batch) -> None:
    for batches in ([rows(0, 1), unlike], [unlike, rows(0, 1)]):
        with pytest.raises(UserError, match="must have the same unit, kind, streams and numbers"):
            join_batches(batches)
