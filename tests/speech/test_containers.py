"""Every kind of file, cut anywhere or with a wrong head: its samples, or one line."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from counterpoint.speech.audio import AudioError, audio_blocks, inspect_audio, read_audio

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

RATE, COUNT = 8000, 20_000
SOUND = np.random.default_rng(0).normal(0, 0.1, COUNT)

# Format and subtype; samples of the last block, of which no head can be caught lying.
KINDS = {
    "wav": ("WAV", "PCM_16", 0),
    "float.wav": ("WAV", "FLOAT", 0),
    "gsm.wav": ("WAV", "GSM610", 640),
    "ima.wav": ("WAV", "IMA_ADPCM", 505),
    "ms.wav": ("WAV", "MS_ADPCM", 500),
    "g721.wav": ("WAV", "G721_32", 120),
    "wavex": ("WAVEX", "PCM_24", 0),
    "rf64": ("RF64", "PCM_16", 0),
    "w64": ("W64", "PCM_16", 0),
    "aiff": ("AIFF", "PCM_16", 0),
    "au": ("AU", "PCM_16", 0),
    "caf": ("CAF", "PCM_16", 0),
    "sph": ("NIST", "PCM_16", 0),
    "flac": ("FLAC", "PCM_16", 0),
    "ogg": ("OGG", "VORBIS", 0),
    "opus": ("OGG", "OPUS", 0),
    "mp3": ("MP3", None, 0),
}


LAST_BLOCK = 2 * 1152  # samples that the end of a file may change


@pytest.fixture(scope="module", params=KINDS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole file of each kind."""
    container, subtype, _ = KINDS[request.param]
    path = tmp_path_factory.mktemp("whole") / f"a.{request.param}"
    soundfile.write(path, SOUND, RATE, format=container, subtype=subtype)
    return path


def beside(path: Path, content: bytes) -> Path:
    changed = path.with_name(f"changed.{path.name}")
    changed.write_bytes(content)
    return changed


def read_or_line(path: Path) -> Tensor | None:
    """What is read; ``None`` where one line refuses it."""
    try:
        return read_audio(path, RATE, 1)[0]
    except AudioError as error:
        line = str(error)
    assert "\n" not in line
    assert path.name in line
    return None


def is_same(found: Tensor, whole: Path) -> bool:
    """Whether these are the samples of a whole file, but for its last block."""
    expected, slack = read_audio(whole, RATE, 1)[0], KINDS[whole.name.removeprefix("a.")][2]
    common = min(len(found), len(expected))
    return abs(len(found) - len(expected)) <= slack and torch.equal(
        found[:common], expected[:common]
    )


def test_whole_files_are_read_to_their_end(whole: Path) -> None:
    _, subtype, slack = KINDS[whole.name.removeprefix("a.")]
    found = read_audio(whole, RATE, 1)[0]
    assert abs(len(found) - COUNT) <= slack
    assert inspect_audio(whole) == (RATE, 1, len(found) / RATE)
    if subtype in ("PCM_16", "PCM_24", "FLOAT"):
        assert np.abs(found.numpy() - SOUND).max() < 2**-15
    blocks = list(audio_blocks(whole, RATE, 1, block_s=0.0421))
    assert torch.equal(torch.cat(blocks, 1)[0], found)
    assert len(blocks) > 50


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=0.99999)
def test_a_file_that_was_cut_is_refused_unless_its_padding_was(whole: Path, share: float) -> None:
    content = whole.read_bytes()
    cut = content[: int(share * len(content))]
    found = read_or_line(beside(whole, cut))
    only_padding = whole.name == "a.gsm.wav" and len(cut) == len(content) - 1
    assert found is None or (only_padding and is_same(found, whole))


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), size=st.integers(1, 3000))
@example(share=0.5, size=1)
def test_a_file_with_a_hole_is_refused(whole: Path, share: float, size: int) -> None:
    """A byte that is missing cannot be told from padding that is missing."""
    content = whole.read_bytes()
    first = int(share * (len(content) - size))
    found = read_or_line(beside(whole, content[:first] + content[first + size :]))
    assert found is None or (whole.name == "a.gsm.wav" and size == 1)


def test_a_byte_that_lacks_in_the_header_is_noticed(whole: Path) -> None:
    """The size of the sound then ends in samples and may be very large."""
    content = whole.read_bytes()
    for first in range(12, 112):
        found = read_or_line(beside(whole, content[:first] + content[first + 1 :]))
        assert found is None or whole.name == "a.gsm.wav", first


@settings(max_examples=25, deadline=None)
@given(junk=st.binary(min_size=3, max_size=3000).filter(lambda junk: junk[0] > 127))
def test_bytes_behind_the_end_are_refused_or_change_nothing(whole: Path, junk: bytes) -> None:
    found = read_or_line(beside(whole, whole.read_bytes() + junk))
    assert found is None or is_same(found, whole)


def length_fields(content: bytes) -> list[tuple[int, str]]:
    """Where a head may tell the length: in bytes or in samples, in any order of bytes."""
    sizes = {COUNT * width + more for width in (1, 2, 3, 4) for more in (0, 4, 8, 24)}
    return [
        (place, form)
        for form in ("<Q", ">Q", "<I", ">I")
        for place in range(min(len(content), 4300) - 8)
        if struct.unpack_from(form, content, place)[0] in sizes
    ]


