"""The verb `talk` with a model that thinks while it listens: its files, and what it refuses."""

import base64
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import soundfile
import torch
from torch import Tensor

from counterpoint.cli.main import main as counterpoint
from counterpoint.config_json import encode
from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData
from counterpoint.data.tasks.spoken_orders.source import SpokenOrdersData
from counterpoint.evaluate.report.answer import answer_files
from counterpoint.recipes.shanks_small import shanks_small
from counterpoint.recipes.shanks_small_sound import shanks_small_sound
from counterpoint.recipes.shanks_tools_small import shanks_tools_small
from counterpoint.runtime.clocked import Proposal
from counterpoint.speech.audio import read_audio
from counterpoint.speech.partials import ScoredWord
from counterpoint.streams.timeline import Timeline
from counterpoint.systems import shanks
from counterpoint.systems.shanks import Shanks, ShanksConfig
from counterpoint.train.checkpoint import Counters, save_checkpoint
from counterpoint.train.config import OptimizerConfig
from counterpoint.train.distributed import World
from counterpoint.train.optimizer import KindOptimizers
from counterpoint.train.run import Run
from tests.cli.examples import without_loading
from tests.systems.tiny_models import tower

RATE = 16_000


def written(folder: Path, config: ShanksConfig, trained: Run) -> Path:
    """A run folder with random weights; no bank of words is made for it."""
    torch.manual_seed(0)
    model = Shanks(replace(config, tower=tower(16, 1, 2, 512)))
    torch.nn.init.normal_(model.get_parameter("head.weight"), std=0.3)
    run = replace(trained, system=model.config)
    optimizers = KindOptimizers(model, OptimizerConfig())
    save_checkpoint(folder, model, optimizers, Counters(), World(), {"run": encode(run)})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("sound"), shanks.small_sound(), shanks_small_sound())


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    noise = 0.1 * torch.randn(6 * RATE, 2, generator=torch.Generator().manual_seed(0))
    soundfile.write("six.wav", noise[:, 0].numpy(), RATE)
    soundfile.write("stereo.flac", noise[: 3 * RATE].numpy(), 44_100)
    soundfile.write("quiet.wav", torch.zeros(5 * 8000).numpy(), 8000)
    soundfile.write("one.wav", torch.ones(1).numpy(), RATE)


def talk(run: Path, source: str, *more: str) -> int:
    return counterpoint(["talk", str(run), "--input", source, "--output", "out.wav", *more])


