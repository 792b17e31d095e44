"""The command line that is made of dataclass fields, such as those of a recipe."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, TypeVar, get_args

import tyro

from counterpoint.data.text.corpus import Source
from counterpoint.data.text.source_text import parse_source, write_source
from counterpoint.errors import UserError, nearest

_Options = TypeVar("_Options")

REQUIRED = tyro.MISSING
"""Default of a field of `parse` that has none."""


def parse(
    fields: Sequence[tuple[str, Any, Any]],
    arguments: Sequence[str],
    command: str,
    description: str,
) -> Any:
    """Parse arguments into an object with the given fields.

    Args:
        fields: Name, type and default of each; `REQUIRED` ones come first. The fields of a
            dataclass become options of their own: its overrides.
        arguments: Words of the command line.
        command: What stands before them.
        description: First lines of the help.

    Raises:
        UserError: An option is unknown (the nearest is named), or a value cannot be used.
        SystemExit: The help was asked for.
    """
    specs = [
        (
            name,
            Annotated[kind, tyro.conf.arg(name="")] if dataclasses.is_dataclass(kind) else kind,
            dataclasses.field(**({} if default is REQUIRED else {"default": default})),
        )
        for name, kind, default in fields
    ]
    _check_options(fields, arguments, command)
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_source_rule)
    # The systems of a recipe keep their kind; another kind needs another config, so another recipe.
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            chosen: Any = tyro.cli(
                dataclasses.make_dataclass("Arguments", specs, frozen=True),
                args=list(arguments),
                prog=f"counterpoint {command}",
                description=description,
                config=(tyro.conf.AvoidSubcommands,),
                registry=registry,
            )
    except SystemExit as end:
        if not end.code:
            raise  # after the help
        raise UserError(_one_line(complaint.getvalue(), command)) from None
    for name, _, _ in fields:
        _check_text(getattr(chosen, name))
    return chosen


def _check_text(options: Any) -> None:
    """Refuse text that was no text in the terminal's encoding; paths may be such."""
    for field in dataclasses.fields(options) if dataclasses.is_dataclass(options) else ():
        value = getattr(options, field.name)
        # Python keeps a byte that is no text as a lone surrogate.
        wrong = [c for c in value if "\ud800" <= c <= "\udfff"] if isinstance(value, str) else []
        if wrong:
            raise UserError(
                f"--{field.name.replace('_', '-')} must be text in the encoding of the terminal, "
                f"such as UTF-8: it has the byte 0x{ord(wrong[0]) & 0xFF:02x}. Convert it, or give "
                "a file where the command takes one."
            )


def parse_options(
    kind: type[_Options], arguments: Sequence[str], command: str, description: str
) -> _Options:
    """Parse arguments into one dataclass, whose fields are the options; see `parse`."""
    fields = [("options", kind, REQUIRED)]
    options: _Options = parse(fields, arguments, command, description).options
    return options


def _check_options(
    fields: Sequence[tuple[str, Any, Any]], arguments: Sequence[str], command: str
) -> None:
    """Refuse an option that is no field, and name the nearest."""
    known = {"--help", "-h"}
    for name, kind, default in fields:
        if dataclasses.is_dataclass(kind):
            known |= set(_options(kind if default is REQUIRED else default, "--"))
        else:
            known.add(f"--{name}".replace("_", "-"))
    for word in arguments:
        # tyro itself takes `_` for `-`, values behind `=`, and `--no-x` for a flag.
        option = word.split("=", 1)[0].replace("_", "-")
        head, _, last = option.rpartition(".")
        flag = f"{head}.{last.removeprefix('no-')}" if head else option.replace("--no-", "--", 1)
        if not option.startswith("--") or option in known or flag in known:
            continue
        raise UserError(
            f"An option must be a field that `counterpoint {command}` has: got {option}. "
            f"{nearest(option, known)}"
        )


def _options(value: Any, prefix: str) -> Iterator[str]:
    """Options of all fields of a dataclass, or of its class, as tyro names them."""
    if isinstance(value, Source):
        yield prefix.removesuffix(".")
    elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
        for i, item in enumerate(value):
            yield from _options(item, f"{prefix}{i}.")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            name = field.name.replace("_", "-")
            child = None if isinstance(value, type) else getattr(value, field.name)
            yield from _options(child, f"{prefix}{name}.")
    else:
        yield prefix.removesuffix(".")


def _one_line(complaint: str, command: str) -> str:
    """The first part of what tyro prints in a box."""
    lines = [line.strip("│╭╮╰╯ ") for line in complaint.splitlines()]
    rule = next((i for i, line in enumerate(lines[1:], 1) if line.startswith("──")), len(lines))
    text = " ".join(" ".join(lines[1:rule]).split()).rstrip(".")
    return f"{text}. `counterpoint {command} --help` lists what there is."


def to_every_arm(arguments: Sequence[str], num_arms: int) -> list[str]:
    """Repeat options of a run, with their values, for each arm of a study."""
    words: list[str] = []
    groups: list[list[str]] = []
    for word in arguments:
        if word.startswith("--") or not groups:
            groups.append([])
        groups[-1].append(word)
    for option, *values in groups:
        if option.startswith(("--train.", "--data.", "--system.")):
            for arm in range(num_arms):
                words += [f"--arms.{arm}.{option[2:]}", *values]
        else:
            words += [option, *values]
    return words


def _source_rule(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Source] | None:
    """``--data.source`` is one word, such as ``folder:texts`` or ``jsonl:a.jsonl,text_field=x``."""
    if set(get_args(info.type)) != set(get_args(Source)):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="kjv|folder:PATH|jsonl:PATH|parquet:PATH|hub:NAME",
        instance_from_str=lambda words: parse_source(words[0]),
        is_instance=lambda value: isinstance(value, get_args(Source)),
        str_from_instance=lambda source: [write_source(source)],
    )
