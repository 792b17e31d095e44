"""An item that shows its reasoning, and the judgement of a solution to its question."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from counterpoint.data.tasks.items import Item
from counterpoint.data.tasks.reasoning.families import FAMILIES
from counterpoint.data.tasks.reasoning.family import Verdict, check_solution, written_answer
from counterpoint.data.tasks.reasoning.gym_verifier import ENTRY, gym_reward
from counterpoint.data.tasks.verify import SUCCESS


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


def judge(
    item: ReasoningItem, solution: str, score: Callable[[Item, str], float] = gym_reward
) -> Verdict:
    """Judge a solution to the question of an item; see `check_solution`.

    Questions of reasoning-gym have no steps that could be checked, and so none that are needed.

    Args:
        item: The item.
        solution: What was written after the prompt.
        score: Scores an answer to a question of reasoning-gym. It may raise or hang, as the
            package's verifiers do for some texts, unless it is guarded as by
            `counterpoint.data.tasks.verify.TimedVerifier`.
    """
    if ENTRY in item.facts:
        return Verdict(
            is_right=score(item, solution) >= SUCCESS,
            is_ended=written_answer(solution) is not None,
            num_steps=0,
            num_valid=0,
            num_needed=0,
        )
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
