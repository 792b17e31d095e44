"""Codec2 700C: speech at 700 bit/s without weights to download.

Every 40 ms have four ids: two stages of a vector quantiser for the shape of the spectrum, the
energy, and the pitch (0 is unvoiced). Some voices are clear and others are poor, so this codec is
for tests and demonstrations.

Source: D. Rowe's libcodec2, as packaged in `pycodec2`.
"""

from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.packages import optional_module
from counterpoint.speech.codec import (
    Decoder,
    Encoder,
    check_codes,
    check_num_rows,
    decode_whole,
    encode_whole,
)

_FIELD_BITS = (9, 9, 4, 6)
_FILL_BITS = 4  # 28 bits in 4 bytes
_FULL_SCALE = 32768


class Codec2:
    """Codec2 in mode 700C, at its own rates: 8 kHz, 25 frames a second.

    Ids depend on the samples alone. Decoded samples do not depend on the ids alone: libcodec2 draws
    the phases of noise from one generator of the process, so the hiss differs in each decoding.

    Raises:
        UserError: The package `pycodec2` is missing.
    """

    sample_rate = 8000
    frame_rate_hz = 25.0
    frame_samples = 320
    codebook_sizes = tuple(1 << bits for bits in _FIELD_BITS)

    def __init__(self) -> None:
        _new_state()
        self.name = f"codec2-700c pycodec2-{version('pycodec2')}"

    def encode(self, audio: Float[Tensor, "B N"]) -> Int[Tensor, "B T K"]:
        """Encode whole recordings; samples beyond full scale are clipped."""
        return encode_whole(self, audio)

    def decode(self, codes: Int[Tensor, "B T K"]) -> Float[Tensor, "B N"]:
        """Decode whole recordings; see `Codec.decode`."""
        return decode_whole(self, codes)

    def encoder(self, num_rows: int = 1) -> Encoder:
        """Return an encoder of recordings as they come; see `Codec.encoder`."""
        coder = _Analysis(num_rows)
        return Encoder(coder, num_rows, self.frame_samples, len(self.codebook_sizes))

    def decoder(self, num_rows: int = 1) -> Decoder:
        """Return a decoder of recordings as they come; see `Codec.decoder`."""
        return Decoder(_Synthesis(num_rows), num_rows, self.codebook_sizes)


def pack(codes: Int[Tensor, "T K"]) -> bytes:
    """Write frames as libcodec2 does: fields with the highest bit first, filled to 4 bytes.

    Raises:
        UserError: An id is not in its codebook.
    """
    check_codes(codes, Codec2.codebook_sizes)
    return b"".join(_pack_frame(ids) for ids in codes.tolist())


def unpack(frames: bytes) -> Int[Tensor, "T K"]:
    """Read the frames that `pack` has written.

    Raises:
        UserError: The bytes are not a whole number of frames.
    """
    if len(frames) % 4:
        raise UserError(f"Frames must have 4 bytes each: got {len(frames)} bytes.")
    ids = [_unpack_frame(frames[i : i + 4]) for i in range(0, len(frames), 4)]
    return torch.tensor(ids, dtype=torch.long).view(-1, len(_FIELD_BITS))


class _Rows:
    """A state of libcodec2 for each row."""

    def __init__(self, num_rows: int) -> None:
        check_num_rows(num_rows)
        self._states = [_new_state() for _ in range(num_rows)]

    def reset(self, row: int) -> None:
        self._states[row] = _new_state()


class _Analysis(_Rows):
    def code(self, rows: list[int], frames: Tensor) -> Tensor:
        scaled = (frames.detach().cpu().double() * _FULL_SCALE).round()
        levels = scaled.clamp(-_FULL_SCALE, _FULL_SCALE - 1).to(torch.int16)
        levels = levels.unflatten(1, (-1, Codec2.frame_samples)).numpy()
        ids = [
            [_unpack_frame(self._states[row].encode(frame)) for frame in recording]
            for row, recording in zip(rows, levels, strict=True)
        ]
        return torch.tensor(ids, device=frames.device)


class _Synthesis(_Rows):
    def code(self, rows: list[int], frames: Tensor) -> Tensor:
        recordings = [
            [torch.from_numpy(self._states[row].decode(_pack_frame(ids))) for ids in recording]
            for row, recording in zip(rows, frames.tolist(), strict=True)
        ]
        levels = torch.stack([torch.cat(recording) for recording in recordings])
        return levels.to(frames.device).float() / _FULL_SCALE


def _pack_frame(ids: list[int]) -> bytes:
    packed = 0
    for value, bits in zip(ids, _FIELD_BITS, strict=True):
        packed = packed << bits | value
    return (packed << _FILL_BITS).to_bytes(4)


def _unpack_frame(frame: bytes) -> list[int]:
    packed = int.from_bytes(frame) >> _FILL_BITS
    ids = []
    for bits in reversed(_FIELD_BITS):
        ids.append(packed & (1 << bits) - 1)
        packed >>= bits
    return ids[::-1]


def _new_state() -> Any:
    return optional_module("pycodec2").Codec2(700)
