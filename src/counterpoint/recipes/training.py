"""One run: its data prepared, its model built, trained and measured while it learns."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from counterpoint.config_json import encode
from counterpoint.data.progress import Output
from counterpoint.data.source import PreparedSource
from counterpoint.data.speech.rows import SpeechCorpus
from counterpoint.data.text.corpus import Corpus
from counterpoint.evaluate.duplex.speech_model import measures, score_rows
from counterpoint.evaluate.results import spread
from counterpoint.evaluate.score import bits_per_byte, score
from counterpoint.recipes.learned import keep_or_check_learned
from counterpoint.systems import build_system
from counterpoint.systems.contract import System
from counterpoint.train.allocator import keep_large_buffers
from counterpoint.train.distributed import World, shard
from counterpoint.train.fine_tuning import begin_from
from counterpoint.train.loop import Evaluate, TrainResult, train
from counterpoint.train.metrics import MetricLogger, TensorBoardLogger
from counterpoint.train.progress import make_reporter, peak_flops
from counterpoint.train.run import Run
from counterpoint.train.run_folder import only_one

_EVALUATION_UNITS = 64  # a few seconds on a laptop's models


def train_run(
    run: Run,
    folder: Path,
    world: World,
    *,
    block_ticks: int | None = None,
    measure_end: bool = True,
    progress: Output | None = None,
    loggers: Sequence[MetricLogger] | None = None,
) -> TrainResult:
    """Train one run, on as many processes as there are; go on where it was.

    Args:
        run: What to do.
        folder: Its folder; see `counterpoint.train.loop.train`.
        world: The processes; every one must call this.
        block_ticks: Alignment of the rows, where several systems read the same; by default that of
            the run's own system.
        measure_end: Measure the held-out units also where the config has no `evaluate_every`.
        progress: Where progress is shown; stderr by default.
        loggers: Followers of the numbers; by default TensorBoard, in ``tensorboard/``.

    Raises:
        ValueError: The data, or the checkpoints of the folder, cannot be used.
    """
    progress = sys.stderr if progress is None else progress
    keep_large_buffers()
    system = build_system(run.system, run.train.seed).to(world.device)
    if run.train.fine_tune is not None:
        begin_from(system, run.train.fine_tune, run.train.seed)
    data = run.data.prepare(
        system, block_ticks=block_ticks, progress=progress, rank=world.rank, world_size=world.size
    )
    if loggers is None:
        loggers = [TensorBoardLogger(folder / "tensorboard")] if world.is_first else []
    dtype = torch.bfloat16 if run.train.precision == "bfloat16" else torch.float32
    with only_one(folder, world, ".run.lock"):
        keep_or_check_learned(run.data, data.fingerprint, folder, world)
        return train(
            shard(system, world),
            data.batches(run.train.batch_rows, run.train.seed, world.rank, world.size),
            run.train,
            folder,
            evaluate=_evaluate(data) if measure_end or run.train.evaluate_every else None,
            reporter=make_reporter(run.name, progress, peak_flops(world.device, dtype)),
            loggers=loggers,
            run=encode(run),
        )


def _evaluate(data: PreparedSource) -> Evaluate | None:
    """What held-out units cost; nothing where there are none."""
    if isinstance(data, Corpus):
        units = spread(data.held_out, _EVALUATION_UNITS)
        lengths, block_ticks = data.tokenizer.byte_lengths, data.train.block_ticks

        def evaluate(model: nn.Module) -> Mapping[str, float]:
            scores = score(model, units, lengths, block_ticks=block_ticks)
            return {"bits_per_byte": bits_per_byte(scores)}

        return evaluate if units else None
    if not isinstance(data, SpeechCorpus) or data.held_out is None:
        return None
    rows = data.held_out

    def evaluate_speech(model: nn.Module) -> Mapping[str, float]:
        assert isinstance(model, System)
        return measures(model, score_rows(model, rows, _EVALUATION_UNITS))

    return evaluate_speech
