"""Audio files, sample rates and channels.

Reading converts on request, and only as said here: another sample rate is resampled (soxr, its
high quality), one channel wanted of several is their mean, several wanted of one are its copies.
Whatever else does not fit is an error.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.speech.codec import check_finite

_BLOCK_S = 10.0


class AudioInfo(NamedTuple):
    """A recording as it is in its file."""

    sample_rate: int
    num_channels: int
    duration_s: float


def read_audio(path: str | Path, sample_rate: int, num_channels: int) -> Float[Tensor, "C N"]:
    """A whole recording in memory: 4 bytes a sample and channel, 691 MB for an hour of 2 x 24 kHz.

    Args:
        path: WAV, FLAC, Ogg or what else libsndfile reads.
        sample_rate: Samples a second to convert to.
        num_channels: Channels to convert to.

    Raises:
        ValueError: A package is missing; the file is missing, broken or empty; it holds NaN or
            infinite samples, or its channels cannot be converted. All but the first name the file.
    """
    return torch.cat(list(audio_blocks(path, sample_rate, num_channels)), 1)


def audio_blocks(
    path: str | Path, sample_rate: int, num_channels: int, block_s: float = _BLOCK_S
) -> Iterator[Float[Tensor, "C N"]]:
    """The same recording as `read_audio`, in blocks of any length, however long the whole is.

    Args:
        path: See `read_audio`.
        sample_rate: See `read_audio`.
        num_channels: See `read_audio`.
        block_s: Seconds of the file to hold in memory.

    Raises:
        ValueError: See `read_audio`.
    """
    with _opened(path) as file:
        resampler = None
        if file.samplerate != sample_rate:
            resampler = _import("soxr").ResampleStream(file.samplerate, sample_rate, num_channels)
        num_samples = 0
        for block in file.blocks(
            max(1, round(block_s * file.samplerate)), dtype="float32", always_2d=True
        ):
            try:
                audio = with_channels(torch.from_numpy(block.copy()).T, num_channels)
                check_finite(audio)
            except ValueError as error:
                raise ValueError(f"{str(path)!r}: {error}") from None
            if resampler is not None:
                audio = torch.from_numpy(resampler.resample_chunk(audio.T.contiguous().numpy())).T
            num_samples += audio.shape[1]
            yield audio
        if resampler is not None:
            silence = torch.zeros(0, num_channels).numpy()
            rest = torch.from_numpy(resampler.resample_chunk(silence, last=True)).T
            num_samples += rest.shape[1]
            yield rest
        if not num_samples:
            raise ValueError(
                f"The recording must hold at least one sample: {str(path)!r} is empty."
            )


def write_audio(path: str | Path, audio: Float[Tensor, "C N"], sample_rate: int) -> None:
    """Write a file of 16-bit samples in the format of the name's ending; beyond 1 they are clipped.

    Raises:
        ValueError: A package is missing; the audio is empty or not finite; the ending is unknown.
        OSError: The file cannot be written.
    """
    if not audio.numel():
        raise ValueError(f"Audio must hold at least one sample: got shape {tuple(audio.shape)}.")
    check_finite(audio)
    soundfile = _import("soundfile")
    path = Path(path)
    if path.suffix[1:].upper() not in soundfile.available_formats():
        raise ValueError(
            f"A file must have the ending of an audio format, such as .wav: got {str(path)!r}."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {str(path.parent)!r} must exist. Make it first.")
    # soundfile wraps at full scale unless samples stay below it.
    samples = audio.detach().float().cpu().clamp(-1, 1 - 2**-15).T.contiguous()
    with _written(path):
        soundfile.write(path, samples.numpy(), sample_rate, subtype="PCM_16")


def write_stereo(path: Path, pieces: Iterable[Float[Tensor, "2 _N"]], sample_rate: int) -> None:
    """Write pieces as they come to a WAV file of 16 bits, whole or not at all.

    Raises:
        ValueError: A package is missing.
        OSError: The file cannot be written.
    """
    soundfile = _import("soundfile")
    partial = path.with_name(f".{path.name}.partial")
    try:
        with (
            _written(path),
            soundfile.SoundFile(
                partial, "w", sample_rate, channels=2, subtype="PCM_16", format="WAV"
            ) as file,
        ):
            for piece in pieces:
                file.write(piece.clamp(-1, 1 - 2**-15).T.contiguous().numpy())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def inspect_audio(path: str | Path) -> AudioInfo:
    """What the head of a file says.

    Raises:
        ValueError: See `read_audio`.
    """
    with _opened(path) as file:
        return AudioInfo(file.samplerate, file.channels, file.frames / file.samplerate)


def resample(audio: Float[Tensor, "C N"], from_rate: int, to_rate: int) -> Float[Tensor, "C M"]:
    """Change the sample rate of a whole recording; M is N * to_rate / from_rate, rounded.

    Raises:
        ValueError: A package is missing, or a rate is not positive.
    """
    if min(from_rate, to_rate) < 1:
        raise ValueError(f"Sample rates must be positive: got {from_rate} and {to_rate}.")
    if from_rate == to_rate or not audio.numel():
        return audio
    samples = audio.T.contiguous().cpu().numpy()
    resampled = torch.from_numpy(_import("soxr").resample(samples, from_rate, to_rate))
    return resampled.T.to(audio.device)


def with_channels(audio: Float[Tensor, "C N"], num_channels: int) -> Float[Tensor, "M N"]:
    """As it is, the mean of all channels, or copies of the only one.

    Raises:
        ValueError: Neither count is 1, and they differ.
    """
    if num_channels < 1:
        raise ValueError(f"`num_channels` must be >= 1, got {num_channels}.")
    if len(audio) == num_channels:
        return audio
    if num_channels == 1:
        return audio.mean(0, keepdim=True)
    if len(audio) == 1:
        return audio.expand(num_channels, -1)
    raise ValueError(
        f"Audio must have {num_channels} channels, or one to copy: got {len(audio)}. "
        "Choose the channels to keep."
    )


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """A file to read; what soundfile says against it names the file."""
    soundfile = _import("soundfile")
    if not Path(path).is_file():
        raise ValueError(f"The recording must be an existing file: got {str(path)!r}.")
    if Path(path).suffix.lower() == ".raw":  # soundfile would want rate and channels from us
        raise ValueError(
            f"{str(path)!r} must be an audio file that tells its rate, such as .wav. Convert it."
        )
    try:
        with soundfile.SoundFile(path) as file:
            yield file
    except soundfile.SoundFileError as error:
        raise ValueError(
            f"{str(path)!r} must be an audio file, and whole: {_reason(error)}. Get another copy, "
            "or convert it."
        ) from error


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Writing a file; what soundfile says against it is an OSError, as of any other file."""
    soundfile = _import("soundfile")
    try:
        yield
    except soundfile.SoundFileError as error:
        raise OSError(
            f"{str(path)!r} must be writable: {_reason(error)}. Choose another place, or make room."
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")


def _import(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise ValueError(
            f"Audio needs the package `{package}`: pip install 'counterpoint[speech]'."
        ) from error
