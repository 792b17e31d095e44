"""Problems joined from spoken words: their frames stand where their words are said."""

import json
import math
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.data.tasks.spoken_maths import bank as bank_module
from counterpoint.data.tasks.spoken_maths.bank import (
    FRAME_HZ,
    SILENCE,
    VOICES,
    BankConfig,
    WordBank,
    _was_current,
    bank_name,
    made_bank,
    make_bank,
    opened_bank,
    read_bank,
    sound_frames,
)
from counterpoint.data.tasks.spoken_maths.hearing import chunks
from counterpoint.data.tasks.spoken_maths.problems import SpokenMaths
from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData
from counterpoint.errors import UserError
from counterpoint.evaluate.duplex.spoken_maths import clock_of, listen, made_by_program
from counterpoint.evaluate.duplex.thought_kinds import KindScorer
from counterpoint.files import write_tensors
from counterpoint.progress import Progress
from counterpoint.recipes.shanks_small import spoken_maths_run
from counterpoint.recipes.shanks_small_sound import shanks_small_sound
from counterpoint.runtime.thinker import SystemThinker
from counterpoint.speech import mels
from counterpoint.speech.spoken_words import SpokenWord
from counterpoint.speech.voices import Spoken, Synthesizer, Voice, how_spoken
from counterpoint.streams.rounds import HEARD
from counterpoint.systems import shanks
from counterpoint.systems.shanks import Shanks
from counterpoint.systems.single_stream import SingleStream, SingleStreamConfig
from tests.systems import tiny_models

TASK = SpokenMaths()
TWO = (Voice(formant=1.0), Voice(formant=1.15))


