"""Mimi, the codec of Moshi: speech as 12.5 frames of 80 ms a second.

Source: Moshi (arXiv:2410.00037), section 3.3, encoding and decoding for inference. No deviation is
known. Checked against `transformers` (MimiModel, offline) and against Kyutai's `moshi` package
(offline, and streaming until the window is full), both with random weights, because published
weights were not at hand.

It is implemented here because no package offers what sessions need. The streaming of `transformers`
keeps no state of the decoder's convolutions. `moshi` pins an older torch, and writes both steps of
a frame over keys that the first step may still read; therefore its stream differs from its offline
pass after 10 s, when the window of 250 steps is full. Here the offline pass is the stream from a
fresh start.
"""

import hashlib
from collections.abc import Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.blocks.attention import attend, streaming_reach, write_ring
from counterpoint.blocks.rope import rotate
from counterpoint.errors import UserError
from counterpoint.speech.codec import Decoder, Encoder, check_num_rows, decode_whole, encode_whole

HEAD_WIDTH = 64
LAYER_PARTS = (
    "qkv.weight",
    "out.weight",
    "linear1.weight",
    "linear2.weight",
    "norm1.weight",
    "norm1.bias",
    "norm2.weight",
    "norm2.bias",
    "scale1",
    "scale2",
)
"""Names of the weights in a layer of a transformer."""

_PIECE_FRAMES = 64  # frames at once; limits the memory, and the slots that attention needs


