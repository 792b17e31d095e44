"""Presets of systems by name, such as ``two_stream.small``."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import counterpoint.systems
from counterpoint.errors import UserError, nearest
from counterpoint.systems import SYSTEMS, SystemConfig


def module_names() -> list[str]:
    """Return the names of the modules of `counterpoint.systems`."""
    return [module.name for module in pkgutil.iter_modules(counterpoint.systems.__path__)]


def load_preset(name: str) -> SystemConfig:
    """Return the config of ``system.preset``, such as ``two_stream.small``.

    Raises:
        UserError: There is no such system, or it has no such preset.
    """
    system, _, preset = name.partition(".")
    if system not in module_names():
        raise UserError(
            f"A preset must belong to one of {', '.join(SYSTEMS)}: got {name!r}. "
            f"{nearest(system, SYSTEMS)}"
        )
    known = preset_functions(system)
    if preset not in known:
        raise UserError(
            f"A preset of {system} must be one of {', '.join(known)}: got {preset!r}. "
            f"{nearest(preset, known)}"
        )
    return known[preset]()


def preset_functions(system: str) -> dict[str, Callable[[], SystemConfig]]:
    """Return the functions of a module that take no arguments and return a config, by name."""
    module = importlib.import_module(f"counterpoint.systems.{system}")
    found: dict[str, Callable[[], SystemConfig]] = {}
    for name, function in inspect.getmembers(module, inspect.isfunction):
        signature = inspect.signature(function)
        needed = [p for p in signature.parameters.values() if p.default is p.empty]
        is_here = function.__module__ == module.__name__ and not name.startswith("_")
        if is_here and not needed and _is_config(signature.return_annotation):
            found[name] = function
    return found


def _is_config(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, SystemConfig)
