"""Public bug reports on speech data: docs/reports.md says what became of each."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from counterpoint.data.speech.alignments import read_transcript
from counterpoint.data.speech.monologue import Word, count_written, write_monologue
from counterpoint.data.speech.words import ByteWords
from counterpoint.errors import UserError
from counterpoint.speech.audio import AudioError, audio_blocks, inspect_audio, read_audio

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

RATE, COUNT = 44_100, 30_000
SOUND = np.random.default_rng(0).normal(0, 0.1, (COUNT, 2))


def wav(path: Path) -> bytearray:
    soundfile.write(path, SOUND, RATE, subtype="PCM_16")
    return bytearray(path.read_bytes())


def mp3(path: Path, mode: str = "CONSTANT", channels: int = 2) -> bytes:
    with soundfile.SoundFile(
        path, "w", RATE, channels, bitrate_mode=mode, compression_level=0.5
    ) as file:
        file.write(SOUND[:, :channels])
    return path.read_bytes()


def untagged(content: bytes) -> bytes:
    """Without the first frame, which tells the length."""
    return content[content.find(content[:2], 4) :]


def refusal(path: Path) -> str:
    with pytest.raises(AudioError, match=path.name) as caught:
        read_audio(path, RATE, 2)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_size_that_is_odd_by_one(tmp_path: Path) -> None:
    """pure-data#1786: a player never stops."""
    path = tmp_path / "a.wav"
    content = wav(path)
    struct.pack_into("<I", content, 40, 4 * COUNT - 1)
    path.write_bytes(content)
    assert "in samples of 4 bytes" in refusal(path)


def test_a_last_byte_that_is_missing(tmp_path: Path) -> None:
    """hound#100, from hound#63 and #81."""
    path = tmp_path / "a.wav"
    path.write_bytes(wav(path)[:-1])
    assert f"declares {4 * COUNT} bytes of sound, and {4 * COUNT - 1} are there" in refusal(path)


def test_a_head_that_tells_a_small_part(tmp_path: Path) -> None:
    """librosa#876: 138 s are read of 4022."""
    path = tmp_path / "a.wav"
    content = wav(path)
    struct.pack_into("<I", content, 40, 4 * 1000)
    path.write_bytes(content)
    assert "do not belong there follow" in refusal(path)


def test_a_head_that_tells_two_billion_samples(tmp_path: Path) -> None:
    """lhotse#913: a duration of 268,435 s."""
    path = tmp_path / "a.wav"
    content = wav(path)
    struct.pack_into("<I", content, 40, 0xFFFFFFFE)
    path.write_bytes(content)
    assert inspect_audio(path).duration_s == COUNT / RATE
    assert read_audio(path, RATE, 2).shape == (2, COUNT)


def test_an_ogg_file_without_its_end(tmp_path: Path) -> None:
    """libsndfile#989 and #809: 6.6 million years."""
    path = tmp_path / "a.ogg"
    soundfile.write(path, SOUND, RATE)
    content = path.read_bytes()
    path.write_bytes(content[: content.rfind(b"OggS")])
    assert "its last page, which tells its length, is missing" in refusal(path)


def test_an_mp3_whose_length_nobody_tells(tmp_path: Path) -> None:
    """python-soundfile#443 (6e10 hours of 21) and libsndfile#1086 (more than there is)."""
    path = tmp_path / "a.mp3"
    path.write_bytes(untagged(mp3(path)))
    info = inspect_audio(path)
    assert info.duration_s == read_audio(path, RATE, 2).shape[1] / RATE
    assert abs(info.duration_s * RATE - COUNT) < 2 * 1152
    path.write_bytes(untagged(mp3(path, "VARIABLE")))
    assert "varying bit rate" in refusal(path)


