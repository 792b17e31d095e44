"""What is said of the size of presets is what is counted."""

import importlib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from counterpoint.systems import SystemConfig, sketch
from counterpoint.systems.presets import load_preset, module_names, preset_functions

DOCS = Path(__file__).parents[2] / "docs" / "systems"
UNITS = {"M": 1e6, "B": 1e9}


def presets() -> Iterator[tuple[str, str, Callable[..., SystemConfig]]]:
    for system in module_names():
        for name, function in preset_functions(system).items():
            yield system, name, function


PRESETS = list(presets())


def counted(config: SystemConfig) -> int:
    return sum(weight.numel() for weight in sketch(config).parameters())


def near(text: str, unit: str, config: SystemConfig) -> bool:
    """Whether a number is right to two digits, or to more."""
    count = counted(config)
    half_a_digit = 0.5 * 10 ** (math.floor(math.log10(count)) - 1)
    return abs(float(text) * UNITS[unit] - count) <= half_a_digit


def test_every_system_has_presets() -> None:
    assert {"two_stream", "hrt", "hdlm", "hnet", "moshi"} <= {system for system, _, _ in PRESETS}
    assert len(PRESETS) >= 16


@pytest.mark.parametrize(("system", "name"), [one[:2] for one in PRESETS])
def test_the_docstring_of_a_preset_says_its_size(system: str, name: str) -> None:
    function = preset_functions(system)[name]
    said = re.search(r"([\d.]+)([MB])\s+parameters", function.__doc__ or "")
    assert said, f"{system}.{name} must say how many parameters it has, such as 2.6M parameters"
    assert near(said[1], said[2], load_preset(f"{system}.{name}"))


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Rows of the tables of presets: system, call, number and unit."""
    for page in sorted(DOCS.glob("*.md")):
        for call, rest in re.findall(r"^\| `(\w+\([^)]*\))` \|(.*)$", page.read_text(), re.M):
            size = re.search(r"\b([\d.]+) ([MB])\b", rest)
            if size:
                yield page.stem, call, size[1], size[2]


ROWS = list(rows())


def test_pages_have_tables_of_presets() -> None:
    assert len(ROWS) >= 14


@pytest.mark.parametrize(("system", "call", "number", "unit"), ROWS)
def test_a_page_says_the_size_of_a_preset(system: str, call: str, number: str, unit: str) -> None:
    module = importlib.import_module(f"counterpoint.systems.{system}")
    name, argument = call.removesuffix(")").split("(", 1)
    config = getattr(module, name)(*([json.loads(argument)] if argument else []))
    assert near(number, unit, config)
