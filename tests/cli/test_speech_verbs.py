"""The verbs that know a Moshi, on recordings in a folder, as a user runs them."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from counterpoint.cli.main import main
from counterpoint.recipes.loading import load_recipe
from counterpoint.recipes.overrides import parse
from counterpoint.train.metrics import read_metrics
from counterpoint.train.run import Run
from tests.cli import examples
from tests.cli.talkers import write_published

pytest.importorskip("soundfile")
pytest.importorskip("pycodec2")

STREAMS = ("text", "agent_semantic", "agent_acoustic", "user_semantic", "user_acoustic")
RECIPE = "small.py:speaking"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the run ``runs/speaking``."""
    folder = tmp_path_factory.mktemp("user")
    examples.write(folder)
    examples.write_speech(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", RECIPE]) == 0
        yield folder


def test_train_speaks_of_frames(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", RECIPE, "--folder", "again"]) == 0
    shown = capsys.readouterr()
    assert "encoding recordings: 0:03/0:03" in shown.err
    assert " bits/frame  " in shown.err
    assert " frames/s  " in shown.err
    assert "byte" not in shown.err
    # Recordings of 40, 18, 28 frames fill rows of 50 with 40 and 46; three steps of two rows.
    assert "speaking: 3 steps, 258 frames" in shown.out
    assert "held out: bits_per_frame " in shown.out
    assert "try: counterpoint talk again --input question.wav" in shown.out


def test_metrics_hold_the_loss_and_what_is_held_out_by_stream(trained: Path) -> None:
    *steps, last = read_metrics(Path("runs/speaking/metrics.jsonl"))
    assert [(row["step"], row["size"]) for row in steps] == [(1, 86), (2, 172), (3, 258)]
    for row in steps:
        # In every frame but the first of a recording, whose acoustic codes come a frame later.
        expected = sum(row["terms"][f"{name}_nats"] for name in STREAMS) / math.log(2)
        assert row["loss"] == pytest.approx(expected, rel=0.05)
    found = last["evaluation"]
    assert set(found) == {
        *("bits_per_frame", "loss", "text", "audio"), *(f"{name}_nats" for name in STREAMS)
    }  # fmt: skip
    assert found["loss"] == pytest.approx(found["text"] + found["audio"])
    # 33 frames are held out, of which the first has no acoustic codes.
    late = sum(found[f"{name}_nats"] for name in STREAMS if "acoustic" in name)
    nats = sum(found[f"{name}_nats"] for name in STREAMS) - late / 33
    assert found["bits_per_frame"] == pytest.approx(nats / math.log(2))


def test_stopped_run_goes_on_where_it_was(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", RECIPE, "--folder", "more", "--train.num-steps", "2"]) == 0
    assert main(["train", RECIPE, "--folder", "more", "--train.num-steps", "3"]) == 0
    assert "Going on after step 2" in capsys.readouterr().err


def test_overrides_reach_recordings_and_streams(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", RECIPE, "--help-all"]) == 0
    shown = capsys.readouterr().out
    for option in ("--data.row-s", "--data.codec", "--system.audio.1.delay-ticks"):
        assert option in shown
    run = load_recipe(RECIPE)
    words = ["--data.row-s", "20", "--data.held-out", "", "--system.audio.1.delay-ticks", "2"]
    found = parse([("recipe", Run, run)], words, "train small.py:speaking", "Help.").recipe
    assert (found.data.row_s, found.data.held_out) == (20.0, "")
    assert [stream.delay_ticks for stream in found.system.audio] == [0, 2, 0, 1]
    assert found.data.train == run.data.train
    assert parse([("recipe", Run, run)], [], "train x", "Help.").recipe == run


def test_shorter_rows_train(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data.row-s", "1", "--data.held-out", "", "--folder", "short"]
    assert main(["train", RECIPE, *words]) == 0
    shown = capsys.readouterr().out
    # 25, 15 | 18 | 25 | 3: pieces of recordings in order, while they fit in rows of 25.
    assert "speaking: 3 steps" in shown
    assert "held out" not in shown
    assert main(["evaluate", "short"]) == 2
    assert "Something must be held out to be scored" in capsys.readouterr().err


def test_evaluate_prints_nats_of_every_stream(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "runs/speaking"]) == 0
    shown = capsys.readouterr().out
    assert "1 row, 33 frames" in shown
    found = read_metrics(Path("runs/speaking/metrics.jsonl"))[-1]["evaluation"]
    labels = {f"nats/frame of {name}": f"{name}_nats" for name in STREAMS}
    for label, name in {"held-out bits/frame, all streams": "bits_per_frame", **labels}.items():
        line = next(line for line in shown.splitlines() if label in line)
        shown_value = float(re.findall(r"\d+\.\d{4}", line)[0])
        assert shown_value == pytest.approx(found[name], abs=2e-4)  # other shapes round otherwise


def test_info_shows_streams_and_costs(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "runs/speaking"]) == 0
    shown = capsys.readouterr().out
    assert "speaking: Moshi, 25 ticks a second" in shown
    assert "3 x 512 ids" in shown
    assert "over 50 ticks" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "generate runs/speaking",
            "it is a Moshi, which hears and speaks. Use `counterpoint talk`",
        ),
        ("train small.py:mismatched", "`data` must be SpeechData where `system` is MoshiConfig"),
        ("train small.py:speaking --data.row 3", "--data.row. The nearest is '--data.row-s'."),
        ("train small.py:speaking --data.train none.jsonl", "existing file: got 'none.jsonl'"),
        ("train small.py:speaking --data.codec mimi.pt", "mimi.pt"),
        ("train small.py:speaking --system.tick-hz 12.5", "`tick_hz` must be the codec's 25.0"),
        ("train small.py:speaking --system.text-vocab-size 99", "at least the tokeniser's 256"),
        (
            "train small.py:speaking --system.audio.1.codebook-sizes 512 64 16",
            "must have the codec's sizes (512, 512, 16, 64): got (512, 512, 64, 16",
        ),
        (
            "train small.py:speaking --folder runs/speaking --data.row-s 1",
            "data.row_s (2.0, here 1.0)",
        ),
    ],
)
def test_mistake_of_the_user_is_one_line(
    trained: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("counterpoint: ")
    assert message in error


def test_study_compares_systems_of_speech(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = Path("small.py").read_text()
    Path("spoken.py").write_text(
        text
        + "\n\ndef spoken():\n    run = speaking()\n    other = replace(run, name='other', "
        + "system=replace(run.system, heard_dropout=0.5))\n"
        + "    return Study(name='spoken', arms=(run, other))\n"
    )
    Path("spoken.py").write_text(
        "from dataclasses import replace\n" + Path("spoken.py").read_text()
    )
    assert main(["train", "spoken.py"]) == 0
    shown = capfd.readouterr().out
    assert "held-out bits/frame" in " ".join(shown.split())
    found = json.loads(Path("runs/spoken/summary.json").read_text())
    assert found["unit"] == "frame"
    assert [row["name"] for row in found["rows"]] == ["speaking", "other"]
    for row in found["rows"]:
        assert set(row["streams"]) == set(STREAMS)
        assert row["training_size"] == 258
    # The first arm is the run itself, and is measured as it is.
    alone = read_metrics(Path("runs/speaking/metrics.jsonl"))[-1]["evaluation"]
    first = found["rows"][0]
    assert first["bits_per_unit"]["value"] == pytest.approx(alone["bits_per_frame"], rel=1e-5)
    page = Path("runs/spoken/report.html").read_text()
    assert "agent_acoustic" in page
    assert "bits a frame" in page


def test_run_is_kept_with_its_recordings(trained: Path) -> None:
    manifest = json.loads(next(Path("runs/speaking").rglob("manifest.json")).read_text())
    assert manifest["run"]["data"]["type"] == "SpeechData"
    assert manifest["counters"]["size"] == 258


def test_published_folder_is_scored_on_recordings(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_published(Path("kyutai"))
    assert main(["evaluate", "kyutai"]) == 2
    assert "give `--recordings` for a speech model" in capsys.readouterr().err
    words = ["--recordings", "spoken/held_out.jsonl", "--precision", "float32"]
    assert main(["evaluate", "kyutai", *words]) == 0
    shown = capsys.readouterr().out
    assert "held-out bits/frame, all streams" in shown
    assert main(["evaluate", "runs/speaking", *words]) == 0
