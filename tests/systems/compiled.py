"""Checks of compiled systems, for a process of their own: see `test_compile.py`."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.testing import CompileCounter

from counterpoint.runtime.compiled import compile_ticks
from tests.systems.contract_models import batch_of, build, close, joined, piece, random_ticks
from tests.systems.scoring import extend, first_scores

System = Any  # each has a state type of its own


def compiled(call: Any, backend: str = "aot_eager") -> Any:
    """One graph, or an error that says where it breaks."""
    return torch.compile(call, fullgraph=True, backend=backend)


def forward_and_loss(model: System) -> None:
    """Within a window, and longer than two."""
    for num_ticks in (5, 33):
        batch = batch_of(model, random_ticks(model, 2, num_ticks))
        forward = compiled(model)
        with torch.no_grad():
            close(forward(batch), model(batch))
        loss = compiled(model.loss)
        torch.testing.assert_close(loss(batch).total, model.loss(batch).total)


def read(model: System) -> None:
    """Pairs of ticks of two rows, so that blocks end within a chunk and rings wrap."""
    ticks = random_ticks(model, 2, 60)
    step = compiled(model.read)
    pieces, state = [], model.initial_state(2)
    with torch.no_grad():
        for first in range(0, 60, 2):
            hidden, state = step(piece(ticks, first, first + 2), state)
            pieces.append(first_scores(model, hidden))
        close(joined(pieces), model(batch_of(model, ticks)))


def training_step(model: System) -> None:
    """The whole of torch's compiler, gradients included."""
    batch = batch_of(model, random_ticks(model, 2, 32))
    model.loss(batch).total.backward()
    expected = {key: weight.grad for key, weight in model.named_parameters()}
    model.zero_grad()
    compiled(model.loss, "inductor")(batch).total.backward()
    for key, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[key], rtol=1e-4, atol=1e-5)


def ticks(model: System) -> None:
    """One row tick by tick, kernels and all; the prompt before it is not compiled."""
    row = random_ticks(model, 1, 50)
    with torch.no_grad():
        expected = model(batch_of(model, row))
        compile_ticks(model)
        logits, state = extend(model, piece(row, 0, 9), model.initial_state(1))
        pieces = [logits]
        for tick in range(9, 50):
            logits, state = extend(model, piece(row, tick, tick + 1), state)
            pieces.append(logits)
    close(joined(pieces), expected)


def stages(model: System) -> None:
    """One graph for each stage of a training, and the losses of the model as it is there."""
    counter = CompileCounter()
    batch = batch_of(model, random_ticks(model, 2, 33))
    loss: Any = torch.compile(model.train().loss, backend=counter)
    starts = model.stages(20)
    assert len(starts) > 1
    for step in range(20):
        model.at_step(step, 20)
        torch.manual_seed(step)
        found = loss(batch).total
        torch.manual_seed(step)
        torch.testing.assert_close(found, model.loss(batch).total, rtol=0, atol=0)
        assert counter.frame_count == sum(start <= step for start in starts)


CHECKS: dict[str, Callable[[System], None]] = {
    "forward_and_loss": forward_and_loss,
    "read": read,
    "training_step": training_step,
    "ticks": ticks,
    "stages": stages,
}


def main(check: str, system: str, name: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    CHECKS[check](build(system, name))


if __name__ == "__main__":
    main(*sys.argv[1:])
