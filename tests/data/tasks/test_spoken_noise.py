"""Spoken problems in noise: other features, the same words and times, at the stated ratio."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from counterpoint.data.making.sounds import RATE, load_noises
from counterpoint.data.tasks.spoken_maths.bank import (
    FRAME_HZ,
    SILENCE,
    BankConfig,
    bank_mels,
    bank_name,
    make_bank,
    opened_bank,
    read_bank,
)
from counterpoint.data.tasks.spoken_maths.noise import NoiseConfig, voiced_samples
from counterpoint.data.tasks.spoken_maths.source import PreparedMaths, SpokenMathsData
from counterpoint.errors import UserError
from counterpoint.evaluate.duplex.spoken_maths import listen
from counterpoint.evaluate.duplex.thought_kinds import KindScorer
from counterpoint.speech.spoken_words import SpokenWord
from counterpoint.streams.rounds import HEARD
from tests.data.tasks.test_spoken_bank import TASK, TWO, Beeper, sounding

QUIET = NoiseConfig(snr_db=200.0)
LOUD = NoiseConfig(snr_db=0.0)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of all words with their samples, in a file."""
    problems = (TASK.problem(0, number) for number in range(150))
    file = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    make_bank(Beeper(), TWO, problems, 1, sampled=True).save(file)
    return file


def data_of(path: Path, noise: NoiseConfig, **more: Any) -> SpokenMathsData:
    return SpokenMathsData(bank=BankConfig(file=str(path), noise=noise), row_ticks=640, **more)


def test_noise_changes_features_and_neither_words_nor_times(path: Path) -> None:
    for held_out in (False, True):
        clean = data_of(path, NoiseConfig()).heard(3, held_out=held_out)
        noisy = data_of(path, LOUD).heard(3, held_out=held_out)
        assert clean.frames is not None
        assert noisy.frames is not None
        assert noisy._replace(frames=None) == clean._replace(frames=None)
        frames = read_bank(path).frames[clean.frames]
        assert noisy.frames.shape == frames.shape
        assert (noisy.frames - frames).abs().mean() > 0.02
        assert (noisy.frames[clean.frames == SILENCE] > 0).any()  # there is noise in pauses too
        again = data_of(path, LOUD).heard(3, held_out=held_out)
        assert again.frames is not None
        assert torch.equal(again.frames, noisy.frames)
        other = data_of(path, LOUD).heard(4, held_out=held_out)
        assert other.frames is not None
        assert not torch.equal(other.frames[:10], noisy.frames[:10])


def test_noise_without_power_leaves_the_frames_of_the_bank(path: Path) -> None:
    """So nothing but the noise differs between a clean and a noisy problem."""
    clean = data_of(path, NoiseConfig()).heard(5)
    noisy = data_of(path, QUIET).heard(5)
    assert clean.frames is not None
    assert noisy.frames is not None
    frames = read_bank(path).frames[clean.frames]
    steps = (noisy.frames - frames).abs() * 64
    assert steps.max() <= 1  # samples are kept in 16 bits
    assert (steps > 0.5).float().mean() < 0.02


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
def test_the_ratio_is_that_of_the_voiced_part(path: Path, snr_db: float) -> None:
    bank = read_bank(path)
    numbers = data_of(path, NoiseConfig()).heard(7).frames
    assert numbers is not None
    assert bank.samples is not None
    own = bank_mels().frame_samples
    takes = torch.cat((bank.samples, torch.zeros(1, bank.samples.shape[1])))
    voice = takes[numbers][:, -own:].flatten() / 32767
    voiced = (numbers != SILENCE).repeat_interleave(own)
    noise = NoiseConfig(snr_db=snr_db).beside(voice, voiced, 0, 7)
    powers = [one[voiced].double().square().mean().item() for one in (voice, noise)]
    assert 10 * math.log10(powers[0] / powers[1]) == pytest.approx(snr_db, abs=0.1)
    assert noise[~voiced].any()
    frames = bank.in_noise(numbers, NoiseConfig(snr_db=snr_db), 0, 7)
    whole = bank_mels().encode((voice + noise)[None])[0]
    inner = numbers.diff(prepend=numbers[:1]) == 1  # elsewhere what came before a take differs
    inner &= numbers != SILENCE
    assert torch.allclose(frames[inner], whole[inner], atol=1 / 64 + 1e-6)


