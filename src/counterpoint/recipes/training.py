"""One run: its data prepared, its model built, trained and measured while it learns."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from counterpoint.config_json import encode, first_difference
from counterpoint.data.loader import Loader
from counterpoint.data.speech.rows import prepare_speech
from counterpoint.data.text.corpus import prepare
from counterpoint.evaluate.duplex.speech_model import measures, score_rows
from counterpoint.evaluate.results import spread
from counterpoint.evaluate.score import bits_per_byte, score
from counterpoint.recipes.begun import keep_begun, read_begun
from counterpoint.systems import build_system
from counterpoint.systems.moshi import Moshi
from counterpoint.train.allocator import keep_large_buffers
from counterpoint.train.checkpoint import CheckpointError, checkpoint_paths
from counterpoint.train.distributed import World, shard
from counterpoint.train.fine_tuning import begin_from, without
from counterpoint.train.loop import BatchSource, Evaluate, TrainResult, train
from counterpoint.train.metrics import TensorBoardLogger
from counterpoint.train.progress import corpus_lines, make_reporter, peak_flops, recording_lines
from counterpoint.train.run import Run

Recordings = Mapping[str, Mapping[str, str]]

_EVALUATION_UNITS = 64  # of text, or rows of speech: a few seconds on a laptop's models


def train_run(run: Run, folder: Path, world: World) -> TrainResult:
    """Train one run, on as many processes as there are; go on where it was.

    Progress goes to stderr.

    Args:
        run: What to do.
        folder: Its folder; see `counterpoint.train.loop.train`.
        world: The processes; every one must call this.

    Raises:
        ValueError: The data, or the checkpoints of the folder, cannot be used.
    """
    keep_large_buffers()
    system = build_system(run.system, run.train.seed).to(world.device)
    if run.train.fine_tune is not None:
        begin_from(system, run.train.fine_tune, run.train.seed)
    if isinstance(system, Moshi):
        batches, evaluate, recordings = _speech(run, system, world)
        _check_same(run, recordings, folder, world)
    else:
        batches, evaluate = _text(run, system, world)
    dtype = torch.bfloat16 if run.train.precision == "bfloat16" else torch.float32
    return train(
        shard(system, world),
        batches,
        run.train,
        folder,
        evaluate=evaluate,
        reporter=make_reporter(run.name, sys.stderr, peak_flops(world.device, dtype)),
        loggers=[TensorBoardLogger(folder / "tensorboard")] if world.is_first else [],
        run=encode(run),
    )


def _text(run: Run, system: Any, world: World) -> tuple[BatchSource, Evaluate | None]:
    """Batches to learn from, and bits/byte on what is held out, if anything is."""
    block_ticks = system.layout.block_ticks
    corpus = prepare(run.text_data, block_ticks, corpus_lines(sys.stderr))
    units = spread(corpus.held_out, _EVALUATION_UNITS)

    def evaluate(model: nn.Module) -> Mapping[str, float]:
        lengths = corpus.tokenizer.byte_lengths
        return {
            "bits_per_byte": bits_per_byte(score(model, units, lengths, block_ticks=block_ticks))
        }

    batches = Loader(corpus.train, run.train.batch_rows, run.train.seed, world.rank, world.size)
    return batches, evaluate if units else None


def _speech(
    run: Run, system: Moshi, world: World
) -> tuple[BatchSource, Evaluate | None, Recordings]:
    """Batches to learn from, losses by stream on what is held out, and digests of both."""
    lines = recording_lines(sys.stderr) if world.is_first else None
    corpus = prepare_speech(run.speech_data, system, lines, world.rank, world.size)
    batches = corpus.batches(run.train.batch_rows, run.train.seed, world.rank, world.size)
    held_out = corpus.held_out
    if held_out is None:
        return batches, None, corpus.recordings

    def evaluate(model: nn.Module) -> Mapping[str, float]:
        if not isinstance(model, Moshi):
            raise AssertionError("the loop measures the system it trains")
        return measures(score_rows(model, held_out, _EVALUATION_UNITS))

    return batches, evaluate, corpus.recordings


def _check_same(run: Run, recordings: Recordings, folder: Path, world: World) -> None:
    """Refuse other recordings than those that the checkpoints of a folder have learned from.

    Where the config reads them in another way, the loop names that.
    """
    problem = world.from_first(_problem(run, recordings, folder) if world.is_first else None)
    if problem is not None:
        raise CheckpointError(problem)


def _problem(run: Run, recordings: Recordings, folder: Path) -> str | None:
    file = folder / "recordings.json"
    data = without(json.loads(json.dumps(encode(run.data))), ("cache_folder",))
    try:
        if not (file.exists() and checkpoint_paths(folder)):
            keep_begun(file, {"data": data, "recordings": recordings})
            return None
        begun = read_begun(file, ("data", "recordings"))
    except (ValueError, OSError) as error:  # told to all processes, which wait
        return str(error)
    changed = first_difference(begun["recordings"], recordings, "recordings")
    if changed is None or begun["data"] != data:
        return None
    return (
        f"A run must go on with the recordings it began with: {folder} has another {changed}. "
        "Train in another folder, or change them back."
    )
