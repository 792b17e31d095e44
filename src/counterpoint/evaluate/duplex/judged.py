"""What a model does with the held-out items of its own data, where a program can judge it."""

import numpy as np

from counterpoint.data.source import DataSource
from counterpoint.data.tasks.items import HELD_OUT_SEED, Replies, floors
from counterpoint.data.tasks.source import TaskData
from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData
from counterpoint.evaluate.duplex.spoken_maths import clock_of, listen, made_by_program
from counterpoint.evaluate.duplex.thinking import score_interruptions
from counterpoint.evaluate.statistics import Interval, bootstrap_ratio
from counterpoint.evaluate.tasks import answer
from counterpoint.progress import Progress
from counterpoint.systems.contract import System


def judged(
    system: System, source: DataSource, most_items: int = 0, progress: Progress | None = None
) -> dict[str, Interval]:
    """Return the scores of a model by name, with 95 % intervals over items, beside their floors.

    Tasks are answered and scored exactly; each symbol of an answer is predicted after the true text
    before it, so that a solution of many steps is not written freely. Spoken maths is listened to
    against the clock, and the model interrupts by its own decision.

    Args:
        system: The model, in evaluation mode.
        source: The data that it learned from.
        most_items: Largest number of held-out items; 0 takes all.
        progress: Shows the progress; ``None`` shows nothing.

    Returns:
        Nothing for data that no program here can judge, such as running text.
    """
    shown = Progress(quiet=True) if progress is None else progress
    if isinstance(source, TaskData):
        return _answered(system, source, most_items, shown)
    if isinstance(source, SpokenMathsData):
        return _listened(system, source, most_items, shown)
    return {}


def _answered(
    system: System, source: TaskData, most_items: int, progress: Progress
) -> dict[str, Interval]:
    """Return the scores of all held-out answers, and the primary one of constants and policies."""
    number = min(source.num_held_out, most_items or source.num_held_out)
    items = [source.task.item(source.seed + HELD_OUT_SEED, place) for place in range(number)]
    given: list[Replies] = list(progress.over("answers", answer(system, items), number))
    primary = source.task.primary
    counts = [source.task.counts(*pair) for pair in zip(items, given, strict=True)]
    right, asked = np.array(counts, dtype=np.float64).T
    found = {f"{primary}, after the true text": bootstrap_ratio(right, asked)}
    for name, value in source.task.score(items, given).items():
        if name != primary:
            found[f"{name}, after the true text"] = _alone(value)
    policies = floors(source.task, number, source.seed + HELD_OUT_SEED)
    oracle = policies.pop("oracle", None)
    best = max(policies, key=lambda name: policies[name][primary])
    found[f"{primary} of the best policy ({best})"] = _alone(policies[best][primary])
    if oracle is not None:
        found[f"{primary} of the oracle"] = _alone(oracle[primary])
    return found


def _listened(
    system: System, source: SpokenMathsData, most_items: int, progress: Progress
) -> dict[str, Interval]:
    """Return how a model interrupts speakers, beside what the maker of the problems can find."""
    number = min(source.num_held_out, most_items or source.num_held_out)
    problems = [source.heard(place, held_out=True) for place in range(number)]
    heard = progress.over("problems heard", problems, number)
    attempts = [listen(system, source, problem) for problem in heard]
    score = score_interruptions(attempts)
    found = {
        "wrong speakers interrupted": score.wrong,
        "wrong step named (found)": score.found,
        "and corrected": score.corrected,
        "right ones interrupted (false alarms)": score.right,
        "median seconds from error to interruption": _alone(score.latency(0.5)),
    }
    if source.arrangement != "parallel":
        made = [made_by_program(problem, clock_of(source)) for problem in problems]
        found["ceiling: found by the maker"] = score_interruptions(made).found
    return found


def _alone(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)
