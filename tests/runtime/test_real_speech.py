"""Digits that five people said, heard in a conversation: `speech/digits` of the data folder.

    COUNTERPOINT_DATA=DATA python -m pytest -m data tests/runtime/test_real_speech.py

Source: Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0; the list names path, duration in
seconds, digit and speaker of each recording.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint.evaluate.duplex.turns import measure_levels, speech_segments
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.talk import Conversation
from counterpoint.speech.audio import audio_blocks, inspect_audio, read_audio
from tests.runtime.test_talk import codec2_speaker

pytest.importorskip("pycodec2")
pytestmark = pytest.mark.data

GREEDY = FrameSampling(text=Sampling(temperature=0), audio=Sampling(temperature=0))
FILE_RATE = 16_000
LEAST_SPEECH_S = 0.1


@pytest.fixture(scope="module")
def digits(data_folder: Path) -> list[dict[str, Any]]:
    """One recording of each digit and speaker, with its whole path."""
    folder = data_folder / "speech"
    records = [json.loads(line) for line in (folder / "digits.jsonl").read_text().splitlines()]
    chosen = {(record["speaker"], record["digit"]): record for record in records}
    assert len(chosen) == 50
    return [record | {"path": folder / record["path"]} for record in chosen.values()]


def test_every_recording_is_as_long_as_its_list_says(digits: list[dict[str, Any]]) -> None:
    for record in digits:
        info = inspect_audio(record["path"])
        assert (info.sample_rate, info.num_channels) == (FILE_RATE, 1)
        assert info.duration_s == pytest.approx(record["duration"], abs=1e-3)
        found = read_audio(record["path"], 8000, 1)
        assert found.shape == (1, round(info.duration_s * 8000))
        blocks = torch.cat(list(audio_blocks(record["path"], 8000, 1, block_s=0.037)), 1)
        assert torch.equal(blocks, found)


def test_speech_is_found_where_a_person_speaks(digits: list[dict[str, Any]]) -> None:
    """In silence on both sides, as in a conversation."""
    for record in digits:
        said = read_audio(record["path"], 8000, 1)
        quiet = 1e-4 * torch.randn(1, 8000)
        whole = torch.cat([quiet, said, quiet], 1)
        duration_s = whole.shape[1] / 8000
        levels = measure_levels([whole], 8000)
        segments = speech_segments(levels.loudness_db[0], duration_s)
        assert segments, record["path"].name
        assert segments[0][0] > 0.95
        assert segments[-1][1] < duration_s - 0.95 + 0.2
        assert sum(stop - start for start, stop in segments) > LEAST_SPEECH_S


def test_a_digit_is_heard_alike_in_chunks_of_any_length(digits: list[dict[str, Any]]) -> None:
    """What a model answers to a person; Codec2 itself hisses differently every time."""
    talker = codec2_speaker()
    rate = talker.codec.sample_rate
    answers: set[tuple[int, ...]] = set()
    for record in digits[::17]:
        samples = read_audio(record["path"], rate, 1)[0, : rate // 4]
        whole = Conversation(talker, GREEDY)
        sound = whole.hear(samples)
        chunks = Conversation(talker, GREEDY)
        pieces = torch.cat([chunks.hear(piece) for piece in samples.split(131)])
        assert chunks.text_ids == whole.text_ids
        assert pieces.shape == sound.shape == samples.shape
        assert sound.isfinite().all()
        assert len(whole.step_s) == len(samples) // talker.codec.frame_samples
        answers.add(tuple(whole.text_ids[:5]))
    assert len(answers) == 3  # what is heard reaches the answer
