"""How many live sessions does one process hold at real time, beside the package's one?

Batches of growing size, all rows busy, until the 99th percentile of a step is above the 80 ms of a
frame; float32 and int8 weights. The package's server holds one session a process: its own loop and
our batch of 1 take frames in turn, and so does a batch of 1 that pins a prompt's frames; the two of
ours are also compared behind the window, where pinned frames cost something. One thread, random
weights.

    PYTHONPATH=. NO_TORCH_COMPILE=1 OMP_NUM_THREADS=1 python benchmarks/bench_moshi_sessions.py \
        --out benchmarks/results/moshi_sessions.json
"""

import argparse
import copy
from typing import Any

import torch
from bench_moshi_step import in_turn, ours, random_model, reference, theirs
from record import finish, quantile

from counterpoint.blocks.quantized import store_int8
from counterpoint.systems.moshi import Moshi

FRAME_MS = 80.0
PINNED_FRAMES = 337  # of a usual prompt: 200 of text, 125 of voice, and silences


def row(values: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    return {f"p{p}_ms": round(quantile(values, p / 100) * 1e3, 2) for p in (50, 95, 99)}


def one_session(model: Moshi, num_frames: int) -> dict[str, Any]:
    """One session of the package and of ours, with and without a pinned prompt."""
    with (loop := reference(model)).streaming(1):
        arms = {
            "package": theirs(loop),
            "ours": ours(model),
            "ours_pinned": ours(model, pinned_frames=PINNED_FRAMES),
        }
        seconds = in_turn(arms, num_frames)
    median = {name: quantile(values, 0.5) for name, values in seconds.items()}
    behind = num_frames - model.config.temporal.window
    late = {name: quantile(values[-behind:], 0.5) for name, values in seconds.items()}
    return {
        **{name: row(values) for name, values in seconds.items()},
        "ours_to_package": round(median["ours"] / median["package"], 3),
        "frames_behind_window": behind,
        "pinned_to_ours_behind_window": round(late["ours_pinned"] / late["ours"], 3),
    }


def batches(model: Moshi, num_frames: int, most: int) -> dict[str, Any]:
    """Steps of batches that double until a frame is too short, or their number is ``most``."""
    results: dict[str, Any] = {}
    num_rows, holds = 1, 0
    while num_rows <= most:
        timed = row(in_turn({"ours": ours(model, num_rows)}, num_frames)["ours"])
        results[f"batch_{num_rows}"] = timed
        print(num_rows, timed, flush=True)
        if timed["p99_ms"] >= FRAME_MS:
            break
        num_rows, holds = 2 * num_rows, num_rows
    return results | {"sessions_at_real_time": holds}


def main() -> None:
    """Measure, print a table, and end with one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small"])
    parser.add_argument("--frames", type=int, default=1000, help="more than the window's 750")
    parser.add_argument("--most", type=int, default=128)
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for size in args.sizes:
        model = random_model(size)
        if args.frames <= (window := model.config.temporal.window):
            parser.error(f"--frames must be more than the window's {window}: got {args.frames}")
        results[size] = {"one_session": one_session(model, args.frames)}
        print(size, results[size], flush=True)
        results[size]["ours"] = batches(model, args.frames, args.most)
        stored = copy.deepcopy(model)
        store_int8(stored)
        results[size]["ours_int8"] = batches(stored, args.frames, args.most)
    found = {"frame_ms": FRAME_MS, "pinned_frames": PINNED_FRAMES, "frames": args.frames}
    finish("moshi_sessions", {**found, "results": results}, args.out)


if __name__ == "__main__":
    main()
