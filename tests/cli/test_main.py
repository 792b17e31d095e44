import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from counterpoint import cli
from counterpoint.cli.main import VERBS, main
from counterpoint.recipes.duplex_study import DuplexStudy
from counterpoint.recipes.fine_tuning import FineTuning
from counterpoint.recipes.front_loading import FrontLoading
from counterpoint.recipes.grid import Grid
from counterpoint.recipes.loading import load_recipe, recipe_names
from counterpoint.recipes.study import Study
from counterpoint.train.run import Run
from tests.cli import examples


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples.write(tmp_path)
    monkeypatch.chdir(tmp_path)


def test_help_shows_every_verb_with_a_line_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for verb in VERBS:
        assert any(
            line.strip().startswith(verb) and f"counterpoint {verb} " in line for line in lines
        )
    assert {path.stem for path in Path(cli.__file__).parent.glob("*.py")} >= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_shows_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"Example: counterpoint {verb} " in capsys.readouterr().out


KINDS = {name: type(load_recipe(name)) for name in recipe_names()}
STUDIES = [name for name, kind in KINDS.items() if kind in (Grid, FrontLoading)]
TRAINED = [name for name, kind in KINDS.items() if kind in (Run, Study, DuplexStudy, FineTuning)]
RECIPES = ["small.py", "small.py:pair", "small.py:speaking", *TRAINED]


@pytest.mark.parametrize(
    "words",
    [
        *VERBS,
        *("talk shanks", "task export", "task answer", "task score"),
        *(f"train {name}" for name in RECIPES),
        *(f"study {name}" for name in STUDIES),
        "info small.py",
    ],
)
def test_help_is_short_and_names_the_long_one(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert any("Example: counterpoint" in line for line in lines)
    if words.startswith("train "):
        assert f"counterpoint {words} --help-all" in lines[-1]
        for option in ("--folder", "--device", "num-steps", "batch-rows", "lr", "precision"):
            assert any(option in line for line in lines), option


@pytest.mark.parametrize(
    "words", ["generate", "talk", "talk shanks", "evaluate", "task answer", "study part_whole"]
)
def test_every_verb_that_computes_with_a_model_takes_a_device(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words.split(), "--help"]) == 0
    assert "--device auto|cpu|cuda|mps" in capsys.readouterr().out


def test_long_help_of_a_recipe_lists_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "small.py", "--help-all"]) == 0
    shown = capsys.readouterr().out
    assert "Example: counterpoint train small.py" in shown
    for option in ("--train.optimizer.lr", "--system.part.width", "--data.source", "--folder"):
        assert option in shown


def test_what_all_arms_have_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "small.py:pair", "--help-all"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("train.num-steps INT") == 1
    assert "--data.row-ticks" in shown
    assert "--arms.0.system.tower.width" in shown
    assert "--arms.1.system.part.width" in shown
    assert "arms.1.train" not in shown


def test_help_and_version_need_no_torch() -> None:
    script = (
        "import sys; from counterpoint.cli.main import main; "
        "assert main(sys.argv[1:]) == 0; assert 'torch' not in sys.modules"
    )
    for word in ("--help", "--version"):
        done = subprocess.run(
            [sys.executable, "-c", script, word], capture_output=True, text=True, check=True
        )
        assert "counterpoint" in done.stdout


