"""Are the kernels of Multi-Token Attention right on a GPU, and what do they cost there?

*check*: outputs and gradients of the fused form beside the naive one in float64, for documents,
shared heads and odd lengths. *tiles*: the kernels alone with several sizes of blocks. *rows*: one
layer's attention, forward and with gradient, for all forms beside plain attention, with the peak of
the memory. bfloat16, 4 rows, 16 heads of 64, kernels of 6 queries and 11 keys.

Aim: at most 2.5 ms forward for 4,096 steps on an H100. The file is written after every line, and
the program ends by itself. *warm* compiles the kernels for later runs on the same machine.

    python benchmarks/bench_multi_token_attention_gpu.py check tiles rows flex --out gpu.json
"""

import argparse
import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench_multi_token_attention import CONFIGS, CONV_BEFORE, heads, kernels_of, naive
from record import finish, quantile
from torch import Tensor

from counterpoint.blocks import multi_token_attention_fused as fused
from counterpoint.blocks.multi_token_attention_kernels import key_kernel, query_kernel, read_kernel
from counterpoint.blocks.multi_token_attention_lifted import TORCH, Operations, attend_lifted
from counterpoint.blocks.multi_token_attention_reference import attend_naively
from counterpoint.blocks.multi_token_attention_rows import Kernels, RowReach, attend_chunked

ROWS = 4
CONVOLUTIONS = replace(CONV_BEFORE, conv_after=True)
ALL_CONFIGS = {"conv_before": CONV_BEFORE, "conv": CONVOLUTIONS, **CONFIGS}
WIDE = ("mixing", "all")
"""Configs whose lifted vectors are as many times longer as a group has heads, too long for the
kernels with groups of 16."""

READ_BLOCKS = [
    fused.KernelBlocks(*sizes)
    for sizes in (
        (128, 32, 128, 384, 8, 2),
        (64, 64, 128, 384, 8, 2),
        (64, 32, 128, 384, 8, 2),
        (64, 32, 128, 384, 4, 2),
    )
]
GRADIENT_BLOCKS = [
    fused.KernelBlocks(*sizes)
    for sizes in (
        (64, 32, 128, 384, 8, 2),
        (64, 64, 128, 384, 8, 1),
        (64, 32, 64, 384, 8, 2),
    )
]


class Report:
    """What was found; written to a file after every line."""

    def __init__(self, out: str | None, deadline: float) -> None:
        self.found: dict[str, Any] = {}
        self.out = out
        self.deadline = deadline

    def add(self, where: str, make: Callable[[], Any], limit_s: float = 20.0) -> None:
        """Add a line, or the error that came instead, unless the time is over."""
        if time.time() > self.deadline:
            return
        try:
            with limited(min(limit_s, self.deadline - time.time())):
                value = make()
        except Exception as error:  # the other lines go on
            traceback.print_exc()
            value = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        torch.cuda.empty_cache()
        self.found[where] = value
        print(f"{time.time() - self.deadline:7.1f} {where} {value}", flush=True)
        if self.out:
            Path(self.out).write_text(json.dumps(self.found, indent=1) + "\n")


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise an error in what takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def milliseconds(call: Callable[[], object], seconds: float = 0.25) -> float:
    """Median time of a call, repeated for so long, after one call that is not counted."""
    call()
    torch.cuda.synchronize()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < 1e3 * seconds and len(times) < 30):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return round(quantile(times, 0.5), 4)


def lifted(
    window: int, by: Operations, q: Tensor, k: Tensor, v: Tensor, kernels: Kernels, start: Tensor
) -> Tensor:
    return attend_lifted(q, k, v, kernels, RowReach(start, window, is_plain=False), by)


