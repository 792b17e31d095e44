"""Lossless JSON of nested frozen dataclasses: values are restored equal, or refused."""

import dataclasses
import types
from collections.abc import Mapping
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from counterpoint.errors import UserError

TYPE_KEY = "type"
"""Key of the class of an encoded dataclass; it decides between members of a union."""


def encode(value: Any) -> Any:
    """Return the JSON form of dataclasses, tuples, mappings, enums, paths and scalars.

    Raises:
        UserError: The value contains something else.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {TYPE_KEY: type(value).__qualname__, **fields}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(
        "A config must hold dataclasses, tuples, mappings, enums, paths, numbers, texts or None: "
        f"got {type(value).__name__}. Use one of these."
    )


def decode(annotation: Any, data: Any, where: str = "config") -> Any:
    """Restore a value from the JSON form that `encode` made.

    Args:
        annotation: Expected type: a dataclass, a union, ``tuple[...]``, a scalar and so on.
        data: Decoded JSON.
        where: Place of the value, named in errors.

    Raises:
        UserError: A field is unknown or missing, or a value has another type.
    """
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _decode_dataclass(annotation, data, where)
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _decode_union(get_args(annotation), data, where)
    if origin is Literal:
        if data in get_args(annotation):
            return data
        raise _mismatch(where, f"one of {get_args(annotation)}", data)
    if origin in (tuple, list):
        return _decode_sequence(annotation, data, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, Mapping):
            raise _mismatch(where, "a mapping", data)
        item = get_args(annotation)[1]
        return {key: decode(item, value, f"{where}.{key}") for key, value in data.items()}
    return _decode_scalar(annotation, data, where)


def _decode_scalar(annotation: Any, data: Any, where: str) -> Any:
    if annotation is Any:
        return data
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        values = [member.value for member in annotation]
        if data not in values:
            raise _mismatch(where, f"one of {values}", data)
        return annotation(data)
    if annotation is Path and isinstance(data, str):
        return Path(data)
    if annotation is float and type(data) is int:
        return float(data)
    if annotation in (None, type(None)):
        if data is None:
            return None
    elif type(data) is annotation:  # strict: True is not an int
        return data
    raise _mismatch(where, getattr(annotation, "__name__", str(annotation)), data)


def _decode_dataclass(cls: type, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise _mismatch(where, cls.__qualname__, data)
    tag = data.get(TYPE_KEY, cls.__qualname__)
    if tag != cls.__qualname__:
        kinds = {kind.__qualname__: kind for kind in _kinds(cls)}
        if not kinds:
            raise _mismatch(where, cls.__qualname__, tag)
        if tag not in kinds:
            raise UserError(f"{where}: no type is called {tag!r}. {_nearest(tag, kinds)}")
        cls = kinds[tag]
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = get_type_hints(cls)
    values = {}
    for key, value in data.items():
        if key == TYPE_KEY:
            continue
        if key not in fields:
            raise UserError(
                f"{where}: {cls.__qualname__} has no field {key!r}. {_nearest(key, fields)}"
            )
        values[key] = decode(hints[key], value, f"{where}.{key}")
    for name, spec in fields.items():
        optional = (
            spec.default is not dataclasses.MISSING
            or spec.default_factory is not dataclasses.MISSING
        )
        if name not in values and not optional:
            raise UserError(f"{where}: {cls.__qualname__} needs the field {name!r}. Add it.")
    return cls(**values)


def _decode_union(members: tuple[Any, ...], data: Any, where: str) -> Any:
    tag = data.get(TYPE_KEY) if isinstance(data, Mapping) else None
    classes = {m.__qualname__: m for m in members if _is_config(m)}
    if tag is not None and classes:
        if tag not in classes:
            raise UserError(f"{where}: no type is called {tag!r}. {_nearest(tag, classes)}")
        return decode(classes[tag], data, where)
    problem: ValueError | None = None
    # An int must stay an int in `float | int`, whatever the order, so exact types come first.
    for member in sorted(members, key=lambda member: member is not type(data)):
        try:
            return decode(member, data, where)
        except ValueError as error:
            problem = error if problem is None or dataclasses.is_dataclass(member) else problem
    if classes and problem is not None and isinstance(data, Mapping):
        raise problem
    names = " or ".join(getattr(member, "__name__", str(member)) for member in members)
    raise _mismatch(where, names, data)


def _decode_sequence(annotation: Any, data: Any, where: str) -> Any:
    if not isinstance(data, list | tuple):
        raise _mismatch(where, "a list", data)
    kinds = get_args(annotation)
    if get_origin(annotation) is list or kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(data)
    if len(kinds) != len(data):
        raise _mismatch(where, f"{len(kinds)} values", data)
    pairs = enumerate(zip(kinds, data, strict=True))
    items = [decode(kind, item, f"{where}[{i}]") for i, (kind, item) in pairs]
    return items if get_origin(annotation) is list else tuple(items)


def first_difference(old: Any, new: Any, where: str = "config") -> str | None:
    """Return the first place at which two JSON values differ, as ``place (old, here new)``.

    ``where`` is the name of the whole value, with which the place begins.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        differences = (
            first_difference(old.get(key), new.get(key), f"{where}.{key}")
            for key in dict.fromkeys((*old, *new))
        )
        return next((difference for difference in differences if difference), None)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        differences = (
            first_difference(*pair, f"{where}[{number}]")
            for number, pair in enumerate(zip(old, new, strict=True))
        )
        return next((difference for difference in differences if difference), None)
    return None if old == new else f"{where} ({old!r}, here {new!r})"


def difference(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of an encoded value that differ from another one; see `merged`."""
    return {
        key: difference(value, old[key])
        if isinstance(value, Mapping) and isinstance(old.get(key), Mapping)
        else value
        for key, value in new.items()
        if key not in old or value != old[key]
    }


def merged(old: Any, changes: Any) -> Any:
    """Return the encoded value ``old`` with a `difference` applied to it."""
    if not isinstance(old, Mapping) or not isinstance(changes, Mapping):
        return changes
    return {**old, **{key: merged(old.get(key), value) for key, value in changes.items()}}


def _kinds(base: type) -> list[type]:
    """Return the dataclasses derived from a base, in the order of their definition."""
    found: list[type] = []
    made: list[type] = base.__subclasses__()
    for kind in made:
        found += [kind, *_kinds(kind)]
    return found


def _is_config(member: Any) -> bool:
    return isinstance(member, type) and dataclasses.is_dataclass(member)


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"It knows: {', '.join(known)}."


def _mismatch(where: str, expected: str, data: Any) -> UserError:
    return UserError(f"{where} must be {expected}: got {data!r}. Correct the value.")
