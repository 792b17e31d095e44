"""Inputs of lanes for Multi-Token Attention; as a program: its compiled form beside the other one.

The program is a process of its own, because the compiler cannot look through run-time type checks.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

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


def compared_bytes(num_steps: int) -> tuple[int, int]:
    """Compare a compiled lane with one that is not; return what each of them keeps."""
    lanes = lanes_of(num_steps, 500)
    own = [one[1].detach().requires_grad_() for one in lanes.tensors]
    compiled = torch.compile(
        read, fullgraph=True, dynamic=False, backend="aot_eager_decomp_partition"
    )
    start = lanes.start[1]
    found, expected = (form(start, lanes.window, *own) for form in (compiled, read))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    grad = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, own, grad),
        torch.autograd.grad(expected, own, grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    return (
        kept_bytes(partial(compiled, start, lanes.window, *own)),
        kept_bytes(partial(read, start, lanes.window, *own)),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    few = compared_bytes(70)
    many = compared_bytes(140)
    assert many[0] - few[0] <= 3 * (many[1] - few[1]), (few, many)
    sys.stdout.write(f"linear {few} {many}\n")
