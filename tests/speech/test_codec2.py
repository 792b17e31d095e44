"""Codec2: the shared stream machinery on a real codec, and the exact layout of its bits."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from counterpoint.speech.codec import Codec
from counterpoint.speech.codec2 import Codec2, pack, unpack

NUM_SAMPLES = 320 * 9 + 100  # the last frame is incomplete


def speech_like(num_rows: int = 1, num_samples: int = NUM_SAMPLES, seed: int = 0) -> Tensor:
    """A voice that glides, with breath: rows differ in pitch."""
    generator = torch.Generator().manual_seed(seed)
    time_s = torch.arange(num_samples) / 8000
    pitch_hz = 110 + 40 * torch.arange(num_rows)[:, None]
    phase = 2 * torch.pi * pitch_hz * (time_s + 0.1 * time_s**2)
    voice = sum(torch.sin(k * phase) / k for k in range(1, 12))
    noise = torch.randn(num_rows, num_samples, generator=generator)
    return 0.2 * torch.as_tensor(voice) + 0.01 * noise


def test_codec2_is_a_codec() -> None:
    codec = Codec2()
    assert isinstance(codec, Codec)
    assert codec.frame_samples * codec.frame_rate_hz == codec.sample_rate
    assert codec.codebook_sizes == (512, 512, 16, 64)


@given(st.lists(st.tuples(*(st.integers(0, size - 1) for size in Codec2.codebook_sizes))))
def test_packing_is_undone_by_unpacking(rows: list[tuple[int, ...]]) -> None:
    codes = torch.tensor(rows, dtype=torch.long).view(-1, 4)
    frames = pack(codes)
    assert len(frames) == 4 * len(rows)
    assert torch.equal(unpack(frames), codes)


def test_packing_has_the_layout_of_libcodec2() -> None:
    """Nine bits, nine, four and six, highest first, then four that are zero."""
    codes = torch.tensor(
        [[511, 0, 0, 0], [0, 511, 0, 0], [0, 0, 15, 0], [0, 0, 0, 63], [1, 2, 3, 4]]
    )
    assert pack(codes).hex(" ", 4) == "ff800000 007fc000 00003c00 000003f0 00808c40"
    # What libcodec2 gave for a 200 Hz tone: 0110_1110_1 001_1010_00 10_01 11_1010 0000.
    assert unpack(bytes.fromhex("6e9a27a0")).tolist() == [[221, 104, 9, 58]]


def test_ids_are_the_bits_of_the_package() -> None:
    pycodec2 = pytest.importorskip("pycodec2")
    audio, codec = speech_like(), Codec2()
    levels = (audio[0, : 320 * 9].double() * 32768).round().to(torch.int16).view(-1, 320).numpy()
    state = pycodec2.Codec2(700)
    expected = b"".join(state.encode(frame) for frame in levels)
    assert pack(codec.encode(audio[:, : 320 * 9])[0]) == expected


def test_fields_mean_what_they_say() -> None:
    """Energy makes it loud, and pitch 40 is near 182 Hz."""
    codec = Codec2()
    frames = torch.tensor([[100, 104, 3, 40], [100, 104, 12, 40]])[:, None].expand(-1, 30, -1)
    quiet, loud = codec.decode(frames)
    assert loud.square().mean() > 100 * quiet.square().mean()
    spectrum = torch.fft.rfft(loud[1600:] * torch.hann_window(len(loud) - 1600)).abs()
    comb = [spectrum[round(f0 * (len(loud) - 1600) / 8000)].item() for f0 in (182, 228)]
    assert comb[0] > 5 * comb[1]


@given(st.lists(st.integers(0, 900), min_size=1, max_size=12), st.integers(1, 3))
def test_streaming_ids_are_the_offline_ids(sizes: list[int], num_rows: int) -> None:
    audio = speech_like(num_rows)
    codec = Codec2()
    offline = codec.encode(audio)
    assert offline.shape == (num_rows, 10, 4)
    encoder = codec.encoder(num_rows)
    pieces: list[list[Tensor]] = [[] for _ in range(num_rows)]
    for row in range(num_rows):  # every row is cut in its own way
        rest, heard = audio[row], 0
        for size in [*(size + 7 * row for size in sizes), NUM_SAMPLES]:
            piece, rest = rest[:size], rest[size:]
            pieces[row].append(encoder.push({row: piece})[row])
            heard += len(piece)
            assert sum(map(len, pieces[row])) == heard // 320  # all complete frames at once
        pieces[row].append(encoder.finish(row))
    streamed = torch.stack([torch.cat(codes) for codes in pieces])
    assert torch.equal(streamed, offline)


def test_rows_do_not_hear_each_other() -> None:
    audio, codec = speech_like(2), Codec2()
    encoder = codec.encoder(3)
    encoder.push({0: audio[1, :500], 2: audio[1]})
    encoder.reset(0)
    together = encoder.push({0: audio[0], 1: audio[1]})
    assert list(together) == [0, 1]
    assert torch.equal(together[0], codec.encode(audio)[0, :9])
    assert torch.equal(together[1], codec.encode(audio)[1, :9])
    assert encoder.finish(1).shape == (1, 4)
    assert encoder.finish(1).shape == (0, 4)  # `finish` has reset it
    assert torch.equal(encoder.push({1: audio[1]})[1], codec.encode(audio)[1, :9])


STREAMS_LIKE_OFFLINE = """
import os, sys, torch
from counterpoint.speech.codec2 import Codec2
codes = torch.randint(0, 16, (2, 40, 4), generator=torch.Generator().manual_seed(0))
codec = Codec2()
codec.decode(codes[:, :1])
if os.fork():  # both sides of the fork go on from the same noise generator
    os.wait()
    offline = codec.decode(codes[:1])
    torch.save(offline, sys.argv[1])
