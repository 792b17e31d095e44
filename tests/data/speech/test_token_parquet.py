from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from counterpoint.data.speech.hearing import Hearing
from counterpoint.data.speech.rows import SpeechData, prepare_speech
from counterpoint.data.speech.token_parquet import read_token_parquet
from counterpoint.speech.augment import Augmentation
from counterpoint.systems.moshi import two_speakers
from tests.systems.tiny_moshi import build, config


@pytest.fixture
def tokens(tmp_path: Path) -> tuple[Path, Tensor]:
    """Two dialogues of 9 rows (text and 8 codebooks) for either speaker."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    ids = torch.arange(2 * 2 * 9 * 25).view(2, 2, 9, 25)
    table = {"dialogue_id": ["x/0", "x/1"], "A": ids[:, 0].tolist(), "B": ids[:, 1].tolist()}
    parquet.write_table(pyarrow.table(table), tmp_path / "t-001-of-001.parquet")
    return tmp_path, ids


def test_token_parquet_is_read(tokens: tuple[Path, Tensor]) -> None:
    folder, ids = tokens
    for agent, (mine, other) in {"A": (0, 1), "B": (1, 0)}.items():
        examples = list(read_token_parquet(folder, 10, agent))
        assert [(e.source, e.first_frame) for e in examples] == [
            (f"x/{number}", first) for number in (0, 1) for first in (0, 10, 20)
        ]
        last = examples[-1].streams
        assert torch.equal(last["text"], ids[1, mine, 0, 20:])
        assert torch.equal(last["agent"], ids[1, mine, 1:, 20:].T)
        assert torch.equal(last["user"], ids[1, other, 1:, 20:].T)


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"dialogue_id": ["x"], "A": [[[1]]]}, r"must have the column 'B'"),
        ({"dialogue_id": ["x"], "A": [[[1], [1]]], "B": [[[1, 2], [1, 2]]]}, "equal shapes"),
        ({"dialogue_id": ["x"], "A": [[[1]]], "B": [[[1]]]}, "text and at least one codebook"),
        ({"dialogue_id": ["x"], "A": [[[1], [1, 2]]], "B": [[[1], [1]]]}, "equally many ids"),
        ({"dialogue_id": ["x"], "A": [None], "B": [[[1], [1]]]}, "equally many ids"),
        ({"dialogue_id": ["x"], "A": [[[None], [1]]], "B": [[[1], [1]]]}, "equally many ids"),
    ],
)
def test_wrong_token_parquet_is_named(tmp_path: Path, columns: Any, fault: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=fault):
        list(read_token_parquet(tmp_path / "t.parquet", 10))


def test_agent_is_one_of_two(tokens: tuple[Path, Tensor]) -> None:
    with pytest.raises(ValueError, match="`agent` must be A or B: got 'C'"):
        list(read_token_parquet(tokens[0], 10, "C"))


SIZES = {"text_vocab_size": 900, "audio_vocab_size": 900}


def test_a_model_trains_on_token_parquet(tokens: tuple[Path, Tensor]) -> None:
    """Its ids as they are, cut into rows; no codec is opened."""
    folder, ids = tokens
    data = SpeechData(train=str(folder), codec="no such codec", row_s=1.0, held_out=str(folder))
    model = build(config(two_speakers(7), 16, **SIZES, tick_hz=10.0, text_padding_id=3))
    corpus = prepare_speech(data, model)
    assert corpus.held_out is not None
    for rows in (corpus.train, corpus.held_out):
        assert (len(rows), rows.row_ticks) == (5, 10)  # the two halves share a row
        first = rows.rows(np.array([0]))
        assert torch.equal(first.targets["text"][0], ids[0, 0, 0, :10])
        assert torch.equal(first.targets["agent_semantic"][0, :, 0], ids[0, 0, 1, :10])
        assert torch.equal(first.targets["user_acoustic"][0, 1:], ids[0, 1, 2:, :9].T)
    assert model.loss(corpus.train.rows(np.arange(5))).total.isfinite()
    (digest,) = corpus.recordings[str(folder)].values()
    assert len(digest) == 16


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        (build(config(two_speakers(6), 14, **SIZES)), "the model's 7 codebooks: got 8"),
        (
            build(config(two_speakers(7), 16, **SIZES | {"audio_vocab_size": 899})),
            "ids of the user must be",
        ),
        (build(config(two_speakers(7), 16, **SIZES | {"text_vocab_size": 400})), "ids of the text"),
    ],
)
def test_ids_that_the_model_has_not_are_named(
    tokens: tuple[Path, Tensor], model: Any, fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        prepare_speech(SpeechData(train=str(tokens[0])), model)


@pytest.mark.parametrize(
    "fields",
    [
        {"train": "a.parquet", "augmentation": Augmentation()},
        {"train": "a.parquet", "role_prompts": True},
        {"train": "a.jsonl", "held_out": "a.parquet", "hearing": Hearing(after_s=0.1)},
    ],
)
def test_tokens_have_no_sound_to_change(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be left out for codes of a .parquet file"):
        SpeechData(**fields)
    SpeechData(train="", held_out="", augmentation=Augmentation())  # a study names its own
