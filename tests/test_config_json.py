import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.config_json import decode, difference, encode, first_difference, merged


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaf:
    size: int = 1
    name: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    leaves: tuple[Leaf, ...] = ()
    ratio: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    root: Leaf | Branch
    colour: Colour = Colour.RED
    pairs: tuple[tuple[str, float], ...] = ()
    held: float | tuple[str, ...] | None = None
    mode: Literal["a", "b"] = "a"
    path: Path | None = None
    flag: bool = False


leaves = st.builds(Leaf, size=st.integers(), name=st.text())
numbers = st.floats(allow_nan=False)
trees = st.builds(
    Tree,
    root=leaves
    | st.builds(Branch, leaves=st.lists(leaves, max_size=3).map(tuple), ratio=st.none() | numbers),
    colour=st.sampled_from(Colour),
    pairs=st.lists(st.tuples(st.text(), numbers), max_size=2).map(tuple),
    held=st.none() | numbers | st.lists(st.text(), max_size=2).map(tuple),
    mode=st.sampled_from(("a", "b")),
    path=st.none() | st.just(Path("a/b")),
    flag=st.booleans(),
)


@given(trees)
def test_config_json_is_lossless(tree: Tree) -> None:
    again = decode(Tree, json.loads(json.dumps(encode(tree))))
    assert again == tree
    assert type(again.root) is type(tree.root)
    assert type(again.held) is type(tree.held)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"root": {"type": "Leaf", "sise": 2}}, r"root: Leaf has no field 'sise'.*mean 'size'"),
        ({"rooot": {}}, r"Tree has no field 'rooot'. Did you mean 'root'"),
        ({"root": {"type": "Laef"}}, r"root: no type is called 'Laef'. Did you mean 'Leaf'"),
        ({}, "needs the field 'root'"),
        ({"root": {"type": "Leaf", "size": True}}, r"root.size must be int: got True"),
        ({"root": {"type": "Leaf", "size": "1"}}, r"root.size must be int: got '1'"),
        ({"root": {"type": "Leaf"}, "colour": "pink"}, r"colour must be one of"),
        ({"root": {"type": "Leaf"}, "mode": "c"}, r"mode must be one of"),
        ({"root": {"type": "Leaf"}, "pairs": [["a"]]}, r"pairs\[0\] must be 2 values"),
        ({"root": {"type": "Leaf"}, "held": {}}, r"held must be float or tuple"),
        ([], "config must be Tree"),
    ],
)
def test_config_json_refuses_and_says_where(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(Tree, data)


def test_config_json_takes_whole_numbers_as_floats() -> None:
    ratio = decode(Branch, {"ratio": 1}).ratio
    assert ratio == 1.0
    assert type(ratio) is float


def test_config_json_refuses_what_it_cannot_write() -> None:
    with pytest.raises(ValueError, match="got set"):
        encode({1})


def test_first_difference_names_the_place() -> None:
    old, new = encode(Leaf(size=1)), encode(Leaf(size=2))
    assert first_difference(old, old) is None
    assert first_difference(old, new) == "config.size (1, here 2)"


def test_a_difference_brings_the_other_value_back() -> None:
    old = encode(Tree(root=Branch(leaves=(Leaf(size=1), Leaf(size=2)))))
    new = encode(Tree(root=Branch(leaves=(Leaf(size=3),), ratio=2.0), held=1.5))
    changes = difference(new, old)
    assert changes["root"].keys() == {"leaves", "ratio"}
    assert changes.keys() == {"root", "held"}
    assert merged(old, changes) == new
    assert difference(new, new) == {}
    assert merged(old, [1]) == [1]
