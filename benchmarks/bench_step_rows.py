"""How much longer does a step of two_stream take than one of single_stream, by rows a step?

Both have equal training FLOPs a byte, but two_stream has more weights, and the optimiser's own
products belong to weights and not to bytes: the more rows a step has, the less they count.
Processor seconds of one thread, both arms in turns; the limit is the ratio of all FLOPs.

    python benchmarks/bench_step_rows.py --rows 2 8 16 --out benchmarks/results/step_rows.json
"""

import argparse
from dataclasses import replace
from typing import Any

import torch
from bench_first_run_seeds import timed_steps
from record import finish

from counterpoint.recipes.first_run import first_run
from counterpoint.recipes.study import optimizer_shares

UNTIMED_STEPS = 2


def timed(rows: int, num_steps: int) -> dict[str, Any]:
    """Return median processor seconds of a step of both arms, and two ratios."""
    study = replace(first_run(), minutes=None)
    arms = (replace(run, train=replace(run.train, batch_rows=rows)) for run in study.arms)
    study = replace(study, arms=tuple(arms))
    found = timed_steps(study, UNTIMED_STEPS, num_steps)
    seconds = found["processor_seconds_a_step"]
    shares = optimizer_shares(study)
    return {
        "rows": rows,
        **found,
        "ratio_of_seconds": seconds["two_stream"] / seconds["single_stream"],
        "ratio_of_flops": (1 + shares["two_stream"]) / (1 + shares["single_stream"]),
    }


def main() -> None:
    """Time every number of rows, and end with one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", type=int, default=[2, 8, 16])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for rows in args.rows:
        found.append(timed(rows, args.steps))
        print(found[-1], flush=True)
    finish("step_rows", {"steps": args.steps, "by_rows": found}, args.out)


if __name__ == "__main__":
    main()
