"""Word problems with spoken solutions, and the thoughts of somebody who computes along.

A problem tells how many things somebody has and how that number changes, two or three times. Then
the solution says one step a change. In half of the problems one step is wrong: its result, an
operand or the operation. The first word by which it differs from the right step is known, so the
latency of an interruption is exact. Thoughts are written by the program that made the problem: what
was told in digits, the right result of each change, what was said in each step, and "ok" or the
mark of an interruption.

Held-out problems have sentences and pairs of operands about which nothing is thought in training.
Sentences of training are all combinations of some parts but for the held-out ones, so every two
neighbouring words of a held-out sentence and all digits occur there. Only what is said after a
wrong step, which nobody thinks about, may be such a pair of operands.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Literal, NamedTuple

from counterpoint.data.tasks.items import draw, is_scored
from counterpoint.data.tasks.spoken_maths.numbers import MOST, NUMBER_WORDS, spoken
from counterpoint.data.tasks.spoken_maths.thoughts import (
    OK,
    SIGNS,
    Operation,
    Step,
    Style,
    Thought,
    thought_of_change,
    thought_of_solution,
    thought_of_start,
)
from counterpoint.errors import UserError
from counterpoint.literals import literals_checked

Fault = Literal["result", "operand", "operation"]

OPERATIONS: tuple[Operation, ...] = ("plus", "minus", "times")
FAULTS: tuple[Fault, ...] = ("result", "operand", "operation")

HELD_OUT_SHARE = 8
"""One of so many pairs of operands is held out, for each operation."""

_MOST_ATTEMPTS = 60
_MOST_FAULTS = 1000

NAMES = ["tom", "anna", "ben", "lucy", "max", "sara", "paul", "emma"]
FRIENDS = ["jack", "mary", "peter", "kate"]
THINGS = ["apples", "books", "coins", "cards", "shells", "stamps", "pencils", "marbles"]

_HELD_OUT_STARTS = ("at first {name} owns {a} {things}",)
_HELD_OUT_CHANGES: dict[Operation, tuple[str, ...]] = {
    "plus": (
        "then {name} gets {b} more {things}",
        "after that {name} finds {b} more {things}",
        "then {friend} gives {name} {b} more {things}",
    ),
    "minus": (
        "then {name} loses {b} of the {things}",
        "after that {friend} takes {b} {things}",
        "{name} sells {b} of the {things}",
    ),
    "times": ("after that {name} has {b} times as many {things}",),
}
_HELD_OUT_QUESTIONS = ("how many {things} are there now here is my solution",)
_HELD_OUT_STEPS: dict[Operation, tuple[str, ...]] = {
    "plus": ("then {a} plus {b} make {r} {things}", "now i add {a} and {b} and get {r} {things}"),
    "minus": ("then {a} minus {b} leaves {r} {things}", "{a} less {b} is {r} {things}"),
    "times": ("then {a} times {b} is {r} {things}",),
}


def _sentences(*parts: Sequence[str], but: Sequence[str]) -> tuple[str, ...]:
    """Return all sentences with one of each of the parts, but for those that are held out."""
    all_of_them = (" ".join(filter(None, chosen)) for chosen in product(*parts))
    return tuple(one for one in all_of_them if one not in but)


_LEADS = ("", "then", "after that", "now")
_STARTS = _sentences(
    ("", "at first"), ("{name} has", "{name} owns"), ("{a} {things}",), but=_HELD_OUT_STARTS
)
_CHANGES: dict[Operation, tuple[str, ...]] = {
    "plus": _sentences(
        _LEADS,
        ("{name} buys", "{name} finds", "{name} gets", "{friend} gives {name}"),
        ("{b} {things}", "{b} more {things}"),
        but=_HELD_OUT_CHANGES["plus"],
    ),
    "minus": _sentences(
        _LEADS,
        ("{name} loses", "{name} sells", "{name} gives {friend}", "{friend} takes"),
        ("{b} {things}", "{b} of the {things}"),
        but=_HELD_OUT_CHANGES["minus"],
    ),
    "times": _sentences(
        _LEADS,
        ("{name} has {b} times as many {things}", "the number of {things} grows {b} times"),
        but=_HELD_OUT_CHANGES["times"],
    ),
}
_QUESTIONS = _sentences(
    (
        "how many {things} does {name} have now",
        "how many {things} are there now",
        "what is the number of {things} now",
    ),
    ("here is my solution", "i solve it like this"),
    but=_HELD_OUT_QUESTIONS,
)
_STEP_LEADS = ("", "then", "now")
_STEPS: dict[Operation, tuple[str, ...]] = {
    "plus": _sentences(
        _STEP_LEADS,
        ("{a} plus {b} is", "{a} plus {b} make", "i add {a} and {b} and get", "{a} and {b} make"),
        ("{r} {things}",),
        but=_HELD_OUT_STEPS["plus"],
    ),
    "minus": _sentences(
        _STEP_LEADS,
        (
            "{a} minus {b} is",
            "{a} minus {b} leaves",
            "i take {b} from {a} and get",
            "{a} less {b} is",
            "{a} less {b} leaves",
        ),
        ("{r} {things}",),
        but=_HELD_OUT_STEPS["minus"],
    ),
    "times": _sentences(
        _STEP_LEADS,
        ("{a} times {b} is", "i take {a} times {b} and get"),
        ("{r} {things}",),
        but=_HELD_OUT_STEPS["times"],
    ),
}

_ENDS = ("so the answer is {r} {things}",)


def is_held_out(step: Step) -> bool:
    """Return whether no training problem has this step."""
    return zlib.crc32(f"{step.a} {step.operation} {step.b}".encode()) % HELD_OUT_SHARE == 0


class Clause(NamedTuple):
    """A part of what is said, and what is thought once it is complete.

    Attributes:
        words: What is said.
        about: What is thought about it; the last word is `OK` or `WRONG` after a step.
        step: Number of the step that it says, counted from 1; 0 if it says none.
    """

    words: tuple[str, ...]
    about: Thought = Thought()
    step: int = 0

    @property
    def thought(self) -> tuple[str, ...]:
        """The words of what is thought about it."""
        return self.about.words


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A spoken problem with its solution.

    Attributes:
        clauses: What is said, in order.
        steps: The right steps.
        things: What is counted.
        fault: What is wrong; ``None`` if nothing is.
        wrong_step: Number of the wrong step, counted from 1; 0 if none is wrong.
        wrong_word: Place of the first wrong word among all words; -1 if none is wrong.
    """

    clauses: tuple[Clause, ...]
    steps: tuple[Step, ...]
    things: str
    fault: Fault | None = None
    wrong_step: int = 0
    wrong_word: int = -1

    @property
    def words(self) -> list[str]:
        """All words that are said."""
        return [word for clause in self.clauses for word in clause.words]

    @property
    def correction(self) -> list[str]:
        """The answer that interrupts: which step is wrong, and what it should be."""
        step = self.steps[self.wrong_step - 1]
        said = [*spoken(step.a), step.operation, *spoken(step.b), "is", *spoken(step.result)]
        return ["wait", "step", *spoken(self.wrong_step), "is", "wrong", *said]

    @property
    def agreement(self) -> list[str]:
        """The answer after a right solution."""
        return ["yes", "the", "answer", "is", *spoken(self.steps[-1].result)]


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class SpokenMaths:
    """The generator of problems; each is a pure function of a seed and a number.

    Attributes:
        operations: Operations of the steps.
        faults: Kinds of errors.
        min_steps: Smallest number of steps.
        max_steps: Largest number of steps, at most 9.
        wrong_share: Share of the problems with an error.
        style: How thoughts are written; see `thoughts`.
        tokenizer: Language model in whose tokens all words are written, a folder or a GGUF file, or
            a file of a tokeniser; the marks are the ids after its own. Empty for one id a word.
    """

    operations: tuple[Operation, ...] = OPERATIONS
    faults: tuple[Fault, ...] = FAULTS
    min_steps: int = 2
    max_steps: int = 3
    wrong_share: float = 0.5
    style: Style = "recalled"
    tokenizer: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.min_steps <= self.max_steps <= 9:
            raise UserError(
                "`min_steps` and `max_steps` must be 1 to 9, in this order: got "
                f"{self.min_steps} and {self.max_steps}."
            )
        if not set(self.operations) <= set(OPERATIONS) or not self.operations:
            raise UserError(f"`operations` must be some of {', '.join(OPERATIONS)}.")
        if not set(self.faults) <= set(FAULTS) or not self.faults:
            raise UserError(f"`faults` must be some of {', '.join(FAULTS)}.")

    def problem(self, seed: int, number: int) -> Problem:
        """Return a problem; seeds for scoring give held-out ones (`is_scored`)."""
        rng = draw(seed, number)
        held_out = is_scored(seed)
        problem = None
        while problem is None:  # few steps allow no error
            problem = self._drawn(rng, held_out)
        return problem

    def _drawn(self, rng: Random, held_out: bool) -> Problem | None:
        """Draw a problem; ``None`` if its steps allow no error."""
        steps = self._steps(rng, held_out)
        teller = _Teller(rng, held_out, self.style)
        told = teller.story(steps)
        if rng.random() >= self.wrong_share:
            clauses = (*told, *teller.solution(steps, steps), teller.end(steps[-1].result))
            return Problem(clauses=clauses, steps=steps, things=teller.things)
        return self._with_fault(rng, teller, told, steps)

    def _steps(self, rng: Random, held_out: bool) -> tuple[Step, ...]:
        number = rng.randint(self.min_steps, self.max_steps)
        while True:  # most attempts succeed
            steps: list[Step] = []
            total = rng.randint(5, 60)
            for _ in range(number):
                step = self._step(rng, total, held_out)
                if step is None:
                    break
                steps.append(step)
                total = step.result
            if len(steps) == number:
                return tuple(steps)

    def _step(self, rng: Random, total: int, held_out: bool) -> Step | None:
        """Return a step from a total; ``None`` if none was found."""
        for _ in range(_MOST_ATTEMPTS):
            operation = rng.choice(self.operations)
            step = Step(total, operation, rng.randint(2, 4 if operation == "times" else 45))
            if step.is_fair and is_held_out(step) == held_out:
                return step
        return None

    def _with_fault(
        self, rng: Random, teller: "_Teller", told: Sequence[Clause], steps: tuple[Step, ...]
    ) -> Problem | None:
        """Return the problem with one wrong step, from whose result the steps after it go on.

        It is ``None`` if no error was found after which all numbers can be said.
        """
        wrong = rng.randrange(len(steps))
        for _ in range(_MOST_FAULTS):
            fault = rng.choice(self.faults)
            said, result = _spoiled(rng, steps[wrong], fault)
            later = _continued(result, steps[wrong + 1 :])
            is_known = teller.held_out or not is_held_out(said)
            if said.is_fair and is_known and 1 <= result <= MOST and later is not None:
                break
        else:
            return None
        all_said = (*steps[:wrong], said, *later)
        solution = teller.solution(all_said, steps, {wrong + 1: result})
        before = sum(len(clause.words) for clause in (*told, *solution[:wrong]))
        at = teller.first_wrong_word(solution[wrong].words, steps[wrong])
        last = later[-1].result if later else result
        return Problem(
            clauses=(*told, *solution, teller.end(last)),
            steps=steps,
            things=teller.things,
            fault=fault,
            wrong_step=wrong + 1,
            wrong_word=before + at,
        )


