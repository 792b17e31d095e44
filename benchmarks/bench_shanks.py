"""How well do models that think while they listen find the errors of a speaker?

The protocol is docs/results/shanks.md. Every model listens to the same held-out problems twice:
deciding by itself, and never interrupting, which gives the decisions under every threshold. The
maker of the problems (what can be found in time at all) and constant policies are rows too.

    python benchmarks/bench_shanks.py runs/shanks_small runs/silent runs/parallel \
        --problems 100 --out benchmarks/results/shanks.json
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from record import finish

from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData
from counterpoint.evaluate.duplex.spoken_maths import (
    clock_of,
    floors,
    listen,
    made_by_program,
)
from counterpoint.evaluate.duplex.thinking import (
    Attempt,
    InterruptionScore,
    operating_curve,
    score_interruptions,
)
from counterpoint.runtime.load import load

THRESHOLDS = (0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.999)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all runs and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/shanks.json"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    plain = SpokenMathsData()
    problems = [plain.heard(number, held_out=True) for number in range(options.problems)]
    config = clock_of(plain)
    rows: dict[str, Any] = {
        name: numbers(score_interruptions(own))
        for name, own in floors(problems, config, plain.task.max_steps).items()
    }
    rows["maker of the problems"] = numbers(
        score_interruptions([made_by_program(one, config) for one in problems])
    )
    for path in options.runs:
        rows[path.name] = measured(path, options.problems)
        print(path.name, rows[path.name], flush=True)
    question = "How well do models that think while they listen find the errors of a speaker?"
    results = {"problems": options.problems, "rows": plain_json(rows)}
    finish(question, results, str(options.out))


def measured(path: Path, num_problems: int) -> dict[str, Any]:
    """Return the numbers of one run."""
    loaded = load(path)
    data = None if loaded.run is None else loaded.run.data
    if not isinstance(data, SpokenMathsData):
        raise SystemExit(f"{path} must be a run on spoken maths.")
    system = loaded.system
    problems = [data.heard(number, held_out=True) for number in range(num_problems)]
    free: list[Attempt] = []
    never: list[Attempt] = []
    for number, one in enumerate(problems):
        free.append(listen(system, data, one))
        never.append(listen(system, data, one, threshold=2.0))
        if number % 10 == 9:
            print(path.name, number + 1, flush=True)
    curve = operating_curve(never, THRESHOLDS, clock_of(data).tokens_per_s)
    return {
        "checkpoint": loaded.path.name,
        "arrangement": data.arrangement,
        **numbers(score_interruptions(free)),
        "agreed": sum(_agrees(one) for one in free if one.wrong_s is None)
        / max(sum(one.wrong_s is None for one in free), 1),
        "curve": [point._asdict() for point in curve],
    }


def numbers(score: InterruptionScore) -> dict[str, Any]:
    """Return a score as JSON; shares as value, low and high."""
    shares = {
        name: getattr(score, name) for name in ("right", "wrong", "valid", "found", "corrected")
    }
    found: dict[str, Any] = {n: [one.value, one.low, one.high] for n, one in shares.items()}
    return found | {f"latency_p{q}": score.latency(q / 100) for q in (5, 50, 95)}


def plain_json(value: Any) -> Any:
    """Return the value with null for what could not be measured."""
    if isinstance(value, dict):
        return {name: plain_json(own) for name, own in value.items()}
    if isinstance(value, list):
        return [plain_json(own) for own in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _agrees(attempt: Attempt) -> bool:
    """Return whether a right speaker got an agreement and not a correction."""
    answers = [event.text for event in attempt.timeline.where(kind="answer")]
    return attempt.interrupted_s is None and bool(answers) and answers[-1].startswith("yes")


if __name__ == "__main__":
    main()
