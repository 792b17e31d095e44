"""Does a row of n ticks cost HRT O(n log n) if it has as many levels as its length needs?

The arms of `bench_length.py` have three levels at every length, so their time is linear. Here each
length has a model of its own, whose levels together reach back over the whole row (`levels_for`).
The time is that of the processor, forward and backward. If it grows as n log n, microseconds for a
tick and a level stay the same.

    python benchmarks/bench_hrt_levels.py --out benchmarks/results/hrt_levels.json
"""

import argparse

import torch
from bench_length import LENGTHS, exponent, random_batch, seconds, step
from record import finish

from counterpoint.recipes.part_whole import tower
from counterpoint.systems import build_system
from counterpoint.systems.hrt import HRTConfig, levels_for

WINDOW = 16
STRIDE = 4


def config_for(num_ticks: int) -> HRTConfig:
    """Return levels that reach back over rows of so many ticks."""
    levels = levels_for(num_ticks, WINDOW, STRIDE)
    return HRTConfig(levels=(tower(32, 1, WINDOW),) * levels, strides=(STRIDE,) * (levels - 1))


def main() -> None:
    """Measure every length, and print the exponent of the time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for length in args.lengths:
        config = config_for(length)
        system = build_system(config, 0)
        batch = random_batch(system, 1, length, "cpu")
        step(system, batch)
        best = min(seconds(system, batch, "cpu") for _ in range(args.repeats))
        levels = len(config.levels)
        rows[str(length)] = {
            "levels": levels,
            "ms": round(1e3 * best, 1),
            "us for a tick and a level": round(1e6 * best / length / levels, 2),
        }
        print(length, rows[str(length)], flush=True)
    times = [row["ms"] for row in rows.values()]
    found = {"by ticks": rows, "exponent of time": round(exponent(args.lengths, times), 2)}
    finish("Does a row cost HRT O(n log n)?", found | {"clock": "processor"}, args.out)


if __name__ == "__main__":
    main()
