"""How does the time of a training step grow with the length of a row, for every arm of part_whole?

For each length one row of random bytes goes forward and backward, arm by arm in turn. The exponent
is the slope of log time over log length across the longest half of the lengths: 1 is linear, 2
quadratic. The exponent of the counted FLOPs stands beside it.

    python benchmarks/bench_length.py --out benchmarks/results/length.json
    python benchmarks/bench_length.py --device cuda --out benchmarks/results/length_gpu.json
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from record import finish

from counterpoint.recipes.part_whole import part_whole
from counterpoint.streams.batch import Batch
from counterpoint.systems import build_system
from counterpoint.systems.contract import System

LENGTHS = tuple(1024 * 2**i for i in range(6))


def random_batch(system: System, num_ticks: int, device: str) -> Batch:
    """A row of random ids of one document."""
    generator = torch.Generator().manual_seed(0)
    content = {
        stream.name: torch.randint(
            1,
            min(stream.vocab_size or 2, 128),
            (1, num_ticks // stream.period_ticks, *stream.element_shape),
            generator=generator,
        )
        for stream in system.layout.predicted
    }
    return system.lay_out(content).to(device)


def seconds(system: System, batch: Batch, device: str) -> float:
    """Time of one forward and backward pass."""
    begin = time.perf_counter()
    system.loss(batch).total.backward()
    system.zero_grad(set_to_none=True)
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def exponent(lengths: list[int], values: list[float]) -> float:
    """Slope of log value over log length."""
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--longest", type=int, default=LENGTHS[-1])
    parser.add_argument("--most-seconds", type=float, default=20.0, help="of one step of an arm")
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lengths = [length for length in LENGTHS if length <= args.longest]
    systems = {arm.name: build_system(arm.system, 0).to(args.device) for arm in part_whole().arms}
    times: dict[str, dict[int, float]] = {name: {} for name in systems}
    for length in lengths:
        for name, system in systems.items():
            before = list(times[name].values())
            if before and before[-1] * 4 > args.most_seconds:
                continue
            try:
                batch = random_batch(system, length, args.device)
                seconds(system, batch, args.device)
                found = [seconds(system, batch, args.device) for _ in range(args.repeats)]
            except torch.OutOfMemoryError:
                continue
            times[name][length] = min(found)
            print(f"{name:18} {length:6} ticks {min(found) * 1e3:10.1f} ms", flush=True)
    rows: dict[str, Any] = {}
    for name, system in systems.items():
        own = sorted(times[name])[len(times[name]) // 2 :]
        if len(own) < 2:
            continue
        flops = [system.flops_per_tick(length, training=True) * length for length in own]
        rows[name] = {
            "ms": {str(length): round(t * 1e3, 2) for length, t in times[name].items()},
            "exponent of time": round(exponent(own, [times[name][n] for n in own]), 2),
            "exponent of FLOPs": round(exponent(own, flops), 2),
        }
    accelerator = torch.cuda.get_device_name() if args.device != "cpu" else "none"
    finish(
        "How does the time of a training step grow with the length of a row?",
        {"arms": rows, "accelerator": accelerator, "repeats": args.repeats},
        args.out,
    )


if __name__ == "__main__":
    main()
