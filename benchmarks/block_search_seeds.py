"""How many seeds learn to find the block? The toy task of Multi-Token Attention.

Plain attention is bimodal over seeds, so the result is a rate: the share of seeds whose model
answers at least 9 of 10 held-out items rightly. Floors are printed beside it.

    python benchmarks/block_search_seeds.py --letters 5 8 --blocks 50 --folder runs/block_search
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from record import finish

from counterpoint.data.tasks.block_search import BlockSearch
from counterpoint.data.tasks.items import HELD_OUT_SEED, accuracy, floors
from counterpoint.evaluate.tasks import answer
from counterpoint.recipes.block_search import block_study
from counterpoint.recipes.training import train_run
from counterpoint.train.checkpoint import load_system
from counterpoint.train.distributed import World

LEARNED = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--letters", type=int, nargs="+", default=[5, 8])
    parser.add_argument("--blocks", type=int, default=50)
    parser.add_argument("--steps", type=int, help="instead of those of the recipe")
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", help="file for the record")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for letters in arguments.letters:
        study = block_study(letters, arguments.blocks)
        task = BlockSearch(num_blocks=arguments.blocks, block_letters=letters)
        items = [task.item(HELD_OUT_SEED, number) for number in range(arguments.items)]
        results[f"floors {letters}"] = floors(task, 1000, HELD_OUT_SEED)
        for arm in study.arms:
            scores = []
            for name, run in study.runs(arm).items():
                if arguments.steps:
                    run = replace(run, train=replace(run.train, num_steps=arguments.steps))
                folder = arguments.folder / study.name / name
                train_run(run, folder, World(device=torch.device(arguments.device)))
                system = load_system(folder)
                scores.append(accuracy(items, list(answer(system, items)))["block"])
                print(letters, name, scores[-1], flush=True)
            results[f"{arm.name} {letters}"] = {
                "scores": scores,
                "rate": sum(score >= LEARNED for score in scores) / len(scores),
            }
    finish("How many seeds learn to find the block?", results, arguments.out)


if __name__ == "__main__":
    main()
