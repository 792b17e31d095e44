"""Audio files, sample rates and channels.

Reading converts on request, in these ways only: another sample rate is resampled (soxr in high
quality); one channel wanted of several is their mean; several wanted of one are its copies.
Everything else that does not fit is an error, and so is a truncated file: see
`counterpoint.speech.containers`.
"""

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.errors import UserError, absent
from counterpoint.files import whole_file
from counterpoint.packages import optional_module
from counterpoint.speech.codec import check_samples
from counterpoint.speech.containers import DamagedError, Whole, check_whole

_BLOCK_S = 10.0
_BLOCK_VALUES = 1 << 22  # most samples of all channels in memory, whatever the header says
_LOWEST_RATE = 100
_HIGHEST_RATE = 1_000_000
_UNKNOWN = 1 << 62  # from this number of samples on, libsndfile does not know the length


class AudioError(UserError):
    """An audio file, or audio itself, cannot be used."""


class AudioInfo(NamedTuple):
    """Format and length of a recording in its file."""

    sample_rate: int
    num_channels: int
    duration_s: float


def read_audio(path: str | Path, sample_rate: int, num_channels: int) -> Float[Tensor, "C N"]:
    """Read a whole recording into memory.

    It takes 4 bytes a sample and channel: 691 MB for an hour of two channels at 24 kHz.

    Args:
        path: WAV, RF64, W64, AIFF, AU, CAF, NIST, FLAC, Ogg or MP3. If the header does not tell the
            length, as after a recorder was killed, the sound extends to the end of the file.
        sample_rate: Sample rate to convert to.
        num_channels: Number of channels to convert to.

    Raises:
        UserError: A package is missing; the file is missing, broken, truncated or empty; it holds
            samples that are no sound (see `check_samples`), or its channels cannot be converted.
            All errors except the first name the file.
    """
    return torch.cat(list(audio_blocks(path, sample_rate, num_channels)), 1)


def audio_blocks(
    path: str | Path, sample_rate: int, num_channels: int, block_s: float = _BLOCK_S
) -> Iterator[Float[Tensor, "C N"]]:
    """Yield the recording that `read_audio` reads in blocks, whatever its length.

    Args:
        path: See `read_audio`.
        sample_rate: See `read_audio`.
        num_channels: See `read_audio`.
        block_s: Seconds of the file that are held in memory.

    Raises:
        UserError: See `read_audio`.
    """
    with _opened(path) as recording:
        file = recording.file
        resampler = None
        if file.samplerate != sample_rate:
            resampler = optional_module("soxr").ResampleStream(
                file.samplerate, sample_rate, num_channels
            )
        num_samples = 0
        for block in recording.blocks(block_s):
            with _named(path):
                audio = with_channels(block, num_channels)
                check_samples(block)  # in the mean of channels, opposite errors would cancel out
            if resampler is not None:
                audio = torch.from_numpy(resampler.resample_chunk(audio.T.contiguous().numpy())).T
            num_samples += audio.shape[1]
            yield audio
        if resampler is not None:
            silence = torch.zeros(0, num_channels).numpy()
            rest = torch.from_numpy(resampler.resample_chunk(silence, last=True)).T
            num_samples += rest.shape[1]
            yield rest
        _check_sounds(path, num_samples)


def channel_blocks(
    path: str | Path, sample_rate: int, channel: int | None, block_s: float = 1.0
) -> Iterator[Float[Tensor, "1 _N"]]:
    """Yield one channel of a recording, or the mean of all channels, block by block.

    Args:
        path: Audio file.
        sample_rate: Sample rate to convert to.
        channel: Number of the channel, 0 is the left; ``None`` for the mean.
        block_s: Seconds of a block; the last one may be shorter.

    Raises:
        UserError: There is no such channel, or less than one sample at this rate.
    """
    info = inspect_audio(path)
    if round(info.duration_s * sample_rate) < 1:
        raise UserError(
            f"The recording must last at least one sample of the codec, {1 / sample_rate:.6f} s: "
            f"got {info.duration_s:.6f} s."
        )
    if channel is None:
        return audio_blocks(path, sample_rate, 1, block_s)
    if not 0 <= channel < info.num_channels:
        raise UserError(f"`--channel` must be 0 to {info.num_channels - 1}: got {channel}.")
    blocks = audio_blocks(path, sample_rate, info.num_channels, block_s)
    return (block[channel : channel + 1] for block in blocks)


