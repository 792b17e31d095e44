"""Guards of the design: who may know a concrete system, a stream's place, a delay; names and forms.

Each rule is a function from source text to faults, tested on a text that breaks it, and run over
the whole package.
"""

import ast
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.test_architecture import SOURCE, imported_modules, python_files

MAY_KNOW_SYSTEMS = ("systems", "formats", "recipes", "__init__")  # the last gives public names
NOT_CONCRETE = {"contract", "presets"}  # modules of systems/ that are about any system
MAY_KNOW_PLACES = ("streams",)
DELAYS = ("delay_ticks", "lag_blocks")
WINGS = {"data": ("text", "speech", "making", "tasks"), "evaluate": ("duplex", "report")}
REDUCTIONS = {"max", "min", "sum"}


@cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def folder_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@cache
def concrete_modules() -> frozenset[str]:
    """Modules of `counterpoint.systems` that hold one system."""
    names = {path.stem for path in (SOURCE / "systems").glob("*.py")}
    return frozenset(names - NOT_CONCRETE - {"__init__"})


@cache
def concrete_formats() -> frozenset[str]:
    """Modules and packages in `counterpoint.formats`."""
    return frozenset(path.stem for path in (SOURCE / "formats").iterdir())


@cache
def concrete_classes() -> frozenset[str]:
    """Classes of those modules."""
    found: set[str] = set()
    for name in concrete_modules():
        tree = ast.parse((SOURCE / "systems" / f"{name}.py").read_text())
        found |= {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    return frozenset(found)


# ------------------------------------------------------------------------- systems and formats


def knowledge_faults(source: str) -> list[str]:
    """Imports of a concrete system or format, and branches on the class of a system."""
    tree = parsed(source)
    return [*import_faults(tree), *branch_faults(tree)]


def import_faults(tree: ast.Module) -> Iterator[str]:
    for line, name in imported_modules(tree):
        package, folder, module, *_ = [*name.split("."), "", ""]
        if package == "counterpoint" and module:
            if folder == "systems" and module in concrete_modules():
                yield f"line {line}: {name} is one system; ask the contract"
            if folder == "formats" and module in concrete_formats():
                yield f"line {line}: {name} is one format; ask `counterpoint.formats` itself"


def branch_faults(tree: ast.Module) -> Iterator[str]:
    classes = concrete_classes()
    for node in ast.walk(tree):
        asked: list[ast.expr] = []
        if isinstance(node, ast.Call) and name_of(node.func) in ("isinstance", "issubclass"):
            asked = [node.args[1]]
        elif isinstance(node, ast.MatchClass):
            asked = [node.cls]
        elif isinstance(node, ast.Compare) and "type(" in ast.unparse(node):
            asked = [node.left, *node.comparators]
        for name in (name for part in asked for name in ast.walk(part)):
            if isinstance(name, ast.Name | ast.Attribute):
                text = ast.unparse(name).split(".")[-1]
                if text in classes:
                    yield f"{line_of(node)}: asks whether something is a {text}"


# --------------------------------------------------------------------------- places and delays


def place_faults(source: str) -> list[str]:
    """Streams that are found by their number instead of their name."""
    faults = []
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Subscript) and is_streams(node.value) and is_place(node.slice):
            faults.append(f"{line_of(node)}: {ast.unparse(node)} is a stream by its number")
        elif is_unpacked(node):
            faults.append(f"{line_of(node)}: {ast.unparse(node)} takes streams by their order")
    return faults


def name_of(node: ast.expr) -> str:
    """The name that an expression is; empty where it is more than a name."""
    return node.id if isinstance(node, ast.Name) else ""


def line_of(node: ast.AST) -> str:
    return f"line {getattr(node, 'lineno', 0)}"


def is_streams(node: ast.expr) -> bool:
    """Whether an expression is a layout's streams, or those of a kind."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute) and node.func.attr == "by_role"
    return isinstance(node, ast.Attribute) and node.attr in ("streams", "predicted")


def is_unpacked(node: ast.AST) -> bool:
    """Whether streams get names by their order."""
    return (
        isinstance(node, ast.Assign)
        and is_streams(node.value)
        and isinstance(node.targets[0], ast.Tuple)
        and len(node.targets[0].elts) > 1  # the only one needs no order
    )


def is_place(node: ast.expr) -> bool:
    """Whether a subscript is a number or a range, not a name."""
    if isinstance(node, ast.UnaryOp):
        node = node.operand
    return isinstance(node, ast.Slice) or (
        isinstance(node, ast.Constant) and isinstance(node.value, int)
    )


def delay_faults(source: str) -> list[str]:
    """Arithmetic with a delay or a lag, also through names that are assigned from one."""
    faults = []
    tree = parsed(source)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.Lambda)]
    for scope in [*functions, tree]:
        late = late_names(scope)
        for node in ast.walk(scope):
            parts: Sequence[ast.expr] = ()
            if isinstance(node, ast.BinOp):
                parts = (node.left, node.right)
            elif isinstance(node, ast.AugAssign):
                parts = (node.value,)
            elif isinstance(node, ast.Call) and name_of(node.func) in REDUCTIONS:
                parts = node.args
            if any(is_late(part, late) for part in parts):
                faults.append(f"{line_of(node)}: {ast.unparse(node)} computes with a delay")
    return sorted(set(faults))


def is_late(node: ast.AST, late: set[str]) -> bool:
    """Whether an expression is a delay, or computed from one without a call in between."""
    if isinstance(node, ast.Attribute):
        return node.attr.endswith(DELAYS)
    if isinstance(node, ast.Name):
        return node.id.endswith(DELAYS) or node.id in late
    if isinstance(node, ast.Call) and name_of(node.func) not in REDUCTIONS:
        return False
    # A comparison asks; it does not compute.
    if isinstance(node, ast.Compare):
        return False
    return any(is_late(child, late) for child in ast.iter_child_nodes(node))


def late_names(scope: ast.AST) -> set[str]:
    late: set[str] = set()
    before = -1
    while len(late) != before:
        before = len(late)
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign) and is_late(node.value, late):
                late |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return late


# -------------------------------------------------------------------------------- whole package


def wing_faults(path: Path) -> list[str]:
    """Imports of a wing of the same folder that must not be known here."""
    folder, *rest = path.relative_to(SOURCE).parts
    wings = WINGS.get(folder, ())
    own = rest[0] if rest and rest[0] in wings else None
    allowed = wings[: wings.index(own) + 1] if own is not None else ()
    faults = []
    for line, name in imported_modules(parsed(path.read_text())):
        parts = name.split(".")
        wing = parts[2] if parts[:2] == ["counterpoint", folder] and len(parts) > 2 else None
        if wing in wings and wing not in allowed:
            faults.append(f"line {line}: {own or 'what is shared'} must not import {wing}/")
    return faults


def public_classes() -> dict[str, list[str]]:
    """Modules in which each public class, or name of a type, is defined."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in python_files("src"):
        for node in parsed(path.read_text()).body:
            name = ""
            if isinstance(node, ast.ClassDef):
                name = node.name
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                target = node.targets[0].id
                is_type = target[0].isupper() and not target.isupper() and "_" not in target
                name = target if is_type else ""
            if name and not name.startswith("_"):
                found[name].append(str(path.relative_to(SOURCE)))
    return found


