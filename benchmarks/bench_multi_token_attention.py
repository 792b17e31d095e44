"""What does Multi-Token Attention cost beside plain attention and beside its naive form?

One thread on a CPU, float32, one row, 16 heads of 64, kernels of 6 queries and 11 keys, mixing in
groups of all heads, convolutions before and after the softmax unless a line says otherwise.

*rows*: forward, and forward with gradient, of one layer's attention over N steps. *memory*: growth
of the peak of a process that does it once. *ticks*: one layer of a session, its maps included, at
several positions. *models*: a training step of a language model with the published placement.

All forms of a line run in turn, in one process; a ratio is the median of the ratios of the turns,
and seconds are CPU seconds of the thread, because the machine may be shared. Aims: chunked at least
6 times as fast as naive at N = 4096; a tick at most 1.5 times that of plain attention, at every
position; a training step at most 1.5 times the plain one. For a GPU there is
`bench_multi_token_attention_gpu.py`.

    OMP_NUM_THREADS=1 python benchmarks/bench_multi_token_attention.py rows ticks models memory
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from record import finish, quantile
from torch import Tensor

from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.mixer import MixerConfig, MixerShape
from counterpoint.blocks.multi_token_attention import MultiTokenConfig
from counterpoint.blocks.multi_token_attention_lifted import attend_lifted
from counterpoint.blocks.multi_token_attention_rows import (
    HIDDEN,
    Kernels,
    RowReach,
    attend_chunked,
    mix_heads,
)
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.streams.batch import Batch
from counterpoint.systems.single_stream import SingleStream, SingleStreamConfig

HEADS, WIDTH = 16, 64
FULL = MultiTokenConfig(conv_every=1)
CONV_BEFORE = replace(FULL, conv_after=False, mix_before=False, mix_after=False)
MIXING = replace(FULL, conv_before=False, conv_after=False)
CONFIGS = {"all": FULL, "conv_before": CONV_BEFORE, "mixing": MIXING}
MEMORY_FORMS = ["plain", "naive", "chunked"]
NAIVE_UP_TO = {"forward": 4096, "both": 2048}
"""Steps up to which the naive form is run: beyond, its scores would need more than 8 GB."""


def in_turn(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of every function, called in turn after one call that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            begin = time.thread_time()
            function()
            if turn:
                seconds[name].append(time.thread_time() - begin)
    return seconds


def told(where: str, seconds: dict[str, list[float]], base: str) -> dict[str, float]:
    """Medians in ms, and the median ratio of every form to the base; also printed."""
    found = {}
    for name, own in seconds.items():
        ratios = [one / other for one, other in zip(own, seconds[base], strict=True)]
        found[f"{name}_ms"] = round(1e3 * quantile(own, 0.5), 3)
        found[f"{name}_to_{base}"] = round(quantile(ratios, 0.5), 3)
    print(where, found, flush=True)
    return found


def heads(num_steps: int, device: str = "cpu", rows: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, rows, HEADS, num_steps, WIDTH, device=device).unbind()
    return q, k, v


def kernels_of(config: MultiTokenConfig) -> Kernels:
    torch.manual_seed(1)
    shape = MixerShape(width=HEADS * WIDTH, num_heads=HEADS, window=10**6, capacity=10**6)
    kernels = config.build(shape).kernels
    return Kernels(
        *(None if one is None else one.detach() + 0.1 * torch.randn(one.shape) for one in kernels)
    )


def naive(q: Tensor, k: Tensor, v: Tensor, kernels: Kernels) -> Tensor:
    """The published way: whole matrices of scores, and one call for a convolution of them.

    It is right for rows of one document alone; the naive form of the library masks every tap and
    is slower.
    """
    seen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()

    def convolved(x: Tensor, kernel: Tensor | None) -> Tensor:
        if kernel is None:
            return x
        side = kernel.shape[2] // 2
        padded = F.pad(x.masked_fill(~seen, 0.0), (side, side, kernel.shape[1] - 1, 0))
        return F.conv2d(padded, kernel[:, None].to(x.dtype), groups=len(kernel))

    x = convolved(q @ k.transpose(-1, -2) * q.shape[3] ** -0.5, kernels.conv_before)
    if kernels.mix_before is not None:
        x = mix_heads(x, kernels.mix_before)
    x = convolved(torch.softmax(x.masked_fill(~seen, HIDDEN), -1), kernels.conv_after)
    x = x.masked_fill(~seen, 0.0)
    if kernels.mix_after is not None:
        x = mix_heads(x, kernels.mix_after)
    return x @ v


def forms(num_steps: int, config: MultiTokenConfig) -> dict[str, Callable[..., Tensor]]:
    """Functions of queries, keys, values and kernels."""
    start = torch.zeros(1, num_steps, dtype=torch.long)
    reach = RowReach(start, num_steps, is_plain=True)
    return {
        "plain": lambda q, k, v, _: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "naive": naive,
        "chunked": lambda q, k, v, kernels: attend_chunked(q, k, v, kernels, reach),
        "lifted": lambda q, k, v, kernels: attend_lifted(q, k, v, kernels, reach),
    }


def run_form(name: str, num_steps: int, config: MultiTokenConfig, gradient: bool) -> None:
    """Run one form once."""
    q, k, v = heads(num_steps)
    kernels = kernels_of(config)
    function = forms(num_steps, config)[name]
    if not gradient:
        with torch.no_grad():
            function(q, k, v, kernels)
        return
    inputs = [q, k, v, *(one for one in kernels if one is not None)]
    for one in inputs:
        one.requires_grad_()
    function(q, k, v, kernels).sum().backward()


def bench_rows(
    lengths: Sequence[int], repeats: int, configs: Sequence[str], kinds: Sequence[str]
) -> dict[str, Any]:
    found = {}
    for config_name in configs:
        config = CONFIGS[config_name]
        for num_steps in lengths:
            for kind in kinds:
                names = ["plain", "chunked"]
                names += ["naive"] if num_steps <= NAIVE_UP_TO[kind] else []
                names += ["lifted"] if config_name == "conv_before" and num_steps <= 4096 else []
                functions: dict[str, Callable[[], object]] = {
                    name: partial(run_form, name, num_steps, config, kind == "both")
                    for name in names
                }
                where = f"rows {config_name} {kind} {num_steps}"
                found[where] = told(where, in_turn(functions, repeats), "chunked")
    return found


def bench_memory(lengths: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    found = {}
    for num_steps in lengths:
        for gradient in (0, 1):
            for name in names:
                if name == "naive" and num_steps > NAIVE_UP_TO["both" if gradient else "forward"]:
                    continue
                if gradient and num_steps > 8192:  # this takes minutes
                    continue
                command = [sys.executable, __file__, "one", name, str(num_steps), str(gradient)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                where = f"memory {name} {'both' if gradient else 'forward'} {num_steps}"
                megabytes, seconds = (round(float(one), 2) for one in done.stdout.split()[-2:])
                found[where] = {"mb": round(megabytes), "s": seconds}
                print(where, found[where], flush=True)
    return found


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(name: str, num_steps: int, gradient: bool) -> None:
    """Print by how much the peak grows, in MB, and the CPU seconds of the call."""
    run_form(name, 64, FULL, gradient)  # what is loaded at first
    before = peak_mb()
    begin = time.thread_time()
    run_form(name, num_steps, FULL, gradient)
    print(peak_mb() - before, time.thread_time() - begin)


@torch.no_grad()
def bench_ticks(positions: Sequence[int], repeats: int) -> dict[str, Any]:
    found = {}
    window = max(positions) + 64
    mixers: dict[str, MixerConfig] = {"plain": AttentionConfig(), **CONFIGS}
    shape = MixerShape(width=HEADS * WIDTH, num_heads=HEADS, window=window, capacity=window + 127)
    x = torch.randn(1, 1, shape.width)
    built = {name: config.build(shape) for name, config in mixers.items()}
    states = {name: mixer.initial_state(1, shape.capacity) for name, mixer in built.items()}
    for position in positions:
        at = torch.tensor([position - 1])

        functions: dict[str, Callable[[], object]] = {}
        for name, mixer in built.items():
            # The reach is computed once for all layers of a tower, so its time is not a layer's.
            reach = mixers[name].streaming_reach(shape, at, 1, None)
            functions[name] = partial(mixer, x, reach, states[name])
        where = f"tick {position}"
        found[where] = told(where, in_turn(functions, repeats), "plain")
    return found


def train_step(model: SingleStream, batch: Batch) -> None:
    model.loss(batch).total.backward()


def bench_models(lengths: Sequence[int], repeats: int) -> dict[str, Any]:
    """A training step, forward and backward, of 8 layers of width 512 on one row."""
    found = {}
    for num_steps in lengths:
        tower = TowerConfig(width=512, num_layers=8, num_heads=8, mlp_hidden=1376, window=num_steps)
        mixers: dict[str, MixerConfig] = {
            "plain": AttentionConfig(),
            "all": MultiTokenConfig(),
            "mixing": MultiTokenConfig(conv_before=False, conv_after=False),
            "conv": MultiTokenConfig(mix_before=False, mix_after=False, head_norm="none"),
        }
        models = {
            name: SingleStream(SingleStreamConfig(tower=replace(tower, mixer=mixer)))
            for name, mixer in mixers.items()
        }
        ids = torch.randint(0, 256, (1, num_steps + 1))
        batch = Batch(
            ticks={"part": ids[:, :-1]},
            targets={"part": ids[:, 1:]},
            document_start=torch.zeros(1, num_steps, dtype=torch.long),
            size=num_steps,
        )
        functions: dict[str, Callable[[], object]] = {
            name: partial(train_step, model, batch) for name, model in models.items()
        }
        where = f"model {num_steps}"
        found[where] = told(where, in_turn(functions, repeats), "plain")
        flops = {name: model.flops_per_tick(num_steps) for name, model in models.items()}
        found[where] |= {f"{name}_flops": flops[name] / flops["plain"] for name in flops}
    return found


def main() -> None:
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1")
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=("rows", "ticks", "models", "memory"))
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--positions", type=int, nargs="+", default=[1024, 4096, 16384, 32768])
    parser.add_argument("--model-lengths", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--configs", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--forms", nargs="+", default=MEMORY_FORMS, help="those of `memory`")
    parser.add_argument("--kinds", nargs="+", default=["forward", "both"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", help="file for the record")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    torch.set_num_threads(1)
    if "rows" in arguments.parts:
        chosen = (arguments.configs, arguments.kinds)
        results |= bench_rows(arguments.lengths, arguments.repeats, *chosen)
    if "ticks" in arguments.parts:
        results |= bench_ticks(arguments.positions, arguments.repeats * 4)
    if "models" in arguments.parts:
        results |= bench_models(arguments.model_lengths, arguments.repeats)
    if "memory" in arguments.parts:
        results |= bench_memory(arguments.lengths, arguments.forms)
    finish("What does Multi-Token Attention cost?", results, arguments.out)


if __name__ == "__main__":
    main()
