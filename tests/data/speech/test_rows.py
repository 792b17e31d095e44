import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from counterpoint.data.loader import Loader, Rows
from counterpoint.data.source import Preparation
from counterpoint.data.speech.alignments import AGENT_SPEAKER
from counterpoint.data.speech.dialogues import Example
from counterpoint.data.speech.hearing import Hearing
from counterpoint.data.speech.monologue import EPAD_ID, PAD_ID, WordStarts
from counterpoint.data.speech.packing import DialogueRows
from counterpoint.data.speech.rows import (
    SpeechData,
    codec_of,
    prepare_speech,
)
from counterpoint.data.speech.words import ByteWords, WordTokenizer, open_tokenizer, train_tokenizer
from counterpoint.formats import open_codec
from counterpoint.progress import Progress
from counterpoint.speech.audio import write_audio
from counterpoint.speech.augment import Augmentation
from counterpoint.speech.codec2 import Codec2
from counterpoint.streams.spec import Role, Ticks
from counterpoint.systems.moshi import AudioStream, Moshi, MoshiConfig
from tests.systems.tiny_moshi import build, config, random_codes

ROW = 20
LENGTHS = (7, 12, 1, 20, 19, 2, 5, 5, 5, 5, 1)
PACKED = ((0, 1, 2), (3,), (4, 10), (5, 6, 7, 8), (9,))


def recordings(model: Moshi) -> list[dict[str, Tensor]]:
    """Codes of all streams of dialogues, one without known words."""
    torch.manual_seed(2)
    found = [random_codes(model, 1, length) for length in LENGTHS]
    found[4]["text"][:] = -1
    return found


def as_example(model: Moshi, codes: Ticks, number: int) -> Example:
    sides = {
        side: torch.cat([codes[s.name][0] for s in model.config.audio if s.role == role], -1)
        for side, role in (("agent", Role.SPOKEN), ("user", Role.HEARD))
    }
    return Example(source=f"{number}", first_frame=0, streams={"text": codes["text"][0], **sides})


def rows_of(model: Moshi, row_ticks: int = ROW) -> DialogueRows:
    examples = [as_example(model, codes, i) for i, codes in enumerate(recordings(model))]
    return DialogueRows(examples, model, row_ticks)


def test_rows_hold_every_dialogue_once() -> None:
    """Each as `Moshi.batch` lays it out by itself; what is behind the last one is nothing."""
    model = build("both_speakers")
    rows, batches = rows_of(model), [model.lay_out(codes) for codes in recordings(model)]
    assert isinstance(rows, Rows)
    assert len(rows) == len(PACKED)
    assert sorted(number for numbers in PACKED for number in numbers) == list(range(len(LENGTHS)))
    for index, numbers in enumerate(PACKED):
        row, first = rows.rows(np.array([index])), 0
        assert (row.size, row.unit) == (sum(LENGTHS[number] for number in numbers), "frame")
        for number in numbers:
            alone, length = batches[number], LENGTHS[number]
            here = slice(first, first + length)
            for part in ("ticks", "targets", "elements"):
                expected, found = getattr(alone, part), getattr(row, part)
                assert set(found) == set(expected)
                for name, ids in expected.items():
                    assert torch.equal(found[name][:, here], ids)
            assert (row.document_start[0, here] == first).all()
            first += length
        for streams in (row.ticks, row.targets, row.elements):
            for ids in streams.values():
                assert ids.shape[1] == ROW
                assert (ids[:, first:] == -1).all()
        assert (row.document_start[0, first:] == first).all()


def test_documents_begin_where_they_stand_without_an_initial_frame() -> None:
    """A document is then read a tick shorter than its content, and the row is no shorter."""
    model = build("both_speakers")
    streams = tuple(replace(stream, initial_id=None) for stream in model.layout.streams)
    model.layout = replace(model.layout, streams=streams)
    row = rows_of(model).rows(np.array([0]))
    first = 0
    for number in PACKED[0]:
        alone = model.lay_out(recordings(model)[number])
        length = alone.document_start.shape[1]
        assert length == LENGTHS[number] - 1
        here = slice(first, first + length)
        assert (row.document_start[0, here] == first).all()
        for name, ids in alone.ticks.items():
            assert torch.equal(row.ticks[name][:, here], ids)
        first += length
    assert row.document_start.shape[1] == ROW
    assert all(ids.shape[1] == ROW for ids in row.ticks.values())


