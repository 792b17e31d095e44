"""The verb `talk` with a model that speaks a text: when it stops, and what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from counterpoint.cli.main import main as counterpoint
from counterpoint.config_json import encode
from counterpoint.data.making import interrupted
from counterpoint.data.making.interrupted import InterruptedSpeech
from counterpoint.evaluate.duplex.spoken_text import (
    SpokenText,
    left_out,
    prepare_speaker,
    speak_text,
    unlike_training,
)
from counterpoint.evaluate.report.answer import answer_files
from counterpoint.progress import Progress
from counterpoint.runtime.load import load_run
from counterpoint.speech.audio import read_audio
from counterpoint.speech.mels import LogMels
from counterpoint.streams.timeline import Timeline
from counterpoint.systems import lslm
from counterpoint.systems.lslm import LSLM, LSLMConfig
from counterpoint.train.checkpoint import Counters, save_checkpoint
from counterpoint.train.config import OptimizerConfig, TrainConfig
from counterpoint.train.distributed import World
from counterpoint.train.optimizer import KindOptimizers
from counterpoint.train.run import Run
from tests.cli import talkers
from tests.cli.examples import without_loading
from tests.systems.tiny_models import randomised, tower

ONSET_S = 0.6
TEXT = "The code is two, please!"


def noise(num_samples: int) -> torch.Tensor:
    return 0.2 * torch.randn(num_samples, generator=torch.Generator().manual_seed(0))


def stopper(config: LSLMConfig) -> LSLM:
    """A model that says any codes, and stops when it hears noise but not in silence."""
    torch.manual_seed(0)
    model = randomised(LSLM(config))
    assert isinstance(model, LSLM)
    assert model.heard_head is not None
    mels = LogMels(25.0)
    with torch.no_grad():
        quiet, loud = (
            model.listener(mels.encode(sound[None]))[0][0].mean(0)
            for sound in (torch.zeros(8000), noise(8000))
        )
        across = loud - quiet * (loud @ quiet) / (quiet @ quiet).clamp(min=1e-9)
        model.head.weight.zero_()
        model.heard_head.weight.zero_()
        model.heard_head.weight[config.interrupted_id] = 20 * across / (across @ across)
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a model that speaks a text."""
    pytest.importorskip("pycodec2")
    folder = tmp_path_factory.mktemp("speaker")
    model = stopper(replace(lslm.small("late"), tower=tower(24, 2, 2, 64)))
    trained = Run(
        name="speaker",
        system=model.config,
        data=InterruptedSpeech(num_phrases=20, spliced=0.7, cache_folder=str(folder / "cache")),
        train=TrainConfig(num_steps=1, batch_rows=1),
    )
    optimizers = KindOptimizers(model, OptimizerConfig())
    save_checkpoint(folder, model, optimizers, Counters(), World(), {"run": encode(trained)})
    return folder


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    silence = np.zeros(round(ONSET_S * 16_000))
    soundfile.write("quiet.wav", np.zeros(8000), 8000)
    soundfile.write("loud.wav", np.concatenate((silence, noise(16_000).numpy())), 16_000)


def speak(run: Path, source: str, *more: str) -> int:
    words = ["--text", TEXT, "--input", source, "--output", "out.wav", "--audio-temperature", "0"]
    return counterpoint(["talk", str(run), *words, *more])


