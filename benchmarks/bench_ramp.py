"""Do blocks that begin short and grow help two_stream on text, at equal training FLOPs?

Declared in ``docs/results/ramp_declared.json``. Small models learn from the rows of the first run;
the arm with a ramp takes as many steps as have the FLOPs of the other. What was run is kept below
``--folder``, and a run that was stopped goes on.

    python benchmarks/bench_ramp.py --out benchmarks/results/ramp.json
    python benchmarks/bench_ramp.py --table benchmarks/results/ramp.json
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from record import finish

from counterpoint.blocks.ramp import RampConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.evaluate.statistics import bootstrap_ratio
from counterpoint.evaluate.units import score_units
from counterpoint.progress import Progress
from counterpoint.recipes.first_run import first_run, two_stream_system
from counterpoint.systems import build_system, sketch
from counterpoint.systems.contract import mean_training_flops
from counterpoint.systems.two_stream import TwoStreamConfig
from counterpoint.train.checkpoint import load_weights
from counterpoint.train.config import OptimizerConfig
from counterpoint.train.loop import train
from counterpoint.train.reporter import RunReporter
from counterpoint.train.run import Run

Record = dict[str, Any]

STEPS = 480
ROW_TICKS = 512
UNITS = 24
SEEDS = (0, 1, 2)
RAMP = RampConfig(start_ticks=2, share=0.5)
BLOCKS = ("words", "fixed")


def system(blocks: str, ramp: RampConfig) -> TwoStreamConfig:
    """Return the first run's two_stream with narrower towers."""
    config = replace(
        two_stream_system(),
        part=TowerConfig(width=64, num_layers=3, num_heads=2, mlp_hidden=160, window=32),
        whole=TowerConfig(width=96, num_layers=2, num_heads=3, mlp_hidden=256, window=64),
        lower_layers=1,
        ramp=ramp,
    )
    if blocks == "words":
        return config
    return replace(config, boundary_ids=(), usual_block_ticks=None)


def run_of(blocks: str, ramp: RampConfig, seed: int) -> Run:
    """Return a run of an arm, with the training FLOPs of `STEPS` steps without a ramp."""
    config = system(blocks, ramp)
    plain, own = (
        mean_training_flops(sketch(one), ROW_TICKS, STEPS)
        for one in (system(blocks, RampConfig()), config)
    )
    first = first_run().arms[1]
    training = replace(
        first.train,
        num_steps=round(STEPS * plain / own),
        seed=seed,
        precision="float32",
        checkpoint_every=120,
        optimizer=OptimizerConfig(lr=4e-3, weight_decay=0.01),
    )
    name = f"{blocks}{'' if ramp.start_ticks is None else '_ramp'}_seed{seed}"
    data = replace(first.text_data, row_ticks=ROW_TICKS)
    return replace(first, name=name, system=config, data=data, train=training)


def measured(run: Run, folder: Path) -> Record:
    """Train a run, or go on with it, and score the held-out chapters."""
    model = build_system(run.system, run.train.seed)
    data = run.data.prepare(model)
    batches = data.batches(run.train.batch_rows, run.train.seed)
    reporter = RunReporter(Progress(), run.name)
    result = train(model, batches, run.train, folder, reporter=reporter)
    if not result.finished:
        raise SystemExit("Stopped: run it again to continue.")
    model.load_state_dict(load_weights(result.checkpoint))
    units = data.held_out_units()
    assert units is not None
    scores = score_units(model.eval(), units, UNITS)
    return {
        "steps": run.train.num_steps,
        "bytes": result.counters.size,
        "training_flops": result.counters.flops,
        "bits": [round(one.bits, 3) for one in scores],
        "sizes": [one.size for one in scores],
    }


def table(runs: Mapping[str, Record]) -> Iterator[str]:
    """Yield the lines of a Markdown table: both arms of a pair, and their difference."""
    yield "| blocks | ramp | steps | training TFLOPs | bits a byte by seed | mean | difference, % |"
    yield "|---|---|---|---|---|---|---|"
    for blocks in BLOCKS:
        pairs = [
            (runs[f"{blocks}_seed{seed}"], runs[f"{blocks}_ramp_seed{seed}"])
            for seed in SEEDS
            if f"{blocks}_ramp_seed{seed}" in runs
        ]
        if pairs:
            plain, ramped = zip(*pairs, strict=True)
            yield _line(blocks, "no", plain, "")
            ours, theirs = (np.array([one["bits"] for one in own]) for own in (ramped, plain))
            found = bootstrap_ratio(ours, theirs).map(100, -100)
            shown = f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
            yield _line(blocks, "yes", ramped, shown)


def _line(blocks: str, ramp: str, own: Sequence[Record], difference: str) -> str:
    values = [sum(one["bits"]) / sum(one["sizes"]) for one in own]
    by_seed = ", ".join(f"{value:.3f}" for value in values)
    flops = own[0]["training_flops"] / 1e12
    mean = sum(values) / len(values)
    steps = own[0]["steps"]
    return f"| {blocks} | {ramp} | {steps} | {flops:.3f} | {by_seed} | {mean:.3f} | {difference} |"


def main() -> None:
    """Run what is missing, print the table, and end with one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/ramp"))
    parser.add_argument("--table", type=Path)
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.table:
        print(*table(json.loads(args.table.read_text())["runs"]), sep="\n")
        return
    kept: dict[str, Record] = {}
    for blocks, seed, ramp in product(BLOCKS, SEEDS, (RampConfig(), RAMP)):
        run = run_of(blocks, ramp, seed)
        file = args.folder / f"{run.name}.json"
        if not file.exists():
            found = measured(run, args.folder / run.name)
            file.write_text(json.dumps(found))
        kept[run.name] = json.loads(file.read_text())
        finish("ramp", {"declared": "docs/results/ramp_declared.json", "runs": kept}, args.out)
    print(*table(kept), sep="\n")


if __name__ == "__main__":
    main()
