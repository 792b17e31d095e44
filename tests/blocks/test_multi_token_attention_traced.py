"""Multi-Token Attention where values must not be read: compiled, or mapped over lanes."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from counterpoint.blocks.multi_token_attention_rows import Kernels, RowReach, attend_chunked
from counterpoint.tracing import tracing

LANES = 2


class Lanes(NamedTuple):
    """Inputs of each lane, and which steps its queries may read."""

    tensors: list[Tensor]
    start: Tensor
    window: int


def lanes_of(num_steps: int, window: int) -> Lanes:
    """Rows with everything on; the second lane has two documents."""
    torch.manual_seed(0)
    sizes = [(1, 4, num_steps, 2), *[(1, 2, num_steps, 2)] * 2, (4, 6, 11), (2, 2, 2)]
    tensors = [torch.randn(LANES, *size, dtype=torch.float64) for size in [*sizes, *sizes[3:]]]
    start = torch.zeros(LANES, 1, num_steps, dtype=torch.long)
    start[1, :, num_steps // 3 :] = num_steps // 3
    start = torch.maximum(start, torch.arange(num_steps) - window + 1)
    return Lanes([one.requires_grad_() for one in tensors], start, window)


def read(start: Tensor, window: int, q: Tensor, k: Tensor, v: Tensor, *kernels: Tensor) -> Tensor:
    return attend_chunked(q, k, v, Kernels(*kernels), RowReach(start, window, is_plain=False))


def read_in_turn(lanes: Lanes) -> Tensor:
    each = zip(lanes.start, *lanes.tensors, strict=True)
    return torch.stack([read(start, lanes.window, *own) for start, *own in each])


def read_mapped(lanes: Lanes) -> Tensor:
    axes = (0, None, *[0] * len(lanes.tensors))
    with tracing():
        found: Tensor = torch.vmap(read, axes)(lanes.start, lanes.window, *lanes.tensors)
    return found


def gradients(lanes: Lanes, found: Tensor) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return torch.autograd.grad(found, lanes.tensors, torch.randn_like(found))


def kept_bytes(call: Callable[[], Tensor]) -> int:
    """Bytes that are kept for the gradient; tensors that share memory count once."""
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = call()  # without a result nothing would be kept
    assert result.requires_grad
    return sum(x.untyped_storage().nbytes() for x in kept.values())


@pytest.mark.parametrize("window", [30, 500])
def test_lanes_of_a_map_read_what_they_read_alone(window: int) -> None:
    lanes = lanes_of(140, window)
    alone, mapped = read_in_turn(lanes), read_mapped(lanes)
    torch.testing.assert_close(mapped, alone, rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients(lanes, mapped), gradients(lanes, alone), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_map_keeps_memory_that_grows_with_the_steps() -> None:
    few, many = (kept_bytes(partial(read_mapped, lanes_of(n, 500))) for n in (150, 300))
    assert many <= 2 * few
    assert many == kept_bytes(partial(read_in_turn, lanes_of(300, 500)))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("compiler")
def test_a_compiled_graph_keeps_memory_that_grows_with_the_steps() -> None:
    found = []
    for num_steps in (70, 140):
        start, window = lanes_of(num_steps, 500)[1:]
        lane = [one[0].detach().requires_grad_() for one in lanes_of(num_steps, 500).tensors]
        compiled = torch.compile(
            read, fullgraph=True, dynamic=False, backend="aot_eager_decomp_partition"
        )
        result, expected = (call(start[0], window, *lane) for call in (compiled, read))
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
        gradient = torch.randn_like(result)
        for ours, theirs in zip(
            torch.autograd.grad(result, lane, gradient),
            torch.autograd.grad(expected, lane, gradient),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        found.append(kept_bytes(partial(compiled, start[0], window, *lane)))
    assert found[1] <= 2.3 * found[0]