def test_it_stops_when_it_is_interrupted_and_all_files_say_so(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert speak(run, "loud.wav") == 0
    shown = capsys.readouterr().out
    for path in answer_files(Path("out.wav")).values():
        assert path.stat().st_size > 0
        assert path.name in shown
    assert "it was interrupted" in shown
    assert Path("out.txt").read_text() == "the code is two please [cut]\n"
    timeline = Timeline.read(Path("out.timeline.jsonl"))
    (stop,) = timeline.where(kind="interruption")
    assert ONSET_S < stop.end_s <= ONSET_S + 0.3
    assert f"{stop.end_s:.2f} s" in shown
    agent, user = read_audio("out.wav", 16_000, 2)
    assert agent[: round(ONSET_S * 16_000)].abs().max() > 0
    assert agent[round(stop.end_s * 16_000) :].abs().max() == 0
    assert user[: round(ONSET_S * 16_000)].abs().max() == 0
    page = Path("out.html").read_text()
    assert "it was interrupted" in page
    assert "<h2>Turns</h2>" not in page


def test_an_exported_model_has_its_tokeniser_beside_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other versions of the package that learns tokenisers may learn other ids."""
    words = ["--form", "counterpoint", "--dtype", "float32", "--out", "exported"]
    assert counterpoint(["export", str(run), *words]) == 0
    (tokenizer,) = Path("exported").glob("*.model")
    monkeypatch.setattr(interrupted, "train_tokenizer", None)
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    shutil.move("exported", "moved")
    kept = load_run(Path("moved")).data
    assert isinstance(kept, InterruptedSpeech)
    same = (Path("moved") / tokenizer.name).read_bytes()
    assert kept.tokenizer_file().read_bytes() == same
    assert "cache" not in (Path("moved") / "manifest.json").read_text().replace("cache_folder", "")
    assert speak(Path("moved"), "loud.wav") == 0
    assert "it was interrupted" in capsys.readouterr().out
    (Path("moved") / tokenizer.name).unlink()
    assert speak(Path("moved"), "loud.wav") == 2
    assert "must lie beside the model: it is missing. Put it back." in capsys.readouterr().err


def test_it_speaks_on_in_silence_and_below_its_threshold(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, more in (("quiet.wav", ()), ("loud.wav", ("--threshold", "1"))):
        assert speak(run, source, "--json", *more) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["numbers"]["fell silent because"] == "its window was full"
        assert not Timeline.read(Path("out.timeline.jsonl")).where(kind="interruption").events


def test_a_stop_before_anything_is_heard_is_told_as_false(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trained model does that with a text that is much shorter than all that it learned from."""
    assert speak(run, "quiet.wav", "--json", "--threshold", "0") == 0
    numbers = json.loads(capsys.readouterr().out)["numbers"]
    assert numbers["fell silent because"].startswith("it was interrupted")
    assert numbers["heard until then"] == "no sound of the user: this stop is false"
    assert "since the user began" not in numbers
    assert speak(run, "loud.wav", "--json") == 0
    numbers = json.loads(capsys.readouterr().out)["numbers"]
    assert "heard until then" not in numbers
    assert "since the user began" in numbers


def test_a_text_unlike_all_that_was_learned_is_told(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = InterruptedSpeech(num_phrases=20, spliced=0.7)
    first, second = data.phrases("train")[:2]
    assert unlike_training(data, f"{first} {second}") == []
    assert data.fewest_words == 8
    assert replace(data, spliced=0.0).fewest_words == 10
    assert speak(run, "quiet.wav", "--text", f"{first.split()[0]} zebra") == 0
    told = capsys.readouterr().err
    assert "fewer words (2) than all that the model learned from (8 and more)" in told
    assert "The model never learned to say 'zebra': it knows " in told


def test_a_text_that_ends_sooner_than_it_can_be_said_is_told() -> None:
    text = "now i want the lamp on so let it be five"
    said = SpokenText(torch.zeros(2, 9), text, 2.68, "finished", 0.0)
    assert left_out(said) == []
    (told,) = left_out(said._replace(said_s=1.12))
    assert "a text of 11 words after 1.12 s" in told
    assert left_out(said._replace(said_s=1.12, end="interrupted")) == []


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_it_hears_with_weights_of_every_type(run: Path, kind: str) -> None:
    assert speak(run, "loud.wav", "--dtype", kind) == 0


@pytest.mark.parametrize("num_frames", [0, 7])
def test_it_says_that_its_text_was_finished(run: Path, num_frames: int) -> None:
    """It ends with its frame after so many others, and these are heard to the last sample."""

    class Ending(LSLM):
        asked = 0

        def _first_scores(self, hidden: torch.Tensor) -> torch.Tensor:
            scores = super()._first_scores(hidden)
            ends = torch.full((), 100.0 if self.asked == num_frames else -100.0)
            self.asked += 1
            scores[..., self.config.end_id] += ends
            return scores

    model = Ending(replace(lslm.small(), tower=tower(24, 2, 2, 64))).eval()
    data = InterruptedSpeech(num_phrases=20, cache_folder=str(run / "cache"))
    prepared = prepare_speaker(data, model, Progress(quiet=True))
    said = speak_text(prepared, TEXT, torch.zeros(99), threshold=1.0)
    assert said.end == "finished"
    seconds = num_frames / prepared.codec.frame_rate_hz
    assert said.said_s == pytest.approx(seconds)
    assert bool(said.sound[0].any()) == (num_frames > 0)
    assert not said.sound[0, round(seconds * 16_000) + 1 :].any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--text ?!", "`--text` must be written in the letters a to z and digits: got '?!'"),
        ("--text café", "in the letters a to z and digits: got 'é'"),
        ("--text two --padding-bias 1", "`--padding-bias` is for a model that writes its own text"),
        ("--text " + 70 * "seven", "shorter than the model's window of 64 frames"),
        ("", "`--text` must be given: "),
        ("--text two --input empty.wav", "must hold at least one sample: 'empty.wav' is empty"),
        ("--text two --threshold 2", "`--threshold` must be 0 to 1: got 2"),
        ("--threshold 0.1", "`--threshold` is for a model that speaks a text: give `--text`"),
        ("--text two --tail 3", "`--tail` is for a model that converses"),
        ("--text two --prompt tea", "`--prompt` is for a model that converses"),
    ],
)
def test_mistakes_are_told_in_one_line(
    run: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write("empty.wav", np.zeros(0), 8000)
    given = ["talk", str(run), "--input", "loud.wav", "--output", "out.wav", *words.split()]
    assert counterpoint(given) == 2
    told = without_loading(capsys.readouterr().err)
    assert message in told
    assert told.count("\n") == 1
    assert not Path("out.wav").exists()


def test_a_text_is_refused_by_a_model_that_converses(capsys: pytest.CaptureFixture[str]) -> None:
    talkers.write_run(Path("talker"))
    assert speak(Path("talker"), "loud.wav") == 2
    assert "is a Moshi. Leave it out." in capsys.readouterr().err