def test_package_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "counterpoint", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"counterpoint {version('counterpoint')}\ntorch ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian small.py", "got 'trian'. The nearest is 'train'."),
        ("train frist_run", "got 'frist_run'. The nearest is 'first_run'."),
        ("train none.py", "The file of a recipe must exist: 'none.py' does not."),
        ("train small.py:smal", "no function 'smal'"),
        ("train small.py:number", "must return a dataclass such as `Run`"),
        (
            "train small.py --train.num-step 4",
            "--train.num-step. The nearest is '--train.num-steps'.",
        ),
        ("train small.py --train.num-steps four", "must be a whole number: got 'four'"),
        ("train small.py --train.num-steps 0", "`num_steps` must be >= 1, got 0."),
        ("train small.py --system.compressor men", "must be one of mean, "),
        ("train small.py --system.ramp.start-ticks 3", "= 4 by doubling: got 3. Choose 1 or 2"),
        ("train small.py --system.ramp.share 1.5", "above 0 and below 1"),
        ("train small.py --system.vocab-size 99", "`system.vocab_size` must be that of"),
        ("train small.py --data.source floder:texts", "got 'floder'. The nearest is 'folder'."),
        ("train small.py --data.source folder:none", "none"),
        ("train small.py:pair --train.num-step 4", "The nearest is '--train.num-steps'."),
        ("train small.py:pair --arms.0.train.num-steps 4", "`train.num_steps` is 4 for 'single'"),
        ("info two_stream.smal", "got 'smal'. The nearest is 'small'."),
        (
            "info moshi.moshi",
            "must be one of moshi_7b, tiny: got 'moshi'. The nearest is 'mosh",
        ),
        ("info runs/none", "must exist: 'runs/none' does not"),
        ("info small.py --num-ticks 0", "`--num-ticks` must be >= 1, got 0."),
        ("generate runs/none", "runs/none must be a checkpoint or a run folder"),
        ("generate", "must be given CHECKPOINT (A checkpoint or a run folder): nothing came."),
        ("generate x --temperature -1", "`temperature` must be >= 0 and finite: got -1.0"),
        ("generate x --prompt a --prompt-file b", "either `--prompt` or `--prompt-file`"),
        ("generate x --prompt-file b", "b: No such file or directory."),
        ("evaluate runs/none", "runs/none must be a checkpoint or a run folder"),
        ("evaluate small", "small must be a checkpoint or a run folder with one: none found."),
        ("generate x --prompt-file texts/story_1.text", "The nearest is 'texts/story_1.txt'."),
        ("report textz", "The nearest is 'texts'."),
        ("report runs/none", "The folder of a run or a study must exist: 'runs/none' does not."),
        ("report texts", "must hold a study"),
    ],
)
def test_mistake_of_the_user_is_one_line_and_status_2(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = message.replace("no function 'smal'", "must have a function 'smal'")
    assert main(arguments.split()) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("counterpoint: ")
    assert shown.out == ""


def test_empty_corpus_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("nothing").mkdir()
    assert main(["train", "small.py", "--data.source", "folder:nothing"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_syntax_error_in_a_recipe_names_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("wrong.py").write_text("def wrong():\n    return (\n")
    assert main(["train", "wrong.py"]) == 2
    assert (
        "wrong.py must be valid Python: '(' was never closed in line 2." in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_waiting_threads_spin_briefly_unless_the_user_says_otherwise(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # what the command sets is removed after the test
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["--version"]) == 0
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_interruption_is_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "small.py:interrupted"]) == 130
    assert capsys.readouterr().err == ("Interrupted. Run the same command again to continue.\n")


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """What a shell runs in the background ignores Ctrl-C, and so would these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_before_the_first_step_says_that_nothing_is_trained(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(*given: object) -> None:
        signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr("counterpoint.recipes.training.settle_precision", measure)
        assert main(["train", "small.py", "--quiet"]) == 130
    assert capsys.readouterr().err == (
        "Interrupted before the first checkpoint: nothing is kept in runs/small yet. "
        "Run the same command again to continue.\n"
    )
    Path("runs/small").mkdir(parents=True)
    assert main(["evaluate", "runs/small", "--quiet"]) == 2
    assert "If nothing was trained there yet, run its training" in capsys.readouterr().err
    assert main(["train", "small.py", "--quiet"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("counterpoint.recipes.training.settle_precision", measure)
        assert main(["train", "small.py", "--quiet"]) == 130
    assert capsys.readouterr().err == "Interrupted. Run the same command again to continue.\n"


def test_fault_of_another_program_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="a fault of the recipe's author"):
        main(["train", "small.py:broken"])


@pytest.mark.parametrize(("package", "extra"), [("matplotlib", "train"), ("soundfile", "speech")])
def test_missing_package_is_named_with_its_extra(
    package: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("needy.py").write_text(f"def needy():\n    import {package}\n")
    for name in [name for name in sys.modules if name.startswith("counterpoint.cli.")]:
        if name != "counterpoint.cli.main":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["info", "needy.py"]) == 2
    error = capsys.readouterr().err
    assert f"needs the package `{package}`" in error
    assert f"pip install 'counterpoint[{extra}]'" in error


def test_closed_pipe_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["--help"]) == 141
    sys.stdout.close()
    with pytest.raises(BrokenPipeError):
        stream.close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "words",
    [
        *("train first_run", "train books", "train duplex_small", "train lslm_study"),
        *("train finetune_moshi --base duplex_small --data calls", "train run.py:one"),
        *("study part_whole", "study front_loading"),
    ],
)
def test_minutes_below_zero_are_refused_before_anything_is_done(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.py").write_text("from counterpoint.recipes.books_single import books_single as one\n")
    for minutes in ("-1", "0", "inf"):
        assert main([*words.split(), "--minutes", minutes]) == 2
        told = capsys.readouterr().err
        assert "`--minutes` must be above 0 and finite: got" in told
        assert told.count("\n") == 1
    assert not Path("runs").exists()
