"""Does the time to the next tick depend on the size of the coarse tower?

One session reads the book of Genesis, tick by tick, in models whose coarse tower has 1, 4 and 16
times the layers. `two_stream` with a lag runs its whole tower in line (between two ticks), or
beside the part tower in a thread or in a process. HRT and H-Net can only run theirs in line. Every
tick may begin a fixed time after the one before it, as in speech: a tower beside the other has that
time too. Without it ticks follow each other at once, and a tower that takes longer than the ticks
of its block must come late. Seconds are those of the wall; each model has one thread, so two cores
must be free. Variants take turns in rounds, and all rounds count together.

    python benchmarks/bench_simultaneous.py --out benchmarks/results/simultaneous.json
"""

import argparse
import time
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import torch
from bench_decode import TEXT
from record import finish, quantile
from torch import Tensor

from counterpoint.runtime.simultaneous import Simultaneous
from counterpoint.systems import hnet, hrt, two_stream
from counterpoint.systems.hnet import HNet
from counterpoint.systems.hrt import HRT
from counterpoint.systems.two_stream import TwoStream

TIMES = (1, 4, 16)
AIM_RATIO = 1.10


class Reader:
    """One session of a model, which reads tick by tick."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.state = model.initial_state(1)
        self.seconds = list[float]()

    def read(self, count: int, period_s: float) -> None:
        """Read ticks, each at its time if there is a period, and keep how long each one took."""
        due = time.perf_counter()
        for byte in islice(cycle(TEXT), len(self.seconds), len(self.seconds) + count):
            due = max(due + period_s, time.perf_counter())
            while time.perf_counter() < due:
                time.sleep(max(due - time.perf_counter(), 0))
            begin = time.perf_counter()
            hidden, self.state = self.model.read({"part": torch.tensor([[byte]])}, self.state)
            self.model.write(hidden[:, -1], _first)
            self.seconds.append(time.perf_counter() - begin)


def _first(stream: str, codebook: int, scores: Tensor) -> Tensor:
    return scores[:, 0]


def models(size: str, times: int, stack: ExitStack) -> dict[str, Any]:
    """The variants whose coarse tower has so many times its layers."""
    ours = getattr(two_stream, size)()
    deeper = replace(ours.whole, num_layers=times * ours.whole.num_layers)
    system = TwoStream(replace(ours, whole=deeper, lag_blocks=1)).eval()
    pyramid = getattr(hrt, size)()
    coarse = tuple(
        replace(level, num_layers=times * level.num_layers) for level in pyramid.levels[1:]
    )
    chunks = getattr(hnet, size)()
    main = replace(chunks.main, num_layers=times * chunks.main.num_layers)
    return {
        "two_stream, process": stack.enter_context(Simultaneous(system, worker="process")),
        "two_stream, thread": stack.enter_context(Simultaneous(system, worker="thread")),
        "two_stream, in line": system,
        "hrt, in line": HRT(replace(pyramid, levels=(pyramid.levels[0], *coarse))).eval(),
        "hnet, in line": HNet(replace(chunks, main=main)).eval(),
    }


@torch.inference_mode()
def measure(size: str, ticks: int, rounds: int, period_s: float) -> dict[str, Any]:
    """Percentiles of the ticks of every variant, in milliseconds, and their growth."""
    with ExitStack() as stack:
        readers = {
            (name, times): Reader(model)
            for times in TIMES
            for name, model in models(size, times, stack).items()
        }
        for reader in readers.values():
            reader.read(max(ticks // 4, 8), 0.0)
            reader.seconds.clear()
        for _ in range(rounds):
            for reader in readers.values():
                reader.read(ticks, period_s)
        results: dict[str, Any] = {}
        for (name, times), reader in readers.items():
            row = results.setdefault(name, {})
            for share in (0.5, 0.95):
                found = 1e3 * quantile(reader.seconds, share)
                row[f"p{share * 100:.0f}_ms_{times}"] = round(found, 3)
            if isinstance(reader.model, Simultaneous):
                row[f"late_{times}"] = round(reader.model.num_misses / reader.model.num_jobs, 3)
        for row in results.values():
            for name in ("p50", "p95"):
                row |= {
                    f"{name}_growth_{times}": round(
                        row[f"{name}_ms_{times}"] / row[f"{name}_ms_1"], 3
                    )
                    for times in TIMES[1:]
                }
        return results


def main() -> None:
    """Measure, print a table, and end with one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small"])
    parser.add_argument("--ticks", type=int, default=150, help="ticks of a model in a round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--period-ms", type=float, nargs="+", default=[0.0, 20.0])
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for size in args.sizes:
        for period_ms in args.period_ms:
            found = measure(size, args.ticks, args.rounds, period_ms / 1e3)
            results[f"{size}, a tick every {period_ms:g} ms"] = found
            for name, row in found.items():
                print(f"{size:6} {period_ms:4g} ms  {name:20}", row, flush=True)
    finish(
        "simultaneous",
        {"aim_p50_ratio": AIM_RATIO, "ticks": args.ticks * args.rounds, "results": results},
        args.out,
    )


if __name__ == "__main__":
    main()
