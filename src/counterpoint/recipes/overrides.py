"""Parsing a command line that is made of dataclass fields, such as those of a recipe."""

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Collection, Sequence
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import tyro

from counterpoint.data.text.corpus import Source
from counterpoint.data.text.source_text import parse_source, write_source
from counterpoint.errors import UserError, nearest
from counterpoint.recipes.complaints import one_line
from counterpoint.recipes.options import REQUIRED, SOURCES, Field, options_of, short_help

_Options = TypeVar("_Options")


def parse(
    fields: Sequence[Field],
    arguments: Sequence[str],
    command: str,
    description: str,
    *,
    main: Collection[str] | None = None,
    shown: Sequence[Field] | None = None,
    num_arms: int = 0,
) -> Any:
    """Parse arguments into an object with the given fields.

    Args:
        fields: Name, type and default of each field; `REQUIRED` fields come first. The fields of a
            dataclass become separate options, its overrides.
        arguments: Words of the command line.
        command: Words before them.
        description: First lines of the help.
        main: Endings of the names of the options that the short help shows; all by default.
        shown: Fields that the help shows instead of ``fields``.
        num_arms: Number of arms of a study, each of which gets the options of a run.

    Returns:
        An object with the given fields as attributes.

    Raises:
        UserError: An option is unknown (the nearest is named), or a value cannot be used.
        SystemExit: The help was asked for.
    """
    shown = shown or fields
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(short_help(shown, command, description, main))
        raise SystemExit(0)
    if "--help-all" in arguments:
        _parse(shown, ["--help"], command, description)
    words = to_every_arm(arguments, num_arms)
    complaint = io.StringIO()
    try:
        _check_options(fields, words, command)
        with contextlib.redirect_stderr(complaint):
            chosen = _parse(fields, words, command, description)
    except SystemExit:
        told = one_line(complaint.getvalue(), fields, words, command)
        raise UserError(_as_typed(told, arguments)) from None
    except UserError as error:
        raise UserError(_as_typed(str(error), arguments)) from None
    for name, _, _ in fields:
        _check_text(getattr(chosen, name))
    return chosen


def _parse(
    fields: Sequence[Field], arguments: Sequence[str], command: str, description: str
) -> Any:
    specs = [
        (
            name,
            Annotated[kind, tyro.conf.arg(name="")] if dataclasses.is_dataclass(kind) else kind,
            dataclasses.field(**({} if default is REQUIRED else {"default": default})),
        )
        for name, kind, default in fields
    ]
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_source_rule)
    # The systems of a recipe keep their class; another class needs another recipe.
    return tyro.cli(
        dataclasses.make_dataclass("Arguments", specs, frozen=True),
        args=list(arguments),
        prog=f"counterpoint {command}",
        description=description,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.HelptextFromCommentsOff),
        registry=registry,
    )


def _check_text(options: Any) -> None:
    """Refuse text that is not valid in the terminal's encoding; paths may be so."""
    for field in dataclasses.fields(options) if dataclasses.is_dataclass(options) else ():
        value = getattr(options, field.name)
        # Python keeps an invalid byte as a lone surrogate.
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
    """Parse arguments into one dataclass, whose fields become the options; see `parse`."""
    fields = [("options", kind, REQUIRED)]
    options: _Options = parse(fields, arguments, command, description).options
    return options


def _check_options(fields: Sequence[Field], arguments: Sequence[str], command: str) -> None:
    """Refuse an option that is no field, and name the nearest option."""
    known = {option.name for option in options_of(fields)}
    for word in arguments:
        # tyro also accepts `_` for `-`, values after `=`, and `--no-x` for a flag.
        option = word.split("=", 1)[0].replace("_", "-")
        head, _, last = option.rpartition(".")
        flag = f"{head}.{last.removeprefix('no-')}" if head else option.replace("--no-", "--", 1)
        if not option.startswith("--") or option in known or flag in known:
            continue
        raise UserError(
            f"An option must be a field that `counterpoint {command}` has: got {option}. "
            f"{nearest(option, [name for name in known if name.startswith('--')])}"
        )


def _as_typed(told: str, arguments: Sequence[str]) -> str:
    """Spell options that went to every arm of a study as the user did."""
    if any(word.startswith("--arms.") for word in arguments):
        return told
    return re.sub(r"--arms\.\d+\.(?=(train|data|system)\.)", "--", told)


def to_every_arm(arguments: Sequence[str], num_arms: int) -> list[str]:
    """Repeat options of a run, with their values, for each arm of a study, if there are arms."""
    if not num_arms:
        return list(arguments)
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


def shown_once(study: Any) -> Any:
    """Return a study for its help, in which fields of all arms are shown once.

    Args:
        study: A dataclass with ``arms``, which are runs with ``data`` and ``train``.
    """
    first = study.arms[0]
    of_study = get_type_hints(type(study))
    of_run = get_type_hints(type(first))
    own = [field.name for field in dataclasses.fields(study) if field.name != "arms"]
    arm = dataclasses.make_dataclass(
        "Arm",
        [("name", str), ("system", of_run["system"])],
        frozen=True,
        namespace={"__doc__": type(first).__doc__},
    )
    shown = dataclasses.make_dataclass(
        "Shown",
        [
            *((name, of_study[name]) for name in own),
            ("data", of_run["data"]),
            ("train", of_run["train"]),
            ("arms", tuple[arm, ...]),  # type: ignore[valid-type]
        ],
        frozen=True,
        namespace={"__doc__": type(study).__doc__},
    )
    arms = tuple(arm(run.name, run.system) for run in study.arms)
    return shown(*(getattr(study, name) for name in own), first.data, first.train, arms)


def _source_rule(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Source] | None:
    """Parse ``--data.source`` from one word, such as ``folder:texts`` or ``jsonl:a.jsonl``."""
    if set(get_args(info.type)) != set(get_args(Source)):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=SOURCES,
        instance_from_str=lambda words: parse_source(words[0]),
        is_instance=lambda value: isinstance(value, get_args(Source)),
        str_from_instance=lambda source: [write_source(source)],
    )
