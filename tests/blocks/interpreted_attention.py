"""A program: the kernels of Multi-Token Attention in Triton's interpreter, beside the naive form.

It needs a process of its own, in which TRITON_INTERPRET is set before Triton is imported.
"""

import sys

import torch

from counterpoint.blocks.multi_token_attention_fused import FUSED
from counterpoint.blocks.multi_token_attention_lifted import attend_lifted
from counterpoint.blocks.multi_token_attention_reference import attend_naively
from counterpoint.blocks.multi_token_attention_rows import Kernels, RowReach
from tests.blocks.multi_token_cases import CASES, random_kernels, starts


def drawn(*size: int) -> torch.Tensor:
    return (0.3 * torch.randn(size)).requires_grad_()


def kernels_of(name: str) -> Kernels:
    """Small kernels, and maps of two heads."""
    return {
        "plain": Kernels(),
        "conv_before": Kernels(conv_before=drawn(2, 2, 3)),
        "conv_after": Kernels(conv_after=drawn(2, 2, 3)),
        "mixing": Kernels(mix_before=drawn(1, 2, 2), mix_after=drawn(1, 2, 2)),
        "wide": Kernels(drawn(2, 3, 5), drawn(1, 2, 2)),
        "all": Kernels(drawn(2, 3, 5), drawn(1, 2, 2), drawn(2, 3, 5), drawn(1, 2, 2)),
    }[name]


def named_inputs(name: str, num_steps: int) -> tuple[list[torch.Tensor], Kernels, torch.Tensor]:
    """Queries, keys and values, small kernels, and short documents in the last row."""
    kernels = kernels_of(name)
    # Shifts by three queries of two heads make 144 features: over eight parts of 16 are in a loop.
    num_rows, width = (1, 24) if name == "wide" else (2, 6)
    q = torch.randn(num_rows, 2, num_steps, width, requires_grad=True)
    k, v = (torch.randn(num_rows, 1, num_steps, width, requires_grad=True) for _ in "kv")
    start = torch.zeros(num_rows, num_steps, dtype=torch.long)
    start[-1, 5:] = 5
    start[-1, 18:] = 18
    return [q, k, v], kernels, start


def case_inputs(number: int, num_steps: int) -> tuple[list[torch.Tensor], Kernels, torch.Tensor]:
    """The same for a row of the pairwise options, with four heads of two features."""
    case = CASES[number]
    num_groups = case["num_kv_heads"] or 4
    q = torch.randn(1, 4, num_steps, 2, requires_grad=True)
    k, v = (torch.randn(1, num_groups, num_steps, 2, requires_grad=True) for _ in "kv")
    kernels = Kernels(
        *(
            None if kernel is None else kernel.float().requires_grad_()
            for kernel in random_kernels(case)
        )
    )
    return [q, k, v], kernels, starts(1, num_steps, case["packed"])


def main(name: str, num_steps: int, window: int) -> None:
    torch.manual_seed(0)
    (q, k, v), kernels, start = (
        case_inputs(int(name), num_steps) if name.isdigit() else named_inputs(name, num_steps)
    )
    start = torch.maximum(start, torch.arange(num_steps) - window + 1)
    inputs = [q, k, v, *(kernel for kernel in kernels if kernel is not None)]
    found = attend_lifted(q, k, v, kernels, RowReach(start, window, is_plain=False), FUSED)
    expected = attend_naively(q, k, v, kernels, start)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    sys.stdout.write(f"equal {name}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
