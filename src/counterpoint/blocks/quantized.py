"""Weights of 8 bits: each row of a matrix is stored as whole numbers and one scale.

A tick of one session reads every weight once and computes little with it, so its time is the time
of reading; int8 is a quarter of float32. Activations are not quantised.

Scales are float32, so that weights are rounded only once: rows of 8 bits from a file, such as
Kyutai's q8, are expanded to float32 when they are read, and give the same whole numbers and scales
here. Scales of bfloat16 would round every weight a second time.

Source: row-wise absolute maximum, as LLM.int8() (arXiv:2208.07339) stores weights, but without its
outlier columns.
"""

from collections.abc import Container
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor, nn

from counterpoint.blocks.depth import StepLinear
from counterpoint.errors import UserError

MOST_ROWS = 4
"""Largest number of vectors for which torch's int8 kernel for CPUs is faster, as measured."""

KERNEL_WIDTH = 16
"""Row lengths must be multiples of this: otherwise the kernel reads beyond rows or is wrong."""


def to_int8(
    weight: Float[Tensor, "_F _D"],
) -> tuple[Int8[Tensor, "_F _D"], Float[Tensor, " _F"]]:
    """Return whole numbers from -127 to 127, and for each row the scale that multiplies them."""
    weight = weight.detach().float()
    scale = weight.abs().amax(1).clamp(min=1e-12) / 127
    return (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def int8_linear(
    x: Float[Tensor, "*B _D"],
    codes: Int8[Tensor, "_F _D"],
    scale: Float[Tensor, " _F"],
    ones: Float[Tensor, " _F"] | None = None,
) -> Float[Tensor, "*B _F"]:
    """Multiply vectors by a weight from `to_int8`.

    On a CPU up to `MOST_ROWS` vectors go through a kernel that reads the stored weights directly
    and rounds vectors and products to bfloat16 (an error of 0.25 % of a product's length). The
    gradient of the vectors needs only the whole numbers and scales, and nothing else is kept for
    it.

    Args:
        x: Vectors.
        codes: Whole numbers.
        scale: Scale of each row of the weight.
        ones: A vector of ones in bfloat16, one for each row; if it is given, it need not be made.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if x.requires_grad and torch.is_grad_enabled():
        product: Tensor = _FrozenProduct.apply(x, codes, scale)  # type: ignore[no-untyped-call]
        return product
    rows = x.flatten(0, -2)
    fits = len(rows) <= MOST_ROWS and rows.shape[1] % KERNEL_WIDTH == 0
    if fits and x.device.type == "cpu":
        # The kernel accepts scales of bfloat16 only. It gets ones; the exact scales follow.
        if ones is None:
            ones = torch.ones_like(scale, dtype=torch.bfloat16)
        y = torch.ops.aten._weight_int8pack_mm(rows.bfloat16().contiguous(), codes, ones)
        y = y.view(*x.shape[:-1], -1)
    else:
        y = F.linear(x, codes.to(x.dtype))
    return (y * scale).to(x.dtype)


class _FrozenProduct(torch.autograd.Function):
    """Product of vectors with a frozen weight of 8 bits.

    `F.linear` would keep a copy of the weight in the type of the vectors for the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scale)
        return (F.linear(x, codes.to(x.dtype)) * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        codes, scale = ctx.saved_tensors
        return (grad * scale).to(grad.dtype) @ codes.to(grad.dtype), None, None


class _Int8Rows(nn.Module):
    """Base class of maps that are stored in 8 bits."""

    codes: Tensor
    scale: Tensor
    ones: Tensor
    like: Tensor
    """An empty tensor with the dtype and the device of the model."""

    def __init__(self, weight: Float[Tensor, "_F _D"]) -> None:
        super().__init__()
        codes, scale = to_int8(weight)
        self.register_buffer("like", weight.detach().new_empty(0), persistent=False)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        ones = torch.ones_like(scale, dtype=torch.bfloat16)
        self.register_buffer("ones", ones, persistent=False)

    @property
    def weight(self) -> Float[Tensor, "_F _D"]:
        """The weights in the dtype of `like`, computed anew at every access."""
        return (self.codes * self.scale[:, None]).to(self.like.dtype)


class Int8Linear(_Int8Rows):
    """A frozen linear map without bias whose weights are stored in 8 bits."""

    def __init__(self, linear: nn.Linear) -> None:
        """Quantise the weights of ``linear``.

        Raises:
            UserError: The map has a bias.
        """
        super().__init__(linear.weight)
        if linear._parameters.get("bias") is not None:
            raise UserError(
                "Only a linear map without bias can be stored in 8 bits: got one with a bias."
            )
        self.in_features = linear.in_features
        self.out_features = linear.out_features

    def forward(self, x: Float[Tensor, "*B _D"]) -> Float[Tensor, "*B _F"]:
        """Apply the map to the last axis."""
        return int8_linear(x, self.codes, self.scale, self.ones)


class Int8StepLinear(_Int8Rows):
    """A frozen `StepLinear` whose weights are stored in 8 bits."""

    def __init__(self, linear: StepLinear) -> None:
        """Quantise the weights of ``linear``."""
        super().__init__(linear.weight)
        self.out_features = linear.out_features
        self.schedule = linear.schedule

    def forward(
        self, x: Float[Tensor, "N *k _D"], first: int = 0, num_steps: int | None = None
    ) -> Float[Tensor, "N k _F"]:
        """Map steps, each with its own weights; see `StepLinear.forward`."""
        count = num_steps or x.shape[1]
        size = self.out_features
        pieces = []
        for step in range(count):
            place = slice(
                self.schedule[first + step] * size, (self.schedule[first + step] + 1) * size
            )
            vector = x if num_steps is not None else x[:, step]
            codes = self.codes[place]
            scale = self.scale[place]
            ones = self.ones[place]
            pieces.append(int8_linear(vector, codes, scale, ones))
        return pieces[0][:, None] if count == 1 else torch.stack(pieces, 1)

    def flops(self) -> int:
        """Return the FLOPs of all steps of a frame."""
        return 2 * len(self.schedule) * self.out_features * self.codes.shape[1]


def store_int8(model: nn.Module, kept: Container[nn.Module] = ()) -> None:
    """Store the matrices of a model in 8 bits, in place.

    Embeddings, norms and maps with a bias (small gates) are not changed. Call this last: trimming,
    pinning, loading and changing the dtype must come before, because converting the dtype of a
    stored model rounds its scales.

    Args:
        model: The model.
        kept: Parts of it that stay as they are.
    """
    for name, part in model.named_children():
        if part in kept:
            continue
        if isinstance(part, nn.Linear) and part._parameters.get("bias") is None:
            setattr(model, name, Int8Linear(part))
        elif isinstance(part, StepLinear):
            setattr(model, name, Int8StepLinear(part))
        else:
            store_int8(part, kept)
