"""What a speech run trains on: recordings of dialogues as rows of frames.

Dialogues are packed whole into rows, one behind the other; each begins with the initial frame of
the model and sees nothing of the others. A dialogue in which the agent has a role may begin with
PersonaPlex's prompt, which carries no loss.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from counterpoint.data.loader import HeldOutRows, Loader
from counterpoint.data.mixture import Mixture, TextBatches, TextRows, prepare_text
from counterpoint.data.progress import Output, recording_lines
from counterpoint.data.speech.dialogues import (
    Dialogue,
    DialogueConfig,
    DialogueExamples,
    Example,
    Progress,
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
from counterpoint.data.speech.token_parquet import TokenExamples, is_token_parquet
from counterpoint.data.speech.words import WordTokenizer, open_tokenizer
from counterpoint.formats import open_codec
from counterpoint.speech.audio import inspect_audio
from counterpoint.speech.augment import Augmentation
from counterpoint.speech.codec import Codec
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Ticks
from counterpoint.systems.contract import System


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechData:
    """Recordings of dialogues, and what they are turned into.

    Attributes:
        train: List of recordings (see `counterpoint.data.speech.dialogues`) to learn from, or a
            .parquet file or folder of codes and text ids (see
            `counterpoint.data.speech.token_parquet`), read as they are: what is said below of
            recordings does not apply, and no codec is opened.
        held_out: Likewise, only measured on; empty for none.
        codec: "codec2", or the path of Mimi's weights.
        tokenizer: Of the text: "bytes", or the path of a SentencePiece .model.
        row_s: Length of a row, and the longest piece of a recording that is read as one. With
            prompts rows are longer by the longest of them.
        augmentation: What happens to the user's audio in training.
        copies: Times that each recording is encoded, each with another draw of the augmentation.
        seed: Decides what happens.
        cache_folder: Where codes are kept.
        hearing: Let the text be what the user says, where this places it, and train it alone;
            ``None`` for what the agent says.
        word_starts: Frame of words that start on the edge of two (see `WordStarts`).
        role_prompts: Let each piece of a dialogue with a role or a voice begin with a prompt.
        text: Batches of text alone between those of speech, by the same tokeniser.
    """

    train: str
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
            raise ValueError(
                f"`copies` must be 1, or more with an `augmentation`: got {self.copies}."
            )
        changed = self.hearing is not None or self.role_prompts
        for path, needs_sound in (
            (self.train, changed or self.augmentation is not None),
            (self.held_out, changed),
        ):
            if needs_sound and is_token_parquet(path):
                raise ValueError(
                    "`augmentation`, `hearing` and `role_prompts` must be left out for codes of a "
                    f".parquet file, which has no sound, words or roles: got {path}."
                )

    @staticmethod
    def fits(layout: Layout) -> bool:
        """Whether a system hears or speaks; see `DataSource.fits`."""
        return any(stream.role in (Role.HEARD, Role.SPOKEN) for stream in layout.streams)

    def prepare(
        self,
        system: Any,
        *,
        block_ticks: int | None = None,
        progress: Output | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> "SpeechCorpus":
        """The rows of this config; see `DataSource.prepare` and `prepare_speech`.

        All processes make what is not in the cache; the first one tells about it.
        """
        if (block_ticks or 1) != 1:
            raise ValueError(
                "Dialogues must be read by systems without blocks: got `block_ticks` "
                f"{block_ticks}. Compare systems of one period."
            )
        lines = recording_lines(progress) if progress is not None and rank == 0 else None
        corpus = prepare_speech(self, system, lines, rank, world_size)
        if progress is not None and rank == 0:
            for note in corpus.notes:
                progress.write(f"{note}\n")
        return corpus


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechCorpus:
    """Rows to learn from and to measure on.

    Attributes:
        train: To learn from.
        held_out: To measure on; ``None`` where there are none.
        text: Of text alone, to learn from; ``None`` where there are none.
        text_share: Share of their batches.
        recordings: By list, place and name: digests of what is learned from each recording.
        notes: What a person should know about the data, each a line.
    """

    train: "DialogueRows"
    held_out: "DialogueRows | None"
    text: TextRows | None = None
    text_share: float = 0.0
    recordings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def batches(
        self, batch_rows: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> Loader | Mixture:
        """What a run learns from, step by step; arguments as for `Loader`."""
        speech = Loader(self.train, batch_rows, seed, rank, world_size)
        if self.text is None:
            return speech
        text = Loader(self.text, batch_rows, seed, rank, world_size)
        return Mixture(speech, text, self.text_share)

    def held_out_units(self) -> HeldOutRows | None:
        """Rows that are only measured on, in frames; ``None`` where nothing is held out."""
        return None if self.held_out is None else HeldOutRows(self.held_out)

    @property
    def fingerprint(self) -> Mapping[str, Mapping[str, Any]]:
        """Digests of the recordings, and of the text beside them."""
        return {"recordings": self.recordings}


def codec_of(model: System, name: str, device: torch.device | str = "cpu") -> Codec:
    """The codec of both speakers of a model.

    Raises:
        ValueError: Rates or codebooks differ.
    """
    depths = {
        sum(stream.depth for stream in model.layout.by_role(role))
        for role in (Role.SPOKEN, Role.HEARD)
    }
    if len(depths) != 1:
        raise ValueError(f"Both speakers must have equally many codebooks: got {sorted(depths)}.")
    codec = open_codec(name, depths.pop(), device)
    if codec.frame_rate_hz != model.layout.tick_hz:
        raise ValueError(
            f"The model's `tick_hz` must be the codec's {codec.frame_rate_hz}: got "
            f"{model.layout.tick_hz}."
        )
    audio = (*model.layout.by_role(Role.SPOKEN), *model.layout.by_role(Role.HEARD))
    smallest = min(stream.vocab_size or 0 for stream in audio)
    if max(codec.codebook_sizes) > smallest:
        raise ValueError(
            f"`audio_vocab_size` must be at least the codec's {max(codec.codebook_sizes)}: got "
            f"{smallest}."
        )
    sizes = tuple(size for stream in audio for size in stream.sizes)
    if sizes != codec.codebook_sizes * 2:
        raise ValueError(
            f"Each speaker's codebooks must have the codec's sizes {codec.codebook_sizes}: got "
            f"{sizes} of both. Give the model's streams `codebook_sizes`."
        )
    return codec


def prepare_speech(
    config: SpeechData,
    model: System,
    on_progress: Progress | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> SpeechCorpus:
    """The rows of a config, encoded into the cache where they are not yet.

    Args:
        config: What to read.
        model: Reads the rows.
        on_progress: See `encode_dialogues`.
        rank: This process, 0 first; each begins to encode elsewhere, so that they share the work.
        world_size: Number of processes.

    Raises:
        ValueError: A list, a .parquet file, the codec or the tokeniser cannot be used, or does not
            fit the model.
        OSError: The cache cannot be written.
    """
    tokenizer = _tokenizer_of(config, model)
    recordings: dict[str, dict[str, str]] = {}
    notes: list[str] = []
    num_frames = round(config.row_s * (model.layout.tick_hz or 0))

    sound = cache(partial(_sound, config, model, tokenizer))  # opened once, or never

    def rows(path: str, seeds: Sequence[int], augmentation: Augmentation | None) -> DialogueRows:
        if is_token_parquet(path):
            coded = TokenExamples(path, num_frames, model.layout)
            recordings[path] = {path: coded.digest}
            return DialogueRows(coded, model, num_frames)
        codec, prompts = sound()
        dialogues = read_dialogues(path, config.hearing)
        base = DialogueConfig(
            chunk_s=config.row_s, augmentation=augmentation, cache_folder=config.cache_folder
        )
        first = rank * len(dialogues) // world_size
        files = list[Path]()
        for seed in seeds:
            how = replace(base, seed=seed)
            files += encode_dialogues(dialogues, codec, how, on_progress, first)
        recordings[path] = _digests(dialogues, files, with_prompts=config.role_prompts)
        encode, pad_id = tokenizer.encode_word, model.layout.text.padding_id or 0
        examples = DialogueExamples(
            dialogues * len(seeds), files, encode, pad_id=pad_id, word_starts=config.word_starts
        )
        if note := examples.note():
            notes.append(f"{path}: {note}")
        only_text = config.hearing is not None
        return DialogueRows(examples, model, num_frames, prompts, only_text=only_text)

    seeds = [config.seed * config.copies + copy for copy in range(config.copies)]
    train = rows(config.train, seeds, config.augmentation)
    held_out = rows(config.held_out, [0], None) if config.held_out else None
    return SpeechCorpus(
        train=train,
        held_out=held_out,
        text=None if config.text is None else prepare_text(config.text, config.tokenizer, model),
        text_share=0.0 if config.text is None else config.text.share,
        recordings=recordings,
        notes=tuple(notes),
    )


def _sound(
    config: SpeechData, model: System, tokenizer: WordTokenizer
) -> tuple[Codec, "RolePrompts | None"]:
    """What encodes recordings, and what their prompts are made by."""
    codec = codec_of(model, config.codec)
    if not config.role_prompts:
        return codec, None
    return codec, RolePrompts(model, codec, tokenizer, config.cache_folder)


def _tokenizer_of(config: SpeechData, model: System) -> WordTokenizer:
    tokenizer = open_tokenizer(config.tokenizer)
    text_vocab_size = model.layout.text.vocab_size or 0
    if tokenizer.vocab_size > text_vocab_size:
        raise ValueError(
            f"`text_vocab_size` must be at least the tokeniser's {tokenizer.vocab_size}: got "
            f"{text_vocab_size}."
        )
    return tokenizer


def _digests(
    dialogues: Sequence[Dialogue], files: Sequence[Path], *, with_prompts: bool
) -> dict[str, str]:
    """Digest of what is learned from each recording, by its place in the list and its name.

    Files of codes are named by the sound and by how it was encoded.
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
    """What stands before a dialogue in which the agent has a role, a voice or both.

    Args:
        model: Hears the prompts.
        codec: Of both speakers.
        tokenizer: Of the text.
        cache_folder: Where codes of voices are kept.
    """

    def __init__(
        self, model: System, codec: Codec, tokenizer: WordTokenizer, cache_folder: str
    ) -> None:
        self._model, self._codec, self._tokenizer = model, codec, tokenizer
        self._cache_folder = cache_folder
        self._fillers = codec_fillers(codec)
        self._voices: dict[Path, Tensor] = {}

    def __call__(self, example: Example) -> Ticks | None:
        """The prompt of an example, as `System.lay_out` takes it; ``None`` without role and voice.

        Raises:
            ValueError: It is not shorter than the model's window, or the voice cannot be used.
        """
        tagged, voice = tagged_role(example.role), None
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


