"""The checker of annotations that the tests run under (see `--jaxtyping-packages`)."""

import sys
from collections.abc import Callable, Hashable, Iterator
from functools import wraps
from types import FunctionType
from typing import Any

from beartype import BeartypeConf, beartype

# An int may stand where a float is asked for, as in mypy.
_beartyped = beartype(conf=BeartypeConf(is_pep484_tower=True))
CHECKED_CALLS = 4


class _Tests:
    """What is known of the running test."""

    number = 0
    checked_enough: list[FunctionType] = []
    local: dict[Hashable, Callable[..., Any]] = {}


def begin_test() -> None:
    """Let the first calls of every function be checked again."""
    for function in _Tests.checked_enough:
        del function.__no_type_check__  # type: ignore[attr-defined]
    _Tests.checked_enough.clear()
    _Tests.number += 1


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose annotations hold in its first calls of every test.

    Checking all calls took three quarters of the time of tests whose loops call the same functions
    in every tick.

    Args:
        function: What jaxtyping checks arguments or results with; it has their annotations, and the
            name of the function that is called.
    """
    if not isinstance(function, FunctionType):
        return _beartyped(function)
    if "<locals>" not in function.__qualname__:
        return _sampled(function)
    # A local function is made, and comes here, whenever the function around it is called.
    meaning = _meaning(function)
    if meaning is None:
        return _sampled(function)
    if meaning not in _Tests.local:
        _Tests.local[meaning] = _sampled(function)
    return _Tests.local[meaning]


def _meaning(function: FunctionType) -> Hashable | None:
    """What two functions without a body share if they check the same; None if nothing tells it."""
    code = function.__code__
    hints = tuple(function.__annotations__.items())
    meaning = (function.__module__, function.__qualname__, code.co_code, code.co_varnames, hints)
    try:
        hash(meaning)
    except TypeError:  # the arguments of a ParamSpec have no hash
        return None
    return meaning


def _sampled(function: FunctionType) -> Callable[..., Any]:
    strict: Callable[..., Any] | None = None
    test = -1
    calls = 0

    @wraps(function)
    def sampled(*args: Any, **kwargs: Any) -> Any:
        nonlocal strict, test, calls
        if test != _Tests.number:
            test = _Tests.number
            calls = 0
        calls += 1
        if calls > CHECKED_CALLS:
            return function(*args, **kwargs)
        if calls == CHECKED_CALLS:
            _leave_alone(function)
        if strict is None:  # most functions are never called in a process
            _forget_arguments(function)
            strict = _beartyped(function)
        return strict(*args, **kwargs)

    return sampled


def _forget_arguments(function: FunctionType) -> None:
    """Let what checks a result look at the result alone.

    jaxtyping checks the arguments before the call, and once more with the result. The axes that
    were found before the call are known to the second check.
    """
    code = function.__code__
    keywords = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    if keywords and keywords[-1].startswith("ret") and "return" in function.__annotations__:
        function.__annotations__ = {"return": function.__annotations__["return"]}


def _leave_alone(function: FunctionType) -> None:
    """Let jaxtyping no longer look at a function; it asks for this mark at every call."""
    for found in _called(function):
        if not hasattr(found, "__no_type_check__"):
            found.__no_type_check__ = True  # type: ignore[attr-defined]
            _Tests.checked_enough.append(found)


def _called(function: FunctionType) -> Iterator[FunctionType]:
    """The function of this name, within all that decorates it; none if the name is local."""
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    if isinstance(found, property):
        found = found.fget
    while isinstance(found, FunctionType):
        yield found
        found = getattr(found, "__wrapped__", None)
