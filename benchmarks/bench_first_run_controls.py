"""Would a larger single stream do as well? Controls of the first run that could destroy its claim.

Muon's own products are not in a system's FLOPs, and at the first run's small batches they are not
small: this counts them. Arms, equal data: the first run's pair; a single stream whose training and
optimiser FLOPs together are those of two_stream; and one with as many parameters.

    python benchmarks/bench_first_run_controls.py --out benchmarks/results/first_run_controls.json
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from record import finish
from torch.utils.flop_counter import FlopCounterMode

from counterpoint.data.loader import Loader
from counterpoint.data.text.corpus import prepare
from counterpoint.evaluate.score import bits_per_byte, score
from counterpoint.progress import Progress
from counterpoint.recipes.first_run import control_system, first_run
from counterpoint.systems import build_system
from counterpoint.train.checkpoint import load_weights, read_manifest
from counterpoint.train.loop import train
from counterpoint.train.optimizer import build_optimizer
from counterpoint.train.reporter import RunReporter
from counterpoint.train.run import Run

# Hidden features of the control's MLP: as in the first run; equal FLOPs with the optimiser's; equal
# parameters.
SINGLE_MLPS = {"single_stream": 400, "equal_flops_and_optimizer": 580, "equal_parameters": 988}


def optimizer_flops(run: Run) -> float:
    """FLOPs a tick of the optimiser's matrix products."""
    system = build_system(run.system, 0)
    optimizer = build_optimizer(system, run.train.optimizer)
    for weight in system.parameters():
        weight.grad = torch.randn_like(weight)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    return counter.get_total_flops() / (run.train.batch_rows * run.text_data.row_ticks)


def measure(run: Run, folder: Path, block_ticks: int) -> dict[str, Any]:
    """Train an arm, or go on with it, and score the held-out text."""
    corpus = prepare(run.text_data, block_ticks)
    system = build_system(run.system, run.train.seed)
    loader = Loader(corpus.train, run.train.batch_rows, run.train.seed)
    result = train(system, loader, run.train, folder, reporter=RunReporter(Progress(), run.name))
    if not result.finished:
        raise SystemExit("Stopped: run it again to continue.")
    system.load_state_dict(load_weights(result.checkpoint))
    half = read_manifest(result.checkpoint)["train"]["precision"] == "bfloat16"
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        lengths = corpus.tokenizer.byte_lengths
        scores = score(system.eval(), corpus.held_out, lengths, block_ticks=block_ticks)
    flops = system.flops_per_tick(run.text_data.row_ticks, training=True)
    return {
        "parameters": sum(weight.numel() for weight in system.parameters()),
        "training_megaflops_per_byte": round(flops / 1e6, 2),
        "optimizer_megaflops_per_byte": round(optimizer_flops(run) / 1e6, 2),
        "held_out_bits_per_byte": round(bits_per_byte(scores), 4),
    }


def main() -> None:
    """Run what is missing, print the table, and end with one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/first_run_controls"))
    parser.add_argument("--out")
    args = parser.parse_args()
    study = first_run()
    control, ours = study.arms
    single = control_system()
    arms = []
    for name, mlp_hidden in SINGLE_MLPS.items():
        system = replace(single, tower=replace(single.tower, mlp_hidden=mlp_hidden))
        arms.append(replace(control, name=name, system=system))
    results = {}
    for run in (*arms, ours):
        results[run.name] = measure(run, args.folder / run.name, study.block_ticks)
        print(f"{run.name:26} {results[run.name]}", flush=True)
    finish("first_run_controls", {"seed": ours.train.seed, "results": results}, args.out)


if __name__ == "__main__":
    main()
