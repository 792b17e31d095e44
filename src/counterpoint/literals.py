"""Literal fields of dataclasses, refused at construction where a value is misspelt."""

import dataclasses
import functools
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from counterpoint.errors import UserError, nearest

_Class = TypeVar("_Class", bound=type)


def literals_checked(cls: _Class) -> _Class:
    """Let a dataclass refuse values that the ``Literal`` annotations of its fields do not list.

    A type checker finds such a value in a program, and `config_json` in a file; a notebook without
    a type checker would train with another meaning than the one that was written. Classes that
    derive from a checked one have constructors of their own, so they are marked too.

    Raises:
        UserError: The class is called with a value that is not listed.
    """
    build = cls.__init__  # type: ignore[misc]

    @functools.wraps(build)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        for name, annotation in literal_fields(cls).items():
            value = getattr(self, name)
            if not _allows(annotation, value):
                raise _refusal(f"{cls.__qualname__}.{name}", annotation, value)

    cls.__init__ = checked  # type: ignore[misc]
    return cls


@functools.cache
def literal_fields(cls: type) -> dict[str, Any]:
    """Return the annotations that list values, by the name of the field."""
    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    return {name: hints[name] for name in names if _listed(hints[name])}


def _listed(annotation: Any) -> tuple[Any, ...]:
    """Return the values that an annotation lists, also inside unions and sequences."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(value for part in get_args(annotation) for value in _listed(part))


def _allows(annotation: Any, value: Any) -> bool:
    origin = get_origin(annotation)
    parts = get_args(annotation)
    if origin is Literal:
        return value in parts
    if origin in (Union, UnionType):
        return any(_allows(part, value) for part in parts)
    if origin in (tuple, list):
        if not isinstance(value, origin):
            return False
        if origin is tuple and Ellipsis not in parts:
            return len(value) == len(parts) and all(map(_allows, parts, value))
        return all(_allows(parts[0], item) for item in value)
    return isinstance(value, annotation)


def _refusal(where: str, annotation: Any, value: Any) -> UserError:
    values = _listed(annotation)
    wrong = value
    if isinstance(value, tuple | list):
        wrong = next((item for item in value if item not in values), value)
    return UserError(
        f"{where} must be {' or '.join(map(repr, values))}: got {wrong!r}. "
        f"{nearest(str(wrong), map(str, values))}"
    )
