"""The scripts that complete words in a shell know what help shows."""

import io
import os
import select
import shutil
import signal
import subprocess
import time
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest

from counterpoint.cli import completion
from counterpoint.cli.main import VERBS, main

pty = pytest.importorskip("pty")  # which Windows lacks


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    """What is printed, by shell; all read the same help, which takes seconds."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(completion, "_words", cache(completion._words))
        for shell in ("bash", "zsh", "fish"):
            with redirect_stdout(io.StringIO()) as printed:
                assert main(["--show-completion", shell]) == 0
            found[shell] = printed.getvalue()
    return found


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_verbs_recipes_and_options(scripts: dict[str, str]) -> None:
    ask = """
    complete_last() {
        COMP_WORDS=(counterpoint "$@"); COMP_CWORD=$#; _counterpoint; echo "${COMPREPLY[@]}"
    }
    complete_last ev
    complete_last train f
    complete_last study ""
    complete_last train first_run --min
    complete_last info runs/some --num
    complete_last generate runs/some --t
    complete_last nothing --t
    complete_last task e
    complete_last task export --num
    complete_last --v
    """
    words = ["bash", "-c", scripts["bash"] + ask]
    found = subprocess.run(words, check=True, capture_output=True, text=True)
    assert found.stdout.splitlines() == [
        "evaluate",
        "finetune_moshi first_run",
        (
            "front_loading front_loading_small part_whole part_whole_equal part_whole_gpu "
            "part_whole_minutes part_whole_real part_whole_seconds part_whole_small --help"
        ),
        "--minutes",
        "--num-ticks",
        "--temperature --top-k --top-p",
        "",
        "export",
        "--num-items",
        "--version",
    ]
    assert found.stderr == ""


def test_other_shells_have_the_same_words(scripts: dict[str, str]) -> None:
    lines = scripts["fish"].splitlines()
    assert any(line.endswith(f"-a '{' '.join(VERBS)}'") for line in lines)
    assert "complete -c counterpoint -n '__counterpoint_is train' -l minutes" in lines
    assert "_counterpoint counterpoint" in scripts["zsh"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes_verbs_recipes_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripts: dict[str, str]
) -> None:
    (tmp_path / "c.fish").write_text(scripts["fish"])
    monkeypatch.setenv("HOME", str(tmp_path))
    lines = (
        *("ev", "train f", "train first_run --min", "info runs/some --num", "nothing --t"),
        *("task e", "task export --num", "--v", "train first_run --folder talk --inp"),
        "generate c.f",
    )
    ask = "; ".join(f"complete -C 'counterpoint {line}'; echo =" for line in lines)
    words = ["fish", "--no-config", "-c", f"source c.fish; {ask}"]
    found = subprocess.run(words, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert [block.split() for block in found.stdout.split("=")] == [
        ["evaluate"],
        ["finetune_moshi", "first_run"],
        ["--minutes"],
        ["--num-ticks"],
        [],
        ["export"],
        ["--num-items"],
        ["--version"],
        [],
        ["c.fish"],
        [],
    ]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_completes_verbs_recipes_and_options(tmp_path: Path, scripts: dict[str, str]) -> None:
    """In a terminal, because zsh completes nowhere else."""
    (tmp_path / "c.zsh").write_text(scripts["zsh"])
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.environ.update(HOME=str(tmp_path), TERM="dumb")
        os.execvp("zsh", ["zsh", "-f", "-i"])
    try:
        os.write(terminal, b"stty columns 200; source c.zsh; echo re''ady\n")
        assert "ready" in _answer(terminal, "ready")
        for typed, completed in (
            ("ev", "counterpoint evaluate "),
            ("train fir", "counterpoint train first_run "),
            ("train first_run --min", "--minutes "),
            ("task export --num", "--num-items "),
            ("generate c.z", "counterpoint generate c.zsh "),
        ):
            os.write(terminal, f"\x15counterpoint {typed}\t".encode())
            assert completed in _answer(terminal, completed)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(terminal)


def _answer(terminal: int, expected: str, patience_s: float = 30.0) -> str:
    """Return what a terminal shows, up to a text."""
    shown = ""
    end = time.monotonic() + patience_s
    while expected not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace")
    return shown


def test_a_shell_without_a_script_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("csh", ""):
        assert main(["--show-completion", shell]) == 2
        assert f"followed by bash, zsh, fish: got '{shell}'" in capsys.readouterr().err
