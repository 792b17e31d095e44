"""The scripts that complete words in a shell know what help shows."""

import shutil
import subprocess

import pytest

from counterpoint.cli.main import VERBS, main


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["--show-completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_verbs_recipes_and_options(capsys: pytest.CaptureFixture[str]) -> None:
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
    """
    words = ["bash", "-c", script("bash", capsys) + ask]
    found = subprocess.run(words, check=True, capture_output=True, text=True)
    assert found.stdout.splitlines() == [
        "evaluate",
        "finetune_moshi first_run",
        "part_whole --help",
        "--minutes",
        "--num-ticks",
        "--temperature --top-k --top-p",
        "",
    ]
    assert found.stderr == ""


def test_other_shells_have_the_same_words(capsys: pytest.CaptureFixture[str]) -> None:
    lines = script("fish", capsys).splitlines()
    assert lines[0].endswith(f"-a '{' '.join(VERBS)}'")
    assert "complete -c counterpoint -n '__fish_seen_subcommand_from train' -l minutes" in lines
    assert "_counterpoint counterpoint" in script("zsh", capsys)


def test_a_shell_without_a_script_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("csh", ""):
        assert main(["--show-completion", shell]) == 2
        assert f"followed by bash, zsh, fish: got '{shell}'" in capsys.readouterr().err
