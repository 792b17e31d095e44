"""Interrupted speech: where the codes are cut, what is heard, and that splits share nothing."""

import itertools
import json
import math
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from counterpoint.config_json import decode, encode
from counterpoint.data.making.heard_scene import HeardConfig, HeardScene, Placed
from counterpoint.data.making.interrupted import (
    InterruptedSpeech,
    Items,
    PreparedUtterances,
)
from counterpoint.data.making.sounds import RATE, SoundsConfig, load_sounds, synthesised_note
from counterpoint.data.making.spoken_phrases import StoredPhrases, write_phrases
from counterpoint.errors import UserError
from counterpoint.files import write_tensors
from counterpoint.progress import Progress
from counterpoint.recipes.lslm_small import lslm_small
from counterpoint.speech.voices import Synthesizer, Voice
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems import lslm, sketch
from counterpoint.train.run import Run
from tests.data.speech.tones import Tones
from tests.runtime.talking import LevelCodec

VOICES = (Voice(), Voice(formant=1.45))
SPEAKER = Synthesizer(engines={"piper": Tones})


def data(**changes: Any) -> InterruptedSpeech:
    return replace(
        InterruptedSpeech(sounds=SoundsConfig(voices=VOICES), num_phrases=30, num_held_out=4),
        **changes,
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedUtterances:
    pytest.importorskip("pycodec2")
    cache = str(tmp_path_factory.mktemp("cache"))
    model = sketch(lslm.small())
    return PreparedUtterances(data(cache_folder=cache), model, Progress(quiet=True), SPEAKER)


def quiet(**changes: Any) -> HeardScene:
    scene = HeardScene(None, None, None, 0.0, 0.0)
    return scene._replace(**changes)


def said(batch: Batch, row: int = 0) -> list[int]:
    """Targets of the first codebook that carry loss."""
    ids = batch.targets["semantic"][row, :, 0]
    return ids[ids != UNSET_ID].tolist()


def test_without_an_interruption_everything_is_said_and_then_the_end(
    prepared: PreparedUtterances,
) -> None:
    item = prepared.items("train").utterance(3)
    batch = prepared.batch([prepared.content(item, quiet())])
    assert said(batch) == [*item.codes[:, 0].tolist(), prepared.ends.end]
    acoustic = batch.targets["acoustic"][0]
    assert torch.equal(acoustic[(acoustic != UNSET_ID).all(1)], item.codes[:, 1:])
    assert not batch.ticks["heard"].any()


@pytest.mark.parametrize("onset_s", [0.0, 0.06, 0.31, 1.0])
def test_an_interruption_cuts_the_speech_half_a_second_after_its_onset(
    prepared: PreparedUtterances, onset_s: float
) -> None:
    item = prepared.items("train").utterance(3)
    word = Placed(onset_s, torch.full((RATE,), 0.1))
    batch = prepared.batch([prepared.content(item, quiet(interruption=word))])
    # In decimals, for 0.56 s are 14 frames, but the float product is above 14.
    frames = math.ceil((Decimal(str(onset_s)) + Decimal("0.5")) * 25)
    assert said(batch) == [*item.codes[:frames, 0].tolist(), prepared.ends.interrupted]
    # The frame that is said first stands behind the last tick of the text.
    first = int((batch.targets["semantic"][0, :, 0] != UNSET_ID).nonzero()[0])
    heard = batch.ticks["heard"][0, first + 1 :].any(-1)
    assert int(heard.nonzero()[0]) == math.floor(onset_s * 25)


def test_the_text_stands_before_the_speech_and_nothing_is_heard_with_it(
    prepared: PreparedUtterances,
) -> None:
    item = prepared.items("train").utterance(0)
    noise = quiet(noise=torch.full((RATE,), 0.2))
    content = prepared.content(item, noise)
    num_text = content["text"].shape[1] - len(item.codes) - 1
    words = [id_ for id_ in content["text"][0].tolist() if id_ != 3]
    assert len(words) == num_text
    assert prepared.tokenizer.decode(words) == item.text
    assert (content["semantic"][0, :num_text] == UNSET_ID).all()
    assert not content["heard"][0, :num_text].any()
    assert content["heard"][0, num_text:].any(-1).all()


def test_the_own_voice_is_heard_late_and_softer(prepared: PreparedUtterances) -> None:
    item = prepared.items("train").utterance(1)
    plain, echoed = (
        prepared.content(item, quiet(echo_gain=gain, echo_delay_s=0.2))["heard"]
        for gain in (0.0, 0.25)
    )
    assert not plain.any()
    heard = echoed[0].any(-1).nonzero()[:, 0]
    first = echoed.shape[1] - len(item.codes) - 1
    assert int(heard[0]) - first >= 5  # 0.2 s


def test_probabilities_hold_and_change_no_other_draw(prepared: PreparedUtterances) -> None:
    items = prepared.items("train")
    scenes = [items.scene(number, 3.0) for number in range(400)]
    share = sum(scene.interruption is not None for scene in scenes) / 400
    assert abs(share - 0.5) < 0.08
    always = HeardConfig(noise=1, interruption=1, backchannel=0, echo=0)
    for number, scene in enumerate(scenes[:40]):
        forced = items.scene(number, 3.0, always)
        assert forced.noise is not None
        assert forced.interruption is not None
        assert forced.backchannel is None
        assert forced.interruption.start_s <= 3.0 - 0.5 - 0.2
        if scene.interruption is not None:
            assert torch.equal(scene.interruption.audio, forced.interruption.audio)


def test_spliced_phrases_are_words_in_new_orders(prepared: PreparedUtterances) -> None:
    """Words of the phrases; by default and in other splits every text is two whole phrases."""
    items = Items(replace(prepared.data, spliced=0.7), "train", prepared.codec, SPEAKER)
    words = {word for phrase in items.phrases for word in phrase.split()}
    pairs = {f"{first} {second}" for first in items.phrases for second in items.phrases}
    texts = [items.utterance(number).text for number in range(60)]
    assert {word for text in texts for word in text.split()} <= words
    assert sum(text in pairs for text in texts) < 20  # 0.3 x 0.3 of 60 are expected
    once = Items(replace(prepared.data, num_takes=1, spliced=1.0), "train", prepared.codec, SPEAKER)
    once.utterance(0)
    assert len(once._words) == len(words)
    natural = prepared.items("train")
    assert all(natural.utterance(number).text in pairs for number in range(20))
    held_out = prepared.items("held_out")
    assert held_out.utterance(0).text.startswith(held_out.phrases)


def test_some_frames_said_before_are_read_as_others(prepared: PreparedUtterances) -> None:
    misreads = replace(prepared.data, misread=0.3)
    items = Items(misreads, "train", prepared.codec, SPEAKER)
    numbers = range(4)
    plain = prepared.batch([prepared.content(items.utterance(n), quiet()) for n in numbers])
    assert prepared.misread(plain, items, numbers) is plain
    before = prepared.data
    prepared.data = misreads
    try:
        batch = prepared.misread(plain, items, numbers)
        second = prepared.batch([prepared.content(items.utterance(1), quiet())])
        alone = prepared.misread(second, items, [1])
        held_out = prepared.misread(plain, prepared.items("held_out"), numbers)
    finally:
        prepared.data = before
    own = torch.cat((plain.ticks["semantic"], plain.ticks["acoustic"]), -1)
    read = torch.cat((batch.ticks["semantic"], batch.ticks["acoustic"]), -1)
    spoken = ((own >= 0) & (own < torch.tensor((512, 512, 16, 64)))).all(-1)
    wrong = (read != own).any(-1)
    assert not wrong[~spoken].any()
    assert 0.2 < float(wrong.sum() / spoken.sum()) < 0.35
    assert batch.targets is plain.targets
    assert batch.elements is plain.elements
    assert torch.equal(batch.ticks["text"], plain.ticks["text"])
    size = alone.document_start.shape[1]
    assert torch.equal(alone.ticks["semantic"][0], batch.ticks["semantic"][1, :size])
    assert held_out is plain


def test_a_file_of_phrases_takes_the_place_of_a_voice(
    prepared: PreparedUtterances, tmp_path: Path
) -> None:
    """The same texts and codes, spliced or not; a phrase that is missing is named."""
    path = tmp_path / "phrases.safetensors"
    items = prepared.items("train")
    some = [items.phrase(text) for text in items.phrases]
    write_phrases(path, some, prepared.codec)
    stored = Items(replace(prepared.data, phrases_file=str(path)), "train", prepared.codec, SPEAKER)
    spliced = [
        Items(replace(one.data, spliced=1.0), "train", prepared.codec, SPEAKER)
        for one in (items, stored)
    ]
    for number in range(12):
        kinds = spliced if number % 2 else (items, stored)
        first, second = (one.utterance(number) for one in kinds)
        assert first.text == second.text
        assert torch.equal(first.codes, second.codes)
        assert len(second.audio) == len(second.codes) * prepared.codec.frame_samples
    assert stored.phrase(some[0].text).words == some[0].words
    with pytest.raises(UserError, match="is missing"):
        stored.phrase("what nobody said")
    with pytest.raises(UserError, match="A file of phrases must be one"):
        StoredPhrases(tmp_path / "none", prepared.codec)
    write_tensors(path, {"codes": some[0].codes}, {"format": "other"})
    with pytest.raises(UserError, match="must be codes of"):
        StoredPhrases(path, prepared.codec)


def test_there_are_as_many_phrases_as_are_asked_for() -> None:
    """More of them begin with those of fewer, and other splits stay the same."""
    few, many = (data(num_phrases=number) for number in (500, 5000))
    assert len(many.phrases("train")) == 5000
    assert many.phrases("train")[:500] == few.phrases("train")
    assert many.phrases("held_out") == few.phrases("held_out")
    assert not set(many.phrases("train")) & set(many.phrases("held_out"))


def test_words_are_cut_between_frames(prepared: PreparedUtterances) -> None:
    items = prepared.items("train")
    phrase = items.phrase(items.phrases[0])
    assert [word.text for word in phrase.words] == phrase.text.split()
    for word, after in itertools.pairwise(phrase.words):
        assert 0 <= word.first < word.stop
        assert word.stop <= max(after.first, word.first + 1)
    assert phrase.words[-1].stop <= len(phrase.codes)


def test_items_are_a_function_of_their_number(prepared: PreparedUtterances) -> None:
    again = Items(prepared.data, "train", prepared.codec, SPEAKER)
    first, second = (items.utterance(7) for items in (prepared.items("train"), again))
    assert first.text == second.text
    assert torch.equal(first.codes, second.codes)
    batch = prepared.batches(4, seed=1).batch(2)
    assert torch.equal(prepared.batches(4, seed=1).batch(2).ticks["heard"], batch.ticks["heard"])
    assert batch.size == int((batch.targets["semantic"] != UNSET_ID).sum())


def test_held_out_phrases_are_never_trained(prepared: PreparedUtterances) -> None:
    trained = set(prepared.items("train").phrases)
    assert len(trained) == 30
    assert not trained & set(prepared.items("held_out").phrases)
    units = prepared.held_out_units()
    assert units is not None
    assert len(units) == 4


def test_recordings_are_split_by_word_and_speaker(tmp_path: Path) -> None:
    """Unseen words by unseen speakers are held out; no recording is in two splits."""
    lists: dict[str, list[dict[str, object]]] = {"wake": [], "digits": [], "noise": []}
    for number in range(60):
        path = f"{number}.wav"
        tone = 0.01 * number * torch.ones(4000).numpy()
        soundfile.write(tmp_path / path, tone + 0.001, RATE)
        word = "alexa" if number % 2 else "jarvis"
        lists["wake"].append({"path": path, "word": word})
        lists["noise"].append({"path": path})
    for number in range(40):
        path = f"digit{number}.wav"
        soundfile.write(tmp_path / path, 0.01 * (number + 1) * torch.ones(3000).numpy(), RATE)
        speaker = ("george", "lucas")[number % 2]
        lists["digits"].append({"path": path, "digit": number // 2 % 10, "speaker": speaker})
    for name, lines in lists.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    command, voice = (
        {
            split: len(load_sounds(config, split, SPEAKER).interruptions)
            for split in ("train", "tuning", "held_out")
        }
        for config in (
            SoundsConfig(folder=str(tmp_path), voices=VOICES),
            SoundsConfig(folder=str(tmp_path), voices=VOICES, interrupter="voice"),
        )
    )
    assert sum(command.values()) == 30
    assert min(command.values()) > 0
    # jarvis (30) and seven digits of george, twice each (14); three of lucas (6). Who says alexa is
    # unknown, so it could be somebody who also says jarvis.
    assert command.keys() == voice.keys()
    assert voice["train"] + voice["tuning"] == 30 + 14
    assert voice["held_out"] == 6
    note = synthesised_note(SoundsConfig(folder=str(tmp_path)))
    assert note == f"backchannels are synthesised: there is no {tmp_path / 'backchannels.jsonl'}"
    assert not synthesised_note(SoundsConfig())
    with pytest.raises(UserError, match="There must be interruptions in the split 'train'"):
        load_sounds(
            SoundsConfig(folder=str(tmp_path), voices=VOICES, keyword="hal"), "train", SPEAKER
        )


@pytest.mark.parametrize("source", ["5-{}-{}", "rain {}"])
def test_lists_may_name_splits_and_pieces_of_a_recording_stay_together(
    source: str, tmp_path: Path
) -> None:
    """Backchannels of the folder take the place of synthesised ones."""
    lists: dict[str, list[dict[str, object]]] = {"wake": [], "noise": [], "backchannels": []}
    for number in range(60):
        path = f"{number}.wav"
        soundfile.write(tmp_path / path, 0.1 * torch.randn(100 + number).numpy(), RATE)
        split = ("train", "tuning", "held_out")[number % 3]
        piece = source.format(number // 6, "ABCDEF"[number % 6])
        lists["noise"].append({"path": path, "source": piece})
        lists["wake"].append({"path": path, "word": "alexa", "split": split, "trimmed": True})
        lists["backchannels"].append({"path": path, "split": split, "trimmed": True})
    for name, lines in lists.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    config = SoundsConfig(folder=str(tmp_path), voices=VOICES)
    for place, split in enumerate(("train", "tuning", "held_out")):
        found = load_sounds(config, split, SPEAKER)  # type: ignore[arg-type]
        expected = [100 + number for number in range(60) if number % 3 == place]
        assert [len(one) for one in found.interruptions] == expected
        assert [len(one) for one in found.backchannels] == expected
        recordings = [(len(one) - 100) // 6 for one in found.noises]
        assert sorted(recordings * 1) == sorted(6 * [*set(recordings)])
    assert not synthesised_note(config)
    some = [json.dumps(one) + "\n" for one in lists["backchannels"] if one["split"] != "tuning"]
    (tmp_path / "backchannels.jsonl").write_text("".join(some))
    with pytest.raises(UserError, match="There must be backchannels in the split 'tuning'"):
        load_sounds(config, "tuning", SPEAKER)


def test_a_system_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pycodec2")
    listener = replace(lslm.small().listener, heard_width=80)
    other = sketch(replace(lslm.small(), listener=listener))
    with pytest.raises(UserError, match="`heard_width` must be that of 40 mel bands, 160"):
        PreparedUtterances(data(cache_folder=str(tmp_path)), other, Progress(quiet=True), SPEAKER)
    fewer = sketch(replace(lslm.small(), codebook_sizes=(500, 512, 16, 64)))
    with pytest.raises(UserError, match="with two more ids in the first"):
        PreparedUtterances(data(cache_folder=str(tmp_path)), fewer, Progress(quiet=True), SPEAKER)


def test_a_model_keeps_its_tokeniser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is learned once; an exported model that has lost it does not learn another."""
    pytest.importorskip("sentencepiece")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    learned = data(cache_folder=str(tmp_path))
    found = learned.find_files()
    assert found == {"tokenizer": tmp_path / learned.file_names()["tokenizer"]}
    exported = learned.with_files({"tokenizer": found["tokenizer"].name})
    with pytest.raises(UserError, match="must lie beside the model: it is missing"):
        exported.tokenizer_file()
    moved = exported.with_files({"tokenizer": str(found["tokenizer"])})
    copy = moved.tokenizer_file()
    assert copy.is_relative_to(tmp_path / "home")
    assert copy.read_bytes() == found["tokenizer"].read_bytes()
    assert learned.with_files({"tokenizer": str(copy)}) == learned
    assert learned.with_files({}) == learned
    copy.write_bytes(b"another")
    with pytest.raises(UserError, match="must be the same file as"):
        exported.with_files({"tokenizer": str(found["tokenizer"])})


def test_a_share_of_misread_frames_is_checked() -> None:
    with pytest.raises(UserError, match="`misread` must be at least 0 and below 1: got 1.5"):
        data(misread=1.5)


def test_the_recipe_survives_json() -> None:
    run = lslm_small()
    assert isinstance(run, Run)
    assert decode(Run, json.loads(json.dumps(encode(run)))) == run


class EightCodebooks(LevelCodec):
    """A codec with the rates and codebooks of Mimi, whose ids are the level of a frame."""

    name = "eight codebooks"
    codebook_sizes = (2048,) * 8
    sample_rate = 24_000

    def __init__(self) -> None:
        super().__init__(1920)

    def encode(self, audio: torch.Tensor) -> torch.Tensor:
        whole = torch.nn.functional.pad(audio, (0, -audio.shape[1] % 1920))
        loudness = whole.unflatten(1, (-1, 1920)).square().mean(-1).sqrt()
        return (loudness * 2047).long().clamp(0, 2047)[..., None].repeat(1, 1, 8)


def test_speech_of_frames_as_long_as_those_of_mimi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The preset, the features and the cut half a second after the onset, at 12.5 frames a second.

    Published weights were not at hand.
    """
    asked = []

    def opened(name: str, num_codebooks: int) -> EightCodebooks:
        asked.append((name, num_codebooks))
        return EightCodebooks()

    monkeypatch.setattr("counterpoint.data.making.interrupted.open_codec", opened)
    model = sketch(lslm.mimi())
    source = data(codec="mimi.safetensors", cache_folder=str(tmp_path))
    prepared = PreparedUtterances(source, model, Progress(quiet=True), SPEAKER)
    assert asked == [("mimi.safetensors", 8)]
    item = prepared.items("train").utterance(3)
    word = Placed(0.31, torch.full((RATE,), 0.1))
    batch = prepared.batch([prepared.content(item, quiet(interruption=word))])
    assert batch.ticks["heard"].shape[-1] == 320
    assert batch.ticks["acoustic"].shape[-1] == 7
    frames = math.ceil(0.81 * 12.5)
    assert said(batch) == [*item.codes[:frames, 0].tolist(), 2049]
    first = int((batch.targets["semantic"][0, :, 0] != UNSET_ID).nonzero()[0])
    heard = batch.ticks["heard"][0, first + 1 :].any(-1)
    assert int(heard.nonzero()[0]) == math.floor(0.31 * 12.5)
