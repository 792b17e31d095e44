"""A duplex study says what is wrong before it spends an hour."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint.data.making.synthesis import SynthesisConfig
from counterpoint.recipes.duplex_small import duplex_small
from counterpoint.recipes.duplex_study import DuplexStudy, _check_same, run_duplex_study
from counterpoint.recipes.first_run import first_run
from counterpoint.train.config import FineTuneConfig
from counterpoint.train.distributed import current_world


def run(study: DuplexStudy, folder: Path) -> bool:
    return run_duplex_study(study, folder, current_world(torch.device("cpu")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train": 0}, "`num_train` must be >= 1: got 0"),
        ({"num_listening": 0}, "`num_listening` must be >= 1: got 0"),
        ({"listening": (duplex_small().run,)}, "`data.hearing` of 'duplex_small' must be set"),
        (
            {"listening": duplex_small().listening[:1] * 2},
            "must have different, unused folder names",
        ),
        ({"num_held_out": 0}, "`num_held_out` must be >= 1: got 0"),
        ({"num_trials": -1}, "`num_trials` must be >= 1: got -1"),
        ({"workers": 0}, "`workers` must be >= 1: got 0"),
        ({"vocab_size": 513}, "`vocab_size` must be 1 to the model's 512 text ids: got 513"),
        ({"synthesis": SynthesisConfig()}, "`synthesis.user_voices` must name .* got none"),
        (
            {"run": first_run().arms[0]},
            "must train a system that hears and speaks, .*SingleStreamConfig",
        ),
    ],
)
def test_study_refuses_what_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(duplex_small(), **changes)


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("piper", r"needs the package `piper-tts`: pip install 'counterpoint\[voices\]'"),
        ("pycodec2", r"needs the package `pycodec2`: pip install 'counterpoint\[speech\]'"),
    ],
)
def test_what_is_not_installed_is_told_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, message: str
) -> None:
    if package == "piper":
        pytest.importorskip("pycodec2")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=message) as error:
        run(duplex_small(), tmp_path / "study")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "study").exists()


def test_rows_that_are_not_whole_frames_are_told_first(tmp_path: Path) -> None:
    pytest.importorskip("pycodec2")
    study = duplex_small()
    data = replace(study.run.speech_data, row_s=float("nan"))
    with pytest.raises(ValueError, match="must be a whole number of frames of 0.04 s: got nan"):
        run(replace(study, run=replace(study.run, data=data)), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_later_stage_begins_with_the_one_before_it() -> None:
    """And the first one may begin with any weights."""
    study = duplex_small()
    begin = FineTuneConfig(init_from="elsewhere")
    first, *others = study.listening
    begun = replace(first, train=replace(first.train, fine_tune=begin))
    assert replace(study, listening=(begun, *others)).stages[0] == begun
    talking = replace(study.run, train=replace(study.run.train, fine_tune=begin))
    with pytest.raises(ValueError, match="`train.fine_tune` of 'duplex_small' must be left out"):
        replace(study, run=talking)
    with pytest.raises(ValueError, match="of 'listening' must be left out: .* Set it for 'first'"):
        replace(study, listening=(replace(first, name="first"), begun))


def test_a_folder_keeps_the_dialogues_it_began_with(tmp_path: Path) -> None:
    """The list of recordings has one name, whatever is in it: checkpoints cannot tell."""
    study = replace(duplex_small(), num_listening=4, num_train=3, num_held_out=2)
    for _ in range(2):
        _check_same(study, tmp_path)
    _check_same(replace(study, num_trials=7, workers=1), tmp_path)
    louder = replace(study.synthesis, lead_s=1.0)
    for other, message in (
        (replace(study, num_train=4), r"dialogues.train \(3, here 4\)"),
        (replace(study, num_listening=5), r"dialogues.listening \(4, here 5\)"),
        (replace(study, listening=study.listening[:1]), r"study.listening \(.*\)"),
        (replace(study, vocab_size=50), r"vocab_size \(400, here 50\)"),
        (replace(study, synthesis=louder), r"synthesis.lead_s \(0.5, here 1.0\)"),
    ):
        with pytest.raises(ValueError, match=f"{message}. Take another folder"):
            _check_same(other, tmp_path)