def verify_audio(path: str | Path) -> AudioInfo:
    """Read a file to its end, so that nothing in it can fail later.

    Returns:
        Its format, and its length as counted.

    Raises:
        UserError: See `read_audio`.
    """
    with _opened(path) as recording:
        count = 0
        for block in recording.blocks(_BLOCK_S):
            with _named(path):
                check_samples(block)
            count += block.shape[1]
        _check_sounds(path, count)
        file = recording.file
        return AudioInfo(file.samplerate, file.channels, count / file.samplerate)


def write_audio(path: str | Path, audio: Float[Tensor, "C N"], sample_rate: int) -> None:
    """Write a file of 16-bit samples in the format of the name's ending.

    Full scale is 1; samples beyond it are clipped. ``sample_rate`` is in samples a second. The file
    appears complete or not at all.

    Raises:
        UserError: A package is missing; the audio is empty or not finite; the ending is unknown.
        OSError: The file cannot be written.
    """
    if not audio.numel():
        raise AudioError(f"Audio must hold at least one sample: got shape {tuple(audio.shape)}.")
    check_samples(audio)
    soundfile = optional_module("soundfile")
    path = Path(path)
    if path.suffix[1:].upper() not in soundfile.available_formats():
        raise AudioError(
            f"A file must have the ending of an audio format, such as .wav: got {str(path)!r}."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {str(path.parent)!r} must exist. Make it first.")
    # soundfile wraps at full scale unless samples stay below it.
    samples = audio.detach().float().cpu().clamp(-1, 1 - 2**-15).T.contiguous()
    with _written(path) as partial:
        soundfile.write(
            os.fsencode(partial),
            samples.numpy(),
            sample_rate,
            subtype="PCM_16",
            format=path.suffix[1:].upper(),
        )


def write_stereo(path: Path, pieces: Iterable[Float[Tensor, "2 _N"]], sample_rate: int) -> int:
    """Write pieces as they come to a 16-bit WAV file, which appears complete or not at all.

    Full scale is 1, and ``sample_rate`` is in samples a second.

    Returns:
        Number of samples beyond full scale, which are clipped.

    Raises:
        UserError: A package is missing.
        OSError: The file cannot be written.
    """
    soundfile = optional_module("soundfile")
    num_clipped = 0
    with (
        _written(path) as partial,
        soundfile.SoundFile(
            os.fsencode(partial), "w", sample_rate, channels=2, subtype="PCM_16", format="WAV"
        ) as file,
    ):
        for piece in pieces:
            num_clipped += int((piece.abs() > 1).sum())
            file.write(piece.clamp(-1, 1 - 2**-15).T.contiguous().numpy())
    return num_clipped


def inspect_audio(path: str | Path) -> AudioInfo:
    """Return rate, channels and length of a file; it is read if its header has no length.

    Raises:
        UserError: See `read_audio`.
    """
    with _opened(path) as recording:
        count = recording.num_frames
        if count is None:
            count = sum(block.shape[1] for block in recording.blocks(_BLOCK_S))
        file = recording.file
        return AudioInfo(file.samplerate, file.channels, count / file.samplerate)


def resample(audio: Float[Tensor, "C N"], from_rate: int, to_rate: int) -> Float[Tensor, "C M"]:
    """Change the sample rate of a whole recording; M is N * to_rate / from_rate, rounded.

    Rates are in samples a second.

    Raises:
        UserError: A package is missing, or a rate is not positive.
    """
    if min(from_rate, to_rate) < 1:
        raise AudioError(f"Sample rates must be positive: got {from_rate} and {to_rate}.")
    if from_rate == to_rate or not audio.numel():
        return audio
    samples = audio.T.contiguous().cpu().numpy()
    resampled = torch.from_numpy(optional_module("soxr").resample(samples, from_rate, to_rate))
    return resampled.T.to(audio.device)


def with_channels(audio: Float[Tensor, "C N"], num_channels: int) -> Float[Tensor, "M N"]:
    """Return the audio unchanged, the mean of all channels, or copies of the only channel.

    Raises:
        UserError: Neither number of channels is 1, and they differ.
    """
    if num_channels < 1:
        raise AudioError(f"`num_channels` must be >= 1, got {num_channels}.")
    if len(audio) == num_channels:
        return audio
    if num_channels == 1:
        return audio.mean(0, keepdim=True)
    if len(audio) == 1:
        return audio.expand(num_channels, -1)
    raise AudioError(
        f"Audio must have {num_channels} channels, or one to copy: got {len(audio)}. "
        "Choose the channels to keep."
    )


class _Recording(NamedTuple):
    """A file that is open for reading.

    Attributes:
        file: An open file of soundfile.
        num_frames: Samples of each channel that it must have; ``None`` if that is not known.
        padding_frames: Largest number of padding samples after these; they are left out.
    """

    file: Any
    num_frames: int | None
    padding_frames: int

    def blocks(self, block_s: float) -> Iterator[Float[Tensor, "C N"]]:
        """Yield the samples to the end of the file.

        Raises:
            DamagedError: The number of samples differs from the header.
        """
        file = self.file
        count = 0
        size = min(round(block_s * file.samplerate), _BLOCK_VALUES // file.channels)
        while True:
            samples = torch.empty(max(size, 1), file.channels)
            read = len(file.read(out=samples.numpy()))
            if not read:
                break
            count += read
            if self.num_frames is not None:
                read = max(read - max(count - self.num_frames, 0), 0)
            yield samples[:read].T
        told = count if self.num_frames is None else self.num_frames
        if not told <= count <= told + self.padding_frames:
            raise DamagedError(f"its header declares {self.num_frames} samples, and {count} came")


class _Patched(io.RawIOBase):
    """A file with changed bytes, as libsndfile must see it."""

    def __init__(self, path: Path, whole: Whole) -> None:
        super().__init__()
        self._file = path.open("rb")
        self._prefix = whole.prefix
        self._patches = whole.patches
        self._shift = len(whole.prefix) - whole.first
        self._size = path.stat().st_size + self._shift
        self._place = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(begin + offset, 0)
        return self._place

    def tell(self) -> int:
        """Return the position."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; at the end of the file with fewer bytes."""
        view = memoryview(buffer).cast("B")
        head = self._prefix[self._place : self._place + len(view)]
        view[: len(head)] = head
        count = len(head)
        if count < len(view):
            self._file.seek(self._place + count - self._shift)
            count += self._file.readinto(view[count:])
        for offset, content in self._patches.items():
            for place, byte in enumerate(content, start=offset + self._shift - self._place):
                if 0 <= place < count:
                    view[place] = byte
        self._place += count
        return count

    def write(self, content: Any) -> int:
        """Refuse to write; soundfile requires the method."""
        raise io.UnsupportedOperation("write")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def _forward(soundfile: Any, content: _Patched) -> Any:
    """Open a file without seeking: soundfile seeks after every read, and some kinds cannot."""

    class Forward(soundfile.SoundFile):  # type: ignore[misc]
        def seekable(self) -> bool:
            return False

    return Forward(content)


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Let errors about the samples of a file name the file."""
    try:
        yield
    except UserError as error:
        raise AudioError(f"{str(path)!r}: {error}") from None


def _check_sounds(path: str | Path, num_samples: int) -> None:
    if not num_samples:
        raise AudioError(f"The recording must hold at least one sample: {str(path)!r} is empty.")


@contextmanager
def _opened(path: str | Path) -> Iterator[_Recording]:
    """Open a file for reading; errors name the file."""
    soundfile = optional_module("soundfile")
    if not Path(path).is_file():
        raise AudioError(absent("The recording", path))
    try:
        whole = check_whole(Path(path))
        with _Patched(Path(path), whole) as content, _forward(soundfile, content) as file:
            if not _LOWEST_RATE <= file.samplerate <= _HIGHEST_RATE:
                raise DamagedError(f"its header declares {file.samplerate} samples a second")
            known = whole.num_frames
            if known is None and file.frames < _UNKNOWN:
                known = file.frames
            yield _Recording(file, known, whole.padding_frames)
    except (soundfile.SoundFileError, DamagedError) as error:
        raise AudioError(
            f"{str(path)!r} must be an audio file, and complete: {_reason(error)}. Get another "
            "copy, or convert it."
        ) from error


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """Open a file for writing; errors of soundfile become `OSError`, as for any other file."""
    soundfile = optional_module("soundfile")
    try:
        with whole_file(path) as partial:
            yield partial
    except (soundfile.SoundFileError, OSError) as error:
        reason = getattr(error, "strerror", None) or _reason(error)
        raise OSError(
            f"{str(path)!r} must be writable: {reason}. Choose another place, or free space."
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
