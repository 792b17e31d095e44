"""Finding recipes by name: those of the library, and functions in files of the user."""

import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import counterpoint.recipes
from counterpoint.errors import UserError, nearest, nearest_file


def recipe_names() -> list[str]:
    """Return the recipes of the library: modules with a function of the same name.

    A function that needs arguments is no recipe.
    """
    names = []
    for module in pkgutil.iter_modules(counterpoint.recipes.__path__):
        found = importlib.import_module(f"counterpoint.recipes.{module.name}")
        function = getattr(found, module.name, None)
        if callable(function) and not inspect.signature(function).parameters:
            names.append(module.name)
    return names


def summary(name: str) -> str:
    """Return the first sentence of the docstring of a recipe of the library, without markup."""
    module = importlib.import_module(f"counterpoint.recipes.{name}")
    first = inspect.getdoc(getattr(module, name)) or ""
    return " ".join(first.split("\n\n")[0].split()).replace("`", "")


def load_recipe(name: str) -> Any:
    """Call a recipe and return its result, a dataclass that describes one or several runs.

    Args:
        name: A recipe of the library, or ``path/to/file.py:function``; if no function is given, it
            has the name of the file.

    Raises:
        UserError: There is no such recipe, or it does not return a dataclass.
    """
    if ".py" in name:
        function = _function_of_file(name)
    else:
        names = recipe_names()
        # The tasks of part_whole are called partwhole where they are used without this library.
        spelled = {_bare(one): one for one in names}
        if _bare(name) not in spelled:
            raise UserError(
                f"A recipe must be one of {', '.join(names)}, or path/to/file.py:function: got "
                f"{name!r}. {nearest(name.replace('-', '_'), names)}"
            )
        module_name = spelled[_bare(name)]
        module = importlib.import_module(f"counterpoint.recipes.{module_name}")
        function = getattr(module, module_name)
    value = function()
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise UserError(
            f"A recipe must return a dataclass such as `Run`: {name!r} returned "
            f"{type(value).__name__}."
        )
    return value


def _bare(name: str) -> str:
    return name.replace("-", "").replace("_", "")


def _function_of_file(name: str) -> Callable[[], Any]:
    place, _, function_name = name.partition(".py")
    path = Path(f"{place}.py")
    function_name = function_name.removeprefix(":") or Path(place).name
    if not path.is_file():
        raise UserError(
            f"The file of a recipe must exist: {str(path)!r} does not. {nearest_file(path)}"
        )
    module = _module_of_file(path)
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise UserError(
            f"{path} must have a function {function_name!r}: it has none. "
            f"{nearest(function_name, known)}"
        )
    return function


def _module_of_file(path: Path) -> ModuleType:
    name = f"counterpoint_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"The file of a recipe must be Python: got {str(path)!r}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # types that the file defines are looked up here
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(
            f"{path} must be valid Python: {error.msg} in line {error.lineno}."
        ) from error
    return module
