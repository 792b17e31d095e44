"""A published folder is fine-tuned, exported, and talks: as a user runs the verbs."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from counterpoint.cli.main import main
from counterpoint.formats.moshi.checkpoint import load_moshi
from counterpoint.recipes import fine_tuning
from counterpoint.speech.transcriber import HeardWord
from counterpoint.train.checkpoint import load_system
from counterpoint.train.metrics import read_metrics
from tests.cli import examples
from tests.cli.talkers import write_published

os.environ.setdefault("NO_TORCH_COMPILE", "1")  # before `moshi` is imported

SMALL = shlex.split(
    "--base base --data spoken:2 more=more.jsonl --train.num-steps 4 --train.batch-rows 2 "
    "--train.accumulation 2 --train.evaluate-every 2 --train.optimizer.lr 1e-2 --row-s 2.4 "
    "--train.schedule.warmup-steps 0 --adapters.rank 2 --timing.horizon-s 0.4 --held-out 0.4"
)
GREEDY = shlex.split("--text-temperature 0 --audio-temperature 0")


class Hears:
    """Stands for the recogniser, which is an extra."""

    calls = 0

    def __init__(self, model: str) -> None:
        assert model == "tiny.en"

    def words(self, audio: Tensor, sample_rate: int) -> list[HeardWord]:
        Hears.calls += 1
        return [HeardWord("the", 0.1, 0.2), HeardWord("sea", 0.3, 0.5)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two kinds of recordings, and a run that was trained on them and resumed."""
    folder = tmp_path_factory.mktemp("finetune")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(fine_tuning, "Transcriber", Hears)
        patch.setenv("HOME", str(folder))  # codes are kept there
        write_published(Path("base"))
        examples.write_speech(Path())
        Path("spoken/0.json").unlink()
        Path("more.jsonl").write_text(
            Path("spoken/held_out.jsonl").read_text().replace("3", "spoken/3", 1)
        )
        assert main(["train", "finetune_moshi", *SMALL, "--folder", "run"]) == 0
        assert Hears.calls == 2
        assert main(["train", "finetune_moshi", *SMALL, "--folder", "run"]) == 0
        assert Hears.calls == 2
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place))


def talk(model: str, *more: str) -> np.ndarray:
    soundfile.write("in.wav", 0.2 * np.random.default_rng(0).standard_normal(24_000), 24_000)
    words = ["talk", model, "--input", "in.wav", "--output", "out.wav", *GREEDY, *more]
    assert main(words) == 0
    return soundfile.read("out.wav")[0]


def test_lists_weights_and_timing_are_kept(place: Path) -> None:
    lists = sorted(path.name for path in Path("run/lists").iterdir())
    assert lists == ["held_out.jsonl", "more.jsonl", "spoken.jsonl"]
    manifest = json.loads(Path("run/checkpoints/step_00000004/manifest.json").read_text())
    data = manifest["run"]["data"]
    assert [other["weight"] for other in _content(data)["others"]] == [0.5]
    rows = read_metrics(Path("run/metrics.jsonl"))
    measured = [row["evaluation"] for row in rows if "evaluation" in row]
    assert len(measured) == 2
    assert all("greeting_share" in values for values in measured)


def _content(data: Any) -> Any:
    return data if "others" in data else data["value"]


def test_merged_export_is_the_trained_model_and_talks(place: Path) -> None:
    assert main(["export", "run", "--merge", "--dtype", "float32", "--out", "merged"]) == 0
    found = load_moshi(Path("merged"), dtype=torch.float32).state_dict()
    trained = load_system(Path("run")).state_dict()
    assert all(torch.equal(found[name], value) for name, value in trained.items())
    assert talk("merged", "--dtype", "float32").shape[1] == 2
    assert json.loads(Path("merged/config.json").read_text())["dep_q"] == 16


