"""What a model of spoken maths has learned: bits and right words by kind of word, teacher-forced.

A model that interrupts nobody may fail anywhere: in copying what was told, in computing, or in
comparing. Every trained word of held-out problems belongs to one kind, and each kind is measured.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

from counterpoint.data.tasks.spoken_maths.hearing import NOTHING, Heard
from counterpoint.data.tasks.spoken_maths.source import PreparedMaths, SpokenMathsData
from counterpoint.data.tasks.spoken_maths.thoughts import OK, WRONG
from counterpoint.errors import UserError
from counterpoint.streams.spec import UNSET_ID, Layout
from counterpoint.systems.contract import System


class KindScore(NamedTuple):
    """How well words of a kind are predicted.

    Attributes:
        number: Number of words.
        bits: Mean bits a word.
        right: Share of the words that are the likeliest.
    """

    number: int
    bits: float
    right: float


def kinds_of(heard: Heard, written: Sequence[str], data: SpokenMathsData) -> list[str]:
    """Return the kind of each word that is written about a problem.

    Beside the kinds of `Thought` there are "ok" and "interrupt" for verdicts, "close" for the end
    of a thought, "nothing" and "answer".
    """
    marks = data.marks
    thoughts = _thoughts(heard) if data.arrangement != "silent" else iter(())
    kinds = []
    is_answer = False
    for word in written:
        if is_answer:
            kinds.append("answer")
        elif word in (marks.close, NOTHING):
            kinds.append("close" if word == marks.close else "nothing")
        elif word in (OK, WRONG):
            next(thoughts, None)
            kinds.append("ok" if word == OK else "interrupt")
        else:
            thought, kind = next(thoughts, ("", "answer"))
            if thought == WRONG:  # in the last chunk, where nobody can be interrupted
                thought, kind = next(thoughts, ("", "answer"))
            is_answer = thought != word
            kinds.append("answer" if is_answer else kind)
    return kinds


def _thoughts(heard: Heard) -> Iterator[tuple[str, str]]:
    """Return the words that are thought about a problem until its first error, with their kinds."""
    for clause in heard.problem.clauses:
        yield from zip(clause.about.words, clause.about.kinds, strict=True)
        if clause.thought[-1:] == (WRONG,):
            return


class KindScorer:
    """Scores systems by kind of word, on problems that are laid out once.

    Args:
        layout: Streams of the systems.
        data: The arrangement in which they learned.
        problems: Problems from which they did not learn.
        device: Device of the systems.
    """

    def __init__(
        self,
        layout: Layout,
        data: SpokenMathsData,
        problems: Sequence[Heard],
        device: torch.device | str = "cpu",
    ) -> None:
        (self._stream,) = (stream.name for stream in layout.predicted)
        self._batch = PreparedMaths(data, layout).padded(problems).to(device)
        targets = self._batch.targets[self._stream]
        words = data.words
        if not words.one_each:
            raise UserError(
                "Only words of one id each have kinds: these data write tokens. Leave out "
                "`tokenizer`."
            )
        kinds = []
        for row, heard in zip(targets.cpu(), problems, strict=True):
            written = words.decode(row[row != UNSET_ID].numpy()).split()
            kinds += kinds_of(heard, written, data)
        self.kinds = sorted(set(kinds))
        self._kinds = torch.tensor([self.kinds.index(kind) for kind in kinds], device=device)
        self._trained = targets != UNSET_ID

    @torch.no_grad()
    def score(self, system: System) -> dict[str, KindScore]:
        """Return the scores of a system, in evaluation mode, by kind of word."""
        scores = system(self._batch)[self._stream].float()[self._trained]
        targets = self._batch.targets[self._stream][self._trained]
        bits = functional.cross_entropy(scores, targets, reduction="none") / math.log(2)
        right = (scores.argmax(-1) == targets).float()
        number = len(self.kinds)
        counts = torch.bincount(self._kinds, minlength=number)
        sums = (torch.bincount(self._kinds, one, number) / counts for one in (bits, right))
        rows = zip(self.kinds, counts.tolist(), *(one.tolist() for one in sums), strict=True)
        return {kind: KindScore(count, *values) for kind, count, *values in rows}
