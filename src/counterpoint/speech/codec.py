"""Codecs: they turn waveforms into frames of codebook ids and back, whole or as streams."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.errors import UserError

LOUDEST = 16.0
"""Largest sample, 24 dB beyond full scale. Louder ones have another scale or are damaged."""


@runtime_checkable
class FrameCoder(Protocol):
    """One direction of a codec for some rows, each of which continues where it stopped."""

    def code(self, rows: list[int], frames: Tensor) -> Tensor:
        """Code the next frames of some rows: (B, T * frame_samples) to (B, T, K), or back."""

    def reset(self, row: int) -> None:
        """Reset a row to its start."""


@runtime_checkable
class Codec(Protocol):
    """A causal codec of one channel with a fixed number of ids a frame."""

    @property
    def name(self) -> str:
        """Name that is equal for two codecs if, and only if, they give equal ids."""

    @property
    def sample_rate(self) -> int:
        """Number of samples a second."""

    @property
    def frame_rate_hz(self) -> float:
        """Number of frames a second."""

    @property
    def frame_samples(self) -> int:
        """Number of samples in a frame."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of ids of each codebook."""

    def encode(self, audio: Float[Tensor, "B N"]) -> Int[Tensor, "B T K"]:
        """Encode whole recordings; the last frame is completed with silence.

        Raises:
            UserError: There are no samples, or they are not valid (see `check_samples`).
        """

    def decode(self, codes: Int[Tensor, "B T K"]) -> Float[Tensor, "B N"]:
        """Decode whole recordings; N is T * frame_samples.

        Raises:
            UserError: There are no rows, or an id is not in its codebook.
        """

    def encoder(self, num_rows: int = 1) -> "Encoder":
        """Return an encoder of recordings as they come, each in its own row."""

    def decoder(self, num_rows: int = 1) -> "Decoder":
        """Return a decoder of recordings as they come, each in its own row."""


class Encoder:
    """Takes samples, and returns the ids of the frames that are complete.

    Rows share nothing but the computation. Each is pushed, finished and reset on its own.

    Args:
        coder: Encodes whole frames of ``num_rows`` rows.
        num_rows: Number of recordings at a time.
        frame_samples: Number of samples in a frame.
        num_codebooks: Number of ids in a frame.
    """

    def __init__(
        self, coder: FrameCoder, num_rows: int, frame_samples: int, num_codebooks: int
    ) -> None:
        check_num_rows(num_rows)
        self._coder = coder
        self._frame_samples = frame_samples
        self._num_codebooks = num_codebooks
        self._rest = [torch.zeros(0)] * num_rows

    def push(self, samples: Mapping[int, Float[Tensor, " _N"]]) -> dict[int, Int[Tensor, "_T _K"]]:
        """Encode further samples of some rows, any number in each row.

        Returns:
            The ids of all frames that are now complete, by row and oldest first.

        Raises:
            UserError: There is no such row, or its samples are not valid (see `check_channel`).
                Then nothing was encoded.
        """
        for row, new in samples.items():
            self._check(row)
            check_channel(new)
        pending = {row: torch.cat((self._rest[row].to(new), new)) for row, new in samples.items()}
        frames = {}
        for row, heard in pending.items():
            stop = len(heard) // self._frame_samples * self._frame_samples
            frames[row] = heard[:stop]
            self._rest[row] = heard[stop:].clone()
        empty = torch.zeros(0, self._num_codebooks, dtype=torch.long)
        return _code(self._coder, frames, empty)

    def finish(self, row: int) -> Int[Tensor, "_T _K"]:
        """Complete the last frame of a row with silence, and reset the row.

        Returns:
            The ids of that frame. There are none if the samples so far fill their frames.
        """
        self._check(row)
        missing = -len(self._rest[row]) % self._frame_samples
        codes = self.push({row: self._rest[row].new_zeros(missing)})[row]
        self.reset(row)
        return codes

    def reset(self, row: int) -> None:
        """Reset a row to its start; the samples of its incomplete frame are discarded."""
        self._check(row)
        self._rest[row] = torch.zeros(0)
        self._coder.reset(row)

    def _check(self, row: int) -> None:
        check_row(row, len(self._rest))


class Decoder:
    """Takes ids of frames, and returns their samples. Its rows work as in `Encoder`.

    Args:
        coder: Decodes frames of ``num_rows`` rows.
        num_rows: Number of recordings at a time.
        codebook_sizes: Number of ids of each codebook.
    """

    def __init__(self, coder: FrameCoder, num_rows: int, codebook_sizes: tuple[int, ...]) -> None:
        check_num_rows(num_rows)
        self._coder = coder
        self._num_rows = num_rows
        self._codebook_sizes = codebook_sizes

    def push(self, codes: Mapping[int, Int[Tensor, "_T _K"]]) -> dict[int, Float[Tensor, " _N"]]:
        """Decode further frames of some rows, any number in each row.

        Raises:
            UserError: There is no such row, or an id is not in its codebook. Then nothing was
                decoded.
        """
        for row, new in codes.items():
            check_row(row, self._num_rows)
            check_codes(new, self._codebook_sizes)
        return _code(self._coder, codes, torch.zeros(0))

    def reset(self, row: int) -> None:
        """Reset a row to its start."""
        check_row(row, self._num_rows)
        self._coder.reset(row)


