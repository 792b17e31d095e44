"""Pages tell the truth: their Python runs as it stands, and their links and commands exist."""

import contextlib
import re
import shlex
from pathlib import Path

import pytest

from counterpoint.cli.main import VERBS, main
from tests.test_architecture import LADDER, ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDE = (
    ROOT / "docs" / "contributing" / "add-a-system.md"
)  # tests/probes/test_guide.py has its code


def _named(pages: list[Path]) -> list[object]:
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in pages]


def _python(page: Path) -> str:
    """All Python of a page as one program: later blocks go on with the names of earlier ones."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))


@pytest.mark.parametrize("page", _named([p for p in PAGES if p != GUIDE and _python(p)]))
def test_the_python_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(_python(page), str(page), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", _named(PAGES))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    files = [target for target in targets if "://" not in target and "reference/" not in target]
    assert [file for file in files if not (page.parent / file).exists()] == []


def _commands() -> list[str]:
    """Every command of the pages, without what a comment says about it."""
    pages = [re.sub(r"\\\n\s*", "", page.read_text()) for page in PAGES]
    lines = [line.strip() for page in pages for line in page.splitlines()]
    found = [line.split("  #")[0].strip() for line in lines if line.startswith("counterpoint ")]
    return sorted({line for line in found if line.split()[1] in VERBS})


@pytest.mark.parametrize("command", _commands())
def test_commands_have_the_options_that_pages_show(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, verb, *words = shlex.split(command)
    # A recipe, a preset or a part of a verb has options of its own.
    subject = words[:1] if verb in ("train", "study", "info", "task") else []
    is_name = subject and not ("runs/" in subject[0] or ".py" in subject[0])
    if not is_name or subject[0].isupper() or subject[0].startswith("--"):
        subject = []
    with contextlib.suppress(SystemExit):
        main([verb, *subject, "--help-all"])
    shown = capsys.readouterr().out
    assert shown
    if subject or verb not in ("train", "study", "info"):
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in shown, word


PLACES = ("", "src", "src/counterpoint", "tests", "docs")
FILE = re.compile(
    rf"`((?:src|tests|benchmarks|docs|{'|'.join(LADDER)})/[\w./-]+\.(?:py|md|json|toml))`"
)


@pytest.mark.parametrize("page", _named([p for p in PAGES if p.name != "log.md"]))
def test_files_that_a_page_names_exist(page: Path) -> None:
    """Only the log tells of files as they were called at its time."""
    text = page.read_text()
    named = {*FILE.findall(text), *re.findall(r"python (benchmarks/\w+\.py)", text)}
    missing = [n for n in named if not any((ROOT / place / n).exists() for place in PLACES)]
    assert missing == []


def _joined(page: str) -> list[str]:
    """First lines of tables and lists that stand below text without an empty line.

    The site would show such a table or list as one paragraph of text.
    """
    text = re.sub(r"^```.*?^```", "```", page, flags=re.M | re.S)
    pairs = zip(text.splitlines(), text.splitlines()[1:], strict=False)
    begins = {"|": ("|", "#"), "- ": ("- ", " ", "#")}
    return [
        line
        for before, line in pairs
        for mark, allowed in begins.items()
        if line.startswith(mark) and before.strip() and not before.startswith(allowed)
    ]


@pytest.mark.parametrize("page", _named(PAGES))
def test_tables_and_lists_stand_below_an_empty_line(page: Path) -> None:
    assert _joined(page.read_text()) == []


def test_joined_tables_and_lists_are_found() -> None:
    assert _joined("Measured:\n| a | b |\n|---|---|\n| 1 | 2 |\n") == ["| a | b |"]
    assert _joined("It fails:\n- here\n  and\n- there\n") == ["- here"]
    assert _joined("Text\n\n- one\n  more\n- two\n\n# Head\n| a |\n```\nx\n- y\n```\n") == []
