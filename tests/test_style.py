"""Guards of readability that the formatter and the linter do not know."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_architecture import ROOT, is_dataclass, python_files
from tests.test_rules import parsed

MAX_DOCUMENT_LINE = 120


def squeezed_faults(source: str) -> list[str]:
    """Several assignments in one line, and checks that are rows of a table."""
    faults = []
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Assign) and is_several(node):
            faults.append(f"line {node.lineno}: {ast.unparse(node)} is several assignments")
        elif isinstance(node, ast.For) and is_table_of_conditions(node.iter):
            faults.append(f"line {node.lineno}: a loop over conditions; write them one by one")
    return faults


def is_several(node: ast.Assign) -> bool:
    """Whether an assignment is several that do not need each other, unlike an exchange."""
    targets, value = node.targets[0], node.value
    if not (isinstance(targets, ast.Tuple) and isinstance(value, ast.Tuple)):
        return False
    if any(isinstance(part, ast.Starred) for part in [*targets.elts, *value.elts]):
        return False
    written = {ast.unparse(target) for target in targets.elts}
    read = {ast.unparse(part) for part in ast.walk(value) if isinstance(part, ast.expr)}
    return not written & read


def is_table_of_conditions(node: ast.expr) -> bool:
    """Whether something that is looped over spells out rows with a condition in each."""
    return isinstance(node, ast.Tuple | ast.List) and any(
        isinstance(row, ast.Tuple)
        and any(isinstance(cell, ast.Compare | ast.BoolOp) for cell in row.elts)
        for row in node.elts
    )


def fragment_faults(source: str) -> list[str]:
    """Docstrings, and what they say of arguments and fields, that begin in mid-sentence."""
    return [
        f"line {number}: {line.strip()}"
        for number, line in enumerate(source.splitlines(), start=1)
        if re.match(r'\s*(?:[a-z_]+: |""")(?:Of|Likewise)\b', line)
    ]


def field_faults(source: str) -> list[str]:
    """Fields of public dataclasses, such as configs, of which the class says nothing.

    A field is described below "Attributes:", or named between double backticks.
    """
    faults = []
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.ClassDef) and is_dataclass(node) and node.name[0] != "_":
            doc = ast.get_docstring(node) or ""
            described = re.findall(r"(?<=^    )\w+(?=: )|(?<=``)\w+(?=``)", doc, re.MULTILINE)
            faults += [
                f"line {node.lineno}: {node.name} must say what {name} is"
                for name in fields_of(node)
                if name not in described
            ]
    return faults


def fields_of(node: ast.ClassDef) -> list[str]:
    """The public fields of a dataclass that are written in it."""
    return [
        statement.target.id
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and statement.target.id[0] != "_"
        and "ClassVar" not in ast.unparse(statement.annotation)
    ]


@pytest.mark.parametrize("check", [squeezed_faults, fragment_faults, field_faults])
def test_code_can_be_read(check: Callable[[str], list[str]]) -> None:
    faults = {
        str(path.relative_to(ROOT / "src" / "counterpoint")): found
        for path in python_files("src")
        if (found := check(path.read_text()))
    }
    assert faults == {}


CONFIG = '''@dataclass(frozen=True)
class RowsConfig:
    """Rows, each of ``num_ticks`` ticks.

    Attributes:
        num_rows: How many.
    """

    MOST: ClassVar[int] = 9
    num_rows: int
    num_ticks: int = 3
'''


@pytest.mark.parametrize(
    ("check", "source", "fault"),
    [
        (squeezed_faults, "A, B = 1, 2", "several assignments"),
        (squeezed_faults, "a, b = c + 1, f(d)", "several assignments"),
        (squeezed_faults, "for x, y in ((a > 1, 'a'), (b, 'b')):\n    pass", "over conditions"),
        (fragment_faults, "    seed: Of the order.", "seed: Of the order."),
        (fragment_faults, '    """Of a text system: its ids."""', "Of a text system"),
        (field_faults, CONFIG.replace("num_rows: How", "rows: How"), "must say what num_rows is"),
        (field_faults, CONFIG.replace("Attributes:\n        ", ""), "must say what num_rows is"),
    ],
)
def test_style_check_finds_its_fault(
    check: Callable[[str], list[str]], source: str, fault: str
) -> None:
    assert fault in check(source)[0]


@pytest.mark.parametrize("source", ["a, b = b, a", "a, b = x.shape", "a, b = b, a + b"])
def test_style_check_lets_exchanges_pass(source: str) -> None:
    assert squeezed_faults(source) == []


def test_style_check_lets_described_fields_pass() -> None:
    assert field_faults(CONFIG) == []


def document_faults(path: Path) -> list[str]:
    return [
        f"line {number}"
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if len(line) > MAX_DOCUMENT_LINE and not line.startswith("|")
    ]


def test_lines_of_documents_are_short() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    faults = {
        str(path.relative_to(ROOT)): found for path in documents if (found := document_faults(path))
    }
    assert faults == {}
