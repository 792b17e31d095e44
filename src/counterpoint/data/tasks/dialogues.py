"""Task dialogues with state (SGD): the utterances are the part, intent and slots are the whole."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from counterpoint.data.tasks.items import (
    ExactMatch,
    Item,
    ItemPolicy,
    Replies,
    Writer,
    divided,
    draw,
    is_scored,
    is_tuning,
)
from counterpoint.errors import UserError
from counterpoint.files import read_json_lines


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialogues(ExactMatch):
    """Dialogues of a user and a system, with the acts before each utterance of the system.

    The questions are "act", the next act of the system; "said", its words; and after the dialogue
    "slot", the values that the user gave, word for word. The whole is the user's intent and the
    slots that have been filled so far. Seeds for scoring give the dialogues of ``dev.jsonl`` in
    order; see `is_scored`. Those of ``train.jsonl`` are learned from, except a tenth, chosen by a
    hash of the dialogue, on which settings are chosen; see `is_tuning`.

    Attributes:
        folder: Folder of both files, which have one dialogue a line.
        most: Largest number of symbols of a dialogue; turns that do not fit are left out.
        label_symbols: Largest number of symbols of a label; longer labels are cut.

    Source: Schema-Guided Dialogue (arXiv:1909.05855).
    """

    name: ClassVar[str] = "dialogues"
    primary: ClassVar[str] = "slot"
    folder: str
    most: int = 2000
    label_symbols: int = 24

    @property
    def most_symbols(self) -> int:
        """Largest number of symbols of an item; see `ScoredTask.most_symbols`."""
        return self.most

    def item(self, seed: int, number: int) -> Item:
        """Return an item: scored dialogues in order, others at random; see `ScoredTask.item`."""
        if is_scored(seed):
            dialogues = self._scored(seed)
            return self._item(dialogues[number % len(dialogues)])
        return self._item(draw(seed, number).choice(self._read("learned")))

    def num_scored(self, seed: int) -> int:
        """Return the number of dialogues that a seed scores; see `FiniteTask.num_scored`."""
        return len(self._scored(seed))

    def learned_items(self) -> list[Item]:
        """Return the items of all dialogues that are learned from."""
        return [self._item(dialogue) for dialogue in self._read("learned")]

    @property
    def files(self) -> Mapping[str, Path]:
        """Files that are read, by name; see `counterpoint.data.tasks.named.ReadsFiles`."""
        return {f"{name}.jsonl": Path(self.folder) / f"{name}.jsonl" for name in ("train", "dev")}

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return the oracle, and a policy that knows the most frequent answers of training."""
        values: dict[str, Counter[str]] = {}
        acts: Counter[str] = Counter()
        for dialogue in self._read("train"):
            for turn in dialogue:
                acts[_acts(turn)] += turn["speaker"] == "system"
                for slot, value in _slots(turn).items():
                    values.setdefault(slot, Counter())[value] += 1

        def most_frequent(item: Item, rng: random.Random) -> Replies:
            given = {}
            for number, one in enumerate(item.answers):
                if one.kind == "act":
                    given[number] = acts.most_common(1)[0][0]
                elif one.kind == "slot":
                    slot = item.text[: one.start].rsplit("\n", 1)[-1].removesuffix("=")
                    given[number] = values.get(slot, Counter("?")).most_common(1)[0][0]
            return given

        return {
            "oracle": lambda item, rng: dict(enumerate(one.text for one in item.answers)),
            "most frequent in training": most_frequent,
        }

    def _item(self, dialogue: list[dict[str, Any]]) -> Item:
        writer = Writer()
        slots: dict[str, str] = {}
        for turn in dialogue:
            found = slots | _slots(turn)
            asked = sum(len(slot) + len(value) + 2 for slot, value in found.items())
            more = len(turn["text"]) + len(_acts(turn)) + 6
            if len(writer.text) + more + asked > self.most:
                break
            slots = found
            if turn["speaker"] == "user":
                writer.write(f"U: {turn['text']}\n")
                writer.label(f"{_intent(turn)}|{','.join(slots)}"[: self.label_symbols])
            else:
                writer.write("S [")
                writer.answer("act", _acts(turn))
                writer.write("] ")
                writer.answer("said", turn["text"])
                writer.write("\n")
        for slot, value in slots.items():
            writer.write(f"{slot}=")
            writer.answer("slot", value)
            writer.write("\n")
        return writer.item()

    def _scored(self, seed: int) -> Sequence[list[dict[str, Any]]]:
        return self._read("tuned" if is_tuning(seed) else "dev")

    def _read(self, name: str) -> Sequence[list[dict[str, Any]]]:
        if name in ("learned", "tuned"):
            return _divided(str(self.files["train.jsonl"]))[name]
        return _dialogues(str(self.files[f"{name}.jsonl"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosedActs(ExactMatch):
    """Dialogues in which the bracket behind an act belongs to the answer.

    A system that learns answers only then learns where an act ends, as it must if it is to write
    acts by itself.

    Attributes:
        dialogues: The dialogues.
    """

    name: ClassVar[str] = "closed_acts"
    primary: ClassVar[str] = "act"
    dialogues: Dialogues

    @property
    def most_symbols(self) -> int:
        """Largest number of symbols of an item; see `ScoredTask.most_symbols`."""
        return self.dialogues.most

    def item(self, seed: int, number: int) -> Item:
        """Return an item; see `Dialogues.item`."""
        return _closed(self.dialogues.item(seed, number))

    def num_scored(self, seed: int) -> int:
        """Return the number of dialogues that a seed scores; see `FiniteTask.num_scored`."""
        return self.dialogues.num_scored(seed)

    def learned_items(self) -> list[Item]:
        """Return the items of all dialogues that are learned from."""
        return [_closed(item) for item in self.dialogues.learned_items()]

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return the policy that knows the answers; see `ScoredTask.policies`."""
        return {"oracle": lambda item, rng: dict(enumerate(one.text for one in item.answers))}


def _closed(item: Item) -> Item:
    answers = [
        replace(one, text=one.text + "]") if one.kind == "act" else one for one in item.answers
    ]
    return replace(item, answers=tuple(answers))


def _acts(turn: Mapping[str, Any]) -> str:
    return " ".join(act for frame in turn["frames"] for act in frame["acts"])


def _intent(turn: Mapping[str, Any]) -> str:
    """Return the newest intent after a turn of the user; empty if there is none."""
    if turn["speaker"] != "user":
        return ""
    return turn["frames"][-1]["intent"] or ""


def _slots(turn: Mapping[str, Any]) -> dict[str, str]:
    """Return the slots that are filled after a turn of the user."""
    if turn["speaker"] != "user":
        return {}
    return {slot: value for frame in turn["frames"] for slot, value in frame["slots"].items()}


@lru_cache(maxsize=4)
def _divided(path: str) -> Mapping[str, Sequence[list[dict[str, Any]]]]:
    """Return the dialogues that are learned from, and those on which settings are chosen."""
    return divided(_dialogues(path), str, path)


@lru_cache(maxsize=4)
def _dialogues(path: str) -> list[list[dict[str, Any]]]:
    """Return the turns of every dialogue of a file."""
    if not Path(path).is_file():
        raise UserError(f"A folder of dialogues must have train.jsonl and dev.jsonl: no {path!r}.")
    found = []
    for place, record in read_json_lines(Path(path)):
        try:
            turns = list(record["turns"])
            for turn in turns:
                "".join((*_slots(turn), *_slots(turn).values(), turn["text"])).encode("ascii")
                "".join((_intent(turn), _acts(turn))).encode("ascii")
        except (KeyError, TypeError, AttributeError, IndexError, UnicodeEncodeError) as problem:
            raise UserError(
                f"{place} must be a dialogue: `turns` with `speaker`, `text`, and one or more "
                "`frames` of `intent`, `slots` and `acts`, all in ASCII."
            ) from problem
        found.append(turns)
    if not found:
        raise UserError(f"{path!r} must have one dialogue a line: it has none.")
    return found
