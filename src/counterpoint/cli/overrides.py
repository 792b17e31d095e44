"""Recipes by name, and the command line that is made of a recipe's own dataclass fields."""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args

import tyro

import counterpoint.recipes
from counterpoint.data.text.corpus import Folder, HubDataset, Jsonl, Kjv, Parquet, Source

REQUIRED = tyro.MISSING
"""Default of a field of `parse` that has none."""

_SOURCES: Mapping[str, type[Source]] = {
    "kjv": Kjv, "folder": Folder, "jsonl": Jsonl, "parquet": Parquet, "hub": HubDataset,
}  # fmt: skip


def recipe_names() -> list[str]:
    """Recipes that come with the library: modules with a function of the same name."""
    modules = [module.name for module in pkgutil.iter_modules(counterpoint.recipes.__path__)]
    return [
        name
        for name in modules
        if callable(getattr(importlib.import_module(f"counterpoint.recipes.{name}"), name, None))
    ]


def load_recipe(name: str) -> Any:
    """What a recipe returns: a dataclass that says everything about one run or several.

    Args:
        name: A recipe of the library, or ``path/to/file.py:function``; the function has the file's
            name when none is given.

    Raises:
        ValueError: There is no such recipe, or it does not return a dataclass.
    """
    if ".py" in name:
        function = _function_of_file(name)
    else:
        names = recipe_names()
        module_name = name.replace("-", "_")
        if module_name not in names:
            near = get_close_matches(module_name, names, n=1, cutoff=0)
            raise ValueError(
                f"A recipe must be one of {', '.join(names)}, or path/to/file.py:function: got "
                f"{name!r}. The nearest is {near[0] if near else 'none'!r}."
            )
        module = importlib.import_module(f"counterpoint.recipes.{module_name}")
        function = getattr(module, module_name)
    value = function()
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise ValueError(
            f"A recipe must return a dataclass such as `Run`: {name!r} returned "
            f"{type(value).__name__}."
        )
    return value


def _function_of_file(name: str) -> Callable[[], Any]:
    place, _, function_name = name.partition(".py")
    path, function_name = Path(f"{place}.py"), function_name.removeprefix(":") or Path(place).name
    if not path.is_file():
        raise ValueError(f"The file of a recipe must exist: {str(path)!r} does not.")
    module = _module_of_file(path)
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        near = get_close_matches(function_name, known, n=1, cutoff=0)
        raise ValueError(
            f"{path} must have a function {function_name!r}: it has none. "
            f"The nearest is {near[0] if near else 'none'!r}."
        )
    return function


def _module_of_file(path: Path) -> ModuleType:
    name = f"counterpoint_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"The file of a recipe must be Python: got {str(path)!r}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # types that the file defines are looked up there
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(
            f"{path} must be valid Python: {error.msg} in line {error.lineno}."
        ) from error
    return module


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
        ValueError: An option is unknown (the nearest is named), or a value cannot be used.
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
            return tyro.cli(
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
        raise ValueError(_one_line(complaint.getvalue(), command)) from None


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
        near = get_close_matches(option, known, n=1, cutoff=0)
        raise ValueError(
            f"An option must be a field that `counterpoint {command}` has: got {option}. "
            f"The nearest is {near[0]}."
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


def parse_source(text: str) -> Source:
    """A source from ``kind:place,field=value``; the place is the kind's first field.

    Raises:
        ValueError: The kind or a field is unknown, or one is missing.
    """
    kind, _, rest = text.partition(":")
    if kind not in _SOURCES:
        near = get_close_matches(kind, _SOURCES, n=1, cutoff=0)
        raise ValueError(
            f"A source must begin with one of {', '.join(_SOURCES)}: got {kind!r}. "
            f"The nearest is {near[0]!r}."
        )
    names = [field.name for field in dataclasses.fields(_SOURCES[kind])]
    words = re.split(r",(?=\w+=)", rest) if rest else []
    values = {}
    for i, word in enumerate(words):
        name, _, value = (names[0], "=", word) if i == 0 and names else word.partition("=")
        if name not in names:
            raise ValueError(
                f"The source {kind!r} has the fields {', '.join(names) or 'none'}: got {name!r}."
            )
        values[name] = value
    if names and not values.get(names[0]):
        raise ValueError(
            f"The source {kind!r} needs its {names[0]}: write {kind}:{names[0].upper()}."
        )
    return _SOURCES[kind](**values)


def write_source(source: Source) -> str:
    """The text that `parse_source` reads back."""
    kind = next(name for name, cls in _SOURCES.items() if type(source) is cls)
    place, *others = dataclasses.fields(source) or (None,)
    if place is None:
        return kind
    changed = [
        f",{field.name}={getattr(source, field.name)}"
        for field in others
        if getattr(source, field.name) != field.default
    ]
    return f"{kind}:{getattr(source, place.name)}{''.join(changed)}"
