"""How does the time of a training step grow with the length of a row, for every arm of part_whole?

For each length rows of random bytes go forward and backward, arm by arm in turn. On a CPU the time
is that of the processor, so that other programs beside it count less. The exponent is the slope of
log time over log length across the longest half of the lengths: 1 is linear, 2 quadratic. The
exponent of the counted FLOPs stands beside it, and the bytes of all tensors that live at once.

With `--dense-up-to`, rows of at most so many ticks are measured a second time in turn with the
first, in the form that compares every tick with every block.

    python benchmarks/bench_length.py --out benchmarks/results/length.json
    python benchmarks/bench_length.py --arms two_stream same_rate --dense-up-to 8192
    python benchmarks/bench_length.py --rows 16 --lengths 256 512 1024 --dense-up-to 1024
    python benchmarks/bench_length.py --device cuda --out benchmarks/results/length_gpu.json
"""

import argparse
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from record import finish
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from counterpoint.blocks import key_groups
from counterpoint.recipes.part_whole import part_whole
from counterpoint.streams.batch import Batch
from counterpoint.systems import build_system
from counterpoint.systems.contract import System

LENGTHS = tuple(1024 * 2**i for i in range(6))


class PeakBytes(TorchDispatchMode):
    """Bytes of all tensors that operations have made and that live at once, at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: dict[int, int] = {}
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self.alive.pop(key)


@contextmanager
def every_key() -> Iterator[None]:
    """Compare every tick with every block, however long the row is."""
    times = key_groups.DENSE_TIMES
    key_groups.DENSE_TIMES = 1 << 40
    try:
        yield
    finally:
        key_groups.DENSE_TIMES = times


def random_batch(system: System, num_rows: int, num_ticks: int, device: str) -> Batch:
    """Rows of random ids of one document."""
    generator = torch.Generator().manual_seed(0)
    content = {
        stream.name: torch.randint(
            1,
            min(stream.vocab_size or 2, 128),
            (num_rows, num_ticks // stream.period_ticks, *stream.element_shape),
            generator=generator,
        )
        for stream in system.layout.predicted
    }
    return system.lay_out(content).to(device)


def step(system: System, batch: Batch) -> None:
    """One forward and backward pass."""
    system.loss(batch).total.backward()
    system.zero_grad(set_to_none=True)


def seconds(system: System, batch: Batch, device: str) -> float:
    """Time of one forward and backward pass: of the processor on a CPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    begin = clock()
    step(system, batch)
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - begin


def measure(
    system: System, batch: Batch, device: str, repeats: int, *, dense: bool
) -> dict[str, float]:
    """Shortest time in milliseconds, and peak in megabytes; also of the dense form if wanted."""
    forms = {"": False, "dense ": True} if dense else {"": False}
    times: dict[str, list[float]] = {form: [] for form in forms}
    found: dict[str, float] = {}
    for number in range(repeats + 1):
        for form, is_dense in forms.items():
            with every_key() if is_dense else nullcontext():
                if number:
                    times[form].append(seconds(system, batch, device))
                    continue
                with PeakBytes() as bytes_alive:
                    step(system, batch)
                found[f"{form}MB"] = round(bytes_alive.peak / 1e6, 1)
    return found | {f"{form}ms": round(min(t) * 1e3, 2) for form, t in times.items()}


def exponent(lengths: list[int], values: list[float]) -> float:
    """Slope of log value over log length."""
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--arms", nargs="+", help="names of arms; all if left out")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--dense-up-to", type=int, default=0, help="ticks of the longest dense row")
    parser.add_argument("--most-seconds", type=float, default=20.0, help="of one step of an arm")
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    systems = {
        arm.name: build_system(arm.system, 0).to(args.device)
        for arm in part_whole().arms
        if args.arms is None or arm.name in args.arms
    }
    found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in systems}
    for length in args.lengths:
        for name, system in systems.items():
            before = [one["ms"] for one in found[name].values()]
            if before and before[-1] * 4 > args.most_seconds * 1e3:
                continue
            try:
                batch = random_batch(system, args.rows, length, args.device)
                dense = length <= args.dense_up_to
                own = measure(system, batch, args.device, args.repeats, dense=dense)
            except torch.OutOfMemoryError:
                continue
            found[name][length] = own
            told = ", ".join(f"{value:.1f} {unit}" for unit, value in own.items())
            print(f"{name:18} {length:6} ticks {told}", flush=True)
    rows: dict[str, Any] = {}
    for name, system in systems.items():
        long = sorted(found[name])[len(found[name]) // 2 :]
        rows[name] = {"by ticks": {str(length): own for length, own in found[name].items()}}
        if len(long) < 2:
            continue
        flops = [system.flops_per_tick(length, training=True) * length for length in long]
        rows[name] |= {
            "exponent of time": round(exponent(long, [found[name][n]["ms"] for n in long]), 2),
            "exponent of bytes": round(exponent(long, [found[name][n]["MB"] for n in long]), 2),
            "exponent of FLOPs": round(exponent(long, flops), 2),
        }
    accelerator = torch.cuda.get_device_name() if args.device != "cpu" else "none"
    finish(
        "How does the time of a training step grow with the length of a row?",
        {
            "arms": rows,
            "accelerator": accelerator,
            "repeats": args.repeats,
            "rows": args.rows,
            "clock": "processor" if args.device == "cpu" else "wall",
        },
        args.out,
    )


if __name__ == "__main__":
    main()
