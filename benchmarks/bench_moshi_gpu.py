"""How long does a frame of live sessions take on a GPU, at the size of the published model?

Random bfloat16 weights of Moshi 7B, sampled as published. The `moshi` package's loop (batch 1, with
the CUDA graphs that it makes itself) and our engine (batches that double) take frames in turn; a
frame lasts 80 ms. The limit beside them: a step reads all weights once, so at best their bytes over
the memory's bandwidth, which is measured here.

    PYTHONPATH=src:. python benchmarks/bench_moshi_gpu.py --out benchmarks/results/moshi_gpu.json
"""

import argparse
import time
from typing import Any

import torch
from bench_moshi_step import frame_of, in_turn, theirs
from record import finish, quantile
from torch import Tensor

from counterpoint.runtime.compiled import compile_ticks
from counterpoint.runtime.engine import Engine
from counterpoint.systems.moshi import Moshi, moshi_7b

FRAME_MS = 80.0


def random_model() -> Moshi:
    """Random weights on the GPU, in the heads too."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = Moshi(moshi_7b()).eval()
    finally:
        torch.set_default_dtype(default)
    with torch.no_grad():
        for head in (model.head, model.depth.head):
            head.weight.normal_(std=head.weight.shape[1] ** -0.5)
    return model


def ours(model: Moshi, num_rows: int) -> Any:
    """Steps of as many sessions as there are rows; seconds until the frames are there."""
    engine = Engine(model, num_rows)
    sessions = [engine.admit() for _ in range(num_rows)]

    def step(codes: Tensor) -> float:
        heard = frame_of(codes)
        begin = time.perf_counter()
        engine.step(dict.fromkeys(sessions, heard))
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    return step


def package(model: Moshi) -> Any:
    """The package's loop with the same weights."""
    import moshi.models.lm  # noqa: F401 (before the tests' module, which would turn compilation off)

    from counterpoint.formats.moshi.names import reference_state_dict
    from tests.systems.reference_moshi import generator, reference_shape

    theirs = reference_shape(model.config, device="cuda").to(torch.bfloat16)
    theirs.load_state_dict(reference_state_dict(model))
    return generator(theirs.eval())


def on_gpu(step: Any) -> Any:
    """A step of the package that is given its codes on the GPU and is waited for."""

    def timed(codes: Tensor) -> float:
        there = codes.cuda()
        begin = time.perf_counter()
        step(there)
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    return timed


def bandwidth_gb_s() -> float:
    """Bytes a second of reading and writing, by copies of 2 GB."""
    source = torch.empty(1 << 30, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(8):
        begin = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 2 * source.nbytes / min(times) / 1e9


def row(values: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    return {f"p{p}_ms": round(quantile(values, p / 100) * 1e3, 2) for p in (50, 95, 99)}


def main() -> None:
    """Measure, print a table, and end with one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--compiled", action="store_true", help="takes minutes of compilation")
    parser.add_argument("--no-package", action="store_true")
    parser.add_argument("--out")
    args = parser.parse_args()
    speed = bandwidth_gb_s()
    model = random_model()
    weights_gb = sum(weight.nbytes for weight in model.parameters()) / 1e9
    results: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "weights_gb": round(weights_gb, 2),
        "bandwidth_gb_s": round(speed),
        "limit_ms": round(weights_gb / speed * 1e3, 2),
        "frame_ms": FRAME_MS,
    }
    if not args.no_package:
        with (loop := package(model)).streaming(1):
            steps = {"package": on_gpu(theirs(loop)), "ours": ours(model, 1)}
            seconds = in_turn(steps, args.frames)
        results |= {name: row(values) for name, values in seconds.items()}
        print(results, flush=True)
        del loop, steps
        torch.cuda.empty_cache()
    for num_rows in args.batches:
        step = ours(model, num_rows)
        results[f"batch_{num_rows}"] = row(in_turn({"ours": step}, args.frames)["ours"])
        print(num_rows, results[f"batch_{num_rows}"], flush=True)
    if args.compiled:
        compile_ticks(model)
        results["compiled"] = row(in_turn({"ours": ours(model, 1)}, args.frames)["ours"])
        print("compiled", results["compiled"], flush=True)
    results["memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
    finish("moshi_gpu", results, args.out)


if __name__ == "__main__":
    main()
