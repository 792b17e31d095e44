"""How long does one tick of one session take beside Hugging Face `transformers` Llama?

Both read the same bytes one by one with their caches, in one process, tick by tick in turn; ours
also compiled (`counterpoint.runtime.compiled`) and with int8 weights, theirs also in bfloat16. The
bytes are those of the book of Genesis, so that blocks end as often as they do in text. Beside them
stands the floor: the bytes of the matrices that a tick reads, over the measured rate of reading.
With `--threads 1` seconds are those of the thread, which other programs on the machine do not
lengthen.
Bar: half of Llama's median.

    python benchmarks/bench_decode.py --sizes tiny small --out benchmarks/results/decode.json
"""

import argparse
import copy
import time
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import torch
from bench_train_step import llama
from record import finish, quantile
from torch import Tensor, nn

from counterpoint.blocks.quantized import store_int8
from counterpoint.data.text.documents import kjv
from counterpoint.runtime.compiled import compile_ticks
from counterpoint.systems import single_stream, two_stream
from counterpoint.systems.single_stream import SingleStream
from counterpoint.systems.two_stream import TwoStream

TEXT = next(kjv()).text().encode()[:20_000]
AIM_TIMES_LLAMA = 2.0


def now() -> float:
    """Seconds of this thread where it does all the work, else of the wall."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def ours(
    model: SingleStream | TwoStream, now: Callable[[], float] = time.perf_counter
) -> Callable[[Tensor], float]:
    """A function that feeds one id and returns its seconds."""
    state: Any = model.initial_state(1)

    def keep(stream: str, codebook: int, scores: Tensor) -> Tensor:
        return scores[:, 0]

    def tick(ids: Tensor) -> float:
        nonlocal state
        begin = now()
        hidden, state = model.read({"part": ids}, state)
        model.write(hidden[:, -1], keep)
        return now() - begin

    return tick


def theirs(model: Any) -> Callable[[Tensor], float]:
    """The same for Llama with its default cache."""
    model.eval()
    cache: Any = None

    def tick(ids: Tensor) -> float:
        nonlocal cache
        begin = now()
        cache = model(ids, past_key_values=cache, use_cache=True).past_key_values
        return now() - begin

    return tick


def in_turn(ticks: dict[str, Callable[[Tensor], float]], count: int) -> dict[str, list[float]]:
    """Seconds of every tick of every model, the models in turn; the first tenth is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in ticks}
    with torch.inference_mode():
        for byte in islice(cycle(TEXT), count):
            ids = torch.tensor([[byte]])
            for name, tick in ticks.items():
                seconds[name].append(tick(ids))
    return {name: values[count // 10 :] for name, values in seconds.items()}


def row(values: list[float]) -> dict[str, float]:
    """Median and 95th percentile in microseconds."""
    return {f"p{p}_us": round(quantile(values, p / 100) * 1e6, 1) for p in (50, 95)}


def matrix_bytes(model: nn.Module) -> int:
    """Bytes of all matrices but embeddings; `two_stream` reads those of its whole once a block."""
    stored = (t for name, t in model.state_dict().items() if "embed" not in name and t.ndim == 2)
    return sum(t.nbytes for t in stored)


def reading_rate(num_bytes: int) -> float:
    """Bytes a second at which as many as the matrices have are read, at best of 20."""
    values, seconds = torch.ones(num_bytes // 4), []
    for _ in range(20):
        begin = now()
        values.sum()
        seconds.append(now() - begin)
    return num_bytes / min(seconds)


def against_llama(size: str, count: int) -> dict[str, Any]:
    """Single-row decode of both systems beside Llama."""
    config = getattr(single_stream, size)()
    single, two = SingleStream(config).eval(), TwoStream(getattr(two_stream, size)()).eval()
    models: dict[str, SingleStream | TwoStream] = {"single_stream": single, "two_stream": two}
    for name in tuple(models):
        models[f"{name}_int8"] = copy.deepcopy(models[name])
        store_int8(models[f"{name}_int8"])
    for name in tuple(models):
        models[f"{name}_compiled"] = copy.deepcopy(models[name])
        compile_ticks(models[f"{name}_compiled"])
    peer = llama(config)
    peers = {"llama": peer, "llama_bfloat16": copy.deepcopy(peer).bfloat16()}
    ticks = {name: theirs(model) for name, model in peers.items()}
    ticks |= {name: ours(model, now) for name, model in models.items()}
    seconds = in_turn(ticks, count)
    medians = {name: quantile(values, 0.5) for name, values in seconds.items()}
    rate = reading_rate(matrix_bytes(single))
    return {"bytes_a_second": round(rate)} | {
        name: row(seconds[name])
        | {
            "times_llama": round(medians["llama"] / medians[name], 3),
            "times_llama_bfloat16": round(medians["llama_bfloat16"] / medians[name], 3),
            "floor_us": round(matrix_bytes(model) / rate * 1e6, 1),
        }
        for name, model in (peers | models).items()
    }


def main() -> None:
    """Measure, print a table, and end with one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small"])
    parser.add_argument("--ticks", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    threads = args.threads
    for size in args.sizes:
        torch.set_num_threads(threads)
        results[size] = against_llama(size, args.ticks)
        for part in [name for name in results if name.startswith(size)]:
            for name, values in results[part].items():
                print(f"{part:24} {name:20}", values)
    torch.set_num_threads(threads)
    aims = {"aim_times_llama": AIM_TIMES_LLAMA}
    finish("decode", {**aims, "ticks": args.ticks, "results": results}, args.out)


if __name__ == "__main__":
    main()
