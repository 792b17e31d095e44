"""What a model does with the held-out items of its own data, where a program can judge it."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from counterpoint.data.source import DataSource
from counterpoint.data.tasks.items import (
    HELD_OUT_SEED,
    Item,
    Replies,
    ScoredTask,
    always,
    commonest,
    draw,
)
from counterpoint.data.tasks.reasoning.item import ReasoningItem
from counterpoint.data.tasks.source import TaskData
from counterpoint.data.tasks.spoken_maths.hearing import Heard
from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData
from counterpoint.data.tasks.spoken_orders.source import SpokenOrdersData
from counterpoint.data.tasks.verify import pass_at_k, pass_counts
from counterpoint.errors import UserError
from counterpoint.evaluate.attempts import SPARE_SYMBOLS, attempt
from counterpoint.evaluate.duplex.spoken_maths import clock_of, floors, listen, made_by_program
from counterpoint.evaluate.duplex.spoken_orders import (
    SCORES,
    order_floors,
    order_scores,
    serve,
    serve_by_maker,
)
from counterpoint.evaluate.duplex.thinking import score_interruptions
from counterpoint.evaluate.statistics import Interval, bootstrap_ratio
from counterpoint.evaluate.tasks import answer
from counterpoint.evaluate.units import spread_places
from counterpoint.progress import Progress
from counterpoint.systems.contract import System
from counterpoint.train.phases import PhasedData
from counterpoint.train.rewarded import RewardedData


def item_scores(
    system: System,
    source: DataSource,
    most_items: int = 0,
    progress: Progress | None = None,
    num_samples: int = 0,
) -> dict[str, Interval]:
    """Return the scores of a model by name, with 95 % intervals over items.

    Beside them stands the primary score of the best policy: the floor, also for what is written.

    Tasks are answered and scored exactly: each symbol of an answer is predicted after the true text
    before it, and questions that need a solution of several steps are also solved freely. Spoken
    maths is listened to against the clock, and the model interrupts by its own decision; for spoken
    orders it calls a tool that answers at once. A run of phases has the scores of each of its
    sources. What no item asks has no score.

    Args:
        system: The model, in evaluation mode.
        source: The data that it learned from.
        most_items: Number of held-out items, spread evenly; 0 takes all.
        progress: Shows the progress; ``None`` shows nothing.
        num_samples: Number of solutions that are sampled at temperature 1 for each question with a
            solution of several steps, for pass@k with k = 1, 2, 4 and so on; 0 samples none.

    Returns:
        Nothing for data that no program here can judge, such as running text.

    Raises:
        UserError: Samples are wanted, and no question has a solution of several steps.
    """
    shown = Progress(quiet=True) if progress is None else progress
    found: dict[str, Interval] = {}
    for part, data in _parts(source).items():
        own: dict[str, Interval] = {}
        if isinstance(data, TaskData) and data.num_held_out:
            own = _answered(system, data, most_items, shown, num_samples)
        elif isinstance(data, SpokenMathsData):
            own = _listened(system, data, most_items, shown)
        elif isinstance(data, SpokenOrdersData) and data.num_held_out:
            own = _served(system, data, most_items, shown)
        found |= {f"{part}: {name}" if part else name: value for name, value in own.items()}
    if num_samples and not any("pass@" in name for name in found):
        raise UserError(
            "Solutions can be sampled only of questions that are solved in steps: what this run "
            f"held out has none, and `num_samples` is {num_samples}. Leave it out."
        )
    return {name: value for name, value in found.items() if not math.isnan(value.value)}


def _parts(source: DataSource) -> dict[str, DataSource]:
    """Return the data that are judged one by one, by name; the only data have no name."""
    if isinstance(source, RewardedData):
        return {"": source.questions}
    if not isinstance(source, PhasedData):
        return {"": source}
    read = {one.name: one.data for one in source.sources if source.is_measured(one.name)}
    asked = {one.name: one.rewarded for one in source.phases if one.rewarded is not None}
    return read | {f"phase {name}": data.questions for name, data in asked.items()}


def _answered(
    system: System, source: TaskData, most_items: int, progress: Progress, num_samples: int
) -> dict[str, Interval]:
    """Return the scores of held-out answers, and the primary one of constants and policies."""
    task = source.task
    seed = source.seed + HELD_OUT_SEED
    places = spread_places(source.num_held_out, most_items).tolist()
    items = [task.item(seed, place) for place in places]
    given: list[Replies] = list(progress.over("answers", answer(system, items), len(items)))
    found = {
        f"{name}, after the true text": _alone(value)
        for name, value in task.score(items, given).items()
    }
    most = commonest(items)
    placed = list(zip(places, items, strict=True))
    policies = {
        name: [policy(item, draw(seed, -1 - place)) for place, item in placed]
        for name, policy in task.policies().items()
    } | {"constant": [always(most, item) for item in items]}
    ratios = {name: _primary(task, items, own) for name, own in policies.items()}
    oracle = ratios.pop("oracle", None)
    best = max(ratios, key=lambda name: ratios[name].value)
    found[f"{task.primary}, after the true text"] = _primary(task, items, given)
    found[f"{task.primary} of the best policy ({best})"] = ratios[best]
    if oracle is not None:
        found[f"{task.primary} of the oracle"] = oracle
    return found | _solved(system, items, progress, num_samples)


def _solved(
    system: System, items: Sequence[Item], progress: Progress, num_samples: int
) -> dict[str, Interval]:
    """Return how many of the questions with solutions of several steps are solved freely."""
    asked = [item for item in items if isinstance(item, ReasoningItem) and item.solution]
    if not asked:
        return {}
    most = max(len(item.solution) for item in asked) + SPARE_SYMBOLS
    with progress.doing("solving"):
        attempts = attempt(system, asked, temperature=0.0, most_ticks=most)
    verdicts = [verdict for one in attempts for verdict in one.verdicts]
    shares: dict[str, Sequence[float]] = {
        "right answers, written freely": [verdict.is_right for verdict in verdicts],
        "right with every step, written freely": [verdict.is_complete for verdict in verdicts],
    }
    if num_samples:
        with progress.doing("sampling"):
            sampled = attempt(system, asked, num_samples, most_ticks=most)
        right = [sum(verdict.is_right for verdict in one.verdicts) for one in sampled]
        for k in pass_counts(num_samples):
            each = [pass_at_k([own], num_samples, k) for own in right]
            shares[f"pass@{k}, from {num_samples} samples"] = each
    ones = np.ones(len(verdicts))
    return {name: bootstrap_ratio(np.array(own, float), ones) for name, own in shares.items()}


def _primary(task: ScoredTask, items: Sequence[Item], given: Sequence[Replies]) -> Interval:
    """Return the primary score, a ratio of sums over items; ``nan`` if no item asks for it."""
    counts = [task.counts(*pair) for pair in zip(items, given, strict=True)]
    right, asked = np.array(counts, dtype=np.float64).T
    return bootstrap_ratio(right, asked) if asked.any() else _alone(math.nan)


def _listened(
    system: System, source: SpokenMathsData, most_items: int, progress: Progress
) -> dict[str, Interval]:
    """Return how a model interrupts speakers, beside a constant policy and the maker's program."""
    places = spread_places(source.num_held_out, most_items).tolist()
    problems = [source.heard(place, held_out=True) for place in places]
    heard = progress.over("problems heard", problems, len(problems))
    score = score_interruptions([listen(system, source, problem) for problem in heard])
    found = {
        "wrong speakers interrupted, also too soon": score.wrong,
        "wrong step named (found)": score.found,
        "and corrected": score.corrected,
        "right ones interrupted (false alarms)": score.right,
        "median seconds from error to interruption": _alone(score.latency(0.5)),
    }
    return found | _beside(source, problems)