def test_merged_export_is_read_by_the_published_loader(place: Path) -> None:
    loaders = pytest.importorskip("moshi.models.loaders")
    assert main(["export", "run", "--merge", "--dtype", "float32", "--out", "theirs"]) == 0
    info = loaders.CheckpointInfo.from_hf_repo(
        "nobody/nothing",
        moshi_weights=Path("theirs/model.safetensors"),
        mimi_weights=Path("theirs/tokenizer-e351c8d8-checkpoint125.safetensors"),
        tokenizer=Path("theirs/tokenizer_spm_32k_3.model"),
        config_path=Path("theirs/config.json"),
    )
    theirs = info.get_moshi(device="cpu", dtype=torch.float32).state_dict()
    ours = load_system(Path("run")).state_dict()
    assert torch.equal(theirs["text_linear.weight"], ours["head.weight"])
    assert info.get_text_tokenizer().get_piece_size() > 3


def test_exported_adapters_are_heard_beside_their_base(place: Path) -> None:
    assert main(["export", "run", "--out", "adapters"]) == 0
    assert {path.name for path in Path("adapters").iterdir()} == {"config.json", "lora.safetensors"}
    with_adapters = talk("base", "--lora", "adapters", "--dtype", "float32")
    assert not np.array_equal(with_adapters, talk("base", "--dtype", "float32"))


def test_all_weights_may_be_trained(place: Path) -> None:
    words = ["train", "finetune_moshi", *SMALL, "--full", "--folder", "full"]
    assert main(words) == 0
    assert main(["export", "full", "--out", "full_moshi"]) == 0
    assert talk("full_moshi").shape[1] == 2


def test_minutes_choose_the_steps_and_count_what_is_measured(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "finetune_moshi", *SMALL, "--minutes", "0.01", "--folder", "timed"]
    assert main(words) == 2
    assert "Give --minutes or --train.num-steps, not both" in capsys.readouterr().err
    number = words.index("--train.num-steps")
    assert main([*words[:number], *words[number + 2 :]]) == 0
    budget = json.loads(Path("timed/budget.json").read_text())
    assert budget["reference_steps"] == {"finetune_moshi": 2000}
    # The moments at which timing is measured take longer than these minutes.
    assert budget["num_steps"] == {"finetune_moshi": 1}
    assert Path("timed/checkpoints/step_00000001").is_dir()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data spoken", "`--base` must be a folder with a published model"),
        ("--base base", "`--data` must name folders of recordings"),
        ("--base base --data spoken spoken", "each with its own name: got ['spoken', 'spoken']"),
        ("--base spoken --data spoken", "in a known published format"),
    ],
)
def test_mistakes_are_told_in_one_line(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "finetune_moshi", *words.split(), "--folder", "none"]) == 2
    assert message in capsys.readouterr().err


def test_export_does_not_write_over_anything(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "run", "--merge", "--out", "base"]) == 2
    assert "must be a new or empty folder: base is not" in capsys.readouterr().err


def test_the_model_that_comes_with_the_package_is_a_base() -> None:
    assert main(["info", "finetune_moshi", "--base", "duplex_small"]) == 0


@pytest.mark.parametrize(("base", "folder"), [("base", "run"), ("duplex_small", "shipped")])
def test_what_is_said_at_the_end_can_be_done(
    base: str, folder: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The printed command writes a model that talks, whether its base is published or ours."""
    if base == "duplex_small":
        pytest.importorskip("pycodec2")
        words = shlex.split(
            "--base duplex_small --data spoken --held-out 0.4 --train.num-steps 1 --row-s 2.4 "
            "--train.batch-rows 1 --train.accumulation 1 --timing.horizon-s 0.4"
        )
    else:
        words = SMALL  # this run has ended, and says the same again
    assert main(["train", "finetune_moshi", *words, "--folder", folder]) == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("or: ")]
    command = line.removeprefix("or: counterpoint ").replace("FOLDER", f"{folder}_said")
    assert main(shlex.split(command)) == 0
    assert talk(f"{folder}_said").shape[1] == 2