def _spoiled(rng: Random, step: Step, fault: Fault) -> tuple[Step, int]:
    """Return a step as it is wrongly said, and the result that is said."""
    off = rng.choice((1, 2, 3, 10, 20)) * rng.choice((-1, 1))
    if fault == "result":
        return step, step.result + off
    if fault == "operand":
        said = (
            step._replace(a=step.a + off) if rng.random() < 0.5 else step._replace(b=step.b + off)
        )
    else:
        others: list[Operation] = [one for one in OPERATIONS if one != step.operation]
        said = step._replace(operation=rng.choice(others))
    return said, said.result


def _continued(result: int, steps: Sequence[Step]) -> list[Step] | None:
    """Return the later steps from another result; ``None`` if a number leaves the range."""
    later = []
    for step in steps:
        later.append(step._replace(a=result))
        result = later[-1].result
        if not later[-1].is_fair:
            return None
    return later


class _Teller:
    """Puts one problem into words."""

    def __init__(self, rng: Random, held_out: bool, style: Style) -> None:
        self.rng = rng
        self.held_out = held_out
        self.style = style
        self.things = rng.choice(THINGS)
        self.names = {"name": rng.choice(NAMES), "things": self.things}

    def story(self, steps: Sequence[Step]) -> list[Clause]:
        """Return the problem and the question."""
        start = self._fill(self._one(_STARTS, _HELD_OUT_STARTS), a=steps[0].a)
        clauses = [Clause(start, thought_of_start(steps[0].a))]
        for number, step in enumerate(steps, 1):
            frame = self._one(_CHANGES[step.operation], _HELD_OUT_CHANGES[step.operation])
            words = self._fill(frame, b=step.b, friend=self.rng.choice(FRIENDS))
            clauses.append(Clause(words, thought_of_change(step, number, self.style)))
        return [*clauses, Clause(self._fill(self._one(_QUESTIONS, _HELD_OUT_QUESTIONS)))]

    def solution(
        self,
        said: Sequence[Step],
        right: Sequence[Step],
        results: dict[int, int] | None = None,
    ) -> list[Clause]:
        """Return the steps as they are said; ``results`` has those that do not follow."""
        results = results or {}
        clauses = []
        for number, (step, known) in enumerate(zip(said, right, strict=True), 1):
            frame = self._one(_STEPS[step.operation], _HELD_OUT_STEPS[step.operation])
            result = results.get(number, step.result)
            words = self._fill(frame, a=step.a, b=step.b, r=result)
            thought = thought_of_solution(step, result, known, number, self.style)
            clauses.append(Clause(words, thought, number))
        return clauses

    def first_wrong_word(self, words: Sequence[str], right: Step) -> int:
        """Return the place of the first word from which on no sentence says the right step."""
        frames = (*_STEPS[right.operation], *_HELD_OUT_STEPS[right.operation])
        sentences = [self._fill(one, a=right.a, b=right.b, r=right.result) for one in frames]
        return max(_num_equal(words, sentence) for sentence in sentences)

    def end(self, result: int) -> Clause:
        """Return the last sentence."""
        return Clause(self._fill(self._one(_ENDS, _ENDS), r=result))

    def _one(self, frames: Sequence[str], held_out: Sequence[str]) -> str:
        return self.rng.choice(held_out if self.held_out else frames)

    def _fill(self, frame: str, **values: int | str) -> tuple[str, ...]:
        said = {k: " ".join(spoken(v)) if isinstance(v, int) else v for k, v in values.items()}
        return tuple(frame.format(**self.names, **said).split())


def _num_equal(words: Sequence[str], others: Sequence[str]) -> int:
    """Return the number of first words that two sentences share."""
    pairs = enumerate(zip(words, others, strict=False))
    differing = (place for place, (ours, theirs) in pairs if ours != theirs)
    return next(differing, min(len(words), len(others)))


def vocabulary() -> list[str]:
    """Return all words that are said, thought or answered, without marks."""
    frames = [*_STARTS, *_HELD_OUT_STARTS, *_QUESTIONS, *_HELD_OUT_QUESTIONS, *_ENDS]
    for by_operation in (_CHANGES, _HELD_OUT_CHANGES, _STEPS, _HELD_OUT_STEPS):
        frames += [frame for own in by_operation.values() for frame in own]
    in_frames = {word for frame in frames for word in frame.split() if not word.startswith("{")}
    own = (*NUMBER_WORDS, *NAMES, *FRIENDS, *THINGS, *OPERATIONS, *SIGNS.values(), "=", OK)
    answers = ["wait", "step", "is", "wrong", "yes", "the", "answer"]
    return sorted({*in_frames, *own, *map(str, range(10)), *answers})
