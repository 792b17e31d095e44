"""The names that users may rely on. Adding one here is a promise; there is room for 15."""

import ast
from pathlib import Path

import counterpoint

PUBLIC_NAMES = [
    "Batch", "Event", "Layout", "Role", "Sampling", "SingleStream", "Stream", "Timeline",
    "TwoStream", "UNSET_ID", "available_at", "generate", "visible",
]  # fmt: skip
MAX_NAMES = 15


def test_public_names_are_exactly_these() -> None:
    tree = ast.parse(Path(counterpoint.__file__).read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    exported = [alias.asname for node in imports for alias in node.names]
    assert sorted(name or "" for name in exported) == PUBLIC_NAMES
    assert len(PUBLIC_NAMES) <= MAX_NAMES
    # Nothing but the docstring and re-exports in the form `X as X`.
    assert len(tree.body) == 1 + len(imports)
    assert all(alias.name == alias.asname for node in imports for alias in node.names)


def test_public_names_exist_and_are_documented() -> None:
    for name in PUBLIC_NAMES:
        value = getattr(counterpoint, name)
        assert name == "UNSET_ID" or value.__doc__
