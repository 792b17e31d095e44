import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator
from types import FunctionType
from typing import Any, Literal, get_args, get_type_hints

import pytest

import counterpoint
from counterpoint import literals
from counterpoint.errors import UserError
from counterpoint.literals import literal_fields, literals_checked
from counterpoint.recipes.fine_tuning import FineTuning
from counterpoint.recipes.grid import Grid
from counterpoint.recipes.study import Study
from counterpoint.train.reinforce import GroupConfig
from counterpoint.train.run import Run


@literals_checked
@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Choices:
    one: Literal["rows", "groups"] = "rows"
    maybe: Literal["a", "b"] | None = None
    several: tuple[Literal["x", "y"], ...] = ()
    mixed: Literal["auto"] | int = "auto"
    pairs: tuple[tuple[Literal["x", "y"], int], ...] = ()
    free: str = ""


def test_a_misspelt_literal_is_refused_with_what_it_may_be() -> None:
    with pytest.raises(UserError, match="GroupConfig.scale must be 'group' or 'batch' or 'none'"):
        GroupConfig(scale="rows")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"got 'constnt'\. The nearest is 'constant'"):
        dataclasses.replace(GroupConfig(), mean="constnt")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"one": "row"},
        {"one": None},
        {"maybe": "c"},
        {"several": ("x", "z")},
        {"mixed": "none"},
        {"pairs": (("x", 1), ("z", 2))},
        {"pairs": (("x",),)},
    ],
)
def test_places_in_unions_and_tuples_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"_Choices.{next(iter(wrong))} must be "):
        _Choices(**wrong)


def test_what_is_listed_is_let_through() -> None:
    made = _Choices(one="groups", maybe="b", several=("y", "x", "x"), mixed=3, free="anything")
    assert _Choices(pairs=(("x", 1), ("y", 2))).pairs[1] == ("y", 2)
    assert dataclasses.replace(made, maybe=None).several == ("y", "x", "x")


def dataclasses_of_package() -> list[type]:
    found: dict[type, None] = {}
    for module in pkgutil.walk_packages(counterpoint.__path__, "counterpoint."):
        if not module.name.endswith("__main__"):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and dataclasses.is_dataclass(value):
                    found[value] = None
    return list(found)


def within(annotation: Any) -> Iterator[type]:
    """The classes that an annotation names."""
    if isinstance(annotation, type):
        yield annotation
    for part in get_args(annotation):
        yield from within(part)


def described_by_runs(classes: list[type]) -> list[type]:
    """The dataclasses that a run or a study may hold: by their annotations, and what derives."""
    found: dict[type, None] = {}
    waiting: list[type] = [Run, Study, Grid, FineTuning]
    while waiting:
        cls = waiting.pop()
        if cls in found:
            continue
        found[cls] = None
        waiting += [derived for derived in classes if cls in derived.__mro__]
        if dataclasses.is_dataclass(cls):
            waiting += [part for hint in get_type_hints(cls).values() for part in within(hint)]
    return [cls for cls in found if cls in classes]


def test_every_literal_that_a_run_may_hold_is_checked() -> None:
    described = described_by_runs(dataclasses_of_package())
    listing = [cls for cls in described if literal_fields(cls)]
    assert GroupConfig in listing
    assert [c.__qualname__ for c in listing if not is_checked(c)] == []


def is_checked(cls: Any) -> bool:
    return any(f.__code__.co_filename == literals.__file__ for f in layers(cls.__init__))


def layers(function: FunctionType) -> Iterator[FunctionType]:
    """A function and those that it calls as its own: the tests wrap constructors once more."""
    yield function
    for cell in function.__closure__ or ():
        if isinstance(cell.cell_contents, FunctionType):
            yield from layers(cell.cell_contents)