def test_every_dialogue_is_in_the_first_row_with_room() -> None:
    filled = [0] * len(PACKED)
    row_of = {number: row for row, numbers in enumerate(PACKED) for number in numbers}
    for number, length in enumerate(LENGTHS):
        assert row_of[number] == next(r for r, n in enumerate(filled) if n + length <= ROW)
        filled[row_of[number]] += length


@torch.no_grad()
@pytest.mark.parametrize("shape", ["both_speakers", "agent_only", "unlike_codebooks"])
def test_dialogues_in_a_row_equal_dialogues_alone(shape: str) -> None:
    model = build(shape)
    rows, codes = rows_of(model), recordings(model)
    row = rows.rows(np.arange(len(PACKED)))
    together = model(row)
    for index, numbers in enumerate(PACKED):
        first = 0
        for number in numbers:
            for name, scores in model(model.lay_out(codes[number])).items():
                found = together[name][index : index + 1, first : first + LENGTHS[number]]
                torch.testing.assert_close(found, scores, rtol=0, atol=1e-5)
            first += LENGTHS[number]


def test_text_can_be_trained_alone() -> None:
    model = build("both_speakers")
    examples = [as_example(model, codes, i) for i, codes in enumerate(recordings(model))]
    alone = DialogueRows(examples, model, ROW, only_text=True).rows(np.arange(5))
    both = rows_of(model).rows(np.arange(5))
    assert set(alone.targets) == {"text"}
    assert torch.equal(alone.targets["text"], both.targets["text"])
    torch.testing.assert_close(
        model.loss(alone).terms["text_nats"], model.loss(both).terms["text_nats"]
    )


def test_loss_of_rows_is_that_of_the_dialogues() -> None:
    model = build("agent_only")
    with torch.no_grad():
        row = model.loss(rows_of(model).rows(np.arange(len(PACKED))))
        alone = [model.loss(model.lay_out(codes)).nats for codes in recordings(model)]
    torch.testing.assert_close(row.nats, torch.stack(alone).sum())
    assert row.total.isfinite()


def test_rows_are_read_by_a_loader() -> None:
    loader = Loader(rows_of(build("agent_only")), batch_rows=2, seed=1)
    sizes = [loader.batch(step).size for step in range(5)]
    assert sum(sizes) == 2 * sum(LENGTHS)  # two epochs
    assert loader.batch(0).ticks["text"].shape == (2, ROW)


def test_rows_refuse_what_does_not_fit() -> None:
    model = build("agent_only")
    with pytest.raises(ValueError, match="none longer than a row of 19 frames: got 11, the .* 20"):
        rows_of(model, 19)
    with pytest.raises(ValueError, match="at least one example"):
        DialogueRows([], model, 5)


# From recordings

NOISE = Augmentation(gain_probability=1, noise_probability=0, echo_probability=0)


def codec2_config(**changes: Any) -> MoshiConfig:
    sizes = Codec2.codebook_sizes
    audio = tuple(
        AudioStream(name=name, role=role, depth=4, codebook_sizes=sizes)
        for name, role in (("agent", Role.SPOKEN), ("user", Role.HEARD))
    )
    fields = {"text_vocab_size": 256, "audio_vocab_size": 512, "tick_hz": 25.0, **changes}
    return config(fields.pop("audio", audio), 4, **fields)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    pytest.importorskip("soundfile")
    lines = []
    for i, seconds in enumerate((1.0, 2.2)):
        times = torch.arange(int(8000 * seconds)) / 8000
        audio = torch.stack([(900 * times).sin(), (700 * times + i).sin()]) * 0.2
        write_audio(tmp_path / f"{i}.wav", audio, 8000)
        words = {"alignments": [["hé", [0.1, 0.3], "SPEAKER_MAIN"]]}
        (tmp_path / f"{i}.json").write_text(json.dumps(words))
        lines.append(json.dumps({"path": f"{i}.wav", "duration": seconds}) + "\n")
    (tmp_path / "all.jsonl").write_text("".join(lines))
    return tmp_path / "all.jsonl"


def data(listed: Path, **changes: Any) -> SpeechData:
    fields = {"row_s": 1.2, "cache_folder": str(listed.parent / "cache"), **changes}
    return SpeechData(train=str(listed), **fields)