class DialogueRows:
    """Rows of equal length, filled with whole examples: each goes into the first row with room.

    Behind the last example of a row nothing is read and nothing is trained.

    Args:
        examples: Dialogues, none longer than a row.
        model: Lays them out; only its layout is used.
        row_ticks: Frames in a row; the longest prompt comes on top.
        prompts: Gives what an example begins with, which carries no loss; ``None`` for nothing.
        only_text: Train the text alone.

    Raises:
        ValueError: There are no examples, or one is longer than a row.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        model: System,
        row_ticks: int,
        prompts: Callable[[Example], Ticks | None] | None = None,
        only_text: bool = False,
    ) -> None:
        self._only_text = only_text
        self._examples = examples
        self._model = model
        self._text = model.layout.text.name
        self._prompts = prompts
        sizes = [
            (self._prompt_ticks(example), len(example.streams["text"])) for example in examples
        ]
        lengths = [length for _, length in sizes]
        if not lengths or max(lengths) > row_ticks:
            raise ValueError(
                f"Rows must have at least one example, and none longer than a row of {row_ticks} "
                f"frames: got {len(lengths)}, the longest of {max(lengths, default=0)}."
            )
        self.row_ticks = row_ticks + max(prompt for prompt, _ in sizes)
        self._rows: list[list[int]] = []
        room = np.full(len(sizes), self.row_ticks)
        for number, length in enumerate(map(sum, sizes)):
            row = int((room >= length).argmax())
            self._rows += [[] for _ in range(row - len(self._rows) + 1)]
            self._rows[row].append(number)
            room[row] -= length

    def __len__(self) -> int:
        return len(self._rows)

    def title(self, index: int) -> str:
        """Recordings in a row, in words."""
        return ", ".join(dict.fromkeys(self._examples[n].source for n in self._rows[index]))

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """The rows at ``indices`` as a batch; its size counts frames."""
        rows = [self._row(self._rows[index]) for index in np.asarray(indices).tolist()]
        targets = _stacked([row.targets for row in rows])
        return Batch(
            ticks=_stacked([row.ticks for row in rows]),
            targets={self._text: targets[self._text]} if self._only_text else targets,
            elements=_stacked([row.elements for row in rows]),
            document_start=torch.cat([row.document_start for row in rows]),
            size=sum(row.size for row in rows),
            unit="frame",
        )

    def _prompt(self, example: Example) -> Ticks | None:
        try:
            return None if self._prompts is None else self._prompts(example)
        except ValueError as error:
            raise ValueError(f"{example.source}: {error}") from error

    def _prompt_ticks(self, example: Example) -> int:
        prompt = self._prompt(example)
        return 0 if prompt is None else prompt[self._text].shape[1]

    def _row(self, numbers: Sequence[int]) -> Batch:
        layout = self._model.layout
        parts, starts, filled = list[Batch](), list[Tensor](), 0
        for number in numbers:
            example = self._examples[number]
            streams, prompt = example.streams, self._prompt(example)
            codes: Ticks = {self._text: streams["text"][None]}
            for role, name in ((Role.SPOKEN, "agent"), (Role.HEARD, "user")):
                codes = {**codes, **layout.with_role(role, streams[name][None])}
            if prompt is not None:
                codes = {name: torch.cat((prompt[name], ids), 1) for name, ids in codes.items()}
            parts.append(
                self._model.lay_out(codes, 0 if prompt is None else prompt[self._text].shape[1])
            )
            starts.append(parts[-1].document_start + filled)
            filled += codes[self._text].shape[1]
        rest = self.row_ticks - filled
        starts.append(torch.full((1, rest), filled))
        return Batch(
            ticks=_joined([part.ticks for part in parts], rest),
            targets=_joined([part.targets for part in parts], rest),
            elements=_joined([part.elements for part in parts], rest),
            document_start=torch.cat(starts, 1),
            size=sum(part.size for part in parts),
            unit="frame",
        )


def _joined(parts: Sequence[Ticks], rest: int) -> Ticks:
    """Parts of one row behind each other, and ``rest`` ticks of nothing."""
    joined = {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}
    return {
        name: F.pad(ids, (0, rest) if ids.ndim == 2 else (0, 0, 0, rest), value=UNSET_ID)
        for name, ids in joined.items()
    }


def _stacked(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Rows below each other."""
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
