"""Which part of Multi-Token Attention pays in language modelling, on a CPU, cell by cell?

Bytes of the King James Bible, 4 layers of width 128 with 4 heads, rows of 256 bytes. Arms: plain
attention; *mixing* of heads alone; *convolution* alone (third layer, before and after the softmax);
*gate*: normalisation and gate of the heads alone; *all*, as published. Training FLOPs are equal by
the width of the MLPs, counting every pair that is read once. *plain_long* is plain attention that
takes as many more steps as `all` takes longer for one; it is trained last.

Metric: bits a byte of 128 pieces of the held-out books, each read without what stands before it.
Floor: the frequencies of bytes in the training text. Ablation: the same model with a part set back
to the identity. Cells that are in the record are not repeated, and a cell that was stopped goes on.

    OMP_NUM_THREADS=1 python benchmarks/multi_token_parts.py --out multi_token_parts.json
"""

import argparse
import json
import math
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from multi_token_language import flops_of, matched
from record import keep

from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.mixer import MixerConfig
from counterpoint.blocks.multi_token_attention import MultiTokenAttention, MultiTokenConfig
from counterpoint.data.loader import Loader
from counterpoint.data.text.corpus import Corpus, DataConfig, prepare
from counterpoint.streams.batch import Batch
from counterpoint.systems import build_system
from counterpoint.systems.contract import System
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.loop import train

TICKS, ROWS, PIECES = 256, 4, 128
SHAPE = Namespace(width=128, layers=4, heads=4)
NOTHING = MultiTokenConfig(
    conv_before=False, conv_after=False, mix_before=False, mix_after=False, head_norm="none"
)
MIXERS: dict[str, MixerConfig] = {
    "plain": AttentionConfig(),
    "all": MultiTokenConfig(),
    "mixing": replace(NOTHING, mix_before=True, mix_after=True),
    "convolution": replace(NOTHING, conv_before=True, conv_after=True),
    "gate": replace(NOTHING, head_norm="gate"),
}


def pieces(corpus: Corpus) -> torch.Tensor:
    """Evenly placed pieces of the held-out text: (P, T + 1) ids."""
    ids = torch.from_numpy(np.concatenate([unit.ids for unit in corpus.held_out]).astype(np.int64))
    places = torch.linspace(0, len(ids) - TICKS - 1, PIECES).long()
    return ids[places[:, None] + torch.arange(TICKS + 1)]


@torch.no_grad()
def bits(system: System, held_out: torch.Tensor) -> list[float]:
    """Bits a byte of every piece."""
    found = []
    for ids in held_out.split(64):
        batch = Batch(
            ticks={"part": ids[:, :-1]},
            targets={"part": ids[:, 1:]},
            document_start=torch.zeros_like(ids[:, 1:]),
            size=ids[:, 1:].numel(),
        )
        scores = system(batch)["part"].flatten(0, 1)
        nats = F.cross_entropy(scores, ids[:, 1:].flatten(), reduction="none")
        found += (nats.view(len(ids), -1).mean(1) / math.log(2)).tolist()
    return found


def floor(corpus: Corpus, held_out: torch.Tensor) -> float:
    """Bits a byte of the frequencies of ids in the training rows, with one added to each."""
    rows = corpus.train.rows(np.arange(len(corpus.train))).ticks["part"]
    counts = 1.0 + torch.bincount(rows.flatten(), minlength=int(held_out.max()) + 1).double()
    return float(-(counts / counts.sum()).log2()[held_out[:, 1:]].mean())


@torch.no_grad()
def ablated(system: System, held_out: torch.Tensor) -> dict[str, float]:
    """Mean bits a byte with one part of every layer set back to the identity."""
    found = {}
    mixers = [one for one in system.modules() if isinstance(one, MultiTokenAttention)]
    for name in ("conv_before", "conv_after", "mix_before", "mix_after"):
        kept = [(one, one.clone()) for mixer in mixers if (one := getattr(mixer, name)) is not None]
        for weight, _ in kept:
            weight.zero_()
            if name.startswith("conv"):
                weight[:, -1, weight.shape[2] // 2] = 1
            else:
                weight += torch.eye(weight.shape[1])
        if kept:
            found[name] = sum(bits(system, held_out)) / PIECES
        for weight, old in kept:
            weight.copy_(old)
    return found


def run_cell(arm: str, seed: int, steps: int, corpus: Corpus, folder: Path) -> dict[str, Any]:
    """Train one model, or go on with it, and score it."""
    tower = matched(SHAPE, MIXERS[arm.removesuffix("_long")], TICKS)
    system = build_system(SingleStreamConfig(tower=tower), seed)
    config = TrainConfig(
        num_steps=steps,
        batch_rows=ROWS,
        precision="float32",
        seed=seed,
        checkpoint_every=max(steps // 4, 1),
        optimizer=OptimizerConfig(lr=4e-3, muon_lr=0.014, weight_decay=0.01),
        schedule=ScheduleConfig(warmup_steps=40, final_ratio=0.05),
    )
    begin = time.thread_time()
    result = train(system, Loader(corpus.train, ROWS, seed), config, folder)
    if not result.finished:
        raise SystemExit("Stopped: run it again to continue.")
    seconds = time.thread_time() - begin
    system.eval()
    held_out = pieces(corpus)
    every = bits(system, held_out)
    return {
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "bits": sum(every) / PIECES,
        "ablated": ablated(system, held_out),
        "cpu_seconds": seconds,
        "parameters": sum(weight.numel() for weight in system.parameters()),
        "mlp_hidden": tower.mlp_hidden,
        "flops_to_plain": flops_of(tower, TICKS)
        / flops_of(matched(SHAPE, MIXERS["plain"], TICKS), TICKS),
        "pieces": [round(one, 4) for one in every],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", default=list(MIXERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--long-steps", type=int, help="steps of `plain_long`; without, none")
    parser.add_argument("--folder", type=Path, default=Path("runs/multi_token_parts"))
    parser.add_argument("--out", type=Path, default=Path("multi_token_parts.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    corpus = prepare(DataConfig(row_ticks=TICKS), 1)
    cells = json.loads(arguments.out.read_text())["cells"] if arguments.out.exists() else {}
    wanted = [(arm, seed, arguments.steps) for seed in arguments.seeds for arm in arguments.arms]
    if arguments.long_steps:
        wanted += [("plain_long", seed, arguments.long_steps) for seed in arguments.seeds]
    for arm, seed, steps in wanted:
        name = f"{arm}-seed{seed}"
        if name in cells:
            continue
        cells[name] = run_cell(arm, seed, steps, corpus, arguments.folder / f"{name}-{steps}")
        print(name, cells[name]["bits"], cells[name]["ablated"], flush=True)
        results = {"floor": floor(corpus, pieces(corpus)), "cells": cells}
        keep("Which part of Multi-Token Attention pays?", results, str(arguments.out))


if __name__ == "__main__":
    main()
