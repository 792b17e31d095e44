"""Spoken problems as training data for systems that hear and think.

A row holds as many problems as fit. A system that hears words in a stream of their own gets them
there; any other system of text reads them in the stream that it writes, where they carry no loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from counterpoint.config_json import encode
from counterpoint.data.loader import HeldOutRows, Loader
from counterpoint.data.source import ALONE, Preparation
from counterpoint.data.tasks.items import HELD_OUT_SEED
from counterpoint.data.tasks.spoken_maths.bank import FRAME_HZ, WordBank, read_bank
from counterpoint.data.tasks.spoken_maths.hearing import (
    NOTHING,
    Heard,
    at_rate,
    chunks,
    misheard,
    spoken_rounds,
    spoken_ticks,
)
from counterpoint.data.tasks.spoken_maths.problems import SpokenMaths, vocabulary
from counterpoint.digests import json_digest
from counterpoint.errors import UserError
from counterpoint.literals import literals_checked
from counterpoint.streams import schedule
from counterpoint.streams.batch import Batch, join_batches
from counterpoint.streams.rounds import HEARD, THOUGHT, Marks, lay_out_rounds
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream

Arrangement = Literal["interleaved", "silent", "parallel"]


class Words:
    """The words of spoken maths as ids; id 0 fills rows up."""

    def __init__(self, marks: Marks | None = None) -> None:
        marks = marks or Marks()
        own = (marks.part, marks.last, marks.close, marks.interrupt, marks.stop)
        self.words = ("<pad>", NOTHING, *own, *vocabulary())
        self._ids = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> Int[np.ndarray, " n"]:
        """Return the ids of words between blanks.

        Raises:
            UserError: A word is unknown.
        """
        return self.ids(text.split())

    def ids(self, words: Sequence[str]) -> Int[np.ndarray, " n"]:
        """Return the ids of words; see `encode`."""
        unknown = [word for word in words if word not in self._ids]
        if unknown:
            raise UserError(f"A text must consist of words of spoken maths: got {unknown[0]!r}.")
        return np.array([self._ids[word] for word in words], np.int64)

    def decode(self, ids: Int[np.ndarray, " n"]) -> str:
        """Return the words of ids, with a blank before each."""
        return "".join(f" {self.words[number]}" for number in ids.tolist())


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
        bank: File of a `WordBank`, from which problems are joined; empty for words without sound.
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
    bank: str = ""
    held_out_voice: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.misheard < 1 or not 0 <= self.pace_spread < 1:
            raise UserError(
                "`misheard` and `pace_spread` must be shares, at least 0 and below 1: got "
                f"{self.misheard} and {self.pace_spread}."
            )
        if self.bank and (self.misheard or self.held_back):
            raise UserError(
                "Only words are misheard or held back: leave out `misheard` and `held_back`, or "
                "the bank."
            )
        if self.held_back < 0 or (self.held_back and self.arrangement == "parallel"):
            raise UserError(
                "`held_back` must be at least 0, and 0 if there are no chunks: got "
                f"{self.held_back} and the arrangement {self.arrangement!r}."
            )

    @staticmethod
    def fits(layout: Layout) -> bool:
        """Return whether a system writes words; see `DataSource.fits`."""
        return len(layout.predicted) == 1 and _written(layout).sizes[0] >= len(Words())

    def num_ticks(self, layout: Layout) -> int:
        """Return the number of ticks of a row; a `DataSource` method."""
        return self.row_ticks

    def prepare(self, system: Any, how: Preparation = ALONE) -> "PreparedMaths":
        """Return the rows for a system; nothing is cached; see `DataSource.prepare`.

        Raises:
            UserError: The rows cannot hold a problem, or the system cannot read them.
        """
        if not self.fits(system.layout):
            raise UserError(
                f"A system must write one stream of at least {len(Words())} words to learn spoken "
                "maths. Take `vocab_size` from `Words`."
            )
        if self.arrangement == "parallel" and _heard(system.layout) is None:
            raise UserError(
                "Only a system that hears a stream of words can hear and think in parallel: this "
                f"one has {', '.join(stream.name for stream in system.layout.streams)}."
            )
        self._check_sound(system.layout)
        return PreparedMaths(self, system.layout)

    def _check_sound(self, layout: Layout) -> None:
        heard = next(iter(layout.by_role(Role.HEARD)), None)
        width = 0 if heard is None or heard.is_discrete else heard.width
        wanted = opened_bank(self.bank).width if self.bank else 0
        if width != wanted or (self.bank and self.arrangement == "parallel"):
            raise UserError(
                f"A system that learns spoken maths must hear {wanted or 'no'} features, in rounds "
                f"if there are any: got {width} and the arrangement {self.arrangement!r}."
            )
        if self.bank:
            self._voices(held_out=False)
            self._voices(held_out=True)

    def _voices(self, *, held_out: bool) -> list[str]:
        """Return the voices of the bank that say the problems of a split."""
        takes = opened_bank(self.bank).takes
        if self.held_out_voice and held_out:
            voices = [voice for voice in takes if voice == self.held_out_voice]
        else:
            voices = [voice for voice in takes if voice != self.held_out_voice]
        if not voices:
            raise UserError(
                "A bank must have a voice to learn from, and the held-out one: "
                f"{self.bank} has {', '.join(takes) or 'none'}, and `held_out_voice` is "
                f"{self.held_out_voice!r}. Make a bank with more voices, or hold out another."
            )
        return voices

    def heard(self, number: int, *, held_out: bool = False) -> Heard:
        """Return a problem in time."""
        seed = self.seed + (HELD_OUT_SEED if held_out else 0)
        problem = self.task.problem(seed, number)
        if not self.bank:
            heard = at_rate(problem, self.words_per_s, seed, number, self.pace_spread)
            return misheard(heard, self.misheard, seed, number) if self.misheard else heard
        bank = opened_bank(self.bank)
        rng = Random(f"voice {seed} {number}")
        words, frames = bank.join(problem, self._voices(held_out=held_out), rng)
        return Heard(problem, words, words[-1].end_s, frames, FRAME_HZ)


@cache
def opened_bank(path: str) -> WordBank:
    """Return a bank, which is read once."""
    return read_bank(Path(path))


class PreparedMaths:
    """Rows of problems; a `counterpoint.data.source.PreparedSource`.

    Args:
        data: The data.
        layout: Streams of the system.
        numbered: Whether what sounds stays numbers of frames in the bank, which are small.
    """

    def __init__(self, data: SpokenMathsData, layout: Layout, *, numbered: bool = False) -> None:
        self.data = data
        self.layout = layout
        self.words = Words(data.marks)
        self._frames: Tensor | None = None
        if data.bank:
            bank = opened_bank(data.bank)
            self._frames = None if numbered else bank.frames
            self.layout = _numbered(layout, len(bank.stored))

    def batches(self, batch_rows: int, seed: int, rank: int = 0, world_size: int = 1) -> Loader:
        """Return the training batches, step by step; for the arguments see `Loader`."""
        return Loader(_PackedProblems(self), batch_rows, seed, rank, world_size)

    def held_out_units(self) -> HeldOutRows | None:
        """Return the held-out problems, or ``None`` if there are none."""
        return HeldOutRows(_HeldOutProblems(self)) if self.data.num_held_out else None

    def describe(self) -> str:
        """Return a phrase that says how much data there is."""
        return (
            f"spoken maths, {self.data.arrangement}, rows of {self.data.row_ticks} ticks, "
            f"{self.data.num_held_out} problems held out"
        )

    @property
    def fingerprint(self) -> Mapping[str, Mapping[str, Any]]:
        """Digest of the training data: of the options, the first problem, and the bank."""
        first = " ".join(self.data.heard(0).problem.words)
        facts = {"data": encode(self.data), "first": first}
        if self.data.bank:
            facts["bank"] = opened_bank(self.data.bank).digest
        return {"problems": {"train": json_digest(facts)}}

    def batch(self, heard: Heard) -> Batch:
        """Return one problem as a row."""
        return self.voiced(self.laid_out([self.told(heard)])[0])

    def told(self, heard: Heard) -> "Told":
        """Return a problem as ids: rounds, or what is heard and thought in every tick."""
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
        if heard.frames is not None:
            for part, chunk in zip(parts, chunks(heard, data.chunk_s), strict=False):
                part[HEARD] = heard.frames_of(chunk)
        num_elements = sum(len(elements) for one in parts for elements in one.values())
        return Told(self._length(num_elements), parts)

    def _length(self, num_words: int) -> int:
        """Return the number of ticks in which a problem is read: nothing follows its last word."""
        return schedule.next_column(self.layout, num_words) - 1

    def laid_out(self, problems: Sequence["Told"]) -> list[Batch]:
        """Return problems as rows, each of its own length."""
        if self.data.arrangement == "parallel":
            given = [one.rounds[0] for one in problems]
            ids = _side_by_side([one[THOUGHT] for one in given])
            heard = _side_by_side([one[HEARD] for one in given])
            batch = self._rows(ids, heard, ids != UNSET_ID)
        else:
            places = lay_out_rounds([one.rounds for one in problems])
            batch = self._rows(places.ids, places.heard, places.trained)
        return [_cut(batch, row, one.length) for row, one in enumerate(problems)]

    def padded(self, problems: Sequence[Heard]) -> Batch:
        """Return problems as rows of one length, the longest of them."""
        rows = self.laid_out([self.told(one) for one in problems])
        longest = max(one.document_start.shape[1] for one in rows)
        return self.voiced(join_batches([_packed([one], longest) for one in rows]))

    def _rows(self, ids: Tensor, heard: Tensor, trained: Tensor) -> Batch:
        written = _written(self.layout).name
        own = _heard(self.layout)
        content = {written: ids}
        if own is None:
            content[written] = torch.where(heard == UNSET_ID, ids, heard)
        else:
            content[own.name] = heard
        batch = schedule.lay_out(self.layout, content)
        targets = schedule.lay_out(
            self.layout, {**content, written: ids.masked_fill(~trained, UNSET_ID)}
        ).targets
        return replace(batch, targets=targets, elements={})

    def voiced(self, batch: Batch) -> Batch:
        """Return a batch with frames where it has their numbers."""
        if self._frames is None:
            return batch
        heard = next(iter(self.layout.by_role(Role.HEARD))).name
        return replace(batch, ticks={**batch.ticks, heard: self._frames[batch.ticks[heard]]})


class Told(NamedTuple):
    """A problem as ids.

    Attributes:
        length: Number of ticks of its row.
        rounds: Its rounds by stream; only one if both streams go on at once.
    """

    length: int
    rounds: list[dict[str, Tensor]]


class _PackedProblems:
    """Rows, each filled with problems of its own."""

    def __init__(self, prepared: PreparedMaths) -> None:
        self._prepared = prepared
        self._most = prepared.data.row_ticks // 24 + 1  # problems are longer than that

    def __len__(self) -> int:
        return self._prepared.data.num_rows

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """Return the rows with these numbers."""
        told = [self._row(int(index)) for index in indices]
        laid_out = self._prepared.laid_out([one for row in told for one in row])
        rows = []
        for row in told:
            rows.append(_packed(laid_out[: len(row)], self._prepared.data.row_ticks))
            laid_out = laid_out[len(row) :]
        return self._prepared.voiced(join_batches(rows))

    def _row(self, index: int) -> list[Told]:
        """Return the problems of a row: as many as fit."""
        data = self._prepared.data
        filled: list[Told] = []
        left = data.row_ticks
        for number in range(index * self._most, (index + 1) * self._most):
            one = self._prepared.told(data.heard(number))
            if one.length > left:
                break
            filled.append(one)
            left -= one.length
        if not filled:
            raise UserError(f"`row_ticks` must hold a problem: {data.row_ticks} is less than one.")
        return filled


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


def _packed(batches: Sequence[Batch], num_ticks: int) -> Batch:
    """Return several rows as one of ``num_ticks``, each a document; the rest is filled up."""
    lengths = [one.document_start.shape[1] for one in batches]
    left = num_ticks - sum(lengths)
    starts = [
        torch.full((1, length), sum(lengths[:number]))
        for number, length in enumerate([*lengths, left])
    ]
    whole = join_batches(batches, 1)
    return replace(
        whole,
        ticks={name: F.pad(ids, (0, left)) for name, ids in whole.ticks.items()},
        targets={
            name: F.pad(ids, (0, left), value=UNSET_ID) for name, ids in whole.targets.items()
        },
        document_start=torch.cat(starts, 1),
    )


def _side_by_side(rows: Sequence[Tensor]) -> Tensor:
    """Return ids of several problems as rows, filled up with `UNSET_ID`."""
    return pad_sequence(list(rows), batch_first=True, padding_value=UNSET_ID)


def _cut(batch: Batch, row: int, length: int) -> Batch:
    """Return the first ticks of one row of a batch."""
    cut = batch.mapped(lambda x: x[row : row + 1, :length])
    return replace(cut, size=sum(int((ids >= 0).sum()) for ids in cut.targets.values()))


def _written(layout: Layout) -> Stream:
    """Return the stream that a system of words writes."""
    return next(iter(layout.predicted))


def _numbered(layout: Layout, number: int) -> Layout:
    """Return a layout that hears numbers of frames instead of frames."""
    streams = (
        replace(one, vocab_size=number, width=None) if one.role == Role.HEARD else one
        for one in layout.streams
    )
    return replace(layout, streams=tuple(streams))


def _heard(layout: Layout) -> Stream | None:
    """Return the stream in which a system hears words; ``None`` if it has none."""
    return next((one for one in layout.by_role(Role.HEARD) if one.is_discrete), None)
