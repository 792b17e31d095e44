"""The rounding of another processor, for tests that must not rest on that of this one.

Kernels of matrix products choose by the shapes how they sum up, so that a product of other shapes
may have other last bits, although the numbers are the same; and so may an equal row at another
place of one product (with AVX2 in 40 of 152 shapes tried, with AVX-512 in none). Which round alike
differs from processor to processor: a test of equal bits may hold on one and fail on the next.
Under this mode all shapes and all places round differently. What the library promises bit for bit
holds here too, because it promises that for calls of equal shapes and the same row only.

    pytest tests/systems --other-rounding

Only the thread and the process that run the tests are in the mode, so that tests which compare with
another thread or process (`test_simultaneous.py`, runs that are killed) fail under it.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = frozenset(
    {
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "mv",
        "addmv",
        "dot",
        "linear",
        "convolution",
        "_weight_int8pack_mm",
        "_scaled_dot_product_flash_attention_for_cpu",
    }
)


class OtherRounding(TorchDispatchMode):
    """Changes last bits of every product on a CPU, always alike for operands of equal shapes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and change what a product gives."""
        call: Callable[..., Any] = func
        result = call(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        product = result[0] if isinstance(result, tuple) else result
        if name in PRODUCTS and product.is_floating_point() and product.is_cpu:
            shapes = [tuple(operand.shape) for operand in args if isinstance(operand, Tensor)]
            product.mul_(_last_bits(f"{name} {shapes}", product))
        return result


def _last_bits(key: str, product: Tensor) -> Tensor:
    """Factors of 1, or a step of the dtype beside it, for each number of a product."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    steps = torch.randint(-1, 2, product.shape, generator=generator)
    return 1 + torch.finfo(product.dtype).eps * steps.to(product.dtype)