def _served(
    system: System, source: SpokenOrdersData, most_items: int, progress: Progress
) -> dict[str, Interval]:
    """Return what came of orders, beside the best constant and the maker's program."""
    places = spread_places(source.num_held_out, most_items).tolist()
    heard = progress.over("orders heard", places, len(places))
    found = order_scores([serve(system, source, place) for place in heard])
    ceiling = order_scores([serve_by_maker(source, place) for place in places])
    constant = order_floors(source, places)["most common call"]
    return {SCORES[name]: value for name, value in found.items()} | {
        "right by the most common order": _alone(constant["success"]),
        "ceiling: called early by the maker": ceiling["early"],
    }


def _beside(source: SpokenMathsData, problems: Sequence[Heard]) -> dict[str, Interval]:
    """Return what the best constant policy finds, and what can be found in time by thinking."""
    clock = clock_of(replace(source, arrangement="interleaved"))
    policies = {
        name: score_interruptions(own)
        for name, own in floors(problems, clock, source.task.max_steps).items()
    }
    best = max(policies, key=lambda name: policies[name].found.value - policies[name].right.value)
    found = {
        f"found by the best constant ({best})": policies[best].found,
        "false alarms of this constant": policies[best].right,
    }
    if source.arrangement == "interleaved":
        made = [made_by_program(problem, clock, source.held_back) for problem in problems]
        found["ceiling: found by the maker"] = score_interruptions(made).found
    return found


def _alone(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)