def check(config_name: str, dtype: torch.dtype, num_steps: int, window: int) -> dict[str, Any]:
    """Largest error, and root mean square error, each as a share of the same of the truth."""
    torch.manual_seed(0)
    num_heads, num_shared = 4, 2
    config = replace(ALL_CONFIGS[config_name], group_heads=2)
    all_heads = kernels_of(config)
    kernels = [
        None if one is None else one[: num_heads if one.shape[1] != one.shape[2] else 2].cuda()
        for one in all_heads
    ]
    start = torch.zeros(2, num_steps, dtype=torch.long, device="cuda")
    start[1, num_steps // 3 :] = num_steps // 3
    start[1, num_steps // 3 + 5 :] = num_steps // 3 + 5
    start = torch.maximum(start, torch.arange(num_steps, device="cuda") - window + 1)
    q = torch.randn(2, num_heads, num_steps, 64, device="cuda")
    k, v = torch.randn(2, 2, num_shared, num_steps, 64, device="cuda").unbind()
    grad = torch.randn_like(q)

    def run(attend: Callable[..., Tensor], kind: torch.dtype) -> list[Tensor]:
        # Both forms get the same rounded numbers, so that only the computation differs.
        rows = [x.to(dtype).to(kind).requires_grad_() for x in (q, k, v)]
        own = [
            None if one is None else one.double().to(kind if kind == torch.float64 else one.dtype)
            for one in kernels
        ]
        learned = [one.requires_grad_() for one in own if one is not None]
        found = attend(*rows, Kernels(*own), start)
        gradients = torch.autograd.grad(found, [*rows, *learned], grad.to(dtype).to(kind))
        return [found.detach(), *gradients]

    truth = run(attend_naively, torch.float64)
    ours = run(partial(lifted, window, fused.FUSED), dtype)
    names = [
        "out",
        "q",
        "k",
        "v",
        *(f for f in Kernels._fields if getattr(Kernels(*kernels), f) is not None),
    ]
    return {
        name: [
            float((one.double() - other).abs().max() / other.abs().max()),
            float((one.double() - other).norm() / other.norm()),
        ]
        for name, one, other in zip(names, ours, truth, strict=True)
    }


CHECKS = [
    (name, dtype, 333, window)
    for window in (333, 100)
    for name, dtype in (
        ("conv_before", torch.bfloat16),
        ("conv", torch.bfloat16),
        ("mixing", torch.bfloat16),
        ("conv", torch.float32),
    )
]


def bench_check(report: Report) -> None:
    for name, dtype, num_steps, window in CHECKS:
        where = f"check {name} {str(dtype).removeprefix('torch.')} {num_steps}"
        if window < num_steps:
            where += f" window {window}"
        report.add(where, partial(check, name, dtype, num_steps, window), 30)


def lifted_inputs(config_name: str, num_steps: int) -> tuple[Tensor, ...]:
    """Random vectors of the widths of the lifted form."""
    config = ALL_CONFIGS[config_name]
    taps = config.num_queries
    widths = (64 * taps, 64 * (taps if config.conv_after else 1))
    band = taps - 1 + config.num_keys // 2
    size = (ROWS, 16, num_steps)
    torch.manual_seed(0)
    q, k = (0.2 * torch.randn(2, *size, widths[0], device="cuda")).bfloat16().unbind()
    v = torch.randn(*size, widths[1], device="cuda").bfloat16()
    start = torch.zeros(ROWS, num_steps, dtype=torch.long, device="cuda")
    return q, k, v, torch.randn(*size, band, device="cuda"), start


def tiles() -> list[tuple[str, str, fused.KernelBlocks]]:
    """Configs, kernels and blocks that are tried."""
    kinds = {"read": READ_BLOCKS} | dict.fromkeys(("queries", "keys", "values"), GRADIENT_BLOCKS)
    return [
        (name, kind, blocks)
        for name in ("conv_before", "conv")
        for kind, candidates in kinds.items()
        for blocks in candidates
    ]


def bench_tiles(report: Report, num_steps: int, chosen: Sequence[tuple[Any, ...]]) -> None:
    """Each kernel alone, with several blocks."""
    for name, kind, blocks in chosen:
        inputs = lifted_inputs(name, num_steps)
        given = (*inputs, fused._ends(inputs[4]))
        q, k, v, band, _ = inputs
        widths = fused.KernelWidths(q.shape[3], v.shape[3], band.shape[3])
        out, sums = torch.empty_like(v), q.new_empty(q.shape[:3], dtype=torch.float32)
        back = (sums, torch.zeros_like(sums), torch.randn_like(v))
        sums.fill_(10.0)
        kernels: dict[str, tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = {
            "read": (read_kernel, (given, out, sums), (widths.value,)),
            "queries": (
                query_kernel,
                (given, back, torch.zeros_like(q), torch.zeros_like(band)),
                (widths.query,),
            ),
            "keys": (key_kernel, (given, back, torch.zeros_like(k)), (widths.query, True)),
            "values": (key_kernel, (given, back, torch.zeros_like(v)), (widths.value, False)),
        }
        kernel, arguments, last = kernels[kind]
        where = f"tiles {name} {kind} {num_steps} {tuple(blocks)}"
        call = partial(fused._launch, kernel, blocks, arguments, widths, last)
        report.add(where, partial(milliseconds, call, 0.03), 15)


def measured(function: Callable[[], Tensor], inputs: Sequence[Tensor]) -> dict[str, float]:
    """Milliseconds of a call, and of one with its gradient, and the peak of the memory in MB."""
    with torch.no_grad():
        found = {"forward_ms": milliseconds(function)}
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    gradient = torch.randn_like(function())

    def both() -> None:
        torch.autograd.grad(function(), inputs, gradient)

    both()
    found["peak_mb"] = round((torch.cuda.max_memory_allocated() - held) / 2**20)
    return found | {"both_ms": milliseconds(both)}


def forms(name: str, num_steps: int) -> dict[str, Callable[..., Tensor]]:
    """Functions of queries, keys, values, kernels and starts that are run for so many steps."""
    start = torch.zeros(ROWS, num_steps, dtype=torch.long, device="cuda")
    reach = RowReach(start, num_steps, is_plain=True)
    found: dict[str, Callable[..., Tensor]] = {}
    if name == "conv_before":
        found["plain"] = lambda q, k, v, *_: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if name not in WIDE:
        found["fused"] = partial(lifted, num_steps, fused.FUSED)
    if num_steps <= 4096:
        found["chunked"] = lambda q, k, v, kernels, _: attend_chunked(q, k, v, kernels, reach)
        found["naive"] = lambda q, k, v, kernels, _: naive(q, k, v, kernels)
        if name not in WIDE:
            found["lifted"] = partial(lifted, num_steps, TORCH)
    return found


def bench_rows(
    report: Report, lengths: Sequence[int], names: Sequence[str], chosen: Sequence[str] = ()
) -> None:
    for num_steps in lengths:
        start = torch.zeros(ROWS, num_steps, dtype=torch.long, device="cuda")
        q, k, v = (x.bfloat16().requires_grad_() for x in heads(num_steps, "cuda", ROWS))
        for name in names:
            own = [
                None if x is None else x.cuda().requires_grad_()
                for x in kernels_of(ALL_CONFIGS[name])
            ]
            for form, function in forms(name, num_steps).items():
                if chosen and form not in chosen:
                    continue
                learned = [] if form == "plain" else [x for x in own if x is not None]
                call = partial(function, q, k, v, Kernels(*own), start)
                where = f"rows {name} {form} {num_steps}"
                report.add(where, partial(measured, call, (q, k, v, *learned)))


def bench_flex(report: Report, lengths: Sequence[int]) -> None:
    """FlexAttention with the lifted vectors of a convolution before the softmax, forward."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    flex: Any = torch.compile(flex_attention, dynamic=False)
    for num_steps in lengths:
        q, k, v, band, _ = lifted_inputs("conv_before", num_steps)
        width = band.shape[3]

        def score(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            near = (i - j >= 0) & (i - j < width)  # noqa: B023 (used at once)
            place = (i - j).clamp(0, width - 1)  # noqa: B023 (used at once)
            return torch.where(near, score - band[b, h, i, place], score)  # noqa: B023 (used at once)

        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, num_steps, num_steps)
        call = partial(flex, q, k, v, score_mod=score, block_mask=mask, scale=1.0)

        def forward(call: Callable[[], Tensor] = call) -> float:
            with torch.no_grad():
                return milliseconds(call)

        report.add(f"flex forward {num_steps}", forward, 25)


def compile_one(what: str, *sizes: Any) -> str:
    """Compile what one line of the other parts needs, with few steps, in a process of its own."""
    report = Report(None, time.time() + 60)
    if what == "check":
        report.add(what, partial(check, *sizes), 60)
    elif what == "rows":
        bench_rows(report, (128,), sizes, ("fused",))
    else:
        bench_tiles(report, 128, [sizes])
    return str(report.found)


def warm() -> None:
    """Compile in several processes at once."""
    jobs: list[tuple[Any, ...]] = [("check", *sizes) for sizes in CHECKS]
    jobs += [("rows", name) for name in ("conv_before", "conv")]
    jobs += [("tiles", *sizes) for sizes in tiles()]
    with ProcessPoolExecutor(14, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(compile_one, *job) for job in jobs]):
            print(done.result(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("warm", "check", "tiles", "rows", "flex")
    parser.add_argument("parts", nargs="+", choices=parts)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 1024, 16384, 2048, 8192])
    parser.add_argument("--configs", nargs="+", default=list(ALL_CONFIGS))
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--out", help="file for the record")
    arguments = parser.parse_args()
    deadline = time.time() + arguments.seconds
    deadline = min(deadline, float(os.environ.get("DEADLINE", deadline)))
    report = Report(arguments.out, deadline)
    report.found["gpu"] = torch.cuda.get_device_name()
    for part in arguments.parts:
        if part == "warm":
            warm()
        elif part == "check":
            bench_check(report)
        elif part == "tiles":
            bench_tiles(report, 4096, tiles())
        elif part == "rows":
            bench_rows(report, arguments.lengths, arguments.configs)
        else:
            bench_flex(report, arguments.lengths[:3])
    finish("What does Multi-Token Attention cost on a GPU?", report.found, arguments.out)


if __name__ == "__main__":
    main()
