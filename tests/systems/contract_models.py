"""Every system in several tiny shapes, and what the contract's tests feed it, whatever it reads."""

from typing import Any

import torch
from torch import Tensor

from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import Ticks
from counterpoint.systems import SYSTEMS, AnySystem
from counterpoint.systems.moshi import Moshi
from tests.systems import tiny_models, tiny_moshi

CONFIGS: dict[str, dict[str, Any]] = {**tiny_models.CONFIGS, "moshi": tiny_moshi.CONFIGS}


def build(system: str, name: str) -> AnySystem:
    """A model with random non-zero parameters."""
    model = tiny_models.randomised(SYSTEMS[system](CONFIGS[system][name]))
    assert isinstance(model, AnySystem)
    return model


def sizes(model: AnySystem) -> dict[str, Tensor]:
    """Ids of every element of a tick that is read, by stream, in the order of a frame."""
    if not isinstance(model, Moshi):
        return {"part": torch.tensor(tiny_models.VOCAB)}
    return tiny_moshi.sizes(model)


def predicted(model: AnySystem) -> list[str]:
    """Streams that `forward` scores."""
    if not isinstance(model, Moshi):
        return ["part"]
    return ["text", *(stream.name for stream in model.predicted)]


def random_ticks(model: AnySystem, rows: int, ticks: int) -> dict[str, Tensor]:
    """Random ids of every stream that is read."""
    return {
        name: (torch.rand(rows, ticks, *size.shape) * size).long()
        for name, size in sizes(model).items()
    }


def batch_of(model: AnySystem, ticks: Ticks, starts: Tensor | None = None) -> Batch:
    """Rows as a batch; targets are the next elements of the same document."""
    shape = next(iter(ticks.values())).shape[:2]
    starts = torch.zeros(shape, dtype=torch.long) if starts is None else starts
    targets = {}
    for name in predicted(model):
        ids = ticks[name]
        same = (starts[:, 1:] == starts[:, :-1]).view(shape[0], -1, *[1] * (ids.ndim - 2))
        targets[name] = torch.full_like(ids, -1)
        targets[name][:, :-1] = torch.where(same, ids[:, 1:], -1)
    return Batch(ticks=ticks, targets=targets, document_start=starts, size=starts.numel())


def piece(by_stream: Ticks, first: int, stop: int) -> dict[str, Tensor]:
    """Some ticks of every stream."""
    return {name: value[:, first:stop] for name, value in by_stream.items()}


def rows_of(by_stream: Ticks, rows: Any) -> dict[str, Tensor]:
    """Some rows of every stream."""
    return {name: value[rows] for name, value in by_stream.items()}


def joined(pieces: list[dict[str, Tensor]], dim: int = 1) -> dict[str, Tensor]:
    """Ticks behind each other, stream by stream."""
    return {name: torch.cat([one[name] for one in pieces], dim) for name in pieces[0]}


def changed(model: AnySystem, ticks: Ticks) -> dict[str, Tensor]:
    """Another id for every element."""
    return {name: (ids + 1) % sizes(model)[name] for name, ids in ticks.items()}


def close(ours: Ticks, theirs: Ticks) -> None:
    """Equal to float tolerance, stream by stream; ``theirs`` may have more streams."""
    assert ours
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-5)


def equal(ours: Ticks, theirs: Ticks) -> bool:
    """Equal bit for bit."""
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) for name, value in ours.items()
    )