def test_it_interrupts_and_all_files_and_lines_say_so(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(run, "six.wav", "--threshold", "0") == 0
    shown = capsys.readouterr().out
    *_, first, _, _, _, _, last = shown.splitlines()
    assert (first, last) == ("out.wav", "out.html")
    for path in answer_files(Path("out.wav")).values():
        assert path.stat().st_size > 0
        assert path.name in shown
    timeline = Timeline.read(Path("out.timeline.jsonl"))
    (made,) = timeline.where(kind="interruption")
    (answer,) = timeline.where(kind="answer")
    lines = [line for line in shown.splitlines() if " s  " in line][:4]
    assert lines[0] == "  0.00 to   2.00 s  heard        chunk 1"
    assert lines[1].startswith("  2.00 to   2.05 s  thought")
    assert lines[2] == "  2.05 to   2.05 s  interruption by the agent"
    assert lines[3] == f"  2.05 to {answer.end_s:6.2f} s  answer       {answer.text}"
    assert made.start_s == answer.start_s == pytest.approx(2.05)
    assert Path("out.txt").read_text() == f"{answer.text}\n"
    (said,) = json.loads(Path("out.json").read_text())["alignments"]
    assert said[0] == answer.text
    assert said[1] == pytest.approx([answer.start_s, answer.end_s], abs=1e-3)
    page = Path("out.html").read_text()
    assert base64.b64encode(Path("out.wav").read_bytes()).decode() in page
    for told in ("interruption", answer.text, "its channel is silent", "2.00 s (chunks: 1)"):
        assert told in page
    agent, user = read_audio("out.wav", RATE, 2)
    assert not agent.any()
    torch.testing.assert_close(user, read_audio("six.wav", RATE, 1)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("source", "ends_s"),
    [
        ("six.wav", [2, 4, 6]),  # a whole number of chunks: the third is the last
        ("quiet.wav", [2, 4, 5]),
        ("stereo.flac", [3 * RATE / 44_100]),
        ("one.wav", [1 / RATE]),
    ],
)
def test_recordings_of_every_kind_are_heard_to_their_end(
    run: Path, source: str, ends_s: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(run, source, "--threshold", "1", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    timeline = Timeline.read(Path("out.timeline.jsonl"))
    chunks = timeline.where(kind="chunk").events
    assert [one.end_s for one in chunks] == pytest.approx(ends_s, abs=1 / RATE)
    assert [one.payload["last"] for one in chunks] == [False] * (len(chunks) - 1) + [True]
    thoughts = timeline.where(kind="thought").events
    assert [one.start_s for one in thoughts] == [one.end_s for one in chunks]
    assert told["numbers"]["interrupted the user"] == "no"
    (answer,) = timeline.where(kind="answer")
    assert answer.start_s >= chunks[-1].end_s
    assert told["text"] == answer.text
    both = read_audio("out.wav", RATE, 2)
    assert both.shape[1] / RATE >= timeline.end_s - 1e-6


def test_a_channel_and_words_of_the_user_may_be_named(run: Path) -> None:
    Path("words.json").write_text('{"chunks": [{"text": "hello", "timestamp": [0.1, 0.4]}]}')
    assert talk(run, "stereo.flac", "--words", "words.json", "--channel", "1") == 0
    timeline = Timeline.read(Path("out.timeline.jsonl"))
    (word,) = timeline.where(stream="user", kind="word")
    assert (word.text, word.start_s) == ("hello", 0.1)
    right = read_audio("stereo.flac", RATE, 2)[1]
    heard = read_audio("out.wav", RATE, 2)[1][: len(right)]
    torch.testing.assert_close(heard, right, rtol=0, atol=1e-4)


def test_it_hears_with_weights_of_half_the_size(run: Path) -> None:
    assert talk(run, "one.wav", "--dtype", "bfloat16") == 0


class Scripted:
    """Hears an order, word by word, one every quarter of a second."""

    said = "i would like a small latte please and that is all for today".split()  # noqa: SIM905

    examples: ClassVar[list[str]] = []

    def __init__(self, example: str, beam: int) -> None:
        self.examples.append(example)
        assert beam == 5

    def __call__(self, sound: Tensor) -> list[ScoredWord]:
        known = self.said[: math.ceil(len(sound) / RATE * 4)]
        return [
            ScoredWord(word, place / 4, place / 4 + 0.25, 1.0) for place, word in enumerate(known)
        ]


@pytest.fixture
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scripted, "examples", [])
    monkeypatch.setattr("counterpoint.cli.talk_thoughts.PartialTranscriber", Scripted)


@pytest.mark.usefixtures("_scripted")
def test_a_model_of_words_hears_a_recogniser(tmp_path: Path) -> None:
    orders = written(tmp_path / "orders", shanks.small(), shanks_tools_small())
    assert talk(orders, "six.wav") == 0
    timeline = Timeline.read(Path("out.timeline.jsonl"))
    heard = [one.text for one in timeline.where(kind="chunk")]
    first = "i would like a small latte please"  # the last word of a chunk may still change
    assert heard == [first, "and that is all for", "today"]
    assert timeline.where(kind="answer").events
    problems = written(tmp_path / "problems", shanks.small(), shanks_small())
    assert talk(problems, "six.wav", "--threshold", "0") == 0
    orders_like, problems_like = Scripted.examples
    assert orders_like == SpokenOrdersData().heard_words().example
    said = " ".join(SpokenMathsData().heard(0).problem.words)
    assert problems_like.lower().startswith(f"{said}. ")


class CallsAtOnce:
    """Calls the tool in its first thought; a `Thinker` in the place of the model."""

    call = '<tool_call>{"name": "orderDrink", "arguments": {"coffeeDrink": "latte"}}</tool_call>'

    def __init__(self, *_: object) -> None:
        self.ahead: list[str] = []

    def hear(self, content: object) -> None:
        self.ahead = [self.call, "</think>", " one latte", "[STOP]"]
        self.__class__.call = "</think>"  # once

    def read(self, text: str) -> None:
        if self.ahead and text == self.ahead[0]:
            self.ahead.pop(0)

    def propose(self) -> Proposal:
        return Proposal(self.ahead[0])


@pytest.mark.usefixtures("_scripted")
def test_tools_are_called_while_the_user_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("counterpoint.runtime.listening.SystemThinker", CallsAtOnce)
    orders = written(tmp_path / "orders", shanks.small(), shanks_tools_small())
    assert talk(orders, "six.wav") == 0
    timeline = Timeline.read(Path("out.timeline.jsonl"))
    (call,) = timeline.where(kind="call")
    assert call.payload["ok"]
    assert 2.0 < call.end_s < 6.0
    shown = capsys.readouterr().out
    assert "calls of tools" in shown
    assert "1 (made: 1, while the user" in shown
    assert "ordered" in Path("out.html").read_text()


def test_without_a_recogniser_a_model_of_words_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    folder = written(tmp_path / "words", shanks.small(), shanks_small())
    assert talk(folder, "six.wav") == 2
    told = without_loading(capsys.readouterr().err)
    assert "counterpoint[recogniser]" in told
    assert told.count("\n") == 1
    assert not Path("out.wav").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--text two", "`--text` is for a model that speaks: "),
        ("--tail 3", "`--tail` is for a model that speaks: "),
        ("--prompt tea", "`--prompt` is for a model that speaks: "),
        ("--seed 3", "`--seed` is for a model that draws what it says"),
        ("--text-temperature 0", "`--text-temperature` is for a model that draws"),
        ("--threshold 2", "`--threshold` must be 0 to 1: got 2"),
        ("--channel 2", "`--channel` must be 0 to 0: got 2"),
        ("--input none.wav", "must be an existing file"),
    ],
)
def test_mistakes_are_told_in_one_line(
    run: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(run, "six.wav", *words.split()) == 2
    told = without_loading(capsys.readouterr().err)
    assert message in told
    assert told.count("\n") == 1
    assert not Path("out.wav").exists()
