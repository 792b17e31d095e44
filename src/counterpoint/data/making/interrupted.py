"""Speech to be said while something is heard, which may interrupt it: training data of a speaker.

An item is a text of two phrases, its sound as codes, and a heard channel. Independently of each
other, noise, an interruption, a backchannel and an echo of the own voice may be mixed into that
channel. After an interruption the codes are cut; the first codebook then holds the id that means
*interrupted*, otherwise the id of the *end* follows the last code.

Source: LSLM (arXiv:2408.02622), sections 4.3 and 5.1: interruption and noise with a probability of
one half each, and a stop 0.5 s after the interruption begins. Backchannels and echo are ours, and
so are all levels, which the paper does not give.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from counterpoint.config_json import encode
from counterpoint.data.loader import HeldOutRows, Loader
from counterpoint.data.making.heard_scene import HeardConfig, HeardScene, draw_scene
from counterpoint.data.making.order_wordings import Split
from counterpoint.data.making.orders import draw_order
from counterpoint.data.making.sounds import RATE, SoundsConfig, load_sounds, synthesised_note
from counterpoint.data.making.speech_ends import end_ids
from counterpoint.data.making.spoken_phrases import (
    Phrase,
    Phrases,
    StoredPhrases,
    SynthesisedPhrases,
    Utterance,
    WordFrames,
)
from counterpoint.data.source import ALONE, Preparation, copy_to_cache, existing_files
from counterpoint.data.speech.words import SentencePieceWords, train_tokenizer
from counterpoint.digests import file_digest, json_digest
from counterpoint.errors import UserError
from counterpoint.formats import open_codec
from counterpoint.progress import Progress
from counterpoint.speech.audio import resample
from counterpoint.speech.augment import echo
from counterpoint.speech.codec import Codec
from counterpoint.speech.mels import LogMels
from counterpoint.speech.voices import Speaker, Synthesizer, Voice
from counterpoint.streams.batch import Batch
from counterpoint.streams.seconds import exact, num_begun
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream, Ticks

_CACHE = "~/.cache/counterpoint/utterances"
_BREATH_S = 0.12
_FEWEST_WORDS = 5
_SPLICED_WORDS = (4, 8)
_MOST_TRIES = 6000
_MOST_TRIES_A_PHRASE = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class InterruptedSpeech:
    """Utterances and heard channels as training data; a `DataSource`.

    Attributes:
        sounds: The sounds that are heard.
        heard: How they are mixed.
        voice: Voice of the model.
        codec: "codec2", or the path of Mimi's weights.
        num_bands: Number of mel bands of what is heard.
        num_phrases: Number of different phrases to learn from.
        phrases_file: File with the codes of all phrases, which `write_phrases` wrote, so that no
            voice is needed; empty to synthesise them.
        spliced: Share of the training phrases that are words in any order, cut from other phrases.
            A model learns sooner from them to follow its text, but nobody understands such speech.
        num_takes: Number of takes of each word that are spliced; few are learned sooner.
        misread: Share of the frames said before that training rows read as other ones: a model that
            cannot trust them looks at its text.
        num_items: Number of items to learn from.
        num_held_out: Number of items to measure on, with held-out phrases and sounds.
        vocab_size: Largest number of pieces of the tokeniser, which learns from the phrases.
        seed: Seed of the items.
        cache_folder: Folder of synthesised phrases and of the tokeniser; empty in exported models.
    """

    sounds: SoundsConfig = field(default_factory=SoundsConfig)
    heard: HeardConfig = field(default_factory=HeardConfig)
    voice: Voice = field(default_factory=partial(Voice, formant=1.15))
    codec: str = "codec2"
    num_bands: int = 40
    num_phrases: int = 800
    phrases_file: str = ""
    spliced: float = 0.0
    num_takes: int = 8
    misread: float = 0.0
    num_items: int = 1_000_000
    num_held_out: int = 64
    vocab_size: int = 400
    seed: int = 0
    cache_folder: str = _CACHE

    def __post_init__(self) -> None:
        if not 0 <= self.misread < 1:
            raise UserError(f"`misread` must be at least 0 and below 1: got {self.misread}.")

    @staticmethod
    def fits(layout: Layout) -> bool:
        """Return whether a system speaks ids, is given text, and hears features."""
        heard = layout.by_role(Role.HEARD)
        given = len(heard) == 1 and not any(stream.is_discrete for stream in heard)
        return given and bool(layout.by_role(Role.SPOKEN)) and bool(layout.by_role(Role.TEXT))

    def num_ticks(self, layout: Layout) -> int:
        """Return the ticks of a typical row; rows are as long as the longest item of a batch."""
        return round(5 * (layout.tick_hz or 0.0))

    def prepare(self, system: Any, how: Preparation = ALONE) -> "PreparedUtterances":
        """Synthesise the phrases, and read the sounds; see `DataSource.prepare`."""
        return PreparedUtterances(self, system, how.shown, held_out_only=how.held_out_only)

    @property
    def fewest_words(self) -> int:
        """Number of words of the shortest text that is learned: two phrases."""
        return 2 * (min(_FEWEST_WORDS, *_SPLICED_WORDS) if self.spliced else _FEWEST_WORDS)

    def phrases(self, split: Split) -> tuple[str, ...]:
        """Return the different phrases of a split, in a fixed order."""
        rng = random.Random(f"sentences {split} {self.seed}")
        found = dict[str, None]()
        tries = _MOST_TRIES
        if split == "train":
            tries = max(tries, _MOST_TRIES_A_PHRASE * self.num_phrases)
        for _ in range(tries):
            text = draw_order(split, rng).text
            if len(text.split()) >= _FEWEST_WORDS:
                found[text] = None
            if split == "train" and len(found) == self.num_phrases:
                break
        return tuple(found)

    def file_names(self) -> dict[str, str]:
        """Return the names of codec and tokeniser, which is learned; see `KeepsFiles`."""
        digest = json_digest([self.phrases("train"), self.vocab_size])
        return {"codec": self.codec, "tokenizer": f"words-{digest[:16]}.model"}

    def find_files(self) -> dict[str, Path]:
        """Return the files of codec and tokeniser; see `KeepsFiles`."""
        return existing_files({"codec": self.codec, "tokenizer": str(self.tokenizer_file())})

    def with_files(self, files: Mapping[str, str]) -> "InterruptedSpeech":
        """Return the same source with its files elsewhere; see `KeepsFiles`.

        The tokeniser is copied to the cache. A name without a folder, as in exported models, leaves
        no cache: a model that lost its tokeniser must not learn another one.
        """
        moved = replace(self, codec=files.get("codec", self.codec))
        given = Path(files.get("tokenizer", ""))
        if given == Path(given.name):
            sounds = replace(self.sounds, folder="")
            alone = replace(moved, cache_folder="", phrases_file="", sounds=sounds)
            return alone if given.name else moved
        moved = replace(moved, cache_folder=self.cache_folder or _CACHE)
        copy_to_cache(given, moved.cache_folder)
        return moved

    def tokenizer_file(self) -> Path:
        """Return the file of the tokeniser, which is learned from the phrases if there is none.

        Raises:
            UserError: It is that of an exported model and missing; or a package is missing.
        """
        name = self.file_names()["tokenizer"]
        if not self.cache_folder:
            raise UserError(f"{name} must lie beside the model: it is missing. Put it back.")
        path = Path(self.cache_folder).expanduser() / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            train_tokenizer(self.phrases("train"), path, self.vocab_size)
        return path


class Items:
    """Items of one split by number: a function of seed, split and number alone."""

    def __init__(
        self, data: InterruptedSpeech, split: Split, codec: Codec, speaker: Speaker
    ) -> None:
        self.data = data
        self.split = split
        self._codec = codec
        self._speaker = speaker
        self.phrases = data.phrases(split)
        self.sounds = load_sounds(data.sounds, split, speaker)
        breath = max(round(_BREATH_S * codec.frame_rate_hz), 1) * codec.frame_samples
        silence = torch.zeros(breath)
        self._breath = Utterance("", codec.encode(silence[None])[0], silence)
        self._book: Phrases = SynthesisedPhrases(codec, speaker, data.voice)
        if data.phrases_file:
            self._book = StoredPhrases(data.phrases_file, codec)
        self._phrases = dict[str, Phrase]()
        self._words: list[tuple[Phrase, WordFrames]] = []

    def phrase(self, text: str) -> Phrase:
        """Return a phrase as it is spoken; it is kept."""
        if text not in self._phrases:
            self._phrases[text] = self._book.phrase(text)
        return self._phrases[text]

    def _spliced(self, rng: random.Random) -> Utterance:
        """Return words in any order, each cut from a phrase between two frames."""
        if not self._words:
            takes = Counter[str]()
            for phrase in map(self.phrase, self.phrases):
                for word in phrase.words:
                    if takes[word.text] < self.data.num_takes:
                        takes[word.text] += 1
                        self._words.append((phrase, word))
        chosen = [rng.choice(self._words) for _ in range(rng.randint(*_SPLICED_WORDS))]
        size = self._codec.frame_samples
        return Utterance(
            " ".join(word.text for _, word in chosen),
            torch.cat([phrase.codes[word.first : word.stop] for phrase, word in chosen]),
            torch.cat(
                [phrase.audio[word.first * size : word.stop * size] for phrase, word in chosen]
            ),
        )

    def utterance(self, number: int) -> Utterance:
        """Return the utterance of an item: two phrases, each encoded on its own, and a breath."""
        rng = self._rng(number, "text")
        share = self.data.spliced if self.split == "train" else 0.0
        first, second = (
            self._spliced(rng) if rng.random() < share else self._whole(rng) for _ in range(2)
        )
        parts = (first, self._breath, second)
        return Utterance(
            f"{first.text} {second.text}",
            torch.cat([part.codes for part in parts]),
            torch.cat([part.audio for part in parts]),
        )

    def _whole(self, rng: random.Random) -> Utterance:
        """Return a phrase of the split."""
        text, codes, audio, _ = self.phrase(rng.choice(self.phrases))
        return Utterance(text, codes, audio)

    def scene(self, number: int, duration_s: float, heard: HeardConfig | None = None) -> HeardScene:
        """Return what is heard during an item; see `draw_scene`.

        Args:
            number: Number of the item.
            duration_s: Seconds of its utterance.
            heard: Other probabilities and levels than those of the data.
        """
        rng = self._rng(number, "scene")
        return draw_scene(heard or self.data.heard, self.sounds, duration_s, rng)

    def other(self, number: int) -> tuple[Int[Tensor, "T K"], torch.Generator]:
        """Return the frames of another item, and a source of chance for this item."""
        rng = self._rng(number, "misread")
        frames = self.utterance(rng.randrange(self.data.num_items)).codes.long()
        return frames, torch.Generator().manual_seed(rng.getrandbits(63))

    def _rng(self, number: int, what: str) -> random.Random:
        return random.Random(f"{self.data.seed} {self.split} {number} {what}")


class UtteranceRows:
    """Items as rows: the text, then codes and what is heard with them."""

    def __init__(self, items: Items, num_items: int, prepared: "PreparedUtterances") -> None:
        self._items = items
        self._num_items = num_items
        self._prepared = prepared

    def __len__(self) -> int:
        return self._num_items

    def title(self, index: int) -> str:
        """Return the text of an item."""
        return self._items.utterance(index).text

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """Return the items with these numbers as rows."""
        numbers = [int(number) for number in indices]
        batch = self._prepared.batch([self._content(number) for number in numbers])
        return self._prepared.misread(batch, self._items, numbers)

    def _content(self, number: int) -> dict[str, Tensor]:
        said = self._items.utterance(number)
        scene = self._items.scene(number, self._prepared.seconds(said))
        return self._prepared.content(said, scene)


class PreparedUtterances:
    """Items made for one system; a `PreparedSource`.

    Attributes:
        layout: Streams of the system.
        codec: Codec of what is said.
        mels: Features of what is heard.
        tokenizer: Tokeniser of the text.
        tokenizer_path: File of the tokeniser.
        ends: Ids that end the speech.

    Args:
        data: The data config.
        system: The system: its `layout` and its `lay_out` are used.
        progress: Shows how the phrases are spoken.
        speaker: Speaks the phrases, and the words among the sounds; by default the installed
            voices.
        held_out_only: Prepare only the held-out items.
    """

    def __init__(
        self,
        data: InterruptedSpeech,
        system: Any,
        progress: Progress,
        speaker: Speaker | None = None,
        *,
        held_out_only: bool = False,
    ) -> None:
        self.data = data
        if note := synthesised_note(data.sounds):
            progress.note(note)
        self.system = system
        self.layout: Layout = system.layout
        spoken = self.layout.by_role(Role.SPOKEN)
        self.codec = open_codec(data.codec, sum(stream.depth for stream in spoken))
        self.mels = LogMels(self.codec.frame_rate_hz, data.num_bands)
        self.ends = end_ids(self.layout, self.codec)
        (heard,) = self.layout.by_role(Role.HEARD)
        self._heard: Stream = heard
        if heard.width != self.mels.width:
            raise UserError(
                f"`heard_width` must be that of {data.num_bands} mel bands, {self.mels.width}: got "
                f"{heard.width}."
            )
        self.speaker = speaker or Synthesizer(data.cache_folder)
        self.tokenizer = self._tokenizer()
        splits = list[Split]([] if held_out_only else ["train"])
        if data.num_held_out:
            splits.append("held_out")
        self._items = {split: Items(data, split, self.codec, self.speaker) for split in splits}
        task = progress.task("speaking phrases")
        texts = [(items, text) for items in self._items.values() for text in items.phrases]
        for done, (items, text) in enumerate(texts, 1):
            items.phrase(text)
            task(done, len(texts))

    def _tokenizer(self) -> SentencePieceWords:
        path = self.data.tokenizer_file()
        self.tokenizer_path = path
        tokenizer = SentencePieceWords(path)
        if tokenizer.vocab_size > (self.layout.text.vocab_size or 0):
            raise UserError(
                f"`text_vocab_size` must be at least the tokeniser's {tokenizer.vocab_size}: got "
                f"{self.layout.text.vocab_size}."
            )
        return tokenizer

    def items(self, split: Split) -> Items:
        """Return the items of a split."""
        if split not in self._items:
            self._items[split] = Items(self.data, split, self.codec, self.speaker)
        return self._items[split]

    def seconds(self, said: Utterance) -> float:
        """Return the length of an utterance."""
        return len(said.codes) / self.codec.frame_rate_hz

    def batches(self, batch_rows: int, seed: int, rank: int = 0, world_size: int = 1) -> Loader:
        """Return the training batches by step; the arguments are those of `Loader`."""
        rows = UtteranceRows(self._items["train"], self.data.num_items, self)
        return Loader(rows, batch_rows, seed, rank, world_size)

    def held_out_units(self) -> HeldOutRows | None:
        """Return the held-out items; ``None`` if there are none."""
        if not self.data.num_held_out:
            return None
        return HeldOutRows(UtteranceRows(self._items["held_out"], self.data.num_held_out, self))

    def describe(self) -> str:
        """Return the amount of data, in words."""
        if not self._items:
            return "no utterances"
        items = next(iter(self._items.values()))
        return (
            f"{len(items.phrases)} phrases, {len(items.sounds.interruptions)} interruptions and "
            f"{len(items.sounds.noises)} noises in the split {items.split!r}"
        )

    @property
    def fingerprint(self) -> Mapping[str, Mapping[str, Any]]:
        """Digests of the phrases, and of the sounds that are heard."""
        found = {}
        for split, items in self._items.items():
            lengths = [[len(sound) for sound in kind] for kind in items.sounds]
            how = [encode(self.data.heard), encode(self.data.voice), self.data.seed]
            how += [self.data.spliced, self.data.num_takes]
            facts = [how, self.codec.name, self.mels.width, items.phrases, lengths]
            if self.data.misread:
                facts.append(self.data.misread)
            if self.data.phrases_file:
                facts.append(file_digest(Path(self.data.phrases_file).expanduser()))
            found[split] = json_digest(facts)
        return {"utterances": {"train": found.get("train", "")}}

    def prompt(self, text: str) -> dict[str, Tensor]:
        """Return the content of a prompt with a text: one id a tick; nothing is said or heard."""
        ids = [token for word in text.split() for token in self.tokenizer.encode_word(word)]
        return self._content(torch.tensor([ids]), torch.zeros(0, len(self.codec.codebook_sizes)))

    def content(self, utterance: Utterance, scene: HeardScene) -> dict[str, Tensor]:
        """Return an utterance with its text before it, and what is heard, in content order."""
        text, codes, audio = utterance
        samples = (len(codes) + 1) * self.mels.frame_samples
        heard = scene.heard(samples)
        if scene.echo_gain:
            own = resample(audio[None], self.codec.sample_rate, RATE)[0]
            own = F.pad(own, (0, samples - len(own)))
            heard = heard + echo(own, scene.echo_gain, round(scene.echo_delay_s * RATE))
        last = torch.full((1, codes.shape[1]), UNSET_ID)
        last[0, 0] = self.ends.end
        if scene.interruption is not None:
            stop_s = exact(scene.interruption.start_s) + exact(self.data.heard.stop_after_s)
            begun = num_begun(float(stop_s), 1 / exact(self.codec.frame_rate_hz))
            frames = min(begun, len(codes))
            last[0, 0] = self.ends.interrupted
            codes = codes[:frames]
        said = self._content(torch.zeros(1, 0, dtype=torch.long), torch.cat((codes, last)))
        features = self.mels.encode(heard[None].clamp(-1, 1))
        said[self._heard.name] = features[:, : len(codes) + 1]
        prompt = self.prompt(text)
        return {name: torch.cat((prompt[name], said[name]), 1) for name in said}

    def _content(self, text: Int[Tensor, "1 P"], codes: Tensor) -> dict[str, Tensor]:
        """Return ticks with text, then ticks with codes; nothing is heard."""
        num_ticks = text.shape[1] + len(codes)
        padding = self.layout.text.padding_id or 0
        said = torch.full((1, num_ticks, len(self.codec.codebook_sizes)), UNSET_ID)
        said[0, text.shape[1] :] = codes.long()
        given = torch.full((1, num_ticks), padding)
        given[:, : text.shape[1]] = text
        return {
            **self.layout.with_role(Role.SPOKEN, said),
            self.layout.text.name: given,
            self._heard.name: torch.zeros(1, num_ticks, self.mels.width),
        }

    def batch(self, contents: Sequence[Ticks]) -> Batch:
        """Return contents as rows; nothing is trained or heard after their ends."""
        longest = max(content[self._heard.name].shape[1] for content in contents)
        padded = {}
        for name in contents[0]:
            stream = self.layout[name]
            empty = UNSET_ID if stream.predicted else stream.padding_id or 0
            rows = []
            for content in contents:
                missing = longest - content[name].shape[1]
                around = (0, missing) if content[name].ndim == 2 else (0, 0, 0, missing)
                rows.append(F.pad(content[name], around, value=empty))
            padded[name] = torch.cat(rows)
        batch: Batch = self.system.lay_out(padded)
        first = batch.targets[next(iter(batch.targets))]
        return replace(batch, size=int((first != UNSET_ID).sum()))

    def misread(self, batch: Batch, items: Items, numbers: Sequence[int]) -> Batch:
        """Return training rows in which some frames said before are read as frames of other items.

        What has to be said, and the codebooks before in the same frame, stay as they are.

        Args:
            batch: Rows from `batch`.
            items: The items of these rows; those of other splits are read as they are.
            numbers: Number of the item of each row.
        """
        if not self.data.misread or items.split != "train":
            return batch
        names = [stream.name for stream in self.layout.by_role(Role.SPOKEN)]
        read = torch.cat([batch.ticks[name] for name in names], -1)
        sizes = torch.tensor(self.codec.codebook_sizes)
        said = ((read >= 0) & (read < sizes)).all(-1)
        for row, number in enumerate(numbers):
            frames = read[row, said[row]]
            other, generator = items.other(number)
            drawn = torch.randint(len(other), (len(frames),), generator=generator)
            wrong = torch.rand(len(frames), generator=generator) < self.data.misread
            read[row, said[row]] = torch.where(wrong[:, None], other[drawn], frames)
        return replace(batch, ticks={**batch.ticks, **self.layout.with_role(Role.SPOKEN, read)})
