import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from counterpoint.speech.audio import (
    audio_blocks,
    inspect_audio,
    read_audio,
    resample,
    with_channels,
    write_audio,
    write_stereo,
)

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")


def tone(hz: float, sample_rate: int, seconds: float = 1.0) -> Tensor:
    return 0.5 * torch.sin(
        2 * torch.pi * hz * torch.arange(round(seconds * sample_rate)) / sample_rate
    )


@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize("ending", [".wav", ".flac"])
def test_what_was_written_is_read(tmp_path: Path, num_channels: int, ending: str) -> None:
    audio = torch.rand(num_channels, 5000) * 2 - 1
    path = tmp_path / f"a{ending}"
    write_audio(path, audio, 24000)
    found = read_audio(path, 24000, num_channels)
    assert found.shape == audio.shape
    assert (found - audio).abs().max() <= 2**-15
    assert inspect_audio(path) == (24000, num_channels, 5000 / 24000)


def test_beyond_full_scale_is_clipped_and_does_not_wrap(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", torch.tensor([[1.0, -1.0, 3.0, -3.0]]), 8000)
    found = read_audio(tmp_path / "a.wav", 8000, 1)[0]
    assert torch.equal(found.sign(), torch.tensor([1.0, -1.0, 1.0, -1.0]))
    assert (found.abs() - 1).abs().max() <= 2**-14


@pytest.mark.parametrize(("from_rate", "to_rate"), [(48000, 24000), (16000, 24000), (44100, 8000)])
def test_resampling_keeps_a_tone(from_rate: int, to_rate: int) -> None:
    audio = torch.stack((tone(440, from_rate), tone(1000, from_rate)))
    found = resample(audio, from_rate, to_rate)
    expected = torch.stack((tone(440, to_rate), tone(1000, to_rate)))
    assert found.shape == expected.shape
    inner = slice(to_rate // 20, -to_rate // 20)
    assert (found - expected)[:, inner].abs().max() < 1e-3


def test_resampling_takes_away_what_does_not_fit() -> None:
    found = resample(tone(6000, 24000)[None], 24000, 8000)
    assert found[:, 400:-400].abs().max() < 1e-3


def test_reading_resamples_in_blocks_as_in_one(tmp_path: Path) -> None:
    audio = torch.stack((tone(440, 16000), tone(700, 16000)))
    write_audio(tmp_path / "a.wav", audio, 16000)
    whole = read_audio(tmp_path / "a.wav", 24000, 2)
    blocks = list(audio_blocks(tmp_path / "a.wav", 24000, 2, block_s=0.013))
    assert len(blocks) > 50
    assert torch.equal(torch.cat(blocks, 1), whole)
    assert whole.shape == (2, 24000)
    assert (whole - resample(audio, 16000, 24000)).abs().max() < 1e-4


def test_one_sample_is_a_recording(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", torch.tensor([[0.5]]), 24000)
    assert read_audio(tmp_path / "a.wav", 24000, 2).tolist() == [[0.5], [0.5]]
    assert read_audio(tmp_path / "a.wav", 48000, 1).shape == (1, 2)


def test_an_hour_is_read_in_blocks(tmp_path: Path) -> None:
    """Written sparsely, read at its own rate, never in memory as a whole."""
    with soundfile.SoundFile(tmp_path / "a.wav", "w", 1000, 1, "PCM_16") as file:
        for _ in range(36):
            file.write(torch.zeros(100_000).numpy())
    sizes = [block.shape[1] for block in audio_blocks(tmp_path / "a.wav", 1000, 1)]
    assert (max(sizes), sum(sizes)) == (10_000, 3_600_000)


def test_channels_are_converted_as_documented() -> None:
    stereo = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert with_channels(stereo, 1).tolist() == [[2.0, 4.0]]
    assert with_channels(stereo[:1], 2).tolist() == [[1.0, 2.0]] * 2
    assert with_channels(stereo, 2) is stereo
    with pytest.raises(ValueError, match="2 channels, or one to copy: got 5"):
        with_channels(torch.zeros(5, 3), 2)
    with pytest.raises(ValueError, match=r"`num_channels` must be >= 1"):
        with_channels(stereo, 0)


def test_mistakes_are_named_in_a_line(tmp_path: Path) -> None:
    def error(call: object) -> str:
        with pytest.raises(ValueError, match=".") as caught:
            call()  # type: ignore[operator]
        assert "\n" not in str(caught.value)
        return str(caught.value)

    path = tmp_path / "a.wav"
    assert "must be an existing file" in error(lambda: read_audio(path, 8000, 1))
    path.write_text("no audio")
    assert "must be an audio file" in error(lambda: read_audio(path, 8000, 1))
    soundfile.write(path, torch.zeros(0).numpy(), 8000)
    for rate in (8000, 24000):
        assert "at least one sample" in error(lambda rate=rate: read_audio(path, rate, 1))
    stereo = torch.tensor([[0.0, float("nan")], [0.0, 0.0]]).numpy()
    soundfile.write(path, stereo, 8000, subtype="FLOAT")
    assert f"{str(path)!r}: Audio must hold finite numbers: got 1 that" in error(
        lambda: read_audio(path, 8000, 2)
    )
    assert f"{str(path)!r}: Audio must have 3 channels" in error(lambda: read_audio(path, 8000, 3))
    assert "at least one sample" in error(lambda: write_audio(path, torch.zeros(1, 0), 8000))
    nan = torch.tensor([[float("inf")]])
    assert "finite" in error(lambda: write_audio(path, nan, 8000))
    assert "ending" in error(lambda: write_audio(tmp_path / "a.txt", torch.zeros(1, 1), 8000))
    assert "positive" in error(lambda: resample(torch.zeros(1, 1), 0, 8000))
    with pytest.raises(FileNotFoundError, match="must exist"):
        write_audio(tmp_path / "no" / "a.wav", torch.zeros(1, 1), 8000)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def blank(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:2000].ljust(len(content), b"\0"))


@pytest.mark.parametrize(
    ("name", "damage"), [("a.flac", cut), ("a.flac", blank), ("a.mp3", blank), ("a.RAW", cut)]
)
def test_damage_is_an_error_that_names_the_file(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """Also where only the reading finds it, behind a head that is whole."""
    path = tmp_path / name
    subtype = "PCM_16" if name == "a.RAW" else None
    soundfile.write(path, 0.1 * torch.randn(80_000).numpy(), 8000, subtype=subtype)
    damage(path)
    with pytest.raises(ValueError, match=rf"{name}' must be an audio file") as caught:
        read_audio(path, 8000, 1)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    audio = torch.zeros(2, 50_000)
    with pytest.raises(OSError, match="'/proc/o.wav' must be writable"):
        write_audio("/proc/o.wav", audio, 8000)
    with pytest.raises(OSError, match="'/proc/o.wav' must be writable"):
        write_stereo(Path("/proc/o.wav"), [audio], 8000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as a disk that is full
    try:
        with pytest.raises(OSError, match=r"full.wav' must be writable"):
            write_stereo(tmp_path / "full.wav", [audio], 8000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["soundfile", "soxr"])
def test_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str
) -> None:
    write_audio(tmp_path / "a.wav", torch.zeros(1, 10), 8000)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"`{package}`.*pip install 'counterpoint\[speech\]'"):
        read_audio(tmp_path / "a.wav", 16000, 1)
