"""A SHANKS that hears sound goes on with the recorded words with which its training began."""

from dataclasses import replace
from pathlib import Path

import pytest

from counterpoint.data.tasks.spoken_maths import bank as bank_module
from counterpoint.data.tasks.spoken_maths.bank import (
    VOICES,
    BankConfig,
    _was_current,
    bank_name,
    opened_bank,
)
from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData
from counterpoint.progress import Progress
from counterpoint.recipes.shanks_small_sound import shanks_small_sound
from counterpoint.recipes.training import train_run
from counterpoint.runtime.load import load_run
from counterpoint.speech.voices import how_spoken
from counterpoint.systems.shanks import ShanksConfig
from counterpoint.train.checkpoint import resolve
from counterpoint.train.distributed import World
from counterpoint.train.run import Run
from tests.data.tasks.test_spoken_bank import Beeper


def tiny_run(cache: Path, num_steps: int) -> Run:
    """The recipe with a thin model and one take of a word."""
    run = shanks_small_sound()
    assert isinstance(run.system, ShanksConfig)
    assert isinstance(run.data, SpokenMathsData)
    bank = BankConfig(cache_folder=str(cache), takes=1)
    tower = replace(run.system.tower, width=32, num_layers=1, num_heads=2, mlp_hidden=32)
    return replace(
        run,
        system=replace(run.system, tower=tower),
        data=replace(run.data, bank=bank, num_held_out=1),
        train=replace(
            run.train, num_steps=num_steps, batch_rows=1, checkpoint_every=1, evaluate_every=0
        ),
        minutes=None,
    )


def test_a_run_goes_on_with_its_words_after_its_voices_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speakers: list[Beeper] = []
    versions = {"piper": "piper-tts 1"}

    def speaker(folder: str) -> Beeper:
        speakers.append(Beeper())
        return speakers[-1]

    monkeypatch.setattr(bank_module, "_NUM_PROBLEMS", 60)
    monkeypatch.setattr(bank_module, "Synthesizer", speaker)
    spoken = how_spoken(VOICES)
    monkeypatch.setattr(bank_module, "how_spoken", lambda _: {**spoken, "engines": dict(versions)})
    for cached in (bank_name, _was_current, opened_bank):
        cached.cache_clear()
    cache, folder = tmp_path / "cache", tmp_path / "run"
    quiet = Progress(quiet=True)
    train_run(tiny_run(cache, 1), folder, World(), progress=quiet, measure_end=False, loggers=[])
    assert (folder / bank_name(1)).is_file()

    versions["piper"] = "piper-tts 2"
    for cached in (_was_current, opened_bank):
        cached.cache_clear()
    run = tiny_run(cache, 2)
    result = train_run(run, folder, World(), progress=quiet, measure_end=False, loggers=[])
    assert result.counters.step == 2
    assert len(speakers) == 1
    data = load_run(resolve(folder)).data
    assert isinstance(data, SpokenMathsData)
    assert data.sound is not None
    assert data.sound.place == folder / bank_name(1)
    for cached in (bank_name, _was_current, opened_bank):
        cached.cache_clear()