LIES: dict[str, Callable[[int], int]] = {
    "nothing": lambda length: 0,
    "less by one": lambda length: length - 1,
    "half": lambda length: length // 2,
    "more by one": lambda length: length + 1,
    "double": lambda length: 2 * length,
    "not known": lambda length: -1,
    "a pipe of sox": lambda length: 0x7FFFF000,
}


@pytest.mark.parametrize("lie", LIES)
def test_a_wrong_length_gives_the_samples_or_a_line(whole: Path, lie: str) -> None:
    content = whole.read_bytes()
    for place, form in length_fields(content):
        changed = bytearray(content)
        size = struct.calcsize(form)
        told = LIES[lie](struct.unpack_from(form, content, place)[0])
        struct.pack_into(form, changed, place, told & (1 << 8 * size) - 1)
        found = read_or_line(beside(whole, bytes(changed)))
        assert found is None or is_same(found, whole), (place, form)


@settings(max_examples=15, deadline=None)
@given(
    lie=st.sampled_from(sorted(LIES)),
    field=st.integers(0, 1 << 30),
    share=st.floats(0.3, 1, exclude_max=True),
)
def test_a_file_that_was_cut_and_whose_head_lies_gives_its_beginning_or_one_line(
    whole: Path, lie: str, field: int, share: float
) -> None:
    """A head may happen to tell just what is left; then that is what is read."""
    content = whole.read_bytes()
    fields = length_fields(content)
    changed = bytearray(content[: int(share * len(content))])
    if fields:
        place, form = fields[field % len(fields)]
        length = LIES[lie](struct.unpack_from(form, content, place)[0])
        struct.pack_into(form, changed, place, length % (1 << 8 * struct.calcsize(form)))
    found = read_or_line(beside(whole, bytes(changed)))
    if found is not None:
        sure = max(len(found) - LAST_BLOCK, 0)
        assert torch.equal(found[:sure], read_audio(whole, RATE, 1)[0, :sure])


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 60), byte=st.integers(0, 255))
def test_a_wrong_byte_in_the_head_never_ends_in_a_traceback(
    whole: Path, place: int, byte: int
) -> None:
    changed = bytearray(whole.read_bytes())
    changed[place] = byte
    read_or_line(beside(whole, bytes(changed)))


@pytest.mark.parametrize("riff_size", [0, 8, 36, 0xFFFFFFFF])
@pytest.mark.parametrize("data_size", [0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF])
def test_a_recorder_that_was_killed(tmp_path: Path, riff_size: int, data_size: int) -> None:
    """It had no time to write the length; its last sample may be half."""
    path = tmp_path / "a.wav"
    soundfile.write(path, SOUND, RATE, subtype="PCM_16")
    expected = read_audio(path, RATE, 1)
    content = bytearray(path.read_bytes()) + b"\x01"
    struct.pack_into("<I", content, 4, riff_size)
    struct.pack_into("<I", content, 40, data_size)
    path.write_bytes(content)
    assert torch.equal(read_audio(path, RATE, 1), expected)
    assert inspect_audio(path).duration_s == COUNT / RATE


def test_flac_without_its_length_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, SOUND, RATE)
    expected = read_audio(path, RATE, 1)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert torch.equal(read_audio(path, RATE, 1), expected)
    assert inspect_audio(path) == (RATE, 1, COUNT / RATE)


def mp3(path: Path, mode: str) -> bytes:
    with soundfile.SoundFile(path, "w", RATE, 1, bitrate_mode=mode, compression_level=0.5) as file:
        file.write(SOUND)
    return path.read_bytes()


def test_mp3_of_one_bit_rate_is_read_without_a_tag(tmp_path: Path) -> None:
    """Nobody knows the encoder's delay then: the sound is longer by up to a frame."""
    path = tmp_path / "a.mp3"
    content = mp3(path, "CONSTANT")
    expected = read_audio(path, RATE, 1)[0]
    path.write_bytes(content[content.find(content[:3], 3) :])
    found = read_audio(path, RATE, 1)[0]
    assert abs(len(found) - COUNT) <= 1152
    delay = next(
        n
        for n in range(1153)
        if torch.allclose(found[n + 5000 :][:999], expected[5000:5999], atol=1e-4)
    )
    assert delay == 1105 - 529
    path.write_bytes(
        b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128) + path.read_bytes() + b"TAG" + bytes(125)
    )
    assert torch.equal(read_audio(path, RATE, 1)[0], found)


def test_mp3_of_varying_bit_rate_needs_its_tag(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(mp3(path, "VARIABLE").replace(b"Xing", bytes(4)))
    with pytest.raises(AudioError, match="varying bit rate whose first frame, the tag, is missing"):
        read_audio(path, RATE, 1)


def test_streams_one_behind_the_other_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    soundfile.write(path, SOUND, RATE)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(AudioError, match="more than one stream"):
        read_audio(path, RATE, 1)


@pytest.mark.parametrize("rate", [0, 1, 4_000_000_000])
def test_a_rate_that_no_recording_has_is_refused(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, SOUND, RATE)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, 24, rate)
    path.write_bytes(content)
    assert read_or_line(path) is None
