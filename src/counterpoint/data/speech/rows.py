"""Training data of a speech run: recordings of dialogues as rows of frames.

Dialogues are packed into rows as a whole (`counterpoint.data.speech.packing`). If the agent has a
role, a dialogue may begin with PersonaPlex's prompt.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from counterpoint.data.listed import ReadSequence
from counterpoint.data.loader import HeldOutRows, Loader, Share
from counterpoint.data.mixture import TEXT_KIND, Evenly, Mixture, WholeBatches
from counterpoint.data.source import ALONE, Preparation, existing_files
from counterpoint.data.speech.dialogues import (
    Dialogue,
    DialogueConfig,
    DialogueExamples,
    Example,
    RecordingProgress,
    encode_dialogues,
    encode_voice,
    read_dialogues,
)
from counterpoint.data.speech.hearing import Hearing
from counterpoint.data.speech.monologue import WordStarts
from counterpoint.data.speech.opening import (
    check_voice,
    codec_fillers,
    hybrid_prompt,
    tagged_role,
)
from counterpoint.data.speech.packing import DialogueRows
from counterpoint.data.speech.text_rows import TextBatches, TextRows, prepare_text
from counterpoint.data.speech.token_parquet import TokenExamples, is_token_parquet
from counterpoint.data.speech.words import WordTokenizer, open_tokenizer
from counterpoint.errors import UserError
from counterpoint.formats import open_codec
from counterpoint.literals import literals_checked
from counterpoint.progress import spell_duration
from counterpoint.speech.audio import inspect_audio
from counterpoint.speech.augment import Augmentation
from counterpoint.speech.codec import Codec
from counterpoint.streams.spec import Layout, Role, Ticks
from counterpoint.systems.contract import System


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightedList:
    """A further list of training recordings.

    Attributes:
        path: See `SpeechData.train`.
        weight: Relative frequency at which its rows are read; that of `SpeechData.train` is 1.
    """

    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 1e-3 <= self.weight <= 1e3:
            raise UserError(f"`weight` of {self.path} must be 0.001 to 1000: got {self.weight}.")


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechData:
    """Recordings of dialogues, and how they become rows.

    Attributes:
        train: List of training recordings (see `counterpoint.data.speech.dialogues`), or a .parquet
            file or folder of codes and text ids (see `counterpoint.data.speech.token_parquet`).
            Parquet data are read as they are: fields below that concern sound do not apply, and no
            codec is opened.
        others: Further lists, each with a weight. Rows of a list are kept apart and read in
            proportion to its weight, whatever their number.
        held_out: A list or file of the same form that is only measured on; empty for none.
        codec: "codec2", or the path of Mimi's weights.
        tokenizer: Tokeniser of the text: "bytes", or the path of a SentencePiece .model file.
        row_s: Length of a row in seconds, and the longest piece of a recording that is read as one.
            With prompts, rows are longer by the longest prompt.
        augmentation: Changes of the user's audio in training.
        copies: Number of times that each recording is encoded, each with another draw of the
            augmentation.
        seed: Seed of the augmentation.
        cache_folder: Folder of the cached codes.
        hearing: If it is given, the text is what the user says, at the times at which it places the
            words, and only the text is trained; ``None`` trains what the agent says.
        word_starts: Frame of words that start on the edge of two frames (see `WordStarts`).
        role_prompts: Whether each piece of a dialogue with a role or a voice begins with a prompt.
        text: Text-only batches among those of speech, with the same tokeniser; ``None`` for none.
    """

    train: str
    others: tuple[WeightedList, ...] = ()
    held_out: str = ""
    codec: str = "codec2"
    tokenizer: str = "bytes"
    row_s: float = 100.0
    augmentation: Augmentation | None = None
    copies: int = 1
    seed: int = 0
    cache_folder: str = "~/.cache/counterpoint/dialogues"
    hearing: Hearing | None = None
    word_starts: WordStarts = "exact"
    role_prompts: bool = False
    text: TextBatches | None = None

    def __post_init__(self) -> None:
        if self.copies < 1 or (self.copies > 1 and self.augmentation is None):
            raise UserError(
                f"`copies` must be 1, or more with an `augmentation`: got {self.copies}."
            )
        changed = self.hearing is not None or self.role_prompts
        if changed or self.augmentation is not None:
            for path in self.lists:
                self._check_has_sound(path)
        if changed:
            self._check_has_sound(self.held_out)

    def file_names(self) -> dict[str, str]:
        """Return the names of tokeniser and codec; see `KeepsFiles`."""
        return {"tokenizer": self.tokenizer, "codec": self.codec}

    def find_files(self) -> dict[str, Path]:
        """Return the files of tokeniser and codec; see `KeepsFiles`."""
        return existing_files(self.file_names())

    def with_files(self, files: Mapping[str, str]) -> "SpeechData":
        """Return the same source with its files elsewhere; see `KeepsFiles`."""
        tokenizer = files.get("tokenizer", self.tokenizer)
        return replace(self, tokenizer=tokenizer, codec=files.get("codec", self.codec))

    @property
    def lists(self) -> tuple[str, ...]:
        """All training lists."""
        return (self.train, *(other.path for other in self.others))

    @staticmethod
    def _check_has_sound(path: str) -> None:
        if is_token_parquet(path):
            raise UserError(
                "`augmentation`, `hearing` and `role_prompts` must be left out for codes of a "
                f".parquet file, which has no sound, words or roles: got {path}."
            )

    @staticmethod
    def fits(layout: Layout) -> bool:
        """Return whether a system hears or speaks; see `DataSource.fits`."""
        return any(stream.role in (Role.HEARD, Role.SPOKEN) for stream in layout.streams)

    def num_ticks(self, layout: Layout) -> int:
        """Return the number of frames in a row without prompts; see `DataSource.num_ticks`."""
        return round(self.row_s * (layout.tick_hz or 0.0))

    def prepare(self, system: Any, how: Preparation = ALONE) -> "SpeechCorpus":
        """Make the rows of this config; see `DataSource.prepare` and `prepare_speech`.

        All processes make what is not in the cache; the first one shows the progress.
        """
        if (how.block_ticks or 1) != 1:
            raise UserError(
                "Dialogues must be read by systems without blocks: got `block_ticks` "
                f"{how.block_ticks}. Compare systems of one period."
            )
        show = how.shown.task("encoding recordings", spell=spell_duration)
        corpus = prepare_speech(
            self, system, show, how.rank, how.world_size, held_out_only=how.held_out_only
        )
        for note in corpus.notes:
            how.shown.note(note)
        return corpus


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechCorpus:
    """Rows to train on and to measure on.

    Attributes:
        learned: Training rows; ``None`` if only held-out rows were asked for.
        held_out: Rows to measure on; ``None`` if there are none.
        text: Text-only training rows; ``None`` if there are none.
        text_share: Share of text-only batches.
        weights: Weights of the parts of `learned`.
        recordings: Digests of the training data of each recording, by list, place and name.
        notes: Notes about the data for the user, one line each.
    """

    learned: DialogueRows | None
    held_out: DialogueRows | None
    text: TextRows | None = None
    text_share: float = 0.0
    weights: tuple[float, ...] = (1.0,)
    recordings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def train(self) -> DialogueRows:
        """The training rows; code that asked for held-out rows alone must not use them."""
        if self.learned is None:
            raise AssertionError("only held-out rows were asked for")
        return self.learned

    def batches(
        self, batch_rows: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> Loader | Mixture:
        """Return the training batches by step; the arguments are those of `Loader`."""
        shares = [Share(*share) for share in zip(self.train.parts, self.weights, strict=True)]
        speech = Loader(self.train, batch_rows, seed, rank, world_size, shares)
        if self.text is None:
            return speech
        text = Loader(self.text, batch_rows, seed, rank, world_size)
        members = {"text": WholeBatches(text, TEXT_KIND), "speech": WholeBatches(speech)}
        return Mixture(members, Evenly({"text": self.text_share, "speech": 1 - self.text_share}))

    def describe(self) -> str:
        """Return the number of rows, in words."""
        num_held_out = 0 if self.held_out is None else len(self.held_out)
        if self.learned is None:
            return f"{num_held_out} held-out rows"
        return (
            f"{len(self.train)} rows of {self.train.row_ticks} frames to learn from, "
            f"{num_held_out} held-out rows"
        )

    def held_out_units(self) -> HeldOutRows | None:
        """Return the held-out rows, sized in frames; ``None`` if nothing is held out."""
        return None if self.held_out is None else HeldOutRows(self.held_out)

    @property
    def fingerprint(self) -> Mapping[str, Mapping[str, Any]]:
        """Digests of the recordings, and of the text if there is any."""
        text = {} if self.text is None else self.text.fingerprint
        return {"recordings": self.recordings, **text}


def codec_of(model: System, name: str, device: torch.device | str = "cpu") -> Codec:
    """Open the codec of both speakers of a model; ``name`` is "codec2" or the path of its weights.

    Raises:
        UserError: The rate, codebooks or ids of model and codec differ.
    """
    depths = {
        sum(stream.depth for stream in model.layout.by_role(role))
        for role in (Role.SPOKEN, Role.HEARD)
    }
    if len(depths) != 1:
        raise UserError(f"Both speakers must have equally many codebooks: got {sorted(depths)}.")
    codec = open_codec(name, depths.pop(), device)
    if codec.frame_rate_hz != model.layout.tick_hz:
        raise UserError(
            f"The model's `tick_hz` must be the codec's {codec.frame_rate_hz}: got "
            f"{model.layout.tick_hz}."
        )
    audio = (*model.layout.by_role(Role.SPOKEN), *model.layout.by_role(Role.HEARD))
    smallest = min(stream.vocab_size or 0 for stream in audio)
    if max(codec.codebook_sizes) > smallest:
        raise UserError(
            f"`audio_vocab_size` must be at least the codec's {max(codec.codebook_sizes)}: got "
            f"{smallest}."
        )
    sizes = tuple(size for stream in audio for size in stream.sizes)
    if sizes != codec.codebook_sizes * 2:
        raise UserError(
            f"Each speaker's codebooks must have the codec's sizes {codec.codebook_sizes}: got "
            f"{sizes} of both. Give the model's streams `codebook_sizes`."
        )
    return codec


def prepare_speech(
    config: SpeechData,
    model: System,
    on_progress: RecordingProgress | None = None,
    rank: int = 0,
    world_size: int = 1,
    held_out_only: bool = False,
) -> SpeechCorpus:
    """Make the rows of a config; recordings that are not in the cache are encoded into it.

    Args:
        config: The data.
        model: The model that reads the rows.
        on_progress: See `encode_dialogues`.
        rank: Number of this process, counted from 0. Each process begins to encode at another
            recording, so that they share the work.
        world_size: Number of processes.
        held_out_only: Whether training data are left out.

    Raises:
        UserError: A list, a .parquet file, the codec or the tokeniser cannot be used, or does not
            fit the model.
        OSError: The cache cannot be written.
    """
    reader = _Reader(config, model, on_progress, rank, world_size)
    seeds = [config.seed * config.copies + copy for copy in range(config.copies)]
    learned = text = None
    if not held_out_only:
        learned = reader.rows(config.lists, seeds, config.augmentation)
        if config.text is not None:
            text = prepare_text(config.text, config.tokenizer, model)
    return SpeechCorpus(
        learned=learned,
        held_out=reader.rows([config.held_out], [0], None) if config.held_out else None,
        text=text,
        text_share=0.0 if config.text is None else config.text.share,
        weights=(1.0, *(other.weight for other in config.others)),
        recordings=reader.recordings,
        notes=tuple(reader.notes),
    )


class _Reader:
    """Makes rows of lists and of .parquet files, and records what was read.

    Attributes:
        recordings: See `SpeechCorpus.recordings`.
        notes: See `SpeechCorpus.notes`.
    """

    def __init__(
        self,
        config: SpeechData,
        model: System,
        on_progress: RecordingProgress | None,
        rank: int,
        world_size: int,
    ) -> None:
        self._config = config
        self._model = model
        self._on_progress = on_progress
        self._rank = rank
        self._world_size = world_size
        self._tokenizer = _tokenizer_of(config, model)
        self._num_frames = config.num_ticks(model.layout)
        self.recordings: dict[str, dict[str, str]] = {}
        self.notes: list[str] = []

    @cached_property
    def _sound(self) -> tuple[Codec, "RolePrompts | None"]:
        """The codec, and the prompts that use it; they are opened once, and only if needed."""
        codec = codec_of(self._model, self._config.codec)
        if not self._config.role_prompts:
            return codec, None
        prompts = RolePrompts(self._model, codec, self._tokenizer, self._config.cache_folder)
        return codec, prompts

    def rows(
        self, paths: Sequence[str], seeds: Sequence[int], augmentation: Augmentation | None
    ) -> DialogueRows:
        """Return rows of lists (encoded once a seed) or of .parquet files; lists are kept apart."""
        lists = [self._examples(path, seeds, augmentation) for path in paths]
        return DialogueRows(
            lists[0] if len(lists) == 1 else _Joined(lists),
            self._model,
            self._num_frames,
            self._sound[1] if self._config.role_prompts else None,
            only_text=self._config.hearing is not None,
            parts=[len(own) for own in lists],
        )

    def _examples(
        self, path: str, seeds: Sequence[int], augmentation: Augmentation | None
    ) -> Sequence[Example]:
        config = self._config
        model = self._model
        if is_token_parquet(path):
            coded = TokenExamples(path, self._num_frames, model.layout)
            self.recordings[path] = {path: coded.digest}
            return coded
        codec, _ = self._sound
        dialogues = read_dialogues(path, config.hearing)
        base = DialogueConfig(
            chunk_s=config.row_s, augmentation=augmentation, cache_folder=config.cache_folder
        )
        first = self._rank * len(dialogues) // self._world_size
        files = list[Path]()
        for seed in seeds:
            how = replace(base, seed=seed)
            files += encode_dialogues(dialogues, codec, how, self._on_progress, first)
        self.recordings[path] = _digests(dialogues, files, with_prompts=config.role_prompts)
        examples = DialogueExamples(
            dialogues * len(seeds),
            files,
            self._tokenizer.encode_word,
            pad_id=model.layout.text.padding_id or 0,
            word_starts=config.word_starts,
        )
        if note := examples.note():
            self.notes.append(f"{path}: {note}")
        return examples


class _Joined(ReadSequence[Example]):
    """Examples of several lists, one after another."""

    def __init__(self, lists: Sequence[Sequence[Example]]) -> None:
        self._lists = lists
        self._ends = [*accumulate(len(own) for own in lists)]

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int) -> Example:
        number = bisect_right(self._ends, index)
        return self._lists[number][index - self._ends[number] + len(self._lists[number])]


def _tokenizer_of(config: SpeechData, model: System) -> WordTokenizer:
    tokenizer = open_tokenizer(config.tokenizer)
    text_vocab_size = model.layout.text.vocab_size or 0
    if tokenizer.vocab_size > text_vocab_size:
        raise UserError(
            f"`text_vocab_size` must be at least the tokeniser's {tokenizer.vocab_size}: got "
            f"{text_vocab_size}."
        )
    return tokenizer


def _digests(
    dialogues: Sequence[Dialogue], files: Sequence[Path], *, with_prompts: bool
) -> dict[str, str]:
    """Return a digest of the training data of each recording, by its place in the list and name.

    The names of code files already depend on the sound and on how it was encoded.
    """
    digests = {}
    for number, (dialogue, file) in enumerate(zip(dialogues, files, strict=False), 1):
        content: list[object] = [file.name, dialogue.words]
        if with_prompts:
            voice = dialogue.voice.read_bytes() if dialogue.voice else b""
            content += [dialogue.role, hashlib.sha256(voice).hexdigest()]
        digest = hashlib.sha256(repr(content).encode("utf-8", "surrogatepass")).hexdigest()
        digests[f"{number} {dialogue.audio}"] = digest[:16]
    return digests


class RolePrompts:
    """Makes the prompt of a dialogue in which the agent has a role, a voice or both."""

    def __init__(
        self, model: System, codec: Codec, tokenizer: WordTokenizer, cache_folder: str
    ) -> None:
        self._model = model
        self._codec = codec
        self._tokenizer = tokenizer
        self._cache_folder = cache_folder
        self._fillers = codec_fillers(codec)
        self._voices: dict[Path, Tensor] = {}

    def __call__(self, example: Example) -> Ticks | None:
        """Return the prompt of an example for `System.lay_out`; ``None`` without role and voice.

        Raises:
            UserError: The prompt is not shorter than the model's window, or the voice cannot be
                used.
        """
        tagged = tagged_role(example.role)
        voice = None
        if not tagged and example.voice is None:
            return None
        if example.voice is not None:
            if example.voice not in self._voices:
                duration_s = inspect_audio(example.voice).duration_s
                check_voice(self._model.window_ticks, duration_s * self._codec.frame_rate_hz)
                codes = encode_voice(example.voice, self._codec, self._cache_folder)
                self._voices[example.voice] = codes.to(torch.int32)
            voice = self._voices[example.voice].long()
        ids = self._tokenizer.encode_word(tagged) if tagged else ()
        return hybrid_prompt(self._model, ids, voice, self._fillers)
