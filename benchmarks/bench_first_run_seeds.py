"""Does two_stream beat the control over seeds? The first run with several, and one paired table.

Every seed is a study of its own below ``--folder`` (initialisation and order of rows differ); one
that is done is not run again. Differences are paired over chapters; intervals are hierarchical over
seeds and chapters. Bar: at least 3 % fewer bits a byte at equal training FLOPs, swap-delta above 0.

    python benchmarks/bench_first_run_seeds.py --out benchmarks/results/first_run_seeds.json
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from record import finish

from counterpoint.evaluate.results import Evaluation, load_evaluation
from counterpoint.evaluate.statistics import Interval, bootstrap_ratio
from counterpoint.recipes.first_run import first_run
from counterpoint.recipes.study import run_study, training_flops

AIM_PERCENT = -3.0


def evaluation(folder: Path) -> Evaluation:
    """The stored result of an arm."""
    found = load_evaluation(folder)
    assert found is not None
    return found


def as_list(interval: Interval) -> list[float]:
    """Value, low and high."""
    return [round(number, 4) for number in (interval.value, interval.low, interval.high)]


def main() -> None:
    """Run what is missing, print the table, and end with one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/first_run_seeds"))
    parser.add_argument("--out")
    args = parser.parse_args()
    study = first_run()
    bits: dict[str, list[tuple[float, ...]]] = {run.name: [] for run in study.arms}
    swaps, num_bytes = [], np.zeros(0)
    for seed in args.seeds:
        arms = tuple(replace(run, train=replace(run.train, seed=seed)) for run in study.arms)
        folder = args.folder / f"seed{seed}"
        run_study(replace(study, arms=arms), folder)
        for run in arms:
            found = evaluation(folder / run.name)
            bits[run.name].append(found.bits)
            num_bytes = np.array(found.num_bytes, float)
            if found.whole is not None:
                lost = np.array(found.whole.other_bits) - np.array(found.whole.own_bits)
                swaps.append(bootstrap_ratio(lost, np.array(found.whole.num_bytes, float)))
    control, ours = (np.array(bits[run.name]) for run in study.arms)
    sizes = np.broadcast_to(num_bytes, control.shape)
    difference = bootstrap_ratio(ours, control).map(100.0, -100.0)
    results = {
        "training_flops_per_byte": training_flops(study),
        "bits_per_byte": {
            run.name: as_list(bootstrap_ratio(np.array(bits[run.name]), sizes))
            for run in study.arms
        },
        "bits_per_byte_by_seed": {
            run.name: [round(sum(row) / num_bytes.sum(), 4) for row in bits[run.name]]
            for run in study.arms
        },
        "difference_percent": as_list(difference),
        "swap_delta_by_seed": [as_list(interval) for interval in swaps],
    }
    for name, value in results.items():
        print(f"{name:26} {value}")
    finish(
        "first_run_seeds", {"aim_percent": AIM_PERCENT, "seeds": args.seeds, **results}, args.out
    )


if __name__ == "__main__":
    main()
