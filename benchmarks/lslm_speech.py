"""Can the speech that an LSLM learns from be understood? Word errors by how it is made.

    python benchmarks/lslm_speech.py --work FILE --out benchmarks/results/lslm_speech.json

Every way makes utterances of two parts with a breath between them, as the training data has them.
Whisper tiny.en hears their codes, which the codec decodes, and of whole phrases also the sound
before it was coded. Needs the extras `speech`, `voices` and `recogniser`.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lslm_rows import speech
from record import finish
from torch import Tensor

from counterpoint.data.making.spoken_phrases import Phrase, SynthesisedPhrases
from counterpoint.evaluate.statistics import bootstrap_ratio
from counterpoint.evaluate.word_errors import count_word_errors, plain_words
from counterpoint.formats import open_codec
from counterpoint.speech.transcriber import Transcriber
from counterpoint.speech.voices import Synthesizer

NUM_PHRASES = 400
PIECE_WORDS = (3, 5)
SPLICED_WORDS = (4, 8)
BREATH_S = 0.12
UNCODED = ("whole phrases",)


class Part(NamedTuple):
    """One part of an utterance: its words, its frames, and its sound before it was coded."""

    text: str
    codes: Tensor
    audio: Tensor


Way = Callable[[random.Random], Part]


class Ways:
    """Ways to make a part of an utterance."""

    def __init__(self) -> None:
        data = speech(num_phrases=NUM_PHRASES)
        self.codec = open_codec(data.codec, 4)
        self._book = SynthesisedPhrases(self.codec, Synthesizer(data.cache_folder), data.voice)
        self._kept: dict[str, Phrase] = {}
        self._texts = {split: data.phrases(split) for split in ("train", "held_out")}
        every = [self._phrase(text) for text in self._texts["train"]]
        self._takes: dict[str, list[tuple[Phrase, int]]] = {}
        for phrase in every:
            for place, word in enumerate(phrase.words):
                self._takes.setdefault(word.text, []).append((phrase, place))
        self._phrases = every

    def all(self) -> dict[str, Way]:
        """The ways by name."""
        return {
            "whole phrases": lambda rng: self._whole(rng, "train"),
            "whole phrases, held out": lambda rng: self._whole(rng, "held_out"),
            "pieces of 3 to 5 words, spliced": self._pieces,
            "words in any order, spliced": self._any_order,
            "words of a phrase in its order, spliced": self._in_order,
            "words of a phrase spoken alone, joined": self._alone,
            "words in any order, spoken as a whole": self._any_order_spoken,
        }

    def _phrase(self, text: str) -> Phrase:
        if text not in self._kept:
            self._kept[text] = self._book.phrase(text)
        return self._kept[text]

    def _whole(self, rng: random.Random, split: Any) -> Part:
        text, codes, audio, _ = self._phrase(rng.choice(self._texts[split]))
        return Part(text, codes, audio)

    def _cut(self, phrase: Phrase, first: int, stop: int) -> Part:
        """Words of a phrase, cut between frames."""
        words = phrase.words[first:stop]
        frames = slice(words[0].first, words[-1].stop)
        size = self.codec.frame_samples
        return Part(
            " ".join(word.text for word in words),
            phrase.codes[frames],
            phrase.audio[frames.start * size : frames.stop * size],
        )

    def _pieces(self, rng: random.Random) -> Part:
        parts = []
        for _ in range(2):
            phrase = rng.choice([p for p in self._phrases if len(p.words) >= PIECE_WORDS[1]])
            size = rng.randint(*PIECE_WORDS)
            first = rng.randint(0, len(phrase.words) - size)
            parts.append(self._cut(phrase, first, first + size))
        return joined(parts)

    def _any_word(self, rng: random.Random, text: str) -> Part:
        phrase, place = rng.choice(self._takes[text])
        return self._cut(phrase, place, place + 1)

    def _in_order(self, rng: random.Random) -> Part:
        phrase = rng.choice(self._phrases)
        return joined([self._any_word(rng, word.text) for word in phrase.words])

    def _alone(self, rng: random.Random) -> Part:
        phrases = [self._phrase(word) for word in rng.choice(self._phrases).text.split()]
        return joined([Part(phrase.text, phrase.codes, phrase.audio) for phrase in phrases])

    def _words(self, rng: random.Random) -> list[str]:
        return [rng.choice([*self._takes]) for _ in range(rng.randint(*SPLICED_WORDS))]

    def _any_order(self, rng: random.Random) -> Part:
        return joined([self._any_word(rng, word) for word in self._words(rng)])

    def _any_order_spoken(self, rng: random.Random) -> Part:
        text, codes, audio, _ = self._phrase(" ".join(self._words(rng)))
        return Part(text, codes, audio)


def joined(parts: Sequence[Part]) -> Part:
    """Parts one after another."""
    return Part(
        " ".join(part.text for part in parts),
        torch.cat([part.codes for part in parts]),
        torch.cat([part.audio for part in parts]),
    )


class Measure:
    """Counts the word errors of one way."""

    def __init__(self, ways: Ways, count: int) -> None:
        self.codec = ways.codec
        self.count = count
        frames = round(BREATH_S * self.codec.frame_rate_hz)
        silence = torch.zeros(frames * self.codec.frame_samples)
        self.breath = Part("", self.codec.encode(silence[None])[0], silence)
        self.transcriber = Transcriber(num_threads=1)

    def rates(self, name: str, way: Way) -> dict[str, Any]:
        """Word error rates of the codes, and of the sound where there is one without joints."""
        counts: dict[str, list[tuple[int, int]]] = {}
        examples = []
        for number in range(self.count):
            rng = random.Random(f"{name} {number}")
            part = joined([way(rng), self.breath, way(rng)])
            sounds = {"codes": self.codec.decode(part.codes[None])[0]}
            if name in UNCODED:
                sounds["sound"] = part.audio
            said = plain_words(part.text)
            for kind, sound in sounds.items():
                words = self.transcriber.words(sound, self.codec.sample_rate)
                heard = plain_words(" ".join(word.text for word in words))
                counts.setdefault(kind, []).append((count_word_errors(said, heard), len(said)))
                if kind == "codes":
                    examples.append([" ".join(said), " ".join(heard)])
        found: dict[str, Any] = {"examples": examples[:4]}
        for kind, pairs in counts.items():
            wrong, of = np.array(pairs, dtype=float).T
            found[kind] = asdict(bootstrap_ratio(wrong, of))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=30, help="utterances of each way")
    parser.add_argument("--work", type=Path, required=True, help="file that keeps what is done")
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = dict(json.loads(options.work.read_text())) if options.work.exists() else {}
    ways = Ways()
    measure = Measure(ways, options.count)
    for name, way in ways.all().items():
        if name not in found:
            begin = time.process_time()
            found[name] = measure.rates(name, way)
            options.work.write_text(json.dumps(found))
            seconds = time.process_time() - begin
            rates = {kind: own for kind, own in found[name].items() if kind != "examples"}
            print(f"{name}: {rates} in {seconds:.0f} s", flush=True)
    results = {"utterances": options.count, "ways": found}
    finish("Can the speech that an LSLM learns from be understood?", results, options.out)


if __name__ == "__main__":
    main()
