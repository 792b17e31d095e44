"""The names that users may rely on. Adding one here is a promise; there is room for 15."""

import ast
from importlib import import_module
from pathlib import Path

import counterpoint

PUBLIC_NAMES = [
    "Batch", "Event", "Layout", "Role", "Sampling", "SingleStream", "Stream", "Timeline",
    "TwoStream", "UNSET_ID", "available_at", "generate", "load", "save", "visible",
]  # fmt: skip
MAX_NAMES = 15


def test_public_names_are_exactly_these() -> None:
    tree = ast.parse(Path(counterpoint.__file__).read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in typed.body if isinstance(node, ast.ImportFrom)]
    aliases = [(node.module, alias.name, alias.asname) for node in imports for alias in node.names]
    assert sorted(name for _, name, _ in aliases) == PUBLIC_NAMES
    assert len(PUBLIC_NAMES) <= MAX_NAMES
    # Nothing but re-exports in the form `X as X`; type checkers see them, others import on demand.
    assert len(typed.body) == len(imports)
    assert all(name == asname for _, name, asname in aliases)
    for module, name, _ in aliases:
        assert getattr(counterpoint, name) is getattr(import_module(str(module)), name)
    assert set(PUBLIC_NAMES) <= set(dir(counterpoint))


def test_other_names_are_no_attributes() -> None:
    assert not hasattr(counterpoint, "numpy")


def test_public_names_exist_and_are_documented() -> None:
    for name in PUBLIC_NAMES:
        value = getattr(counterpoint, name)
        assert name == "UNSET_ID" or value.__doc__
