"""Pages tell the truth: their Python runs as it stands, and their links and commands exist."""

import re
from pathlib import Path

import pytest

from tests.test_architecture import ROOT

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
