"""A study: several runs on equal data with equal training FLOPs, trained, measured and reported."""

import json
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import torch

from counterpoint.config_json import encode
from counterpoint.data.speech.rows import SpeechData
from counterpoint.data.text.corpus import Corpus
from counterpoint.evaluate.report.report import STUDY, write_report
from counterpoint.evaluate.report.summary import Summary, rich_table
from counterpoint.evaluate.results import (
    EvaluationConfig,
    evaluate,
    load_evaluation,
    save_evaluation,
)
from counterpoint.recipes.training import train_run
from counterpoint.systems import sketch
from counterpoint.train.checkpoint import WEIGHTS, load_system, read_manifest
from counterpoint.train.distributed import World
from counterpoint.train.loop import TrainResult
from counterpoint.train.metrics import MetricLogger
from counterpoint.train.run import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """Runs that are compared; the first is what the others are compared with.

    Attributes:
        name: Names its folder.
        arms: Runs on the same rows of text in the same order; systems and optimisers may differ.
        purpose: One sentence for the report.
        evaluation: How much is measured.
        max_flops_difference: Largest share by which training FLOPs a byte may differ.
    """

    name: str
    arms: tuple[Run, ...]
    purpose: str = ""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    max_flops_difference: float = 0.02

    def __post_init__(self) -> None:
        names = [run.name for run in self.arms]
        if not names or len(set(names)) != len(names):
            raise ValueError(
                f"A study must have at least one arm and no name twice: got {names}. Rename one."
            )
        first = self.arms[0]
        for run in self.arms:
            if isinstance(run.data, SpeechData):
                raise ValueError(
                    f"A study must compare systems of text: {run.name!r} is on speech. Train it "
                    "as a `Run` of its own."
                )
        for run in self.arms[1:]:
            for place in ("data", "train.num_steps", "train.batch_rows", "train.seed"):
                expected, got = _field(first, place), _field(run, place)
                if expected != got:
                    raise ValueError(
                        f"Arms must learn from equal data: `{place}` is {expected!r} for "
                        f"{first.name!r} and {got!r} for {run.name!r}. Make them equal."
                    )

    @property
    def block_ticks(self) -> int:
        """Alignment of the rows that all arms share."""
        return math.lcm(*(sketch(run.system).layout.block_ticks for run in self.arms))


def training_flops(study: Study) -> dict[str, float]:
    """Training FLOPs a tick of every arm.

    Raises:
        ValueError: They differ by more than the study allows.
    """
    flops = {
        run.name: sketch(run.system).flops_per_tick(run.text_data.row_ticks, training=True)
        for run in study.arms
    }
    first = flops[study.arms[0].name]
    for name, found in flops.items():
        if abs(found / first - 1) > study.max_flops_difference:
            raise ValueError(
                f"Arms must have equal training FLOPs within {study.max_flops_difference:.0%}: "
                f"{study.arms[0].name!r} needs {first:.4g} a tick and {name!r} {found:.4g} "
                f"({found / first - 1:+.1%}). Change widths, layers or windows."
            )
    return flops


def run_study(
    study: Study,
    folder: Path,
    *,
    command: str = "",
    device: torch.device | str = "cpu",
    progress: TextIO | None = None,
    output: TextIO | None = None,
    loggers: Callable[[Path], Sequence[MetricLogger]] = lambda folder: (),
) -> Summary | None:
    """Train and measure all arms one after the other, then write the report.

    Whatever is done already is kept: a study that was stopped or killed goes on where it was, and
    one that is finished only writes its report again.

    Args:
        study: What to do.
        folder: Study folder (see `counterpoint.evaluate.report.report`).
        command: How a person would start this again; kept in the report.
        device: Where the systems live.
        progress: Where progress is shown; stderr by default.
        output: Where the table is shown; stdout by default.
        loggers: Makes followers of an arm's training numbers, for its folder.

    Returns:
        What was found, or ``None`` when a signal stopped the training.

    Raises:
        ValueError: The arms are not comparable, or the data or the folder cannot be used.
    """
    begin = time.perf_counter()
    progress = sys.stderr if progress is None else progress
    flops = training_flops(study)
    note = _Notes(progress)
    note(f"{study.name}: preparing the text")
    first = study.arms[0]
    corpus = first.text_data.prepare(
        sketch(first.system), block_ticks=study.block_ticks, progress=progress
    )
    note(
        f"{len(corpus.train)} rows of {corpus.train.row_ticks} ticks to learn from, "
        f"{len(corpus.held_out)} held-out units; {len(study.arms)} arms"
    )
    folder.mkdir(parents=True, exist_ok=True)
    world = World(device=torch.device(device))
    for run in study.arms:
        arm = folder / run.name
        result = train_run(
            run,
            arm,
            world,
            block_ticks=study.block_ticks,
            measure_end=False,
            progress=progress,
            loggers=loggers(arm),
        )
        if not result.finished:
            return None
        _evaluate_arm(study, run, corpus, result, world.device, note)
    note("drawing the report")
    about = _facts(study, folder, world.device) | {
        "command": command,
        "training_flops_per_tick": flops,
        "seconds_of_last_call": round(time.perf_counter() - begin, 1),
    }
    (folder / STUDY).write_text(json.dumps(about, indent=1), encoding="utf-8")
    summary = write_report(folder)
    show(summary, folder, sys.stdout if output is None else output)
    return summary


def show(summary: Summary, folder: Path, output: TextIO) -> None:
    """Print the table, the verdict and where everything lies.

    Raises:
        ValueError: The package ``rich`` is missing.
    """
    table = rich_table(summary)
    from rich.console import Console

    console = Console(
        file=output, width=None if output.isatty() else 140, markup=False, emoji=False
    )
    console.print(table)
    console.print(summary.verdict, highlight=False)
    for name in ("report.html", "summary.json", *sorted(p.name for p in folder.glob("*.png"))):
        console.print(str(folder / name), highlight=False, soft_wrap=True)


def _evaluate_arm(
    study: Study,
    run: Run,
    corpus: Corpus,
    result: TrainResult,
    device: torch.device,
    note: "_Notes",
) -> None:
    """Measure an arm, unless that is done already for these very weights."""
    checkpoint = result.checkpoint
    folder = checkpoint.parents[1]
    weights = read_manifest(checkpoint)["files"][WEIGHTS]["sha256"]
    known = load_evaluation(folder)
    if known is not None and (known.weights, known.config) == (weights, study.evaluation):
        return
    found = evaluate(
        # What is measured is read from the disk: the checkpoint may be older than this call.
        load_system(checkpoint).to(device),
        corpus,
        study.evaluation,
        block_ticks=study.block_ticks,
        precision=run.train.precision,
        weights=weights,
        note=lambda line: note(f"{run.name}: {line}"),
    )
    save_evaluation(found, folder)


def _facts(study: Study, folder: Path, device: torch.device | str) -> dict[str, Any]:
    """What the report keeps of a study, its evaluations and the machine."""
    return {
        "name": study.name,
        "purpose": study.purpose,
        "arms": [run.name for run in study.arms],
        "evaluation_seconds": {
            run.name: round(found.seconds, 1)
            for run in study.arms
            if (found := load_evaluation(folder / run.name)) is not None
        },
        "versions": {
            "counterpoint": _version("counterpoint"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {device}",
        "study": encode(study),
    }


class _Notes:
    """Writes a line to a stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


def _field(run: Run, place: str) -> Any:
    value: Any = run
    for name in place.split("."):
        value = getattr(value, name)
    return value


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
