"""Does two_stream beat the control over seeds? The first run with several, and one paired table.

Initialisation and order of rows differ between seeds; what is done below ``--folder`` is not run
again. Differences are paired over chapters; intervals are hierarchical over
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
from counterpoint.evaluate.whole import WholeUse
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


def swap_delta(whole: WholeUse) -> Interval:
    """Bits a byte lost under the whole of another document."""
    lost = np.array(whole.other_bits) - np.array(whole.own_bits)
    return bootstrap_ratio(lost, np.array(whole.num_bytes, float))


def main() -> None:
    """Run what is missing, print the table, and end with one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/first_run_seeds"))
    parser.add_argument("--out")
    args = parser.parse_args()
    study = replace(first_run(), seeds=tuple(args.seeds))
    summary = run_study(study, args.folder)
    if summary is None:
        raise SystemExit("Stopped: run it again to continue.")
    found = {
        run.name: [evaluation(args.folder / name) for name in study.runs(run)] for run in study.arms
    }
    _, ours = summary.rows
    assert ours.difference_percent is not None
    results = {
        "training_flops_per_byte": training_flops(study),
        "bits_per_byte": {row.name: as_list(row.bits_per_unit) for row in summary.rows},
        "bits_per_byte_by_seed": {
            name: [round(sum(one.bits) / sum(one.sizes), 4) for one in own]
            for name, own in found.items()
        },
        "difference_percent": as_list(ours.difference_percent),
        "swap_delta_by_seed": [
            as_list(swap_delta(one.whole)) for one in found[ours.name] if one.whole is not None
        ],
    }
    for name, value in results.items():
        print(f"{name:26} {value}")
    finish(
        "first_run_seeds", {"aim_percent": AIM_PERCENT, "seeds": args.seeds, **results}, args.out
    )


if __name__ == "__main__":
    main()
