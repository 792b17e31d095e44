"""TREC questions with a coarse and a fine class: the whole and the detail of a short text."""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from counterpoint.data.tasks.items import (
    ExactMatch,
    Item,
    ItemPolicy,
    Replies,
    Writer,
    accuracy,
    divided,
    draw,
    is_scored,
    is_tuning,
)
from counterpoint.errors import UserError


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its classes.

    Attributes:
        text: The question.
        coarse: Its coarse class, such as "NUM".
        fine: Its fine class, such as "date"; it has a meaning only within the coarse one.
    """

    text: str
    coarse: str
    fine: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions(ExactMatch):
    """The kind of answer that a question asks for: one of 6 coarse and of 50 fine classes.

    The scores are "coarse"; "fine", given the right coarse class; "both"; and "consistent", the
    share of given fine classes that belong to the given coarse class. The whole is the coarse
    class. Seeds for scoring give the questions of ``test.txt`` in order; see `is_scored`. The
    questions of ``train.txt`` that do not stand there too, whatever their capitals and punctuation,
    are learned from, except a tenth, chosen by a hash of the question, on which settings are
    chosen; see `is_tuning`.

    Attributes:
        folder: Folder of both files, whose lines are "COARSE:fine question".

    Source: Li and Roth, Learning question classifiers (2002).
    """

    name: ClassVar[str] = "questions"
    primary: ClassVar[str] = "both"
    scoring: ClassVar[Mapping[str, str]] = MappingProxyType({"together": "both", "asked": "fine"})
    folder: str

    @property
    def most_symbols(self) -> int:
        """Largest number of symbols of an item; see `ScoredTask.most_symbols`."""
        return max(len(_item(one).text) for name in ("train", "test") for one in self._read(name))

    def item(self, seed: int, number: int) -> Item:
        """Return an item; test questions come in order, others at random; see `ScoredTask.item`."""
        if is_scored(seed):
            questions = self._scored(seed)
            return _item(questions[number % len(questions)])
        return _item(draw(seed, number).choice(self._read("learned")))

    def num_scored(self, seed: int) -> int:
        """Return the number of questions that a seed scores; see `FiniteTask.num_scored`."""
        return len(self._scored(seed))

    @property
    def files(self) -> Mapping[str, Path]:
        """Files that are read, by name; see `counterpoint.data.tasks.named.ReadsFiles`."""
        return {f"{name}.txt": Path(self.folder) / f"{name}.txt" for name in ("train", "test")}

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return policies by name; "oracle" answers with the labels; see `ScoredTask.policies`."""
        by_word: dict[tuple[str, ...], Counter[tuple[str, str]]] = {}
        for one in self._read("train"):
            for words in ((), tuple(one.text.split()[:1]), tuple(one.text.split()[:2])):
                by_word.setdefault(words, Counter())[one.coarse, one.fine] += 1

        def first_words(count: int) -> ItemPolicy:
            def policy(item: Item, rng: random.Random) -> Replies:
                words = tuple(item.text.split()[:count])
                while words not in by_word:
                    words = words[:-1]
                return dict(enumerate(by_word[words].most_common(1)[0][0]))

            return policy

        return {
            "oracle": lambda item, rng: dict(enumerate(one.text for one in item.answers)),
            "most frequent in training": first_words(0),
            "first word": first_words(1),
            "first two words": first_words(2),
        }

    def score(self, items: Sequence[Item], given: Sequence[Replies]) -> dict[str, float]:
        """Return the scores of answers; see `ScoredTask.score`."""
        pairs = {(one.coarse, one.fine) for one in self._read("train")}
        told = [(answers.get(0, ""), answers.get(1, "")) for answers in given]
        both = [self.counts(*pair)[0] for pair in zip(items, given, strict=True)]
        return {
            **accuracy(items, given),
            "both": sum(both) / max(len(items), 1),
            "consistent": sum(pair in pairs for pair in told) / max(len(items), 1),
        }

    def counts(self, item: Item, given: Replies) -> tuple[int, int]:
        """Return the numerator and denominator of an item; see `ScoredTask.counts`."""
        return int(all(given.get(i) == one.text for i, one in enumerate(item.answers))), 1

    def _scored(self, seed: int) -> Sequence[Question]:
        return self._read("tuned" if is_tuning(seed) else "test")

    def _read(self, name: str) -> Sequence[Question]:
        if name in ("learned", "tuned"):
            return _divided(self.folder)[name]
        return _questions(str(self.files[f"{name}.txt"]))


def _item(question: Question) -> Item:
    writer = Writer()
    writer.write(question.text + "\n")
    writer.label(question.coarse)
    writer.answer("coarse", question.coarse)
    writer.write(":")
    writer.answer("fine", question.fine)
    return writer.item()


@lru_cache(maxsize=4)
def _divided(folder: str) -> Mapping[str, Sequence[Question]]:
    """Return the questions that are learned from, and those on which settings are chosen.

    Raises:
        UserError: None is left to learn from.
    """
    questions = Questions(folder=folder)
    asked = set(map(_words, questions._read("test")))
    own = [one for one in questions._read("train") if _words(one) not in asked]
    return divided(own, _words, str(questions.files["train.txt"]))


def _words(question: Question) -> str:
    """Return the words of a question, by which it is known in other capitals too."""
    return " ".join(re.findall(r"[a-z0-9]+", question.text.lower()))


@lru_cache(maxsize=8)
def _questions(path: str) -> tuple[Question, ...]:
    if not Path(path).is_file():
        raise UserError(f"A folder of questions must have train.txt and test.txt: no {path!r}.")
    questions = []
    # The files are Latin-1; one letter of one question is not ASCII.
    for number, line in enumerate(Path(path).read_text("latin-1").splitlines(), 1):
        label, _, text = line.encode("ascii", "replace").decode().partition(" ")
        coarse, colon, fine = label.partition(":")
        if not (colon and fine and text):
            raise UserError(
                f"{path}, line {number}, must be a class and a question, such as "
                f'"NUM:date When was he born ?": got {line[:40]!r}.'
            )
        questions.append(Question(text, coarse, fine))
    if not questions:
        raise UserError(f"{path!r} must have a class and a question in every line: it has no line.")
    return tuple(questions)
