"""Guards: who may import whom, how large things may grow, what belongs to a system."""

import ast
import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "counterpoint"
LADDER = (
    "streams", "blocks", "systems", "speech", "formats", "data",
    "train", "runtime", "evaluate", "recipes", "cli",
)  # fmt: skip
# Modules beside the folders: every folder may import them, and they import only each other.
ROOT_MODULES = (
    *("errors", "tracing", "files", "packages", "processes", "config_json"),
    *("digests", "literals", "locks", "progress", "ray_tasks"),
)
ENTRY = "__main__"  # of `python -m counterpoint`, below all folders
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS, MAX_FIELDS, MAX_README = 500, 60, 8, 15, 150
MAX_VERB = 150  # lines of a file of the command line: the library does the work


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "." * node.level + (node.module or "")
            else:
                for alias in node.names:
                    yield node.lineno, f"{node.module}.{alias.name}"


def rung(name: str) -> int:
    """Place of a folder or of a root module in the ladder; -1 is above all folders."""
    if name == ENTRY:
        return len(LADDER)
    return -1 if name in ROOT_MODULES else LADDER.index(name)


def ladder_faults(folder: str, source: str) -> list[str]:
    """Imports that a file in ``folder`` of the package, or a root module, must not have."""
    faults = []
    for line, name in imported_modules(ast.parse(source)):
        parts = name.split(".")
        if name.startswith("."):
            faults.append(f"line {line}: relative import {name}; write the full name")
        elif parts[0] == "counterpoint":
            target = parts[1] if len(parts) > 1 else ""
            if target not in (*LADDER, *ROOT_MODULES):
                faults.append(f"line {line}: {name}; import from the module that defines it")
            elif rung(target) > rung(folder):
                faults.append(f"line {line}: {folder}/ must not import {target}/, below it")
    return faults