class Mimi:
    """Mimi with some of its codebooks: the first is semantic, the others refine each other.

    Ids are the nearest codebook entries. If two entries are equally near except for rounding in
    float32, another kernel, batch size or division of the stream may choose the other one, and with
    it other ids of the codebooks that refine it.

    Args:
        weights: Weights by the names that `counterpoint.formats` gives them, on the device to use.
        num_codebooks: Number of codebooks that are used, 1 to 32. Moshi uses 8.
        window: Number of steps of 40 ms that attention reads, including its own.

    Raises:
        UserError: The weights have fewer codebooks.
    """

    def __init__(
        self,
        weights: Mapping[str, Float[Tensor, "..."]],
        num_codebooks: int = 8,
        *,
        window: int = 250,
    ) -> None:
        total = sum(name.endswith(".embedding_sum") for name in weights)
        if not 1 <= num_codebooks <= total:
            raise UserError(f"`num_codebooks` must be 1 to {total}: got {num_codebooks}.")
        self.weights = {name: tensor.detach().float() for name, tensor in weights.items()}
        self.window = window
        places = ["semantic.0", *(f"acoustic.{k}" for k in range(num_codebooks - 1))]
        self.codebooks = [
            self.weights[f"{place}.embedding_sum"]
            / self.weights[f"{place}.cluster_usage"].clamp(min=1e-5)[:, None]
            for place in places
        ]
        self.sample_rate = 24000
        self.frame_samples = 2
        for k in range(self.num_stages):
            self.frame_samples *= self.weights[f"encoder.{3 * k + 3}.weight"].shape[2] // 2
        self.codebook_sizes = tuple(len(codebook) for codebook in self.codebooks)

    @cached_property
    def name(self) -> str:
        """Name: ``mimi``, the number of codebooks, and a hash of the window and the weights."""
        digest = hashlib.sha256(str(self.window).encode())
        for name, tensor in sorted(self.weights.items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return f"mimi-{len(self.codebooks)}-{digest.hexdigest()[:16]}"

    @property
    def frame_rate_hz(self) -> float:
        """Number of frames a second, which is 12.5."""
        return self.sample_rate / self.frame_samples

    @property
    def num_stages(self) -> int:
        """Number of strided convolutions in the encoder, and in the decoder as well."""
        return sum(name.endswith(".block1.weight") for name in self.weights) // 2

    def encode(self, audio: Float[Tensor, "B N"]) -> Int[Tensor, "B T K"]:
        """Encode whole recordings; see `Codec.encode`."""
        return encode_whole(self, audio, _PIECE_FRAMES)

    def decode(self, codes: Int[Tensor, "B T K"]) -> Float[Tensor, "B N"]:
        """Decode whole recordings; N is T * 1920. See `Codec.decode`."""
        return decode_whole(self, codes, _PIECE_FRAMES)

    def encoder(self, num_rows: int = 1) -> Encoder:
        """Return an encoder of recordings as they come; see `Codec.encoder`."""
        coder = _Analysis(self, num_rows)
        return Encoder(coder, num_rows, self.frame_samples, len(self.codebooks))

    def decoder(self, num_rows: int = 1) -> Decoder:
        """Return a decoder of recordings as they come; see `Codec.decoder`."""
        return Decoder(_Synthesis(self, num_rows), num_rows, self.codebook_sizes)


class _Layers:
    """Mimi's layers with their states for every row, which start as zeros."""

    def __init__(self, mimi: Mimi, num_rows: int) -> None:
        check_num_rows(num_rows)
        self._mimi = mimi
        self._weights = mimi.weights
        self._device = mimi.codebooks[0].device
        self._num_rows = num_rows
        self._kept: dict[str, Tensor] = {}
        self._rows = torch.arange(0)

    def reset(self, row: int) -> None:
        for kept in self._kept.values():
            kept[row].zero_()

    @torch.no_grad()
    def code(self, rows: list[int], frames: Tensor) -> Tensor:
        self._rows = torch.tensor(rows, device=self._device)
        length = _PIECE_FRAMES * self._frame_length
        pieces = frames.to(self._device).split(length, 1)
        return torch.cat([self._code(piece) for piece in pieces], 1)

    @property
    def _frame_length(self) -> int:
        raise NotImplementedError

    def _code(self, frames: Tensor) -> Tensor:
        raise NotImplementedError

    def _past(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return the state of a layer for the rows that are coded."""
        if name not in self._kept:
            size = (self._num_rows, *shape)
            self._kept[name] = torch.zeros(size, dtype=dtype, device=self._device)
        return self._kept[name][self._rows]

    def _keep(self, name: str, kept: Tensor) -> None:
        self._kept[name][self._rows] = kept

    def _convolve(
        self, name: str, x: Float[Tensor, "B C T"], stride: int = 1, *, repeat_first: bool = False
    ) -> Float[Tensor, "B D U"]:
        """Convolve causally. The steps before the start are zeros, or copies of the first step."""
        weight = self._weights[f"{name}.weight"]
        num_past = weight.shape[2] - stride
        if num_past:
            past = self._past(name, (x.shape[1], num_past), x.dtype)
            if repeat_first:
                begun = self._past(f"{name}.begun", (1, 1), torch.bool)
                past = torch.where(begun, past, x[..., :1])
                self._keep(f"{name}.begun", torch.ones_like(begun))
            x = torch.cat((past, x), 2)
            self._keep(name, x[..., -num_past:])
        return F.conv1d(x, weight, self._weights.get(f"{name}.bias"), stride)

    def _expand(self, name: str, x: Float[Tensor, "B C T"]) -> Float[Tensor, "B D U"]:
        """Convolve transposed: a step gives two strides of outputs, the second added to the next.

        It is a matrix product, because torch's transposed convolution takes three times as long for
        one frame on a CPU.
        """
        weight = self._weights[f"{name}.weight"]
        if weight.shape[1] == 1:  # every channel separately
            y = x[..., None] * weight
        else:
            y = (x.transpose(1, 2) @ weight.flatten(1)).unflatten(2, weight.shape[1:])
            y = y.transpose(1, 2)
        now, later = y.chunk(2, 3)  # (B, D, T, stride)
        past = self._past(name, (y.shape[1], 1, now.shape[3]), x.dtype)
        self._keep(name, later[:, :, -1:])
        y = (now + torch.cat((past, later[:, :, :-1]), 2)).flatten(2)
        bias = self._weights.get(f"{name}.bias")
        return y if bias is None else y + bias[:, None]

    def _residual(self, name: str, x: Float[Tensor, "B C T"]) -> Float[Tensor, "B C T"]:
        inner = self._convolve(f"{name}.block1", F.elu(x))
        return x + self._convolve(f"{name}.block3", F.elu(inner))

    def _transform(self, name: str, x: Float[Tensor, "B D T"]) -> Float[Tensor, "B D T"]:
        """Apply a pre-norm transformer over a window of steps."""
        capacity = self._mimi.window + 2 * _PIECE_FRAMES - 1
        age = self._past(f"{name}.age", (), torch.long)
        reach = streaming_reach(age, x.shape[2], None, HEAD_WIDTH, self._mimi.window, capacity)
        self._keep(f"{name}.age", age + x.shape[2])
        assert reach.slot is not None
        x, width, depth = x.transpose(1, 2), x.shape[1], 0
        while f"{name}.{depth}.qkv.weight" in self._weights:
            layer = f"{name}.{depth}"
            w = {key: self._weights[f"{layer}.{key}"] for key in LAYER_PARTS}
            h = F.layer_norm(x, (width,), w["norm1.weight"], w["norm1.bias"])
            qkv = F.linear(h, w["qkv.weight"]).unflatten(-1, (3, -1, HEAD_WIDTH))
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            q, k = (rotate(part, reach.cos, reach.sin) for part in (q, k))
            ring = self._past(layer, (2, q.shape[1], capacity + 1, HEAD_WIDTH), x.dtype)
            write_ring(ring, reach.slot, torch.stack((k, v), 1))
            self._keep(layer, ring)
            keys, values = ring[:, :, :, : reach.limit].unbind(1)
            mixed = attend(q, keys, values, reach.bias).transpose(1, 2).flatten(2)
            x = x + w["scale1"] * F.linear(mixed, w["out.weight"])
            h = F.layer_norm(x, (width,), w["norm2.weight"], w["norm2.bias"])
            h = F.linear(F.gelu(F.linear(h, w["linear1.weight"])), w["linear2.weight"])
            x = x + w["scale2"] * h
            depth += 1
        return x.transpose(1, 2)


class _Analysis(_Layers):
    """Turns samples into ids."""

    @property
    def _frame_length(self) -> int:
        return self._mimi.frame_samples

    def _code(self, frames: Float[Tensor, "B N"]) -> Int[Tensor, "B T K"]:
        x = self._convolve("encoder.0", frames.float()[:, None])
        num_stages = self._mimi.num_stages
        for first in range(1, 3 * num_stages, 3):
            x = self._residual(f"encoder.{first}", x)
            name = f"encoder.{first + 2}"
            x = self._convolve(name, F.elu(x), self._weights[f"{name}.weight"].shape[2] // 2)
        x = self._convolve(f"encoder.{3 * num_stages + 2}", F.elu(x))
        x = self._transform("encoder_transformer", x)
        return self._quantise(self._convolve("downsample", x, 2, repeat_first=True))

    def _quantise(self, latent: Float[Tensor, "B D T"]) -> Int[Tensor, "B T K"]:
        """Choose the nearest entries: first of the whole, then of what each codebook leaves."""
        semantic, *acoustic = self._mimi.codebooks
        codes = [_nearest(self._project("semantic", latent), semantic)]
        rest = self._project("acoustic", latent)
        for codebook in acoustic:
            codes.append(_nearest(rest, codebook))
            rest = rest - codebook[codes[-1]]
        return torch.stack(codes, -1)

    def _project(self, side: str, latent: Float[Tensor, "B D T"]) -> Float[Tensor, "B T E"]:
        return F.conv1d(latent, self._weights[f"{side}.input_proj.weight"]).transpose(1, 2)


class _Synthesis(_Layers):
    """Turns ids into samples."""

    @property
    def _frame_length(self) -> int:
        return 1

    def _code(self, frames: Int[Tensor, "B T K"]) -> Float[Tensor, "B N"]:
        entries = [
            codebook[ids]
            for codebook, ids in zip(self._mimi.codebooks, frames.unbind(-1), strict=True)
        ]
        latent = self._project("semantic", entries[0])
        if len(entries) > 1:
            latent = latent + self._project("acoustic", torch.stack(entries[1:]).sum(0))
        x = self._expand("upsample", latent)
        x = self._transform("decoder_transformer", x)
        x = self._convolve("decoder.0", x)
        num_stages = self._mimi.num_stages
        for first in range(2, 3 * num_stages, 3):
            x = self._expand(f"decoder.{first}", F.elu(x))
            x = self._residual(f"decoder.{first + 1}", x)
        return self._convolve(f"decoder.{3 * num_stages + 2}", F.elu(x))[:, 0]

    def _project(self, side: str, entries: Float[Tensor, "B T E"]) -> Float[Tensor, "B D T"]:
        return F.conv1d(entries.transpose(1, 2), self._weights[f"{side}.output_proj.weight"])


def _nearest(x: Float[Tensor, "B T E"], codebook: Float[Tensor, "V E"]) -> Int[Tensor, "B T"]:
    # |x - c|^2 without |x|^2, which is the same for every entry c.
    return (codebook.square().sum(1) - 2 * (x @ codebook.T)).argmin(-1)
