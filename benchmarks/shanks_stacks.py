"""Does thinking help to find the errors of a speaker? Runs of one arrangement at once, on a GPU.

Runs of one arrangement differ in their seeds or learning rates and are lanes of one stack. The
protocol and the result are in docs/results/shanks.md. Problems are made beforehand:

    python benchmarks/shanks_stacks.py make --folder /tmp/spoken --rows 20000 \
        --arrangements interleaved-recalled silent-recalled
    python benchmarks/shanks_stacks.py train --folder /tmp/spoken --out runs/shanks_gpu \
        --arrangements interleaved-recalled --steps 4000 --seeds 1 2 3 --rates 0.002

`train` writes weights in 16 bits and what was learned by kind of word; bench_shanks.py reads them.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file

from counterpoint.config_json import encode
from counterpoint.data.recorded import record
from counterpoint.data.tasks.spoken_maths.source import Arrangement
from counterpoint.data.tasks.spoken_maths.thoughts import Style
from counterpoint.evaluate.duplex.thought_kinds import KindScorer
from counterpoint.processes import work_in_processes
from counterpoint.recipes.shanks_small import shanks_gpu
from counterpoint.streams.batch import Batch
from counterpoint.systems import build_system, sketch
from counterpoint.train.config import OptimizerConfig
from counterpoint.train.run import Run
from counterpoint.train.stacked import Stack

PIECE_ROWS = 512
"""Rows that one process makes at once."""

TUNING_PROBLEMS = range(100_000, 100_200)
"""Held-out problems on which rates are chosen; those that are reported have lower numbers."""

NUM_POINTS = 8
"""Points of the learning curves."""

TIMED_STEPS = 24


def main(argv: Sequence[str] | None = None) -> None:
    """Make problems, or learn from them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    making = parts.add_parser("make")
    making.add_argument("--rows", type=int, default=20_000)
    making.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    training = parts.add_parser("train")
    training.add_argument("--steps", type=int, default=0, help="0: as many as fit into --seconds")
    training.add_argument(
        "--seconds", type=float, nargs="+", default=[60.0], help="of each; it is cut off then"
    )
    training.add_argument("--without-weights", action="store_true", help="write only numbers")
    training.add_argument("--problems", type=int, default=len(TUNING_PROBLEMS))
    training.add_argument("--batch-rows", type=int, default=32)
    training.add_argument("--seeds", type=int, nargs="+", default=[0])
    training.add_argument("--rates", type=float, nargs="+", default=[2e-3])
    training.add_argument("--device", default="cuda")
    training.add_argument("--out", type=Path, required=True)
    for one in (making, training):
        one.add_argument("--arrangements", nargs="+", required=True)
        one.add_argument("--folder", type=Path, required=True, help="folder of the problems")
    options = parser.parse_args(argv)
    if options.part == "make":
        make(options)
    else:
        torch.set_float32_matmul_precision("high")
        last_s = float(os.environ.get("JOB_DEADLINE", "inf"))
        for number, name in enumerate(options.arrangements):
            seconds = options.seconds[min(number, len(options.seconds) - 1)]
            train(name, min(time.time() + seconds, last_s), options)


def run_of(name: str) -> Run:
    """Return the run with a name such as "interleaved-checked"."""
    arrangement, _, style = name.partition("-")
    return shanks_gpu(cast("Arrangement", arrangement), cast("Style", style))


def make(options: argparse.Namespace) -> None:
    """Make the rows of some arrangements, in as many processes as there are cores."""
    begin = time.time()
    options.folder.mkdir(parents=True, exist_ok=True)
    pieces = [
        (name, first)
        for first in range(0, options.rows, PIECE_ROWS)
        for name in options.arrangements
    ]
    work = partial(make_piece, options.folder)
    with closing(work_in_processes(work, pieces, options.processes)) as done:
        number = sum(1 for _ in done)
    print(f"{number} pieces in {time.time() - begin:.1f} s", flush=True)