def test_an_mp3_with_a_picture(tmp_path: Path) -> None:
    """libsndfile#876: the picture is counted as sound; it may hold what looks like frames."""
    path = tmp_path / "a.mp3"
    content = mp3(path)
    expected = read_audio(path, RATE, 2)
    picture = content[:4] * 2000
    size = bytes(len(picture) >> shift & 0x7F for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\x03\x00\x00" + size + picture + content)
    assert torch.equal(read_audio(path, RATE, 2), expected)


@pytest.mark.parametrize("tail", [b"TAG" + bytes(125), b"APETAGEX" + bytes(80), bytes(3000)])
def test_an_mp3_with_something_behind_it(tmp_path: Path, tail: bytes) -> None:
    """pedalboard#206: too long by what is no sound."""
    path = tmp_path / "a.mp3"
    content = untagged(mp3(path))
    path.write_bytes(content)
    expected = read_audio(path, RATE, 2)
    path.write_bytes(content + tail)
    assert torch.equal(read_audio(path, RATE, 2), expected)
    path.write_bytes(content + b"\x13" * 3000)
    assert "is no frame of MP3" in refusal(path)


@pytest.mark.parametrize("channels", [1, 2])
def test_two_channels_are_not_twice_the_samples(tmp_path: Path, channels: int) -> None:
    """lhotse#886."""
    path = tmp_path / "a.mp3"
    mp3(path, "VARIABLE", channels)
    assert inspect_audio(path) == (RATE, channels, COUNT / RATE)
    assert read_audio(path, RATE, channels).shape == (channels, COUNT)


@settings(max_examples=10, deadline=None)
@given(block_s=st.floats(1e-4, 1))
def test_samples_do_not_depend_on_the_blocks(
    tmp_path_factory: pytest.TempPathFactory, block_s: float
) -> None:
    """python-soxr#7, SDL#7358, N.E.K.O#1435: clicks at the edges; lhotse#1250, #1180: counts."""
    path = tmp_path_factory.mktemp("blocks") / "a.wav"
    soundfile.write(path, SOUND[:5000], RATE)
    whole = read_audio(path, 24_000, 2)
    assert whole.shape[1] == round(5000 * 24_000 / RATE)
    blocks = list(audio_blocks(path, 24_000, 2, block_s))
    assert torch.equal(torch.cat(blocks, 1), whole)


def transcript(folder: Path, content: str) -> Path:
    path = folder / "words.json"
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        '{"alignments": [["R.S.C.?", [null, null], "SPEAKER_MAIN"]]}',
        '{"alignments": [["?"]]}',
        '{"chunks": [{"text": "?"}]}',
        '{"chunks": [{"text": "?", "timestamp": null}]}',
        '{"word_segments": [{"word": "?"}]}',
    ],
)
def test_words_that_no_aligner_could_place(tmp_path: Path, content: str) -> None:
    """whisperX#419: words without times."""
    path = transcript(tmp_path, content)
    with pytest.raises(UserError, match=r"words\.json") as caught:
        read_transcript(path)
    assert "\n" not in str(caught.value)


def written(words: list[Word]) -> tuple[str, int, int]:
    encode = ByteWords().encode_word
    ids: Tensor = write_monologue(words, encode, 25.0, 100)
    counted = count_written(words, encode, 25.0, 100)
    return ByteWords().decode(ids.tolist()), counted.whole, counted.cut


def test_words_that_come_in_no_order() -> None:
    """whisperX#419: later words first."""
    words = [Word("real", 2.0, 2.2), Word("Your", 0.0, 0.2), Word("R.S.C.", 1.0, 1.2)]
    assert written(words) == (" Your R.S.C. real", 3, 0)


def test_words_without_length_void_nothing_else() -> None:
    """Qwen3-ASR#197, speaker-toolkit#431: they are ordinary, and each is counted as left out."""
    words = [Word("I", 1.0, 1.0), Word("'m", 1.0, 1.0), Word("having", 1.0, 1.2), Word("it", 3, 3)]
    assert written(words) == (" having", 1, 0)