else:
    decoder = codec.decoder(2)
    pieces = [decoder.push({1: piece})[1] for piece in codes[0].split((1, 7, 0, 12, 20))]
    torch.save(torch.cat(pieces)[None], sys.argv[2])
    os._exit(0)
"""


def test_streaming_samples_are_the_offline_samples(tmp_path: Path) -> None:
    """In one process the noise of the second decoding would differ, hence two that start equal."""
    files = [tmp_path / "parent.pt", tmp_path / "child.pt"]
    subprocess.run([sys.executable, "-c", STREAMS_LIKE_OFFLINE, *files], check=True, timeout=50)
    parent, child = map(torch.load, files)
    assert parent.shape == (1, 40 * 320)
    assert torch.equal(parent, child)
    assert parent.std() > 1e-3


def test_speech_survives() -> None:
    """The loudness over time, not the waveform, is what a vocoder keeps."""
    codec = Codec2()
    audio = speech_like(1, 16000) * (torch.arange(16000) // 4000 % 2)
    decoded = codec.decode(codec.encode(audio))
    loudness = [x[0].view(-1, 400).std(1)[2:-2] for x in (audio, decoded)]
    assert torch.corrcoef(torch.stack(loudness))[0, 1] > 0.8


def test_loud_samples_are_clipped() -> None:
    codec, audio = Codec2(), 6 * speech_like()
    assert audio.max() > 1.5
    assert torch.equal(codec.encode(audio), codec.encode(audio.clamp(-1, 1)))


def test_mistakes_are_named() -> None:
    codec = Codec2()
    with pytest.raises(ValueError, match="at least one row and one sample: got shape"):
        codec.encode(torch.zeros(1, 0))
    with pytest.raises(ValueError, match="got 1 that are NaN"):
        codec.encode(torch.tensor([[0.0] * 399 + [float("nan")]]))
    with pytest.raises(ValueError, match="0 to 15 in codebook 2: got 16"):
        codec.decode(torch.tensor([[[0, 0, 16, 0]]]))
    with pytest.raises(ValueError, match="must have 4 codebooks"):
        codec.decode(torch.zeros(1, 2, 8, dtype=torch.long))
    with pytest.raises(ValueError, match="`row` must be 0 to 1: got 2"):
        codec.encoder(2).push({2: torch.zeros(3)})
    with pytest.raises(ValueError, match="got 5 bytes"):
        unpack(b"12345")
    with pytest.raises(ValueError, match="`num_rows` must be >= 1, got 0"):
        codec.decoder(0)


def test_a_refused_push_changes_nothing() -> None:
    codec, audio = Codec2(), speech_like()[0]
    encoder = codec.encoder(2)
    encoder.push({0: audio[:100]})
    with pytest.raises(ValueError, match="finite"):
        encoder.push({0: audio[100:], 1: torch.tensor([float("inf")])})
    assert torch.equal(encoder.push({0: audio[100:]})[0], codec.encode(audio[None])[0, :9])


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycodec2", None)
    with pytest.raises(ValueError, match=r"pip install 'counterpoint\[speech\]'"):
        Codec2()


def test_name_tells_the_library() -> None:
    """Ids are kept by it: another library may give others."""
    assert Codec2().name == f"codec2-700c pycodec2-{version('pycodec2')}"