def test_recordings_become_rows_with_their_words(listed: Path) -> None:
    model = build(codec2_config())
    done: list[tuple[float, float]] = []
    corpus = prepare_speech(data(listed), model, lambda *seconds: done.append(seconds))
    assert corpus.held_out is None
    assert torch.tensor(done).allclose(torch.tensor([(1.0, 3.2), (3.2, 3.2)]))
    # 25 frames; then 30 and 25 of 55: rows of 30 frames hold one piece each.
    assert [corpus.train.rows(np.array([i])).size for i in range(len(corpus.train))] == [25, 30, 25]
    text = corpus.train.rows(np.array([0])).targets["text"][0].tolist()
    frame = round(0.1 * 25)
    assert text[frame : frame + 4] == [*" hé".encode()]
    assert ByteWords().decode(text[:25]) == " hé"


def test_words_that_are_left_out_are_told_once(listed: Path) -> None:
    words = [["so", [0.2, 0.3], AGENT_SPEAKER], ["so", [0.21, 0.2], AGENT_SPEAKER]]
    (listed.parent / "1.json").write_text(json.dumps({"alignments": words}))
    told = io.StringIO()
    corpus = data(listed).prepare(build(codec2_config()), Preparation(progress=Progress(told)))
    (note,) = corpus.notes
    assert note.startswith(f"{listed}: of ")
    assert "1 are left out" in note
    assert told.getvalue().splitlines().count(note) == 1
    silent = io.StringIO()
    how = Preparation(progress=Progress(silent), rank=1, world_size=2)
    data(listed).prepare(build(codec2_config()), how)
    assert silent.getvalue() == ""


def test_words_on_the_edge_of_a_frame_start_as_the_config_says(listed: Path) -> None:
    """A start of 1.16 s is frame 29 of 40 ms, and less than 29 of them in floats."""
    assert 1.16 * 25 < 29
    record = {"alignments": [["so", [1.16, 1.5], AGENT_SPEAKER]]}
    (listed.parent / "1.json").write_text(json.dumps(record))
    model, starts = build(codec2_config()), []
    rules: tuple[WordStarts, ...] = ("exact", "moshi_finetune")
    for rule in rules:
        rows = prepare_speech(data(listed, word_starts=rule), model).train
        text = rows.rows(np.array([1])).targets["text"][0]
        starts.append(int((text == ord(" ")).nonzero()[0, 0]))
    assert starts == [29, 28]


def test_where_nothing_is_said_stands_the_padding_of_the_model(listed: Path) -> None:
    rows = prepare_speech(data(listed), build(codec2_config(text_padding_id=7))).train
    text = rows.rows(np.array([0])).targets["text"][0, :25]
    assert set(text.tolist()) == {7, 0, *b" h\xc3\xa9"}


def test_text_can_write_down_what_the_user_says(listed: Path) -> None:
    """Each word half a second after its end; nothing else is trained."""
    record = {"alignments": [["so", [0.2, 0.3], "SPEAKER_OTHER"], ["é", [0.1, 0.3], AGENT_SPEAKER]]}
    (listed.parent / "0.json").write_text(json.dumps(record))
    rows = prepare_speech(data(listed, hearing=Hearing(after_s=0.2)), build(codec2_config())).train
    targets = rows.rows(np.array([0])).targets
    assert set(targets) == {"text"}
    text, frame = targets["text"][0].tolist(), round(0.5 * 25)
    assert text[frame : frame + 3] == [*b" so"]
    assert ByteWords().decode(text[:25]) == " so"


def test_copies_differ_in_what_the_user_says_alone(listed: Path) -> None:
    model = build(codec2_config())
    rows = prepare_speech(data(listed, augmentation=NOISE, copies=3), model).train
    assert len(rows) == 3 * 3
    first, second, third = (rows.rows(np.arange(i, i + 3)) for i in (0, 3, 6))
    assert torch.equal(first.ticks["agent"], second.ticks["agent"])
    assert torch.equal(first.ticks["text"], second.ticks["text"])
    for other in (second, third):
        assert not torch.equal(first.ticks["user"], other.ticks["user"])
    other_seed = prepare_speech(data(listed, augmentation=NOISE, copies=3, seed=1), model).train
    assert not torch.equal(other_seed.rows(np.arange(3)).ticks["user"], third.ticks["user"])