def size_faults(source: str) -> list[str]:
    """What in a file is larger than the budget."""
    faults = []
    if (lines := source.count("\n")) > MAX_FILE:
        faults.append(f"{lines} lines, at most {MAX_FILE}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION:
                faults.append(f"{node.name}: {length} lines, at most {MAX_FUNCTION}")
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(argument.arg not in ("self", "cls") for argument in arguments)
            if count > MAX_PARAMETERS:
                faults.append(f"{node.name}: {count} parameters, at most {MAX_PARAMETERS}")
        elif isinstance(node, ast.ClassDef) and is_dataclass(node):
            count = sum(isinstance(statement, ast.AnnAssign) for statement in node.body)
            if count > MAX_FIELDS:
                faults.append(f"{node.name}: {count} fields, at most {MAX_FIELDS}")
    return faults


def is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def system_faults(name: str, root: Path) -> list[str]:
    """What a registered system lacks."""
    faults = [
        f"{path} is missing"
        for path in (
            f"src/counterpoint/systems/{name}.py",
            f"tests/systems/test_{name}.py",
            f"docs/systems/{name}.md",
        )
        if not (root / path).is_file()
    ]
    rows = [line for line in (root / "README.md").read_text().splitlines() if line.startswith("|")]
    if not any(f"systems/{name}.py" in row for row in rows):
        faults.append(f"README.md has no table row with systems/{name}.py")
    return faults


def test_folders_import_only_themselves_and_those_above() -> None:
    faults = {}
    for path in python_files("src"):
        folder = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if folder != "__init__" and (found := ladder_faults(folder, path.read_text())):
            faults[str(path.relative_to(ROOT))] = found
    assert not faults


def page_rows(page: str) -> dict[str, tuple[int, str]]:
    """The folders of the table of `docs/architecture.md`: the number and the names of their row."""
    rows = re.findall(r"^\| (`.*?) \| .* \| (.*) \|$", page.split("\n## ")[0], re.M)
    return {
        folder: (number, names)
        for number, (folders, names) in enumerate(rows)
        for folder in re.findall(r"`([\w/]+)/`", folders)
    }


def row_folder(parts: Sequence[str], rows: Container[str]) -> str | None:
    """The innermost folder with a row that holds a module; ``None`` if there is none."""
    folders = ("/".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((folder for folder in folders if folder in rows), None)


def defined_names(folder: str) -> set[str]:
    """Modules below a folder, and what they define."""
    files = python_files(f"src/counterpoint/{folder}")
    nodes = [node for path in files for node in ast.parse(path.read_text()).body]
    named = {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    targets = {
        ast.unparse(target)
        for node in nodes
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    }
    return named | targets | {path.stem for path in files}


def test_architecture_page_names_every_folder_and_nothing_that_does_not_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    folders = {path.parent.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*/__init__.py")}
    assert set(re.findall(r"`([\w/]+)/`", page)) == folders | {"models"}
    unknown = {
        folder: missing
        for folder, (_, names) in page_rows(page).items()
        if (missing := set(re.findall(r"`(\w+)`", names)) - defined_names(folder))
    }
    assert unknown == {}


def test_folders_import_none_below_them_in_the_table_of_the_page() -> None:
    rows = page_rows((ROOT / "docs" / "architecture.md").read_text())
    faults = []
    for path in python_files("src"):
        own = row_folder(path.relative_to(SOURCE).parts[:-1], rows)
        for line, name in imported_modules(ast.parse(path.read_text())):
            target = row_folder(name.split(".")[1:], rows)
            if own and target and rows[target][0] > rows[own][0]:
                faults.append(f"{path.relative_to(ROOT)}, line {line}: {name}")
    assert rows
    assert faults == []


def test_package_has_exactly_the_folders_of_the_ladder() -> None:
    found = {path.relative_to(SOURCE).parts[0] for path in python_files("src")}
    modules = ("__init__", *ROOT_MODULES, ENTRY)
    assert found == {*LADDER, *(f"{name}.py" for name in modules)}


def test_every_folder_is_a_package() -> None:
    folders = {path.parent for path in python_files("src")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("from counterpoint.train.loop import train", "blocks/ must not import train/"),
        (
            "def f():\n    import counterpoint.systems.hrt",
            "line 2: blocks/ must not import systems/",
        ),
        ("from counterpoint import Layout", "import from the module that defines it"),
        ("from . import rope", "relative import"),
    ],
)
def test_ladder_check_finds_a_forbidden_import(source: str, fault: str) -> None:
    assert fault in ladder_faults("blocks", source)[0]
    assert ladder_faults("blocks", "import torch\nfrom counterpoint.streams.spec import Role") == []
    assert ladder_faults("blocks", "from counterpoint.errors import UserError") == []


def test_ladder_check_keeps_root_modules_above_the_folders() -> None:
    (fault,) = ladder_faults("errors", "from counterpoint.streams.spec import Role")
    assert "errors/ must not import streams/" in fault


def test_sizes_are_within_the_budget() -> None:
    faults = {
        str(path.relative_to(ROOT)): found
        for path in python_files("src", "tests", "benchmarks")
        if (found := size_faults(path.read_text()))
    }
    assert not faults


def test_verbs_are_thin() -> None:
    lengths = {
        path.name: path.read_text().count("\n") for path in python_files("src/counterpoint/cli")
    }
    assert "talk.py" in lengths
    assert {name: length for name, length in lengths.items() if length > MAX_VERB} == {}


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("x = 1\n" * 501, "501 lines, at most 500"),
        ("def f():\n" + "    x = 1\n" * 60, "f: 61 lines, at most 60"),
        ("class A:\n def f(self, a, b, c, d, e, /, g, *, h, i, j): ...", "f: 9 parameters"),
        (
            "@dataclass(frozen=True)\nclass A:\n" + "".join(f" x{i}: int\n" for i in range(16)),
            "A: 16 fields",
        ),
    ],
)
def test_size_check_finds_what_is_too_large(source: str, fault: str) -> None:
    assert fault in size_faults(source)[0]


def test_modules_are_named_for_what_they_hold() -> None:
    parts = {part for path in python_files("src", "tests", "benchmarks") for part in path.parts}
    assert not FORBIDDEN_NAMES & {part.removesuffix(".py") for part in parts}


def test_every_system_has_file_test_page_and_readme_row() -> None:
    from counterpoint.systems import SYSTEMS

    faults = {name: found for name in SYSTEMS if (found := system_faults(name, ROOT))}
    assert SYSTEMS
    assert not faults


def test_system_check_finds_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("systems/ours.py outside of a table\n")
    assert len(system_faults("ours", tmp_path)) == 4
