"""An engine that says each word as a tone, so that audio tells where which word is."""

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from counterpoint.data.making.scripts import Script
from counterpoint.data.making.synthesis import SynthesisConfig
from counterpoint.speech.engines import Said
from counterpoint.speech.sayable import Alphabet
from counterpoint.speech.spoken_words import SpokenWord
from counterpoint.speech.voices import Spoken, Synthesizer, Voice

RATE = 16_000
LOW, HIGH = Voice(formant=1.0), Voice(formant=1.5)
CONFIG = SynthesisConfig(agent_voices=(LOW,), user_voices=(HIGH,), pace_spread=0)


def frequency_hz(index: int) -> float:
    return 300.0 + 100 * index


class Tones:
    """Word ``i`` lasts 0.2 s and sounds at 300 + 100 i Hz; 0.02 s of silence between words.

    Before and behind all of them is silence, as engines have it.
    """

    version = "tones 1"
    alphabet: Alphabet = "latin"

    @staticmethod
    def installed_version() -> str:
        return Tones.version

    def say(self, text: str, name: str, stretch: float) -> Said:
        words, pieces, samples = list[SpokenWord](), [torch.zeros(800)], 800
        for index, word in enumerate(text.split()):
            size = round(0.2 * stretch * RATE)
            time = torch.arange(size) / RATE
            pieces += [0.5 * (2 * math.pi * frequency_hz(index) * time).cos(), torch.zeros(320)]
            words.append(SpokenWord(word, samples / RATE, (samples + size) / RATE))
            samples += size + 320
        return Said(torch.cat([*pieces, torch.zeros(800)]), RATE, words)


class Mortal(Tones):
    """Its process dies at the word "die"."""

    def say(self, text: str, name: str, stretch: float) -> Said:
        if "die" in text:
            import os

            os._exit(3)
        return super().say(text, name, stretch)


def tone_synthesizer() -> Synthesizer:
    return Synthesizer(engines={"piper": Tones})


@cache
def said(text: str) -> Spoken:
    return tone_synthesizer().speak(text, LOW, RATE)


def spoken(script: Script) -> list[Spoken]:
    return [said(turn.text) for turn in script.turns]


def loudest_hz(audio: Tensor) -> float:
    spectrum = torch.fft.rfft(audio * torch.hann_window(len(audio))).abs()
    return int(spectrum.argmax()) * RATE / len(audio)


def heard_words(audio: Tensor, times: Sequence[tuple[float, float]]) -> list[int]:
    """Which tone is in the middle of each span."""
    found = []
    for start_s, end_s in times:
        middle = round((start_s + end_s) / 2 * RATE)
        found.append(round((loudest_hz(audio[middle - 400 : middle + 400]) - 300) / 100))
    return found
