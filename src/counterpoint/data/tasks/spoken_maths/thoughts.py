"""What somebody thinks who computes along with a spoken problem, word by word.

There are three styles, which say the same with more or fewer words. What follows is the thought
about "forty seven plus twenty three is sixty nine", the first step of a solution that should say
seventy; numbers have their ones first.

    style      after the story           after the solution
    plain      7 4 + 3 2 = 0 7           7 4 + 3 2 = 9 6 [INTERRUPT]
    checked    one 7 4 + 3 2 = 0 7       one 7 4 ok + ok 3 2 ok 9 6 [INTERRUPT]
    recalled   one 7 4 + 3 2 = 0 7       one 7 4 7 4 ok + + ok 3 2 3 2 ok 9 6 0 7 [INTERRUPT]

In the plain style one word says whether seven others are those of an earlier thought. In the other
styles each number and the operation have a word of their own, and the number of the step names the
earlier thought. In the recalled style what is known is repeated beside what was said, so nothing
has to be compared over a distance.
"""

from typing import Literal, NamedTuple

from counterpoint.data.tasks.spoken_maths.numbers import MOST, digits, spoken

Operation = Literal["plus", "minus", "times"]
Style = Literal["plain", "checked", "recalled"]
WordKind = Literal["index", "carried", "told", "sign", "computed", "said", "known", "verdict"]

SIGNS: dict[Operation, str] = {"plus": "+", "minus": "-", "times": "x"}

OK = "ok"
WRONG = "[INTERRUPT]"
"""End of the thought about a wrong step: the mark of an interruption."""


class Step(NamedTuple):
    """A step of a computation: ``a operation b``.

    Attributes:
        a: First operand, in a problem of several steps the result of the step before.
        operation: What is computed.
        b: Second operand.
    """

    a: int
    operation: Operation
    b: int

    @property
    def result(self) -> int:
        """The right result of the step."""
        if self.operation == "plus":
            return self.a + self.b
        return self.a - self.b if self.operation == "minus" else self.a * self.b

    @property
    def is_fair(self) -> bool:
        """Whether all numbers can be said and thought, and the result is not trivial."""
        return 1 <= self.a <= MOST and self.b >= 2 and 1 <= self.result <= MOST


class Thought(NamedTuple):
    """Words of a thought, and what each is.

    Attributes:
        words: The words.
        kinds: "index": number of a step. "carried": digit of the result before. "told": digit that
            was told, and in the solution "said". "sign": operation or "=". "computed": digit of the
            right result. "known": word of an earlier thought, repeated. "verdict": `OK` or `WRONG`.
    """

    words: tuple[str, ...] = ()
    kinds: tuple[WordKind, ...] = ()

    def then(self, words: list[str], kind: WordKind) -> "Thought":
        """Return the thought with more words."""
        return Thought((*self.words, *words), (*self.kinds, *[kind] * len(words)))


def thought_of_start(number: int) -> Thought:
    """Return the thought about the first number that is told."""
    return Thought().then(digits(number), "told")


def thought_of_change(step: Step, number: int, style: Style) -> Thought:
    """Return the thought about a change that is told; ``number`` is that of its step."""
    return (
        _index(number, style)
        .then(digits(step.a), "carried")
        .then([SIGNS[step.operation]], "sign")
        .then(digits(step.b), "told")
        .then(["="], "sign")
        .then(digits(step.result), "computed")
    )


def thought_of_solution(said: Step, result: int, right: Step, number: int, style: Style) -> Thought:
    """Return the thought about a step that is said, which ends with the first error.

    Args:
        said: The step as it is said.
        result: Its result as it is said.
        right: The step as it should be.
        number: Number of the step.
        style: Style of the thought.
    """
    parts = [
        (digits(said.a), digits(right.a)),
        ([SIGNS[said.operation]], [SIGNS[right.operation]]),
        (digits(said.b), digits(right.b)),
        (digits(result), digits(right.result)),
    ]
    thought = _index(number, style)
    if style == "plain":
        for heard, _ in parts[:3]:
            thought = thought.then(heard, "said")
        thought = thought.then(["="], "sign").then(parts[3][0], "said")
        return thought.then([OK if all(a == b for a, b in parts) else WRONG], "verdict")
    for heard, known in parts:
        thought = thought.then(heard, "said")
        if style == "recalled":
            thought = thought.then(known, "known")
        thought = thought.then([OK if heard == known else WRONG], "verdict")
        if heard != known:
            break
    return thought


def _index(number: int, style: Style) -> Thought:
    return Thought() if style == "plain" else Thought().then(spoken(number), "index")
