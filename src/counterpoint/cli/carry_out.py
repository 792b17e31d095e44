"""The work of the verb ``train`` for each kind of recipe, and the summary of its result."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from counterpoint.data.speech.rows import SpeechData
from counterpoint.data.text.corpus import DataConfig
from counterpoint.errors import UserError
from counterpoint.evaluate.report.run_report import write_run_report
from counterpoint.files import read_json
from counterpoint.packages import check_modules
from counterpoint.progress import Progress
from counterpoint.recipes.duplex_study import DuplexStudy, run_duplex_study
from counterpoint.recipes.fine_tuning import FineTuning, run_fine_tuning
from counterpoint.recipes.study import Study, run_study
from counterpoint.recipes.training import train_run
from counterpoint.runtime.load import check_vocabulary
from counterpoint.systems import system_layout
from counterpoint.train.distributed import World
from counterpoint.train.loop import TrainResult
from counterpoint.train.metrics import TensorBoardLogger
from counterpoint.train.run import Run

Recipe = Run | Study | DuplexStudy | FineTuning
"""A recipe that can be trained."""


def carry_out(
    recipe: Recipe, folder: Path, command: str, world: World, progress: Progress
) -> dict[str, Any] | None:
    """Train a recipe, and show the results.

    Args:
        recipe: The recipe.
        folder: Folder of all results.
        command: Command that starts this again.
        world: The processes; all of them must call this.
        progress: Shows the progress.

    Returns:
        The results as a JSON value, or ``None`` if a signal stopped the training.

    Raises:
        UserError: The recipe, its data or the folder cannot be used.
        MissingPackageError: What writes the metrics or the report is not installed.
    """
    check_modules("tensorboard", "matplotlib")  # needed when minutes have passed, or at the end
    if isinstance(recipe, Run | FineTuning):
        return _train_run(recipe, folder, world, progress)
    if world.size > 1:
        raise UserError(
            f"A study must run in one process: got {world.size}. Train its runs one by one."
        )
    if isinstance(recipe, DuplexStudy):
        finished = run_duplex_study(recipe, folder, world, progress)
        found: dict[str, Any] | None = read_json(folder / "abilities.json") if finished else None
        return found
    return _train_study(recipe, folder, command, world, progress)


def check_vocabularies(recipe: Recipe) -> None:
    """Refuse text models whose number of ids differs from that of their tokenisers.

    Raises:
        UserError: The numbers of a model differ.
    """
    runs = recipe.arms if isinstance(recipe, Study) else (recipe,)
    for run in runs:
        if isinstance(run, Run) and isinstance(run.data, DataConfig):
            check_vocabulary(system_layout(run.system), run.data.tokenizer)


def _train_run(
    recipe: Run | FineTuning, folder: Path, world: World, progress: Progress
) -> dict[str, Any] | None:
    """Return the results as a JSON value, or ``None`` if a signal stopped the training."""
    if isinstance(recipe, Run):
        run = recipe
        result = train_run(run, folder, world, progress=progress)
    else:
        run = recipe.run()
        result = run_fine_tuning(recipe, folder, world, progress)
    if not result.finished:
        return None
    if world.is_first:
        _tell(run, folder, result)
        if isinstance(recipe, FineTuning):
            print(f"or: counterpoint export {folder} {recipe.export_options} --out FOLDER")
        print(f"report: {write_run_report(folder)}")
    return {
        "name": run.name,
        "checkpoint": result.checkpoint,
        **asdict(result.counters),
        "held_out": dict(result.evaluation),
    }


def _train_study(
    study: Study, folder: Path, command: str, world: World, progress: Progress
) -> dict[str, Any] | None:
    summary = run_study(
        study,
        folder,
        command=command,
        device=world.device,
        progress=progress,
        loggers=lambda arm: [TensorBoardLogger(arm / "tensorboard")],
    )
    return None if summary is None else asdict(summary)


def _tell(run: Run, folder: Path, result: TrainResult) -> None:
    """Print what was done, and what can be done next."""
    counters = result.counters
    is_speech = SpeechData.fits(system_layout(run.system))
    print(
        f"{run.name}: {counters.step} steps, {counters.size:,} "
        f"{'frames' if is_speech else 'bytes'}, {counters.flops:.3g} FLOPs, "
        f"{counters.seconds:.0f} s"
    )
    for name, value in result.evaluation.items():
        print(f"held out: {name} {value:.4f}")
    print(f"checkpoint: {result.checkpoint}")
    if isinstance(run.data, SpeechData):
        print(f"try: counterpoint talk {folder} --input question.wav --output answer.wav")
    elif not is_speech:
        print(f'try: counterpoint generate {folder} --prompt "..."')
