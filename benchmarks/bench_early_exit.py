"""Does an early exit save the time that it promises, in every exit mode of `hdlm`?

All modes have the same weights and read the same rows, in one process and in turn, with one thread;
seconds are those of the thread. *Writing*: a session has read a context and writes a turn of coarse
ids and the part id behind it. A coarse id needs the layers below the coarse head alone, so the
promise is k / L of the time that it takes as published (`none`), where all layers run. *Training*:
forward and backward over whole rows, best of all steps; the promise is the ratio of counted FLOPs.
Bar: each measured ratio is at most 1.15 times the promised one.

    python benchmarks/bench_early_exit.py --out benchmarks/results/early_exit.json
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import torch
from record import finish, quantile
from torch import Tensor

from counterpoint.streams.batch import Batch
from counterpoint.streams.schedule import may_stand
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems import hdlm
from counterpoint.systems.hdlm import ExitMode, HdLM, HdLMConfig

AIM = 1.15
MODES: tuple[ExitMode, ...] = get_args(ExitMode)


def models_of(config: HdLMConfig) -> dict[str, HdLM]:
    """One model a mode, with equal weights."""
    models: dict[str, HdLM] = {}
    for mode in MODES:
        torch.manual_seed(0)
        models[mode] = HdLM(replace(config, exit_mode=mode))
    return models


def rows(model: HdLM, num_rows: int, num_ticks: int) -> Batch:
    """Random rows with a full turn behind every block."""
    config = model.config
    part = torch.randint(config.vocab_size, (num_rows, num_ticks + 1))
    coarse = torch.randint(
        1, config.coarse_vocab_size, (num_rows, num_ticks + 1, config.coarse_depth)
    )
    stands = may_stand(model.layout, model.layout["coarse"], torch.arange(num_ticks + 1))
    stands[0] = False
    coarse[:, ~stands] = UNSET_ID
    both = {"coarse": coarse, "part": part}
    return Batch(
        ticks={name: ids[:, :-1] for name, ids in both.items()},
        targets={name: ids[:, 1:] for name, ids in both.items()},
        document_start=torch.zeros(num_rows, num_ticks, dtype=torch.long),
        size=num_rows * num_ticks,
    )


def in_turn(calls: dict[str, Callable[[], Any]], count: int) -> dict[str, list[Any]]:
    """What every call of every model gives, the models in turn; the first fifth is left out."""
    found: dict[str, list[Any]] = {name: [] for name in calls}
    for _ in range(count):
        for name, call in calls.items():
            found[name].append(call())
    return {name: values[count // 5 :] for name, values in found.items()}


def timed(call: Callable[[], Any]) -> float:
    """Seconds of this thread."""
    begin = time.thread_time()
    call()
    return time.thread_time() - begin


def writer(model: HdLM, num_ticks: int) -> Callable[[], tuple[float, float]]:
    """Seconds until the last coarse id of a turn behind a context, and from there to the part."""
    torch.manual_seed(1)
    with torch.inference_mode():
        context = rows(model, 1, num_ticks)
        hidden, state = model.read(context.ticks, model.initial_state(1))

    @torch.inference_mode()
    def turn() -> tuple[float, float]:
        times: list[float] = []

        def choose(stream: str, codebook: int, scores: Tensor) -> Tensor:
            times.append(time.thread_time())
            return scores.argmax(-1).clamp(min=1)

        begin = time.thread_time()
        model.write(hidden[:, -1], choose, state)
        return times[-2] - begin, times[-1] - times[-2]

    return turn


def writing(models: dict[str, HdLM], num_ticks: int, count: int) -> dict[str, Any]:
    """A turn of a session."""
    calls = {name: writer(model.eval(), num_ticks) for name, model in models.items()}
    found = in_turn(calls, count)
    plain = models["none"].config
    # The first id is written from what was read, and the others need a pass each.
    passes = plain.coarse_depth - 1
    promised = plain.coarse_layer / plain.tower.num_layers
    a_coarse = {
        name: quantile([to_coarse for to_coarse, _ in values], 0.5) / passes
        for name, values in found.items()
    }
    return {
        name: {
            "coarse_id_us": round(a_coarse[name] * 1e6, 1),
            "to_part_us": round(quantile([rest for _, rest in values], 0.5) * 1e6, 1),
            "turn_us": round(quantile([sum(both) for both in values], 0.5) * 1e6, 1),
            "coarse_id_ratio": round(a_coarse[name] / a_coarse["none"], 3),
            "promised_ratio": 1.0 if name == "none" else round(promised, 3),
        }
        for name, values in found.items()
    }


def training(models: dict[str, HdLM], num_rows: int, num_ticks: int, count: int) -> dict[str, Any]:
    """Whole rows, forward and backward."""
    batch = rows(models["none"], num_rows, num_ticks)

    def step(model: HdLM) -> Callable[[], float]:
        model.train()
        return lambda: timed(lambda: model.loss(batch).total.backward())

    found = in_turn({name: step(model) for name, model in models.items()}, count)
    seconds = {name: min(values) for name, values in found.items()}
    flops = {name: model.flops_per_tick(num_ticks, training=True) for name, model in models.items()}
    return {
        name: {
            "ms": round(value * 1e3, 2),
            "ratio": round(value / seconds["none"], 3),
            "promised_ratio": round(flops[name] / flops["none"], 3),
        }
        for name, value in seconds.items()
    }


def main() -> None:
    """Measure, print a table, and end with one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small"])
    parser.add_argument("--ticks", type=int, default=256)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for size in args.sizes:
        # Eight ids behind sixteen ticks: a third of all places are coarse.
        config = replace(getattr(hdlm, size)(), coarse_depth=8, turn_ticks=16)
        models = models_of(config)
        results[size] = {
            "layers": config.tower.num_layers,
            "coarse_layer": config.coarse_layer,
            "writing": writing(models, args.ticks, args.turns),
            "training": training(models, args.rows, args.ticks, args.steps),
        }
        for part in ("writing", "training"):
            for name, values in results[size][part].items():
                print(f"{size:6} {part:9} {name:10}", values)
    finish("early_exit", {"aim": AIM, "ticks": args.ticks, "results": results}, args.out)


if __name__ == "__main__":
    main()
