"""The verb ``train``: do what a recipe says."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from counterpoint.cli.checkpoint import tokenizer_of
from counterpoint.cli.overrides import load_recipe, parse, recipe_names, to_every_arm
from counterpoint.data.config import DataConfig, prepare
from counterpoint.data.loader import Loader, Rows
from counterpoint.data.speech import SpeechData, prepare_speech
from counterpoint.evaluate.language_model import bits_per_byte, score
from counterpoint.evaluate.results import spread
from counterpoint.evaluate.speech_model import measures, score_rows
from counterpoint.recipes.study import Study, run_study
from counterpoint.systems import build_system
from counterpoint.systems.moshi import Moshi
from counterpoint.systems.single_stream import SingleStream
from counterpoint.systems.two_stream import TwoStream
from counterpoint.train.allocator import keep_large_buffers
from counterpoint.train.config_json import encode
from counterpoint.train.distributed import World, joined, shard
from counterpoint.train.loop import Evaluate, TrainResult, train
from counterpoint.train.metrics import TensorBoardLogger
from counterpoint.train.progress import corpus_lines, make_reporter, peak_flops, recording_lines
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
        if isinstance(run.data, DataConfig):
            tokenizer_of(run)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Material:
    """What a run learns from, and how it is measured.

    Attributes:
        rows: To learn from.
        evaluate: Measures the model; ``None`` where nothing is held out.
        held_out: What it measures on, in words.
        next_step: What can be done with the model, as options of the command.
    """

    rows: Rows
    evaluate: Evaluate | None
    held_out: str
    next_step: str


def _train_run(run: Run, folder: Path, world: World) -> TrainResult:
    """Train one run, on as many processes as there are."""
    keep_large_buffers()
    system = build_system(run.system, run.train.seed).to(world.device)
    material = _speech(run, system) if isinstance(system, Moshi) else _text(run, system)
    dtype = torch.bfloat16 if run.train.precision == "bfloat16" else torch.float32
    result = train(
        shard(system, world),
        Loader(material.rows, run.train.batch_rows, run.train.seed, world.rank, world.size),
        run.train,
        folder,
        evaluate=material.evaluate,
        reporter=make_reporter(run.name, sys.stderr, peak_flops(world.device, dtype)),
        loggers=[TensorBoardLogger(folder / "tensorboard")] if world.is_first else [],
        run=encode(run),
    )
    if world.is_first and result.finished:
        _tell(run, folder, material, result)
    return result


def _text(run: Run, system: SingleStream | TwoStream) -> _Material:
    if not isinstance(run.data, DataConfig):
        raise AssertionError("a run checks its data")
    block_ticks = system.layout.block_ticks
    corpus = prepare(run.data, block_ticks, corpus_lines(sys.stderr))
    units = spread(corpus.held_out, _EVALUATION_UNITS)

    def evaluate(model: nn.Module) -> Mapping[str, float]:
        lengths = corpus.tokenizer.byte_lengths
        return {
            "bits_per_byte": bits_per_byte(score(model, units, lengths, block_ticks=block_ticks))
        }

    return _Material(
        rows=corpus.train,
        evaluate=evaluate if units else None,
        held_out=f"{len(units)} held-out units",
        next_step='generate {folder} --prompt "..."',
    )


def _speech(run: Run, system: Moshi) -> _Material:
    if not isinstance(run.data, SpeechData):
        raise AssertionError("a run checks its data")
    corpus = prepare_speech(run.data, system, recording_lines(sys.stderr))
    held_out = corpus.held_out

    def evaluate(model: nn.Module) -> Mapping[str, float]:
        if held_out is None or not isinstance(model, Moshi):
            raise AssertionError("a Moshi is measured on what is held out")
        return measures(score_rows(model, held_out, _EVALUATION_UNITS))

    shown = 0 if held_out is None else min(len(held_out), _EVALUATION_UNITS)
    return _Material(
        rows=corpus.train,
        evaluate=evaluate if shown else None,
        held_out=f"{shown} held-out rows",
        next_step="talk {folder} --input question.wav --output answer.wav",
    )


def _tell(run: Run, folder: Path, material: _Material, result: TrainResult) -> None:
    """What was done, and what can be done next."""
    counters = result.counters
    unit = "frames" if isinstance(run.data, SpeechData) else "bytes"
    print(
        f"{run.name}: {counters.step} steps, {counters.size:,} {unit}, {counters.flops:.3g} FLOPs, "
        f"{counters.seconds:.0f} s"
    )
    if result.evaluation:
        values = ", ".join(f"{name} {value:.4f}" for name, value in result.evaluation.items())
        print(f"on {material.held_out}: {values}")
    print(f"checkpoint: {result.checkpoint}")
    print(f"try: counterpoint {material.next_step.format(folder=folder)}")