def encode_whole(
    codec: Codec, audio: Float[Tensor, "B N"], piece_frames: int = 128
) -> Int[Tensor, "B T K"]:
    """Encode whole recordings through the codec's stream, in pieces that limit the memory.

    The audio has the codec's sample rate, and ends with silence up to a whole frame. A piece has
    ``piece_frames`` frames.

    Raises:
        UserError: There are no samples, or they are not valid (see `check_samples`).
    """
    if not audio.numel():
        raise UserError(
            f"Audio must have at least one row and one sample: got shape {tuple(audio.shape)}."
        )
    encoder = codec.encoder(len(audio))
    audio = F.pad(audio, (0, -audio.shape[1] % codec.frame_samples))
    pieces = audio.split(piece_frames * codec.frame_samples, 1)
    return _joined([encoder.push(dict(enumerate(piece))) for piece in pieces], len(audio))


def decode_whole(
    codec: Codec, codes: Int[Tensor, "B T K"], piece_frames: int = 128
) -> Float[Tensor, "B N"]:
    """Decode whole recordings through the codec's stream, in pieces that limit the memory.

    The audio has the codec's sample rate. A piece has ``piece_frames`` frames.

    Raises:
        UserError: There are no rows, or an id is not in its codebook.
    """
    decoder = codec.decoder(len(codes))
    pieces = [decoder.push(dict(enumerate(piece))) for piece in codes.split(piece_frames, 1)]
    return _joined(pieces, len(codes))


def check_num_rows(num_rows: int) -> None:
    """Refuse a number of rows below 1.

    Raises:
        UserError: There is no row.
    """
    if num_rows < 1:
        raise UserError(f"`num_rows` must be >= 1, got {num_rows}.")


def check_row(row: int, num_rows: int) -> None:
    """Refuse a row that does not exist.

    Raises:
        UserError: ``row`` is not 0 to ``num_rows - 1``.
    """
    if not 0 <= row < num_rows:
        raise UserError(f"`row` must be 0 to {num_rows - 1}: got {row}.")


def check_channel(samples: object) -> None:
    """Refuse anything that is not valid samples of one channel.

    Raises:
        UserError: It is no tensor of one dimension, or see `check_samples`.
    """
    if not isinstance(samples, Tensor) or samples.ndim != 1:
        found = tuple(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
        raise UserError(
            f"Samples of a channel must be a tensor of one dimension: got {found}. Give each "
            "channel separately."
        )
    check_samples(samples)


def check_samples(audio: Tensor) -> None:
    """Refuse samples that are not finite floats or are beyond `LOUDEST`.

    Raises:
        UserError: There is such a sample.
    """
    if not audio.is_floating_point():
        raise UserError(
            f"Samples must be floats with full scale at 1: got {audio.dtype}. Divide integers by "
            "their full scale, 32768 where they have 16 bits."
        )
    if not (finite := audio.isfinite()).all():
        raise UserError(
            f"Audio must hold finite numbers: got {int((~finite).sum())} that are NaN or infinite. "
            "Repair the recording."
        )
    if audio.numel() and (peak := float(audio.abs().max())) > LOUDEST:
        raise UserError(
            f"Samples must have full scale at 1, and none be beyond {LOUDEST:g}: got {peak:g}. "
            "Divide them by their full scale, 32768 where they come from 16 bits."
        )


def check_codes(codes: Int[Tensor, "... K"], codebook_sizes: tuple[int, ...]) -> None:
    """Refuse codes in which an id is not in its codebook.

    Args:
        codes: Ids of K codebooks, in the last dimension.
        codebook_sizes: Number of ids of each codebook.

    Raises:
        UserError: The number of codebooks is another one, or an id is out of range.
    """
    if codes.shape[-1] != len(codebook_sizes):
        raise UserError(
            f"Codes must have {len(codebook_sizes)} codebooks in their last dimension: got shape "
            f"{tuple(codes.shape)}."
        )
    sizes = torch.tensor(codebook_sizes, device=codes.device)
    if (wrong := (codes < 0) | (codes >= sizes)).any():
        place = wrong.nonzero()[0].tolist()
        raise UserError(
            f"Codes must be 0 to {codebook_sizes[place[-1]] - 1} in codebook {place[-1]}: got "
            f"{int(codes[tuple(place)])}. Are these codes of this codec, with the delays undone?"
        )


def _code(coder: FrameCoder, inputs: Mapping[int, Tensor], empty: Tensor) -> dict[int, Tensor]:
    """Code rows; rows with equally many frames are coded in one pass."""
    by_length: dict[int, list[int]] = {}
    for row, new in inputs.items():
        by_length.setdefault(len(new), []).append(row)
    outputs = dict[int, Tensor]()
    for length, rows in by_length.items():
        if length:
            coded = coder.code(rows, torch.stack([inputs[row] for row in rows]))
            outputs.update(zip(rows, coded, strict=True))
        else:
            outputs.update((row, empty.to(inputs[row].device)) for row in rows)
    return {row: outputs[row] for row in inputs}


def _joined(pieces: Sequence[Mapping[int, Tensor]], num_rows: int) -> Tensor:
    return torch.stack([torch.cat([piece[row] for piece in pieces]) for row in range(num_rows)])
