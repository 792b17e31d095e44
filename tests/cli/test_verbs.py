"""The verbs one after the other, on files in a folder, as a user runs them."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from counterpoint.cli.main import main
from tests.cli import examples


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the run ``runs/small`` and the study ``runs/pair``."""
    folder = tmp_path_factory.mktemp("user")
    examples.write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "small.py"]) == 0
        assert main(["train", "small.py:pair", "--train.num-steps", "2"]) == 0
        yield folder


def out(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_train_goes_on_where_it_was(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "small.py", "--train.num-steps", "4", "--folder", "copy"]) == 0
    shutil.copytree("runs/small", "again")
    assert main(["train", "small.py", "--train.num-steps", "4", "--folder", "again"]) == 0
    assert "Going on after step 3" in capsys.readouterr().err
    assert len(Path("again/metrics.jsonl").read_text().splitlines()) == 4 + 2  # and evaluations
    assert any(Path("again/tensorboard").iterdir())


def test_train_tells_of_a_corpus_it_tokenises(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "small.py", "--train.num-steps", "1", "--folder"]
    assert main([*words, "fresh", "--data.cache-folder", "fresh_cache"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "tokenising" in line]
    assert re.fullmatch(r"tokenising: [\d.]+ k?B  \d+ documents?", told[-1])
    num_documents = len(list(Path("texts").iterdir()))
    assert told[-1].endswith(f"  {num_documents} document{'s' if num_documents > 1 else ''}")
    assert main([*words, "cached", "--data.cache-folder", "fresh_cache"]) == 0
    assert "tokenising" not in capsys.readouterr().err


def test_train_refuses_to_go_on_with_other_data(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "small.py", "--folder", "runs/small", "--data.unit", "document"]) == 2
    error = capsys.readouterr().err
    assert "must continue with the data it began with" in error
    assert "data.unit ('section', here 'document')" in error


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ("train small.py", {"folder", "checkpoint", "step", "size", "flops", "held_out"}),
        ("train small.py:pair --train.num-steps 2", {"folder", "rows", "verdict"}),
        ("evaluate runs/small --device cpu", {"checkpoint", "unit", "measures", "size"}),
        ("generate runs/small --prompt Fox --num-ticks 5 --device cpu", {"prompt", "text"}),
    ],
)
def test_results_are_one_json_object_and_progress_is_quiet(
    words: str, keys: set[str], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(out(capsys, *words.split(), "--json", "--quiet"))
    assert found.keys() >= keys
    assert main([*words.split(), "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "{" not in shown.out


@pytest.mark.parametrize("verb", ["train small.py --folder fresh", "generate", "evaluate"])
def test_device_that_cannot_be_used_is_refused(
    verb: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*verb.split(), *([] if verb.startswith("train") else ["runs/small"])]
    assert main([*words, "--device", "meta"]) == 2
    assert "must be auto, cpu, cuda, mps, or one of several GPUs" in capsys.readouterr().err


def test_single_run_has_a_report_that_says_what_was_run(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("runs/small/report.html")
    before = path.read_text()
    for told in (
        "TwoStream learned from the texts in the folder texts",
        "3 of 3 steps of 2 rows",
        "<svg",
    ):
        assert told in before
    assert "King James" not in before
    path.unlink()
    assert out(capsys, "report", "runs/small") == f"{path}\n"
    assert path.read_text() == before
    assert "the texts in the folder texts" in Path("runs/pair/report.html").read_text()


def test_info_shows_a_checkpoint(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = out(capsys, "info", "runs/small")
    assert "small: TwoStream" in shown
    assert "over 64 ticks" in shown


def test_generate_is_a_function_of_its_options(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "runs/small", "--prompt", "The fox jumps", "--num-ticks", "30"]
    first = out(capsys, *words)
    assert first.startswith("The fox jumps")
    assert out(capsys, *words) == first
    assert out(capsys, *words, "--seed", "1") != first
    assert out(capsys, *words, "--simultaneous") == first
    assert out(capsys, *words, "--weights", "int8").startswith("The fox jumps")
    Path("prompt.txt").write_text("The fox jumps")
    assert out(capsys, *words[:2], "--prompt-file", "prompt.txt", *words[4:]) == first
    other = out(capsys, *words, "--whole-from", "Quite another text", "--temperature", "0.5")
    assert other.startswith("The fox jumps")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "caf\udce9"], "--prompt must be text .* it has the byte 0xe9"),
        (["--whole-from", "caf\udce9"], "--whole-from must be text .* it has the byte 0xe9"),
        (["--prompt-file", "latin.txt"], "Text must be UTF-8: latin.txt has the byte 0xe9"),
        (["--prompt-file", "none.txt"], "none.txt: No such file"),
    ],
)
def test_what_is_no_text_is_refused_before_any_output(
    trained: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    Path("latin.txt").write_bytes(b"caf\xe9")
    assert main(["generate", "runs/small", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.search(said, shown.err)
    assert shown.err.count("\n") == 1


def test_output_that_cannot_take_all_text_is_refused(trained: Path) -> None:
    environment = os.environ | {
        "PYTHONIOENCODING": "ascii",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-m", "counterpoint.cli.main", "generate", "runs/small"]
    done = subprocess.run(
        [*command, "--prompt", "café"], env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"must accept any text: its encoding is 'ascii'" in done.stderr


def test_byte_order_mark_is_no_part_of_a_prompt(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bom.txt").write_bytes(b"\xef\xbb\xbfThe fox")
    words = ["generate", "runs/small", "--num-ticks", "5"]
    assert out(capsys, *words, "--prompt-file", "bom.txt") == out(
        capsys, *words, "--prompt", "The fox"
    )


def test_evaluate_refuses_another_text(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("runs/small", "changed")
    record = Path("changed/learned.json")
    record.write_text(record.read_text().replace('"units": ', '"units": 1'))
    assert main(["evaluate", "changed", "--max-units", "1"]) == 2
    assert "text.train.units" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("runs/small --prompt " + 300 * "x", "window of 263 ticks: got 301"),
        ("runs/small --prompt abc --whole-from abcdef", "must finish 2 blocks or more"),
        ("runs/small --prompt abcdefghijkl --whole-from abc", "as the prompt, 3: got 1"),
        (
            "runs/pair/single --prompt abcdefghijkl --whole-from abcdefghijkl",
            "Only a coarse past that is kept apart",
        ),
        ("runs/pair/single --simultaneous", "`--simultaneous` needs a system with a whole tower"),
        ("runs/pair", "it is a study. Name one of runs/pair/single, runs/pair/two."),
    ],
)
def test_generate_refuses_what_the_model_cannot_do(
    trained: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_generate_may_slide(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", 300 * "x", "--sliding", "--num-ticks", "3"]
    assert out(capsys, "generate", "runs/small", *words).startswith(300 * "x")


def test_evaluate_prints_bits_per_byte_and_swap_delta(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = out(capsys, "evaluate", "runs/small")
    assert "held-out bits/byte" in shown
    assert "swap-delta" in shown
    use = r"The whole of runs/small.* (is used|is not used|is not shown to be used)"
    assert re.search(
        use + r".*: that of another document costs [+-]\d\.\d{3} bits a byte \(", shown
    )
    assert "swap-delta" not in out(capsys, "evaluate", "runs/pair/single")


def test_study_is_trained_and_reported_again(
    trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = Path("runs/pair/report.html")
    before = page.read_text()
    page.unlink()
    shown = out(capfd, "report", "runs/pair")
    assert "single" in shown
    assert "two" in shown
    assert page.read_text() == before


def test_damaged_checkpoint_is_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("runs/small", "damaged")
    weights = next(Path("damaged").rglob("weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-5])
    assert main(["generate", str(weights.parent)]) == 2
    assert "The checkpoint is damaged" in capsys.readouterr().err


def test_train_takes_the_steps_that_are_given_or_those_that_fit(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "small.py", "--folder", "timed"]
    assert main([*words, "--minutes", "1", "--train.num-steps", "2"]) == 2
    assert "--minutes or --train.num-steps, not both" in capsys.readouterr().err
    assert main([*words, "--minutes", "1"]) == 0
    assert "3 of the recipe's 3 steps (all) in about 1 minute" in capsys.readouterr().err
    assert (trained / "timed" / "budget.json").exists()
    assert main([*words, "--train.num-steps", "4"]) == 0
    assert not (trained / "timed" / "budget.json").exists()