def make_piece(folder: Path, piece: tuple[str, int]) -> None:
    """Make some rows and write them to a file."""
    name, first = piece
    run = run_of(name)
    batches = run.data.prepare(sketch(run.system)).batches(PIECE_ROWS, seed=0)
    one = batches.batch(first // PIECE_ROWS)
    torch.save(
        (
            {stream: ids.short() for stream, ids in one.ticks.items()},
            {stream: ids.short() for stream, ids in one.targets.items()},
            one.document_start.short(),
        ),
        folder / f"{name}-{first}.pt",
    )


class Pool:
    """Rows that were made beforehand, in a new order in every pass; a `BatchSource`.

    Args:
        folder: Folder of the rows.
        name: Name of the arrangement.
        batch_rows: Number of rows of a batch.
    """

    def __init__(self, folder: Path, name: str, batch_rows: int) -> None:
        pieces = [torch.load(path) for path in sorted(folder.glob(f"{name}-[0-9]*.pt"))]
        if not pieces:
            raise SystemExit(f"{folder} must hold rows of {name}: use `make` first.")
        self._ticks, self._targets = (
            {
                stream: torch.cat([piece[part][stream] for piece in pieces])
                for stream in pieces[0][part]
            }
            for part in (0, 1)
        )
        self._start = torch.cat([piece[2] for piece in pieces])
        self._batch_rows = batch_rows
        self.seed = 0

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        steps = len(self._start) // self._batch_rows
        epoch, place = divmod(step, steps)
        order = torch.randperm(
            len(self._start), generator=torch.Generator().manual_seed(self.seed * 1000 + epoch)
        )
        rows = order[place * self._batch_rows : (place + 1) * self._batch_rows]
        targets = {stream: ids[rows].long() for stream, ids in self._targets.items()}
        return Batch(
            ticks={stream: ids[rows].long() for stream, ids in self._ticks.items()},
            targets=targets,
            document_start=self._start[rows].long(),
            size=sum(int((ids >= 0).sum()) for ids in targets.values()),
        )


class OverError(Exception):
    """The time of an arrangement is over."""


def train(name: str, deadline: float, options: argparse.Namespace) -> None:
    """Train all seeds and rates of one arrangement; write what they learned as it comes."""
    options.out.mkdir(parents=True, exist_ok=True)
    pool = Pool(options.folder, name, options.batch_rows)
    lanes = [(seed, rate) for seed in options.seeds for rate in options.rates]
    steps = options.steps
    if not steps:
        step_s = timed(run_of(name), pool, lanes, options)
        steps = int(0.8 * (deadline - time.time()) / step_s)
        print(f"{name}: {1000 * step_s:.1f} ms a step, {steps} steps", flush=True)
    try:
        learn(run_of(name), pool, lanes, steps, options, deadline)
    except OverError as error:
        print(error, flush=True)


def timed(run: Run, pool: Pool, lanes: list[tuple[int, float]], options: Any) -> float:
    """Return the seconds of a step."""
    times: list[float] = []

    def on_step(step: int, bits: list[float]) -> None:
        times.append(time.time())

    stack, sources = stacked(run, pool, lanes, TIMED_STEPS, options, log_every=TIMED_STEPS // 3)
    stack.train(sources, on_step)
    return (times[2] - times[1]) / (TIMED_STEPS // 3)


def stacked(
    run: Run, pool: Pool, lanes: list[tuple[int, float]], steps: int, options: Any, log_every: int
) -> tuple[Stack, list[Any]]:
    """Return a stack, and the batches of its lanes; those of one seed are the same."""
    config = replace(run.train, num_steps=steps, batch_rows=options.batch_rows, log_every=log_every)
    configs = [
        replace(config, seed=seed, optimizer=OptimizerConfig(lr=rate, weight_decay=0.01))
        for seed, rate in lanes
    ]
    systems = [build_system(run.system, seed).to(options.device) for seed, _ in lanes]
    sources = {}
    for seed, _ in lanes:
        if seed not in sources:
            pool.seed = seed
            sources[seed] = record(pool, steps)
    return Stack(systems, configs), [sources[seed] for seed, _ in lanes]


def learn(
    run: Run,
    pool: Pool,
    lanes: list[tuple[int, float]],
    steps: int,
    options: argparse.Namespace,
    deadline: float,
) -> None:
    """Take all steps, or as many as there is time for."""
    begin = time.time()
    every = max(steps // NUM_POINTS, 1)
    stack, sources = stacked(run, pool, lanes, steps, options, log_every=every)
    data: Any = run.data
    problems = [data.heard(number, held_out=True) for number in TUNING_PROBLEMS[: options.problems]]
    scorer = KindScorer(stack.systems[0].layout, data, problems, options.device)
    curve: list[dict[str, Any]] = []
    print(f"{time.time() - begin:.1f} s for the batches", flush=True)

    def on_step(step: int, bits: list[float]) -> None:
        stack.finish()
        kinds = []
        for system in stack.systems:
            scores = scorer.score(system.to(options.device).eval())
            kinds.append({kind: score._asdict() for kind, score in scores.items()})
            system.train()
        point = {"step": step, "seconds": time.time() - begin, "bits": bits, "kinds": kinds}
        curve.append(point)
        print(json.dumps(_short(point)), flush=True)
        write(run, stack, lanes, steps, curve, options)
        if time.time() > deadline:
            raise OverError(f"{run.name}: stopped after {step} of {steps} steps.")

    stack.train(sources, on_step)


def write(
    run: Run,
    stack: Stack,
    lanes: list[tuple[int, float]],
    steps: int,
    curve: list[dict[str, Any]],
    options: argparse.Namespace,
) -> None:
    """Write the weights of every lane, and what they learned so far."""
    device = options.device
    card = torch.cuda.get_device_name() if device == "cuda" else device
    facts = {
        "arrangement": run.name,
        "steps": steps,
        "batch_rows": options.batch_rows,
        "run": encode(run),
        "parameters": sum(weight.numel() for weight in stack.systems[0].parameters()),
        "device": card,
        "lanes": [{"seed": seed, "rate": rate} for seed, rate in lanes],
        "curve": curve,
    }
    (options.out / f"{run.name}.json").write_text(json.dumps(facts))
    if options.without_weights:
        return
    for (seed, rate), system in zip(lanes, stack.systems, strict=True):
        weights = {n: w.detach().half().cpu() for n, w in system.state_dict().items()}
        save_file(weights, options.out / f"{run.name}-{seed}-{rate:g}.safetensors")


def _short(point: dict[str, Any]) -> dict[str, Any]:
    """Return a point with the share of right words of each lane only."""
    kinds = [
        {kind: [round(own["bits"], 3), round(own["right"], 3)] for kind, own in lane.items()}
        for lane in point["kinds"]
    ]
    return {**point, "seconds": round(point["seconds"], 1), "kinds": kinds}


if __name__ == "__main__":
    main()
