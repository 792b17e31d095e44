"""The verb ``train``: do what a recipe says."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from counterpoint.data.speech.rows import SpeechData
from counterpoint.data.text.corpus import DataConfig
from counterpoint.errors import UserError
from counterpoint.recipes.duplex_study import DuplexStudy, run_duplex_study
from counterpoint.recipes.fine_tuning import FineTuning, run_fine_tuning
from counterpoint.recipes.loading import load_recipe, recipe_names
from counterpoint.recipes.overrides import parse, to_every_arm
from counterpoint.recipes.study import Study, run_study
from counterpoint.recipes.training import train_run
from counterpoint.runtime.load import check_vocabulary
from counterpoint.systems import sketch
from counterpoint.train.distributed import World, joined
from counterpoint.train.loop import TrainResult
from counterpoint.train.metrics import TensorBoardLogger
from counterpoint.train.run import Run

_HELP = """usage: counterpoint train RECIPE [overrides]

Train what a recipe says; a run that was stopped goes on where it was.

Example: counterpoint train first_run --train.num-steps 100 --folder runs/short

RECIPE is one of: {names}
or path/to/file.py:function, a function that returns a `Run`, a
`Study`, a `DuplexStudy` or a `FineTuning`.
`counterpoint train RECIPE --help` lists the overrides. On many processes: torchrun -m
counterpoint.cli.main train RECIPE (a `Run`).
"""
_RECIPE_HELP = """Train the recipe {name}; a run that was stopped goes on where it was.

Example: counterpoint train {name} --train.num-steps 100 --folder runs/short
"""
_ARMS_HELP = """
Options of train, data and system without `arms.N` go to every arm.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words that follow it."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(_HELP.format(names=", ".join(recipe_names())), end="")
        return 0
    recipe = load_recipe(name)
    if not isinstance(recipe, Run | Study | DuplexStudy | FineTuning):
        raise UserError(
            "A recipe must return a `Run`, `Study`, `DuplexStudy` or `FineTuning` to be trained: "
            f"{name!r} returned {type(recipe).__name__}."
        )
    text = _RECIPE_HELP.format(name=name)
    if isinstance(recipe, Study):
        text = text + _ARMS_HELP
        rest = to_every_arm(rest, len(recipe.arms))
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
    for run in recipe.arms if isinstance(recipe, Study) else ():
        _check_vocabulary(run)
    with joined(chosen.device) as world:
        if isinstance(recipe, Run):
            finished = _train_run(recipe, folder, world)
        elif isinstance(recipe, FineTuning):
            finished = _fine_tune(recipe, folder, world)
        elif world.size > 1:
            raise UserError(
                f"A study must run in one process: got {world.size}. Train its runs one by one."
            )
        elif isinstance(recipe, DuplexStudy):
            finished = run_duplex_study(recipe, folder, world)
        else:
            command = shlex.join(["counterpoint", "train", *arguments])
            finished = _train_study(recipe, folder, command, world)
    return 0 if finished else 130


def _check_vocabulary(run: Run) -> None:
    if isinstance(run.data, DataConfig):
        check_vocabulary(sketch(run.system).layout, run.data.tokenizer)


def _train_run(run: Run, folder: Path, world: World) -> bool:
    _check_vocabulary(run)
    result = train_run(run, folder, world)
    if world.is_first and result.finished:
        _tell(run, folder, result)
    return result.finished


def _fine_tune(recipe: FineTuning, folder: Path, world: World) -> bool:
    result = run_fine_tuning(recipe, folder, world)
    if world.is_first and result.finished:
        _tell(recipe.run(), folder, result)
        print(f"or: counterpoint export {folder} --merge --out FOLDER")
    return result.finished


def _train_study(study: Study, folder: Path, command: str, world: World) -> bool:
    summary = run_study(
        study,
        folder,
        command=command,
        device=world.device,
        loggers=lambda arm: [TensorBoardLogger(arm / "tensorboard")],
    )
    return summary is not None


def _tell(run: Run, folder: Path, result: TrainResult) -> None:
    """What was done, and what can be done next."""
    counters = result.counters
    is_speech = isinstance(run.data, SpeechData)
    print(
        f"{run.name}: {counters.step} steps, {counters.size:,} "
        f"{'frames' if is_speech else 'bytes'}, {counters.flops:.3g} FLOPs, "
        f"{counters.seconds:.0f} s"
    )
    for name, value in result.evaluation.items():
        print(f"held out: {name} {value:.4f}")
    print(f"checkpoint: {result.checkpoint}")
    if is_speech:
        print(f"try: counterpoint talk {folder} --input question.wav --output answer.wav")
    else:
        print(f'try: counterpoint generate {folder} --prompt "..."')
