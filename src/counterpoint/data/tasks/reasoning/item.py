"""An item that shows its reasoning, and the judgement of a solution to its question."""

from collections.abc import Mapping
from dataclasses import dataclass

from counterpoint.data.tasks.items import Item
from counterpoint.data.tasks.reasoning.families import FAMILIES
from counterpoint.data.tasks.reasoning.family import Verdict, check_solution


@dataclass(frozen=True, slots=True)
class ReasoningItem(Item):
    """A question, the steps to its answer, and the answer.

    The text is the question, a line break, the steps, each ended by ";", "#", the answer and a line
    break. The one `answers` of the item is what is written after "#", right or wrong.

    Attributes:
        family: Name of the family.
        template: Number of the wording of the question within the family.
        operations: Number of operations for which the question was made.
        shape: Number of the shape; two questions of a family with equal operations and shape differ
            only in their values and their wording.
        is_correct: Whether the answer is right.
        thought_start: Place of the first symbol after the question.
        answer_start: Place of the "#".
        id: Digest of the text: items with the same id are the same.
    """

    family: str = ""
    template: int = 0
    operations: int = 0
    shape: int = 0
    is_correct: bool = True
    thought_start: int = 0
    answer_start: int = 0
    id: str = ""

    @property
    def spans(self) -> Mapping[str, tuple[int, int]]:
        """First and last place (exclusive) of "prompt", "thought" and "answer" in the text."""
        return {
            "prompt": (0, self.thought_start),
            "thought": (self.thought_start, self.answer_start),
            "answer": (self.answer_start, len(self.text)),
        }

    @property
    def prompt(self) -> str:
        """The question with its line break: what a model is given."""
        return self.text[: self.thought_start]

    @property
    def solution(self) -> str:
        """Everything after the prompt: what a model has to write."""
        return self.text[self.thought_start :]


def judge(item: ReasoningItem, solution: str) -> Verdict:
    """Judge a solution to the question of an item; see `check_solution`."""
    family = FAMILIES[item.family]
    return check_solution(family, family.statement_of(item.prompt[:-1]), solution)


def answer_reward(item: ReasoningItem, solution: str) -> float:
    """Return 1 if a solution ends with the right answer, otherwise 0."""
    return float(judge(item, solution).is_right)


def process_reward(item: ReasoningItem, solution: str) -> float:
    """Return 1 if the answer is right after every step that is needed, all valid, otherwise 0.

    So nothing is gained by leaving steps out.
    """
    return float(judge(item, solution).is_complete)
