"""Spoken problems as training data for systems that hear and think.

A row holds as many problems as fit. A system that hears words in a stream of their own gets them
there; any other system of text reads them in the stream that it writes, where they carry no loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from counterpoint.config_json import encode
from counterpoint.data.loader import HeldOutRows, Loader
from counterpoint.data.source import ALONE, Preparation, existing_files
from counterpoint.data.tasks.items import HELD_OUT_SEED
from counterpoint.data.tasks.spoken_maths.bank import (
    FRAME_HZ,
    BankConfig,
    WordBank,
    bank_mels,
    opened_bank,
)
from counterpoint.data.tasks.spoken_maths.hearing import (
    Chunk,
    Heard,
    as_text,
    at_rate,
    chunks,
    misheard,
    spoken_rounds,
    spoken_ticks,
)
from counterpoint.data.tasks.spoken_maths.packing import (
    Told,
    ToldRows,
    cut_row,
    ended_words,
    heard_words,
    hearing_numbers,
    packed,
    side_by_side,
    written_rows,
    written_stream,
)
from counterpoint.data.tasks.spoken_maths.problems import SpokenMaths
from counterpoint.data.tasks.spoken_maths.words import (
    TokenWords,
    Words,
    in_problem_words,
    opened_words,
)
from counterpoint.digests import json_digest
from counterpoint.errors import UserError
from counterpoint.literals import literals_checked
from counterpoint.progress import Progress
from counterpoint.speech.ears import ChunkEar, HeardWords, WordEar
from counterpoint.speech.mels import ChunkedMels
from counterpoint.streams import schedule
from counterpoint.streams.batch import Batch, join_batches
from counterpoint.streams.rounds import HEARD, THOUGHT, Marks, lay_out_rounds
from counterpoint.streams.spec import UNSET_ID, Layout, Role

Arrangement = Literal["interleaved", "silent", "parallel"]


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class SpokenMathsData:
    """Spoken problems in the form of text; a `DataSource`.

    Attributes:
        task: The generator.
        arrangement: What a row looks like. "interleaved": what is heard in a chunk, then what is
            thought about it. "silent": the same without thoughts; only the decision to interrupt
            is written. "parallel": words heard and words thought side by side, tick by tick.
        words_per_s: Speaking rate; see `at_rate`.
        pace_spread: Share of the rate by which it differs at most between problems.
        held_back: Last words of a chunk that are heard in the next one; see `chunks`.
        misheard: Share of the words that are heard wrongly, as by a recogniser; see `misheard`.
        chunk_s: Seconds of a chunk; for "parallel", of nothing.
        tick_hz: Ticks a second of the parallel clock.
        row_ticks: Number of ticks of a row.
        num_rows: Number of rows to learn from.
        num_held_out: Number of held-out rows of one problem each.
        seed: Seed of the problems.
        marks: Marks of the sequence.
        bank: Words that are spoken, from which problems are joined, or their file; empty for
            words without sound.
        held_out_voice: Voice of the bank that says held-out problems only; empty if all voices say
            all problems.
    """

    task: SpokenMaths = field(default_factory=SpokenMaths)
    arrangement: Arrangement = "interleaved"
    words_per_s: float = 2.8
    pace_spread: float = 0.15
    held_back: int = 0
    misheard: float = 0.0
    chunk_s: float = 2.0
    tick_hz: float = 10.0
    row_ticks: int = 512
    num_rows: int = 100_000
    num_held_out: int = 64
    seed: int = 0
    marks: Marks = field(default_factory=Marks)
    bank: BankConfig | str = ""
    held_out_voice: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.misheard < 1 or not 0 <= self.pace_spread < 1:
            raise UserError(
                "`misheard` and `pace_spread` must be shares, at least 0 and below 1: got "
                f"{self.misheard} and {self.pace_spread}."
            )
        if self.bank and (self.misheard or self.held_back):
            raise UserError(
                "Only words are misheard or held back: leave `misheard`, `held_back` or `bank` out."
            )
        if self.held_back < 0 or (self.held_back and self.arrangement == "parallel"):
            raise UserError(
                "`held_back` must be at least 0, and 0 if there are no chunks: got "
                f"{self.held_back} and the arrangement {self.arrangement!r}."
            )

    @property
    def words(self) -> Words | TokenWords:
        """How words become ids."""
        return opened_words(self.task.tokenizer, self.marks)

    @property
    def sound(self) -> BankConfig | None:
        """How problems sound; ``None`` where words are heard."""
        if isinstance(self.bank, str):
            return BankConfig(file=self.bank) if self.bank else None
        return self.bank

    @property
    def overlap_frames(self) -> int:
        """Frames before a chunk that are heard again with it."""
        return 0 if self.sound is None else self.sound.overlap_frames

    @property
    def tokens_per_s(self) -> float:
        """Words that a model writes in a second; in the parallel arrangement one a tick."""
        return self.tick_hz if self.arrangement == "parallel" else 20.0

    @property
    def answer_tokens(self) -> int:
        """Largest number of words of an answer; the longest right one has 14."""
        return 30

    def ear(self, layout: Layout, by_words: WordEar) -> ChunkEar:
        """Return what a model hears of a recording, in chunks as in training.

        A recogniser keeps back at least one word of a chunk, also for models that heard all of them
        in training, and is given problems to learn from as an example.

        Args:
            layout: Streams of the model.
            by_words: Returns the ear of a model that hears words.

        Raises:
            UserError: The model hears other frames than it can have learned, or thinks in parallel.
        """
        if self.arrangement == "parallel":
            raise UserError(
                "A model that hears a recording must think in chunks, not in parallel. Take a run "
                "of `counterpoint train shanks_small` or `shanks_small_sound`."
            )
        heard = next(iter(layout.by_role(Role.HEARD)), None)
        if heard is None or heard.is_discrete:
            like = as_text([self.heard(number).problem for number in range(3)])
            own = HeardWords(self.chunk_s, in_problem_words, max(self.held_back, 1), like)
            return by_words(own)
        if self.sound is None:
            raise UserError(
                "A model that hears frames of sound must have learned from sound: its data are "
                "words. Take a run of `counterpoint train shanks_small_sound`."
            )
        mels = bank_mels()
        if heard.width != mels.width:
            raise UserError(
                f"A model that hears a recording must hear {mels.width} features: got "
                f"{heard.width}. It can hear its own bank only."
            )
        return ChunkedMels(mels, self.chunk_s, self.overlap_frames)

    @staticmethod
    def fits(layout: Layout) -> bool:
        """Return whether a system writes words; see `DataSource.fits`."""
        return len(layout.predicted) == 1 and written_stream(layout).sizes[0] >= len(Words())

    def num_ticks(self, layout: Layout) -> int:
        """Return the number of ticks of a row; a `DataSource` method."""
        return self.row_ticks

    def prepare(self, system: Any, how: Preparation = ALONE) -> "PreparedMaths":
        """Return the rows for a system; only a bank is cached; see `DataSource.prepare`.

        Raises:
            UserError: The rows cannot hold a problem, or the system cannot read them.
        """
        num_ids = len(self.words)
        if not self.fits(system.layout) or written_stream(system.layout).sizes[0] < num_ids:
            raise UserError(
                f"A system must write one stream of at least {num_ids} ids to learn spoken maths. "
                "Take `vocab_size` from `SpokenMathsData.words`."
            )
        needs_one = self.arrangement == "parallel" or (self.sound and self.sound.transcribed)
        if needs_one and not self.words.one_each:
            raise UserError(
                "Only words of one id each can be heard and thought in parallel, or be named where "
                "they end: leave out `tokenizer`, or choose other options."
            )
        if self.arrangement == "parallel" and heard_words(system.layout) is None:
            raise UserError(
                "Only a system that hears a stream of words can hear and think in parallel: this "
                f"one has {', '.join(stream.name for stream in system.layout.streams)}."
            )
        self._check_sound(system.layout, how.shown)
        return PreparedMaths(self, system.layout)

    def _check_sound(self, layout: Layout, progress: Progress) -> None:
        heard = next(iter(layout.by_role(Role.HEARD)), None)
        width = 0 if heard is None or heard.is_discrete else heard.width
        sounds = self.sound is not None
        wanted = self.word_bank(progress).width if sounds else 0
        if width != wanted or (sounds and self.arrangement == "parallel"):
            raise UserError(
                f"A system that learns spoken maths must hear {wanted or 'no'} features, in rounds "
                f"if there are any: got {width} and the arrangement {self.arrangement!r}."
            )
        if sounds:
            self._voices(held_out=False)
            self._voices(held_out=True)

    def _voices(self, *, held_out: bool) -> list[str]:
        """Return the voices of the bank that say the problems of a split."""
        takes = self.word_bank().takes
        if self.held_out_voice and held_out:
            voices = [voice for voice in takes if voice == self.held_out_voice]
        else:
            voices = [voice for voice in takes if voice != self.held_out_voice]
        if not voices:
            raise UserError(
                "A bank must have a voice to learn from, and the held-out one: "
                f"it has {', '.join(takes) or 'none'}, and `held_out_voice` is "
                f"{self.held_out_voice!r}. Make a bank with more voices, or hold out another."
            )
        return voices

    def heard(self, number: int, *, held_out: bool = False) -> Heard:
        """Return a problem in time."""
        seed = self.seed + (HELD_OUT_SEED if held_out else 0)
        problem = self.task.problem(seed, number)
        if self.sound is None:
            heard = at_rate(problem, self.words_per_s, seed, number, self.pace_spread)
            return misheard(heard, self.misheard, seed, number) if self.misheard else heard
        bank = self.word_bank()
        rng = Random(f"voice {seed} {number}")
        words, numbers = bank.join(problem, self._voices(held_out=held_out), rng)
        frames = bank.in_noise(numbers, self.sound.noise, seed, number, held_out=held_out)
        return Heard(problem, words, words[-1].end_s, frames, FRAME_HZ)

    def word_bank(self, progress: Progress | None = None) -> WordBank:
        """Return the bank, which is read once.

        Args:
            progress: Shows how it is made, if it has no file; ``None`` shows nothing.

        Raises:
            UserError: Words are heard, the file is missing, or there are no voices.
        """
        if self.sound is None:
            raise UserError("Only sound has a bank: give `bank`, for words are heard without.")
        return opened_bank(str(self.sound.path(progress)))

    def file_names(self) -> dict[str, str]:
        """Return the names of bank and tokeniser, if there are any; see `KeepsFiles`."""
        names = {} if self.sound is None else {"bank": self.sound.name}
        return names | ({"tokenizer": self.task.tokenizer} if self.task.tokenizer else {})

    def find_files(self) -> dict[str, Path]:
        """Return the files of bank and tokeniser, if there are any; see `KeepsFiles`.

        A bank that was not made yet as it would be now, and that nobody named, is left out. A
        tokeniser may be the folder or the file of a published model.
        """
        names = {}
        if self.sound is not None and (self.sound.file or self.sound.is_made):
            names["bank"] = str(self.sound.place)
        tokenizer = Path(self.task.tokenizer).expanduser()
        if self.task.tokenizer and tokenizer.is_dir():
            return existing_files(names) | {"tokenizer": tokenizer}
        return existing_files(names | {"tokenizer": self.task.tokenizer or "bytes"})

    def with_files(self, files: Mapping[str, str]) -> "SpokenMathsData":
        """Return the same source with its files elsewhere; see `KeepsFiles`.

        A bank that nobody named is not named by its mere name either, so that it is found in the
        cache or made again where it is missing beside a model.
        """
        tokenizer = files.get("tokenizer", self.task.tokenizer)
        data = replace(self, task=replace(self.task, tokenizer=tokenizer))
        if self.sound is None or "bank" not in files:
            return data
        given = files["bank"]
        file = "" if given == self.sound.made_name else given
        return replace(data, bank=replace(self.sound, file=file))


class PreparedMaths:
    """Rows of problems; a `counterpoint.data.source.PreparedSource`.

    Args:
        data: The data.
        layout: Streams of the system.
        numbered: Whether what sounds stays numbers of frames in the bank, which are small.

    Raises:
        UserError: Frames in noise shall be numbered.
    """

    def __init__(self, data: SpokenMathsData, layout: Layout, *, numbered: bool = False) -> None:
        self.data = data
        self.layout = layout
        self.words = data.words
        self._frames: Tensor | None = None
        is_noisy = data.sound is not None and data.sound.is_noisy
        if numbered and is_noisy:
            raise UserError("Frames in noise have no numbers: leave `noise` out of the bank.")
        if data.sound is not None and not is_noisy:
            bank = data.word_bank()
            self._frames = None if numbered else bank.frames
            self.layout = hearing_numbers(layout, len(bank.stored))

    def batches(self, batch_rows: int, seed: int, rank: int = 0, world_size: int = 1) -> Loader:
        """Return the training batches, step by step; for the arguments see `Loader`."""
        return Loader(_PackedProblems(self), batch_rows, seed, rank, world_size)

    def held_out_units(self) -> HeldOutRows | None:
        """Return the held-out problems, or ``None`` if there are none."""
        return HeldOutRows(_HeldOutProblems(self)) if self.data.num_held_out else None

    def describe(self) -> str:
        """Return a phrase that says how much data there is."""
        heard = "words" if self.data.sound is None else "sound"
        return (
            f"spoken maths in {heard}, {self.data.arrangement}, rows of "
            f"{self.data.row_ticks} ticks, {self.data.num_held_out} problems held out"
        )

    @property
    def fingerprint(self) -> Mapping[str, Mapping[str, Any]]:
        """Digest of the training data: of the options, the first problem, and what files hold."""
        data = self.data
        facts: dict[str, Any] = {"first": " ".join(data.heard(0).problem.words)}
        if data.sound is not None:
            bank = data.word_bank()
            facts |= {"bank": bank.digest, **data.sound.noise.facts(bank.samples)}
            data = replace(data, bank=replace(data.sound, file="", cache_folder=""))
        facts["data"] = encode(data)
        del facts["data"]["task"]["tokenizer"]  # it is newer than some runs, and so is noise
        if data.sound is not None:
            del facts["data"]["bank"]["noise"]
        if data.task.tokenizer:
            facts["tokenizer"] = self.words.identity
        return {"problems": {"train": json_digest(facts)}}

    def batch(self, heard: Heard) -> Batch:
        """Return one problem as a row."""
        return self.voiced(self.laid_out([self.told(heard)])[0])

    def told(self, heard: Heard, *, transcribed: bool = False) -> Told:
        """Return a problem as ids: rounds, or what is heard and thought in every tick.

        Args:
            heard: The problem.
            transcribed: Whether words are targets where their sound ends.
        """
        data = self.data
        encode = self.words.ids
        if data.arrangement == "parallel":
            said, thought = spoken_ticks(heard, data.tick_hz, data.marks)
            ids = np.full(len(said), UNSET_ID)
            ids[[word is not None for word in said]] = encode([word for word in said if word])
            ticks = {HEARD: torch.from_numpy(ids), THOUGHT: torch.from_numpy(encode(thought))}
            return Told(self._length(len(thought)), [ticks])
        thinks = data.arrangement == "interleaved"
        rounds = spoken_rounds(
            heard, data.chunk_s, thinks=thinks, marks=data.marks, held_back=data.held_back
        )
        parts = [
            {name: torch.from_numpy(encode(words)) for name, words in one.items() if words}
            for one in rounds
        ]
        cut = chunks(heard, data.chunk_s)[: len(parts)]
        if heard.frames is not None:
            for part, chunk in zip(parts, cut, strict=True):
                part[HEARD] = heard.frames_of(chunk, data.overlap_frames)
        num_elements = sum(len(elements) for one in parts for elements in one.values())
        named = self._named(heard, cut) if transcribed else None
        return Told(self._length(num_elements), parts, named)

    def _named(self, heard: Heard, cut: Sequence[Chunk]) -> Int[Tensor, " n"]:
        """Return, for every frame that is heard in some chunks, the word that ends with it."""
        words = torch.full((heard.num_frames,), UNSET_ID)
        texts = [word.text for word in heard.words]
        words[heard.last_frames] = torch.from_numpy(self.words.ids(texts))
        named = []
        for chunk in cut:
            both = heard.span(chunk, self.data.overlap_frames)
            own = words[both].clone()
            own[: heard.span(chunk).start - both.start] = UNSET_ID
            named.append(own)
        return torch.cat(named)

    def _length(self, num_words: int) -> int:
        """Return the number of ticks in which a problem is read: nothing follows its last word."""
        return schedule.next_column(self.layout, num_words) - 1

    def laid_out(self, problems: Sequence[Told]) -> list[Batch]:
        """Return problems as rows, each of its own length."""
        if self.data.arrangement == "parallel":
            given = [one.rounds[0] for one in problems]
            ids = side_by_side([one[THOUGHT] for one in given])
            heard = side_by_side([one[HEARD] for one in given])
            batch = self._rows(ids, heard, ids != UNSET_ID)
        else:
            places = lay_out_rounds([one.rounds for one in problems])
            batch = self._rows(
                places.ids, places.heard, places.trained, ended_words(places, problems)
            )
        return [cut_row(batch, row, one.length) for row, one in enumerate(problems)]

    def padded(self, problems: Sequence[Heard]) -> Batch:
        """Return problems as rows of one length, the longest of them."""
        rows = self.laid_out([self.told(one) for one in problems])
        longest = max(one.document_start.shape[1] for one in rows)
        return self.voiced(join_batches([packed([one], longest) for one in rows]))

    def _rows(
        self, ids: Tensor, heard: Tensor, trained: Tensor, ended: Tensor | None = None
    ) -> Batch:
        wanted = ids.masked_fill(~trained, UNSET_ID)
        if ended is not None:  # what follows a frame is no target: another frame, or a mark
            before = ended[:, :-1]
            wanted[:, 1:] = torch.where(before == UNSET_ID, wanted[:, 1:], before)
        return written_rows(self.layout, ids, heard, wanted)

    def voiced(self, batch: Batch) -> Batch:
        """Return a batch with frames where it has their numbers."""
        if self._frames is None:
            return batch
        heard = next(iter(self.layout.by_role(Role.HEARD))).name
        return replace(batch, ticks={**batch.ticks, heard: self._frames[batch.ticks[heard]]})


class _PackedProblems:
    """Rows of problems, as they sound."""

    def __init__(self, prepared: PreparedMaths) -> None:
        data = prepared.data
        transcribed = data.sound is not None and data.sound.transcribed
        self._voiced = prepared.voiced
        self._packed = ToldRows(
            data.num_rows,
            data.row_ticks,
            24,  # problems are longer than that
            lambda number: prepared.told(data.heard(number), transcribed=transcribed),
            prepared.laid_out,
        )

    def __len__(self) -> int:
        return len(self._packed)

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """Return the rows with these numbers."""
        return self._voiced(self._packed.rows(indices))


class _HeldOutProblems:
    """Held-out problems, one a row."""

    def __init__(self, prepared: PreparedMaths) -> None:
        self._prepared = prepared

    def __len__(self) -> int:
        return self._prepared.data.num_held_out

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """Return the problems with these numbers, which must be one."""
        (index,) = indices
        return self._prepared.batch(self._prepared.data.heard(int(index), held_out=True))
