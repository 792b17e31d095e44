"""How fast is a training step beside Hugging Face `transformers` Llama of the same dimensions?

Both models take the same bytes, the same fused AdamW and the same autocast, in one process, step by
step in turn. bfloat16 is left out where this CPU multiplies faster in float32: a step would take 20
to 40 times as long there. Bar: 1.2 times the bytes a second of theirs.

    python benchmarks/bench_train_step.py --out benchmarks/results/train_step.json
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from record import finish, quantile
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from counterpoint.blocks.transformer import TowerConfig
from counterpoint.streams.batch import Batch
from counterpoint.systems import single_stream, two_stream
from counterpoint.systems.single_stream import SingleStream, SingleStreamConfig
from counterpoint.systems.two_stream import TwoStream
from counterpoint.train.allocator import keep_large_buffers
from counterpoint.train.precision import choose_precision, time_products

AIM = 1.2


def llama(config: SingleStreamConfig) -> LlamaForCausalLM:
    """Llama with the dimensions of a `SingleStream`; full attention is all it offers."""
    tower = config.tower
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=tower.width,
            intermediate_size=tower.mlp_hidden,
            num_hidden_layers=tower.num_layers,
            num_attention_heads=tower.num_heads,
            num_key_value_heads=tower.num_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
        )
    )


def stepper(
    model: nn.Module, loss_of: Callable[[Tensor], Tensor], precision: torch.dtype
) -> Callable[[Tensor], float]:
    """A function that takes one training step on ids and returns its seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(ids: Tensor) -> float:
        begin = time.perf_counter()
        with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
            loss = loss_of(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - begin

    return step


def ours(model: SingleStream | TwoStream) -> Callable[[Tensor], Tensor]:
    """Loss of one of our systems on rows of T + 1 ids."""

    def loss(ids: Tensor) -> Tensor:
        start = torch.zeros_like(ids[:, 1:])
        batch = Batch(
            ticks={"part": ids[:, :-1]},
            targets={"part": ids[:, 1:]},
            document_start=start,
            size=start.numel(),
        )
        return model.loss(batch).total

    return loss


def theirs(model: LlamaForCausalLM) -> Callable[[Tensor], Tensor]:
    """The same loss of Llama, from its logits."""

    def loss(ids: Tensor) -> Tensor:
        logits = model(ids[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    return loss


def measure(size: str, precision: torch.dtype, args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of each model's step, taken in turn, and ratios."""
    config = getattr(single_stream, size)()
    full = SingleStreamConfig(
        tower=TowerConfig(
            width=config.tower.width,
            num_layers=config.tower.num_layers,
            num_heads=config.tower.num_heads,
            mlp_hidden=config.tower.mlp_hidden,
            window=args.ticks,
        )
    )
    models: dict[str, Any] = {
        "llama": llama(config),
        "single_stream_full": SingleStream(full),
        "single_stream": SingleStream(config),
        "two_stream": TwoStream(getattr(two_stream, size)()),
    }
    steps = {
        name: stepper(model, theirs(model) if name == "llama" else ours(model), precision)
        for name, model in models.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(args.repeats + 2):  # two to warm up
        ids = torch.randint(0, 256, (args.rows, args.ticks + 1))
        for name, step in steps.items():
            took = step(ids)
            if turn >= 2:
                seconds[name].append(took)
    pairs = {
        name: [a / b for a, b in zip(seconds["llama"], values, strict=True)]
        for name, values in seconds.items()
    }
    num_bytes = args.rows * args.ticks
    return {
        name: {
            "parameters": sum(p.numel() for p in models[name].parameters()),
            "kilobytes_per_s": round(num_bytes / quantile(values, 0.5) / 1e3, 2),
            "times_llama": round(quantile(pairs[name], 0.5), 3),
        }
        for name, values in seconds.items()
    }


def precisions(size: str) -> list[torch.dtype]:
    """float32, and bfloat16 where a run of this size on this CPU would choose it."""
    model = SingleStream(getattr(single_stream, size)())
    choice = choose_precision("auto", None, lambda: time_products([model], torch.device("cpu")))
    print(choice.why)
    return [torch.float32] + [torch.bfloat16] * (choice.precision == "bfloat16")


def main() -> None:
    """Measure, print a table, and end with one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small"])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--ticks", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out")
    args = parser.parse_args()
    keep_large_buffers()
    results: dict[str, Any] = {}
    for size in args.sizes:
        for precision in precisions(size):
            key = f"{size}_{str(precision).removeprefix('torch.')}"
            results[key] = measure(size, precision, args)
            for name, row in results[key].items():
                print(f"{key:16} {name:20}", row)
    shape = {"rows": args.rows, "ticks": args.ticks, "repeats": args.repeats}
    finish("train_step", {"aim_times_llama": AIM, **shape, "results": results}, args.out)


if __name__ == "__main__":
    main()