def test_every_process_has_the_same_rows(listed: Path) -> None:
    model = build(codec2_config())
    one, two = (
        prepare_speech(
            data(listed, cache_folder=str(listed.parent / f"{rank}")), model, None, rank, 2
        )
        for rank in (0, 1)
    )
    every = np.arange(len(one.train))
    for part in ("text", "agent", "user"):
        assert torch.equal(one.train.rows(every).ticks[part], two.train.rows(every).ticks[part])


def test_held_out_recordings_are_not_augmented(listed: Path) -> None:
    model = build(codec2_config())
    plain = prepare_speech(data(listed), model).train
    held_out = prepare_speech(
        data(listed, augmentation=NOISE, held_out=str(listed)), model
    ).held_out
    assert held_out is not None
    every = np.arange(len(plain))
    assert torch.equal(held_out.rows(every).ticks["user"], plain.rows(every).ticks["user"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tick_hz": 12.5}, "`tick_hz` must be the codec's 25.0: got 12.5"),
        ({"text_vocab_size": 255}, "`text_vocab_size` must be at least the tokeniser's 256"),
        (
            {"audio": tuple(replace(s, codebook_sizes=()) for s in codec2_config().audio)},
            r"codebooks must have the codec's sizes \(512, 512, 16, 64\): got \(512, 512, 512, 512",
        ),
        (
            {"audio": (codec2_config().audio[0], AudioStream(name="u", role=Role.HEARD, depth=3))},
            r"Both speakers must have equally many codebooks: got \[3, 4\]",
        ),
    ],
)
def test_model_must_fit_codec_and_tokeniser(
    listed: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_speech(data(listed), build(codec2_config(**changes)))


def test_codec_is_named() -> None:
    model = build(codec2_config())
    assert codec_of(model, "codec2").name == Codec2().name
    with pytest.raises(ValueError, match="Codec2 has 4 codebooks: the model has 3"):
        open_codec("codec2", 3)


def test_copies_need_an_augmentation() -> None:
    with pytest.raises(ValueError, match="`copies` must be 1, or more with an `augmentation`"):
        SpeechData(train="a.jsonl", copies=2)


# Tokenisers


@pytest.mark.parametrize("text", ["", " ", "\n", "\x07", "\t \x00"])
def test_no_word_has_no_bytes(text: str) -> None:
    assert open_tokenizer("bytes").encode_word(text) == []


def test_letters_that_a_tokenizer_does_not_know_are_no_padding(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    train_tokenizer(["the cat sat"] * 50, tmp_path / "words.model", 40)
    words = open_tokenizer(str(tmp_path / "words.model"))
    assert words.encode_word("你好") == []
    assert words.decode(words.encode_word("c你at")) == "cat"
    assert not {EPAD_ID, PAD_ID} & set(words.encode_word("th你e"))


def test_bytes_leave_control_characters_free() -> None:
    words = open_tokenizer("bytes")
    assert isinstance(words, WordTokenizer)
    ids = [id_ for word in ("é\n", "so,") for id_ in words.encode_word(word)]
    assert ids == [*" é so,".encode()]
    assert min(ids) >= 32
    assert words.decode([3, *ids, 0]) == " é so,"
    assert [words.starts_word(id_) for id_ in ids] == [True, False, False, True, *[False] * 3]


def test_sentencepiece_model_splits_words(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text.txt").write_text("the cat sat on the mat\nthe rat sat on the cat\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "words"),
        vocab_size=16,
        minloglevel=2,
    )
    words = open_tokenizer(str(tmp_path / "words.model"))
    assert isinstance(words, WordTokenizer)
    assert words.vocab_size == 16
    ids = [words.encode_word(word) for word in ("the", "mat")]
    assert all(words.starts_word(first) for first, *_ in ids)
    assert not any(words.starts_word(id_) for _, *rest in ids for id_ in rest)
    assert words.decode([id_ for word in ids for id_ in word]) == "the mat"
    assert max(max(word) for word in ids) < 16


@pytest.mark.parametrize("content", [None, b"no model"])
def test_file_that_is_no_tokeniser_is_refused(tmp_path: Path, content: bytes | None) -> None:
    pytest.importorskip("sentencepiece")
    path = tmp_path / "text.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="must be 'bytes' or a SentencePiece .model") as error:
        open_tokenizer(str(path))
    assert "\n" not in str(error.value)
