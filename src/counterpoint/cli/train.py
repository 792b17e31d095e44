"""The verb ``train``: do what a recipe says."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from counterpoint.cli.checkpoint import check_vocabulary
from counterpoint.cli.overrides import load_recipe, parse, recipe_names, to_every_arm
from counterpoint.data.config import Corpus, prepare
from counterpoint.data.loader import Loader
from counterpoint.data.tokenizer import load_tokenizer
from counterpoint.evaluate.language_model import bits_per_byte, score
from counterpoint.evaluate.results import spread
from counterpoint.recipes.study import Study, build_system, run_study
from counterpoint.train.allocator import keep_large_buffers
from counterpoint.train.config_json import encode
from counterpoint.train.distributed import World, joined, shard
from counterpoint.train.loop import TrainResult, train
from counterpoint.train.metrics import TensorBoardLogger
from counterpoint.train.progress import corpus_lines, make_reporter, peak_flops
from counterpoint.train.run import Run

_HELP = """usage: counterpoint train RECIPE [overrides]

Train what a recipe says; a run that was stopped goes on where it was.

Example: counterpoint train first_run --train.num-steps 100 --folder runs/short

RECIPE is one of: {names}
or path/to/file.py:function, a function that returns a `Run` or a `Study`.
`counterpoint train RECIPE --help` lists the overrides. On many processes: torchrun -m
counterpoint.cli.main train RECIPE (a `Run`).
"""
_RECIPE_HELP = """Train the recipe {name}; a run that was stopped goes on where it was.

Example: counterpoint train {name} --train.num-steps 100 --folder runs/short
"""
_ARMS_HELP = """
Options of train, data and system without `arms.N` go to every arm.
"""
_EVALUATION_UNITS = 64  # a few seconds at the sizes that a laptop trains


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words that follow it."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(_HELP.format(names=", ".join(recipe_names())), end="")
        return 0
    recipe = load_recipe(name)
    if not isinstance(recipe, Run | Study):
        raise ValueError(
            f"A recipe must return a `Run` or a `Study` to be trained: {name!r} returned "
            f"{type(recipe).__name__}."
        )
    text = _RECIPE_HELP.format(name=name)
    if isinstance(recipe, Study):
        text, rest = text + _ARMS_HELP, to_every_arm(rest, len(recipe.arms))
    chosen = parse(
        [
            ("recipe", type(recipe), recipe),
            ("folder", Path | None, None),
            ("device", str | None, None),
        ],
        rest,
        f"train {name}",
        text,
    )
    recipe = chosen.recipe
    folder = chosen.folder or Path("runs") / recipe.name
    for run in recipe.arms if isinstance(recipe, Study) else (recipe,):
        check_vocabulary(run, load_tokenizer(run.data.tokenizer))
    with joined(chosen.device) as world:
        if isinstance(recipe, Run):
            finished = _train_run(recipe, folder, world).finished
        elif world.size > 1:
            raise ValueError(
                f"A study must run in one process: got {world.size}. Train its arms one by one."
            )
        else:
            command = shlex.join(["counterpoint", "train", *arguments])
            finished = _train_study(recipe, folder, command, world)
    return 0 if finished else 130


def _train_study(study: Study, folder: Path, command: str, world: World) -> bool:
    summary = run_study(
        study,
        folder,
        command=command,
        device=world.device,
        loggers=lambda arm: [TensorBoardLogger(arm / "tensorboard")],
    )
    return summary is not None


def _train_run(run: Run, folder: Path, world: World) -> TrainResult:
    """Train one run, on as many processes as there are."""
    keep_large_buffers()
    system: Any = build_system(run.system, run.train.seed).to(world.device)
    block_ticks: int = system.layout.block_ticks
    corpus = prepare(run.data, block_ticks, corpus_lines(sys.stderr))

    def evaluate(model: nn.Module) -> Mapping[str, float]:
        units = spread(corpus.held_out, _EVALUATION_UNITS)
        lengths = corpus.tokenizer.byte_lengths
        return {
            "bits_per_byte": bits_per_byte(score(model, units, lengths, block_ticks=block_ticks))
        }

    dtype = torch.bfloat16 if run.train.precision == "bfloat16" else torch.float32
    result = train(
        shard(system, world),
        Loader(corpus.train, run.train.batch_rows, run.train.seed, world.rank, world.size),
        run.train,
        folder,
        evaluate=evaluate if len(corpus.held_out) else None,
        reporter=make_reporter(run.name, sys.stderr, peak_flops(world.device, dtype)),
        loggers=[TensorBoardLogger(folder / "tensorboard")] if world.is_first else [],
        run=encode(run),
    )
    if world.is_first and result.finished:
        _tell(run, folder, corpus, result)
    return result


def _tell(run: Run, folder: Path, corpus: Corpus, result: TrainResult) -> None:
    """What was done, and what can be done next."""
    counters = result.counters
    print(
        f"{run.name}: {counters.step} steps, {counters.bytes:,} bytes, {counters.flops:.3g} FLOPs, "
        f"{counters.seconds:.0f} s"
    )
    for name, value in result.evaluation.items():
        shown = min(len(corpus.held_out), _EVALUATION_UNITS)
        print(f"{name} on {shown} held-out units: {value:.4f}")
    print(f"checkpoint: {result.checkpoint}")
    print(f'try: counterpoint generate {folder} --prompt "..."')