def import_graph() -> dict[str, set[str]]:
    """Which modules of the package each imports when it is imported."""
    names = {}
    for path in python_files("src"):
        dotted = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        names[dotted.removesuffix(".__init__")] = path
    graph = {}
    for name, path in names.items():
        imports = [dotted for _, dotted in imported_modules(without_functions(path.read_text()))]
        found = {n if n in names else n.rpartition(".")[0] for n in imports}
        graph[name] = {n for n in found if n in names} - {name}
    return graph


def without_functions(source: str) -> ast.Module:
    """What runs when a module is imported."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [ast.Pass()]
    return tree


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty where there is none."""
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph[name]):
            if found := follow(target, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := follow(name, []))), [])


@pytest.mark.parametrize(
    ("check", "exempt"),
    [
        (knowledge_faults, MAY_KNOW_SYSTEMS),
        (place_faults, MAY_KNOW_PLACES),
        (delay_faults, MAY_KNOW_PLACES),
    ],
)
def test_only_some_folders_know(check: Callable[[str], list[str]], exempt: tuple[str, ...]) -> None:
    faults = {
        str(path.relative_to(SOURCE)): found
        for path in python_files("src")
        if folder_of(path) not in exempt and (found := check(path.read_text()))
    }
    assert faults == {}


@pytest.mark.parametrize(
    ("check", "source", "fault"),
    [
        (knowledge_faults, "from counterpoint.systems.moshi import Moshi", "is one system"),
        (knowledge_faults, "from counterpoint.systems import moshi", "is one system"),
        (knowledge_faults, "from counterpoint.formats.mimi import read_mimi", "is one format"),
        (knowledge_faults, "isinstance(system, (int, Moshi))", "asks whether something is a Moshi"),
        (knowledge_faults, "type(system) is TwoStream", "is a TwoStream"),
        (knowledge_faults, "match x:\n    case Moshi():\n        y", "is a Moshi"),
        (place_faults, "layout.streams[0]", "a stream by its number"),
        (place_faults, "layout.streams[-1]", "a stream by its number"),
        (place_faults, "layout.predicted[1:]", "a stream by its number"),
        (place_faults, "layout.by_role(Role.SPOKEN)[0]", "a stream by its number"),
        (place_faults, "text, *audio = layout.streams", "takes streams by their order"),
        (delay_faults, "x = tick + stream.delay_ticks", "computes with a delay"),
        (delay_faults, "tick -= self.text_delay_ticks", "computes with a delay"),
        (delay_faults, "max(s.delay_ticks for s in streams)", "computes with a delay"),
        (delay_faults, "def f(c):\n    late = c.lag_blocks\n    return 2 * late", "with a delay"),
    ],
)
def test_rule_finds_its_fault(check: Callable[[str], list[str]], source: str, fault: str) -> None:
    assert fault in check(source)[0]


@pytest.mark.parametrize(
    ("check", "source"),
    [
        (knowledge_faults, "from counterpoint.systems import SYSTEMS, build_system"),
        (knowledge_faults, "from counterpoint.systems.contract import System"),
        (knowledge_faults, "from counterpoint.formats import open_codec"),
        (knowledge_faults, "isinstance(value, int)"),
        (place_faults, "layout.streams['text']; layout['text']"),
        (delay_faults, "Stream(delay_ticks=config.delay_ticks); config.lag_blocks >= 1"),
    ],
)
def test_rule_lets_the_rest_pass(check: Callable[[str], list[str]], source: str) -> None:
    assert check(source) == []


def test_wings_import_only_those_before_them() -> None:
    faults = {str(p.relative_to(SOURCE)): f for p in python_files("src") if (f := wing_faults(p))}
    assert faults == {}


def test_public_classes_have_one_name_each() -> None:
    faults = {name: paths for name, paths in public_classes().items() if len(paths) > 1}
    assert faults == {}


def test_modules_import_each_other_in_no_circle() -> None:
    assert cycle(import_graph()) == []


def test_circle_is_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