def test_noises_to_learn_from_are_not_those_that_are_held_out(tmp_path: Path) -> None:
    made = {split: load_noises(None, split) for split in ("train", "held_out")}
    assert not any(torch.equal(a, b) for a in made["train"] for b in made["held_out"])
    for number in range(40):
        tone = torch.sin(torch.arange(RATE // 2) * 2 * math.pi * (100 + 50 * number) / RATE)
        soundfile.write(tmp_path / f"{number}.wav", tone.numpy() / 2, RATE)
    lines = [{"path": f"{n}.wav", "source": f"1-{n // 2}-{'AB'[n % 2]}"} for n in range(40)]
    (tmp_path / "noise.jsonl").write_text("\n".join(map(json.dumps, lines)))
    noise = NoiseConfig(snr_db=10.0, folder=str(tmp_path))
    voice = torch.randn(RATE // 2, generator=torch.Generator().manual_seed(0))
    voiced = torch.ones(RATE // 2, dtype=torch.bool)

    def pitch(number: int, *, held_out: bool) -> int:
        beside = noise.beside(voice, voiced, 0, number, held_out=held_out)
        return int(torch.fft.rfft(beside).abs().argmax()) * 2

    heard = {one: {pitch(n, held_out=one) for n in range(60)} for one in (False, True)}
    sources = {one: {(hz - 100) // 100 for hz in own} for one, own in heard.items()}
    assert len(heard[False]) > 5
    assert heard[True]
    assert not sources[False] & sources[True]  # nor is another piece of the same recording
    with pytest.raises(UserError, match="must have recordings of the split 'train'"):
        NoiseConfig(snr_db=0.0, folder=str(tmp_path / "none")).beside(voice, voiced, 0, 0)
    with pytest.raises(UserError, match="must both sound"):
        noise.beside(voice, ~voiced, 0, 0)
    assert not NoiseConfig().beside(voice, voiced, 0, 0).any()


def test_models_learn_and_listen_in_noise(path: Path) -> None:
    model = sounding()
    data = data_of(path, LOUD, num_held_out=1, held_out_voice=TWO[1].label)
    prepared = data.prepare(model)
    batch = prepared.batches(1, 0).batch(0)
    clean = replace(data, bank=BankConfig(file=str(path))).prepare(model)
    before = clean.batches(1, 0).batch(0)
    assert torch.equal(batch.ticks["thought"], before.ticks["thought"])
    assert torch.equal(batch.targets["thought"], before.targets["thought"])
    assert torch.equal(batch.document_start, before.document_start)
    assert batch.ticks[HEARD].shape == before.ticks[HEARD].shape
    assert not torch.equal(batch.ticks[HEARD], before.ticks[HEARD])
    model.loss(batch).total.backward()
    heard = data.heard(0, held_out=True)
    model.eval()
    assert KindScorer(model.layout, data, [heard]).score(model)
    attempt = listen(model, data, heard, threshold=2.0)
    assert len(attempt.timeline.where(kind="answer")) == 1
    with pytest.raises(UserError, match="Frames in noise have no numbers"):
        PreparedMaths(data, model.layout, numbered=True)


def test_data_without_noise_are_what_they_were(path: Path) -> None:
    """Banks keep their digests and names, and runs the fingerprint of their data."""
    bank = read_bank(path)
    assert bank.samples is not None
    assert bank._replace(samples=None).digest == bank.digest
    assert BankConfig().name == bank_name(4) != BankConfig(noise=LOUD).name
    model = sounding()
    prints = {
        noise.snr_db: data_of(path, noise).prepare(model).fingerprint["problems"]["train"]
        for noise in (NoiseConfig(), LOUD, QUIET)
    }
    assert len(set(prints.values())) == 3
    louder = path.with_name("louder.safetensors")
    bank._replace(samples=bank.samples // 2).save(louder)
    for noise, is_same in ((NoiseConfig(), True), (LOUD, False)):
        found = data_of(louder, noise).prepare(model).fingerprint["problems"]["train"]
        assert (found == prints[noise.snr_db]) == is_same
    plain = path.with_name("plain.safetensors")
    bank._replace(samples=None).save(plain)
    opened_bank.cache_clear()
    with pytest.raises(UserError, match="must keep its samples"):
        data_of(plain, LOUD).heard(0)
    assert data_of(plain, NoiseConfig()).heard(0).frames is not None


@pytest.mark.parametrize("snr_db", [float("nan"), float("inf"), -float("inf"), 1e9])
def test_a_ratio_that_is_none_is_refused(snr_db: float) -> None:
    with pytest.raises(UserError, match="`snr_db` must be -200 to 200"):
        NoiseConfig(snr_db=snr_db)


def test_noises_without_a_ratio_are_refused() -> None:
    with pytest.raises(UserError, match="give `snr_db` too"):
        NoiseConfig(folder="nowhere")


def test_samples_of_words_are_voiced() -> None:
    voiced = voiced_samples([SpokenWord("a", 0.5, 1.0), SpokenWord("b", 1.5, 9.0)], 2 * RATE)
    assert voiced.tolist() == [False] * 8000 + [True] * 8000 + [False] * 8000 + [True] * 8000
    assert FRAME_HZ * bank_mels().frame_samples == RATE
