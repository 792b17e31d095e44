"""The guide shows the code of the first probe as it is, all of it."""

import re
from pathlib import Path

from tests.test_architecture import ROOT

GUIDE = ROOT / "docs" / "contributing" / "add-a-system.md"
PROBE = Path(__file__).with_name("injected.py")


def test_the_guide_shows_the_whole_probe_as_it_is() -> None:
    rest = PROBE.read_text()
    shown = re.findall(r"^```python\n(.*?)\n```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    for piece in shown:
        assert rest.count(piece) == 1, piece
        rest = rest.replace(piece, "")
    left = rest.split('"""', 2)[2].splitlines()  # behind the docstring
    imports = re.compile(r"\s*|(from \S+ )?import .*")
    assert [line for line in left if not imports.fullmatch(line)] == []


def test_probes_stay_small() -> None:
    for name in ("injected.py", "interleaved.py"):
        assert len(PROBE.with_name(name).read_text().splitlines()) < 120
