import torch

from counterpoint.streams.batch import Batch


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
