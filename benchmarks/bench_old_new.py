"""Is a tick of a session as fast as it was in an older tree of this repository?

Both trees are loaded into one process with one thread, and their sessions take ticks in turn, so
that what else the machine does slows both alike. Seconds are those of the thread. The older tree
must have `Sessions` with `start`, `feed` and `step`.

    git worktree add ../old COMMIT
    python benchmarks/bench_old_new.py --old ../old --out benchmarks/results/old_new.json
"""

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import finish

CASES = ("single_stream 1", "two_stream 1", "single_stream 8", "two_stream 8")


def tick_of(tree: Path, cases: list[str], size: str) -> dict[str, Callable[[], float]]:
    """Functions that take a tick of each case with the code of a tree, and give its seconds."""
    sys.path.insert(0, str(tree / "src"))
    try:
        sampling = importlib.import_module("counterpoint.runtime.sampler").Sampling
        try:
            module = importlib.import_module("counterpoint.runtime.sessions")
        except ModuleNotFoundError:  # an older tree
            module = importlib.import_module("counterpoint.runtime.session")
        ticks = {}
        for case in cases:
            system, rows = case.split()
            systems = importlib.import_module(f"counterpoint.systems.{system}")
            config = getattr(systems, size)()
            torch.manual_seed(0)
            model = getattr(systems, type(config).__name__.removesuffix("Config"))(config).eval()
            sessions = module.Sessions(model, int(rows), sliding=True)
            for row in range(int(rows)):
                sessions.start(row, sampling(seed=row))
                sessions.feed({row: [7, 8, 9]})
            ticks[case] = timed(sessions.step)
    finally:
        sys.path.pop(0)
        for name in [name for name in sys.modules if name.split(".")[0] == "counterpoint"]:
            del sys.modules[name]
    return ticks


def timed(step: Callable[[], Any]) -> Callable[[], float]:
    """A function that calls another one and gives its seconds."""

    def tick() -> float:
        begin = time.thread_time()
        step()
        return time.thread_time() - begin

    return tick


def compare(old: Callable[[], float], new: Callable[[], float], count: int) -> dict[str, float]:
    """Milliseconds of a tick in both trees (5th percentile), and how many times as fast it is."""
    pairs = []
    for number in range(count + count // 10):
        if number % 2:
            pairs.append((old(), new()))
        else:
            after = new()
            pairs.append((old(), after))
    pairs = pairs[count // 10 :]
    lowest = [statistics.quantiles(seconds, n=20)[0] for seconds in zip(*pairs, strict=True)]
    medians = [statistics.median(seconds) for seconds in zip(*pairs, strict=True)]
    return {
        "old_ms": round(1e3 * lowest[0], 3),
        "new_ms": round(1e3 * lowest[1], 3),
        "ratio_p5": round(lowest[0] / lowest[1], 3),
        "ratio_median": round(medians[0] / medians[1], 3),
        "ratio_paired": round(statistics.median(a / b for a, b in pairs), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", type=Path, required=True, help="folder of the older tree")
    parser.add_argument("--new", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--ticks", type=int, default=1500)
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    old, new = (tick_of(tree, args.cases, args.size) for tree in (args.old, args.new))
    results: dict[str, Any] = {}
    for case in args.cases:
        results[case] = compare(old[case], new[case], args.ticks)
        print(f"{case:16}", results[case], flush=True)
    finish("Is a tick as fast as it was?", {"size": args.size, "cases": results}, args.out)


if __name__ == "__main__":
    main()