class Beeper:
    """Says each word as noise of its own, for 0.24 s."""

    def speak(self, text: str, voice: Voice, sample_rate: int) -> Spoken:
        words = text.split()
        pieces = []
        for word in words:
            seed = sum(map(ord, word)) + round(100 * voice.formant)
            noise = torch.randn(
                round(0.24 * sample_rate), generator=torch.Generator().manual_seed(seed)
            )
            pieces.append(0.1 * noise)
        spoken = tuple(
            SpokenWord(word, 0.24 * number, 0.24 * number + 0.24)
            for number, word in enumerate(words)
        )
        return Spoken(audio=torch.cat(pieces), words=spoken)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of all words, in a file."""
    problems = (TASK.problem(0, number) for number in range(150))
    file = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    make_bank(Beeper(), TWO, problems, 2).save(file)
    return file


def data_of(path: Path, **more: Any) -> SpokenMathsData:
    sound = {name: more.pop(name) for name in ("overlap_frames", "transcribed") if name in more}
    return SpokenMathsData(bank=BankConfig(file=str(path), **sound), row_ticks=640, **more)


def sounding() -> Shanks:
    torch.manual_seed(0)
    model = Shanks(shanks.small_sound())
    torch.nn.init.normal_(model.get_parameter("head.weight"), std=0.1)
    return model


def test_takes_are_the_frames_of_their_words(path: Path) -> None:
    bank = read_bank(path)
    assert isinstance(bank, WordBank)
    assert set(bank.takes) == {voice.label for voice in TWO}
    takes = bank.takes[TWO[0].label]
    assert all(1 <= len(own) <= 2 for own in takes.values())
    assert sorted(takes) == sorted({w for n in range(150) for w in TASK.problem(0, n).words})
    first, stop = takes["has"][0]
    assert stop - first == 3
    with pytest.raises(UserError, match="must be a file"):
        read_bank(path / "none")


def test_words_are_said_where_their_frames_are(path: Path) -> None:
    bank = read_bank(path)
    problem = TASK.problem(0, 3)
    words, numbers = bank.join(problem, [TWO[1].label], Random(0))
    assert [word.text for word in words] == problem.words
    assert len(numbers) == round(words[-1].end_s * FRAME_HZ)
    for word in words:
        own = numbers[round(word.start_s * FRAME_HZ) : round(word.end_s * FRAME_HZ)].tolist()
        assert (own[0], own[-1] + 1) in map(tuple, bank.takes[TWO[1].label][word.text])
    silent = bank.frames[numbers[numbers == SILENCE]]
    assert len(silent) == 4 * (len(problem.clauses) - 1)
    assert not silent.any()


def test_rows_hold_the_frames_of_their_chunks_and_train_only_thoughts(path: Path) -> None:
    model = sounding()
    data = data_of(path, num_held_out=2, held_out_voice=TWO[1].label)
    batch = data.prepare(model).batches(1, 0).batch(0)
    assert batch.ticks[HEARD].shape == (1, 640, 320)
    sounds = batch.ticks[HEARD].abs().sum(-1) > 0
    written = batch.ticks["thought"] >= 0
    is_real = batch.document_start < batch.document_start.max()  # the last document is filling
    assert (sounds & is_real).any()
    assert not (sounds & written & is_real).any()
    model.loss(batch).total.backward()
    assert model.project is not None
    assert model.project.weight.grad is not None
    assert model.project.weight.grad.abs().sum() > 0
    held_out = data.heard(0, held_out=True)
    takes = read_bank(path).takes[TWO[1].label]
    own = {
        number for word in takes.values() for first, stop in word for number in range(first, stop)
    }
    assert held_out.frames is not None
    assert set(held_out.frames.tolist()) - {SILENCE} <= own
    scores = KindScorer(model.layout, data, [held_out]).score(model)
    assert {"told", "answer"} < scores.keys()


def test_words_are_targets_where_their_sound_ends(path: Path) -> None:
    """Each is one once, also where frames are heard twice; thoughts stay what they were."""
    model = sounding()
    plain = data_of(path, overlap_frames=6)
    prepared = plain.prepare(model)
    for number in range(4):
        heard = plain.heard(number)
        rows = [
            prepared.voiced(prepared.laid_out([prepared.told(heard, transcribed=named)])[0])
            for named in (False, True)
        ]
        before, after = (row.targets["thought"][0] for row in rows)
        is_heard = rows[1].ticks["thought"][0] < 0
        assert torch.equal(before[~is_heard], after[~is_heard])
        assert (before[is_heard] < 0).all()
        named = after[is_heard & (after >= 0)]
        cut = chunks(heard, plain.chunk_s)
        told = prepared.told(heard).rounds
        said = [word for chunk in cut[: len(told)] for word in chunk.words]
        assert prepared.words.decode(named.numpy()).split() == said
        frames = read_bank(path).frames[heard.frames]
        first = round(heard.words[0].end_s * FRAME_HZ) - 1
        assert torch.equal(rows[1].ticks[HEARD][0, first], frames[first])
        assert after[first] == named[0]
        assert rows[1].size == rows[0].size + len(named)


def test_training_rows_name_words_and_held_out_ones_do_not(path: Path) -> None:
    model = sounding()
    data = data_of(path, overlap_frames=6, transcribed=True, num_held_out=1)
    prepared = data.prepare(model)
    batch = prepared.batches(1, 0).batch(0)
    silent = batch.ticks["thought"] < 0
    assert (batch.targets["thought"][silent] >= 0).any()
    units = prepared.held_out_units()
    assert units is not None
    (held_out,) = units.batches(0)
    assert (held_out.targets["thought"][held_out.ticks["thought"] < 0] < 0).all()


def test_a_chunk_hears_the_end_of_the_one_before_again(path: Path) -> None:
    data = data_of(path)
    heard = data.heard(0)
    assert heard.frames is not None
    first, second, *_ = chunks(heard, data.chunk_s)
    assert torch.equal(heard.frames_of(first, 6), heard.frames_of(first))
    assert torch.equal(heard.frames_of(second, 6), heard.frames[19:50])
    assert torch.equal(heard.frames_of(second), heard.frames[25:50])


@pytest.mark.parametrize("num_frames", range(1, 61))
def test_a_word_ends_in_the_chunk_in_which_its_last_frame_is_heard(
    path: Path, num_frames: int
) -> None:
    """Also where it ends with a chunk: here borders are counted in frames, as whole numbers."""
    data = data_of(path)
    for number in range(4):
        heard = data.heard(number)
        ends = [round(word.end_s * FRAME_HZ) for word in heard.words]
        cut = chunks(heard, num_frames * 2 / 25)
        assert len(cut) == -(-ends[-1] // num_frames)
        spoken = iter(heard.words)
        for place, chunk in enumerate(cut):
            said = [end for end in ends if end > place * num_frames]
            said = [end for end in said if end <= (place + 1) * num_frames]
            assert chunk.words == tuple(next(spoken).text for _ in said)
            last = min((place + 1) * num_frames, ends[-1])
            assert heard.span(chunk) == slice(place * num_frames, last)


@pytest.mark.parametrize("chunk_s", [0.1, 0.3, 0.5, 0.7, 1 / 3, 1.0, 1.08, 2.2])
def test_a_chunk_holds_no_frame_that_ends_after_it(path: Path, chunk_s: float) -> None:
    data = data_of(path)
    for number in range(4):
        heard = data.heard(number)
        assert heard.frames is not None
        cut = chunks(heard, chunk_s)
        spans = [heard.span(chunk) for chunk in cut]
        assert spans[0].start == 0
        assert [one.start for one in spans[1:]] == [one.stop for one in spans[:-1]]
        assert spans[-1].stop == len(heard.frames)
        for one, chunk in zip(spans, cut, strict=True):
            assert one.stop / FRAME_HZ <= chunk.end_s
        assert [word for chunk in cut for word in chunk.words] == heard.problem.words


def test_the_last_chunk_holds_the_rest_of_the_speech(path: Path) -> None:
    """Its last frame is cut short, and its last word may end later by an error of rounding."""
    heard = data_of(path).heard(0)
    assert heard.frames is not None
    *others, last = heard.words
    late = heard._replace(
        words=(*others, last._replace(end_s=math.nextafter(heard.end_s, math.inf))),
        frames=torch.cat((heard.frames, heard.frames[:1])),
        end_s=heard.end_s + 0.01,
    )
    for one in (late, late._replace(end_s=heard.end_s, frames=heard.frames)):
        assert one.frames is not None
        cut = chunks(one, 2.0)
        assert [word for chunk in cut for word in chunk.words] == heard.problem.words
        assert [clause for chunk in cut for clause in chunk.clauses] == [*heard.problem.clauses]
        assert one.span(cut[-1]).stop == len(one.frames)


def test_a_bank_that_nobody_named_is_made_once_and_again_if_it_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bank_module, "_NUM_PROBLEMS", 2)
    bank_name.cache_clear()
    opened_bank.cache_clear()
    monkeypatch.setattr(bank_module, "Synthesizer", lambda _: Beeper())
    bank = BankConfig(cache_folder=str(tmp_path), takes=1)
    data = SpokenMathsData(bank=bank, held_out_voice=VOICES[2].label)
    made = made_bank(str(tmp_path), 1, Progress(bar=False))
    assert "speaking words" in capsys.readouterr().err
    assert made == tmp_path / bank_name(1)
    assert data.file_names() == {"bank": made.name} != {"bank": replace(bank, takes=2).name}
    assert data.find_files() == {"bank": made}
    assert set(data.word_bank().takes) == {voice.label for voice in VOICES}
    written = made.read_bytes()
    made.unlink()
    opened_bank.cache_clear()
    assert data.find_files() == {}  # nothing is spoken to export a model
    assert set(data.word_bank().takes) == {voice.label for voice in VOICES}
    assert data.find_files() == {"bank": made}
    assert made.read_bytes() == written
    missing = SpokenMathsData(bank=str(tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match="is missing"):
        missing.find_files()
    bank_name.cache_clear()


def test_an_outdated_bank_is_made_again_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise another engine, or mels with other constants, would go on with its sounds."""
    speakers: list[Beeper] = []
    versions = {"piper": "piper-tts 1"}

    def speaker(folder: str) -> Beeper:
        speakers.append(Beeper())
        return speakers[-1]

    def num_made() -> int:
        _was_current.cache_clear()
        made_bank(str(tmp_path), 1)
        return len(speakers)

    monkeypatch.setattr(bank_module, "_NUM_PROBLEMS", 2)
    monkeypatch.setattr(bank_module, "Synthesizer", speaker)
    spoken = how_spoken(VOICES)
    monkeypatch.setattr(bank_module, "how_spoken", lambda _: {**spoken, "engines": dict(versions)})
    bank_name.cache_clear()
    data = SpokenMathsData(bank=BankConfig(cache_folder=str(tmp_path), takes=1))
    assert (num_made(), num_made()) == (1, 1)
    versions["piper"] = "piper-tts 2"
    _was_current.cache_clear()
    assert data.find_files() == {}  # a model gets no outdated bank
    assert (num_made(), num_made()) == (2, 2)
    versions["piper"] = ""  # not installed any more: nothing newer can be made
    assert num_made() == 2
    assert data.find_files().keys() == {"bank"}
    versions["piper"] = "piper-tts 2"
    monkeypatch.setattr(mels, "_FLOOR", 1e-6)
    assert (num_made(), num_made()) == (3, 3)
    made = made_bank(str(tmp_path), 1)
    bank = read_bank(made)
    # Like banks of the time before they said how they were made.
    write_tensors(made, {"stored": bank.stored}, {"takes": json.dumps(bank.takes)})
    assert read_bank(made).digest == bank.digest
    assert (num_made(), num_made()) == (4, 4)
    bank_name.cache_clear()
    _was_current.cache_clear()


