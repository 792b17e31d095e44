"""Options made from dataclass fields, and the short help that shows the most important ones."""

import dataclasses
import re
import shutil
import textwrap
import types
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

from counterpoint.data.text.corpus import Source
from counterpoint.data.text.source_text import write_source

REQUIRED = tyro.MISSING
"""Default of a field that must be given."""

Field = tuple[str, Any, Any]
"""Name, type and default of a parsed field; a dataclass becomes one option for each field."""

SOURCES = "kjv|folder:PATH|jsonl:PATH|parquet:PATH|hub:NAME"
"""Forms in which a source is typed; see `parse_source`."""

_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
_WIDTH = 100
_OPTION_WIDTH = 34


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One option of a command.

    Attributes:
        name: Name as it is typed; for a positional word, its placeholder.
        values: Placeholder of the value in the help.
        default: Value if it is left out; `REQUIRED` if it must be given.
        about: Description, from the docstring of its class.
    """

    name: str
    values: str
    default: Any
    about: str

    def is_among(self, endings: Collection[str]) -> bool:
        """Return whether its name is one of these, or ends in one that has several parts.

        An option of one of several items, such as ``--arms.0.train.seed``, does not count.
        """
        name = self.name.removeprefix("--")
        several = any("." in end and f".{name}".endswith(f".{end}") for end in endings)
        return name in endings or (several and not re.search(r"\.\d+\.", name))


def options_of(fields: Sequence[Field]) -> Iterator[Option]:
    """Yield all options of some fields, in their order."""
    for name, kind, default in fields:
        if dataclasses.is_dataclass(kind):
            yield from _of_dataclass(kind, kind if default is REQUIRED else default, "--")
        else:
            yield Option(name=_typed(name), values=_values(kind), default=default, about="")


def _typed(name: str) -> str:
    return f"--{name}".replace("_", "-")


def _of_dataclass(kind: Any, value: Any, prefix: str) -> Iterator[Option]:
    """Yield the options of a dataclass: of an object, or of a class with its defaults."""
    if not isinstance(value, type):
        kind = type(value)
    hints = get_type_hints(kind, include_extras=True)
    about = {
        part.arg_name: " ".join((part.description or "").split())
        for part in docstring_parser.parse(kind.__doc__ or "").params
    }
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if isinstance(value, type):
            child: Any = _default(field)
        else:
            child = getattr(value, field.name)
        name = prefix + field.name.replace("_", "-")
        if isinstance(child, tuple) and any(map(dataclasses.is_dataclass, child)):
            for number, item in enumerate(child):
                yield from _of_dataclass(type(item), item, f"{name}.{number}.")
        elif dataclasses.is_dataclass(child) and not isinstance(child, get_args(Source)):
            yield from _of_dataclass(type(child), child, f"{name}.")
        else:
            positional = get_args(tyro.conf.Positional[int])[1] in get_args(hint)[1:]
            yield Option(
                name=field.name.upper() if positional else name,
                values="" if positional else _values(hint),
                default=child,
                about=about.get(field.name, ""),
            )


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED


def _values(hint: Any) -> str:
    """Return the placeholder that the help shows for a type."""
    if get_origin(hint) is Annotated:
        told = [part.metavar for part in hint.__metadata__ if getattr(part, "metavar", None)]
        return told[0] if told else _values(get_args(hint)[0])
    if set(get_args(hint)) == set(get_args(Source)):
        return SOURCES
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    shown = []
    for member in members:
        if member in (bool, type(None)):
            continue
        if get_origin(member) is Literal:
            shown.append("|".join(map(str, get_args(member))))
        elif get_origin(member) is tuple:
            shown.append(f"{_values(get_args(member)[0])} ...")
        else:
            shown.append(_METAVARS.get(member, "VALUE"))
    return "|".join(dict.fromkeys(shown))


def short_help(
    fields: Sequence[Field], command: str, description: str, main: Collection[str] | None
) -> str:
    """Return the short help of a command: its purpose, and the most important options.

    Args:
        fields: Fields that are parsed.
        command: Words of the command.
        description: Purpose of the command, with an example.
        main: Endings of the names of the options that are shown; all by default.
    """
    options = list(options_of(fields))
    words = [one for one in options if not one.name.startswith("-")]
    others = [one for one in options if one.name.startswith("-")]
    shown = words + [one for one in others if main is None or one.is_among(main)]
    usage = [one.name if one.default is REQUIRED else f"[{one.name}]" for one in words]
    lines = [" ".join(("usage: counterpoint", command, *usage, "[OPTIONS]")), ""]
    lines += [*description.strip().splitlines(), ""]
    width = min(shutil.get_terminal_size((_WIDTH, 0)).columns, _WIDTH)
    for option in shown:
        lines += _lines(option, width)
    hidden = len(options) - len(shown)
    if hidden:
        lines += ["", f"{hidden} more options: counterpoint {command} --help-all"]
    return "\n".join(lines) + "\n"


def _lines(option: Option, width: int) -> list[str]:
    head = f"  {option.name} {option.values}".rstrip()
    default = option.default
    # One sentence is enough here; the long help has the whole text.
    about = re.split(r"(?<=\w)[.;](?: |$)", option.about.replace("`", ""))[0]
    if default is REQUIRED:
        about += " (required)"
    elif not (default is None or default is False or default in ("", ())):
        about += f" ({_spelled(default)})"
    indent = " " * _OPTION_WIDTH
    if len(head) < _OPTION_WIDTH - 1:
        head = head.ljust(_OPTION_WIDTH)
        return textwrap.wrap(head + about.strip(), width, subsequent_indent=indent) or [head]
    return [head, *textwrap.wrap(indent + about.strip(), width, subsequent_indent=indent)]


def _spelled(value: Any) -> str:
    if isinstance(value, get_args(Source)):
        return write_source(value)
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(value) if isinstance(value, int | float | str | Path) else type(value).__name__