def test_a_run_keeps_its_bank_and_finds_it_again(path: Path, tmp_path: Path) -> None:
    bank = BankConfig(cache_folder=str(tmp_path / "none"))
    data = SpokenMathsData(bank=bank)
    name = bank_name(bank.takes)
    kept = tmp_path / name
    kept.write_bytes(path.read_bytes())
    found = data.with_files({"bank": str(kept)})
    assert found.bank == replace(bank, file=str(kept))
    assert found.word_bank().digest == read_bank(path).digest
    assert found.with_files({"bank": name}) == data  # as in an exported model
    assert data.with_files({}) == data
    words = SpokenMathsData()
    assert words.file_names() == {}
    assert words.find_files() == {}
    assert words.with_files({}) == words


def test_the_place_of_a_bank_is_no_part_of_the_data(path: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(path.read_bytes())
    model = sounding()
    found = [data_of(file).prepare(model).fingerprint for file in (path, moved)]
    assert found[0] == found[1]
    assert found[0] != data_of(path, overlap_frames=6).prepare(model).fingerprint


def test_options_of_sound_are_checked(path: Path) -> None:
    assert SpokenMathsData(bank=str(path)).sound == BankConfig(file=str(path))
    with pytest.raises(UserError, match="Only words are misheard"):
        SpokenMathsData(bank=BankConfig(), misheard=0.1)
    with pytest.raises(UserError, match="at least 1"):
        BankConfig(takes=0)
    with pytest.raises(UserError, match="Only sound has a bank"):
        SpokenMathsData().word_bank()


def test_the_recipe_of_sound_holds_out_the_third_voice() -> None:
    """It is described without a bank, which is made when it is first needed."""
    run = shanks_small_sound()
    assert isinstance(run.data, SpokenMathsData)
    assert run.data.held_out_voice == VOICES[2].label
    assert run.system == shanks.small_sound()


@pytest.mark.slow
def test_piper_speaks_a_bank_of_words(tmp_path: Path) -> None:
    pytest.importorskip("piper")
    problems = [TASK.problem(0, number) for number in range(3)]
    bank = make_bank(Synthesizer(tmp_path), VOICES[:1], problems, 2)
    takes = bank.takes[VOICES[0].label]
    assert set(takes) == {word for problem in problems for word in problem.words}
    lengths = [stop - first for own in takes.values() for first, stop in own]
    assert 0.1 < sum(lengths) / len(lengths) / FRAME_HZ < 1.0  # seconds of a word
    assert bank.frames.std() > 0.05


@pytest.mark.parametrize("overlap", [0, 6])
def test_a_session_that_hears_chunks_writes_what_whole_rows_predict(
    path: Path, overlap: int
) -> None:
    model = sounding().eval()
    data = data_of(path, overlap_frames=overlap)
    heard = data.heard(0)
    prepared = data.prepare(model)
    batch = prepared.batch(heard)
    with torch.no_grad():
        expected = model(batch)["thought"][0].argmax(-1)
    thinker = SystemThinker(model, prepared.words)
    ids, frames = batch.ticks["thought"][0], batch.ticks[HEARD][0]
    begin = 0
    while begin < len(ids):
        stop = begin + 1
        if ids[begin] < 0:
            while stop < len(ids) and ids[stop] < 0:
                stop += 1
            thinker.hear(frames[begin:stop])
        else:
            thinker.read(prepared.words.decode(ids[begin:stop].numpy()))
        said = thinker.propose().text.strip()
        assert said == prepared.words.decode(expected[stop - 1 : stop].numpy()).strip()
        begin = stop


def test_a_model_listens_to_joined_words_and_to_speech(path: Path) -> None:
    model = sounding().eval()
    data = data_of(path)
    heard = data.heard(1, held_out=True)
    attempt = listen(model, data, heard, threshold=2.0)
    chunks = attempt.timeline.where(kind="chunk").events
    assert chunks[-1].end_s == pytest.approx(heard.end_s)
    assert len(attempt.timeline.where(kind="answer")) == 1
    assert made_by_program(heard, clock_of(data)).interrupted_s is not None or not heard.wrong_s
    audio: Tensor = 0.1 * torch.randn(round(heard.end_s * 16_000))
    speech = heard._replace(frames=sound_frames(audio))
    assert len(listen(model, data, speech, threshold=2.0).timeline.where(kind="answer")) == 1


def test_a_bank_must_have_a_voice_for_every_split(path: Path, tmp_path: Path) -> None:
    bank = read_bank(path)
    label = TWO[1].label
    alone = tmp_path / "alone.safetensors"
    bank._replace(takes={label: bank.takes[label]}).save(alone)
    for file, held_out_voice in ((alone, label), (path, "nobody")):
        data = data_of(file, held_out_voice=held_out_voice)
        with pytest.raises(UserError, match="must have a voice to learn from, and the held-out"):
            data.prepare(sounding())
        with pytest.raises(UserError, match="must have a voice to learn from, and the held-out"):
            data.heard(0, held_out=file == path)
    assert spoken_maths_run("interleaved", bank=str(alone)).data.held_out_voice == label  # type: ignore[union-attr]


def test_a_bank_of_other_sounds_with_the_same_name_is_other_data(
    path: Path, tmp_path: Path
) -> None:
    bank = read_bank(path)
    file = tmp_path / "bank.safetensors"
    found = []
    for stored in (bank.stored, bank.stored.flip(0)):
        bank._replace(stored=stored).save(file)
        opened_bank.cache_clear()
        found.append(data_of(file).prepare(sounding()).fingerprint)
    assert found[0] != found[1]
    assert bank.digest == read_bank(path).digest != bank._replace(takes={}).digest


def test_systems_that_cannot_hear_sound_are_told_so(path: Path) -> None:
    words = SingleStream(SingleStreamConfig(tower=tiny_models.tower(8, 1, 1, 640), vocab_size=124))
    for system in (words, Shanks(shanks.tiny())):
        with pytest.raises(UserError, match="320 features"):
            data_of(path).prepare(system)
    with pytest.raises(UserError, match="no features"):
        SpokenMathsData().prepare(sounding())
