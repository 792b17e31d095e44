"""Everything that is measured on one trained system, as a value that is kept beside it."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from counterpoint.config_json import decode, encode
from counterpoint.data.text.corpus import Corpus
from counterpoint.data.text.shards import Unit
from counterpoint.evaluate.passage import (
    Continuation,
    Passage,
    continue_prompts,
    read_passage,
)
from counterpoint.evaluate.score import Progress, by_position, position_edges, score
from counterpoint.evaluate.whole import WholeUse, donors, has_whole, measure_whole
from counterpoint.runtime.session import Streaming

FILE = "evaluation.json"

Note = Callable[[str], None]
"""Called with one line about what is being done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """How much is measured.

    Attributes:
        max_units: Held-out units that are scored, spread evenly; 0 scores all.
        whole_units: Units on which the whole is exchanged, spread evenly.
        whole_ticks: Ticks of each of them.
        passage_ticks: Ticks of the drawn passage.
        passage_start: Its first tick.
        num_prompts: Prompts that are continued.
        prompt_ticks: Ticks of a prompt.
        continuation_ticks: Ticks that are written after it.
    """

    max_units: int = 0
    whole_units: int = 32
    whole_ticks: int = 2048
    passage_ticks: int = 80
    passage_start: int = 512
    num_prompts: int = 2
    prompt_ticks: int = 256
    continuation_ticks: int = 240


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What was measured on one system.

    Attributes:
        weights: SHA-256 of the weights; empty where they are not on disk.
        precision: Of the computation.
        num_parameters: Trainable numbers of the system.
        titles: Title of the document of each scored unit.
        num_bytes: Bytes of each.
        bits: Bits of each.
        position_edges: K + 1 edges in bytes since the start of a unit.
        position_bytes: Bytes of each unit in each of K bins.
        position_bits: Bits of each unit in each of K bins.
        whole: How the whole is used; ``None`` without one.
        passage: What happened in one passage.
        continuations: Of the same prompts.
        seconds: Time that all this took.
        config: How much was measured.
    """

    weights: str
    precision: str
    num_parameters: int
    titles: tuple[str, ...]
    num_bytes: tuple[int, ...]
    bits: tuple[float, ...]
    position_edges: tuple[int, ...]
    position_bytes: tuple[tuple[int, ...], ...]
    position_bits: tuple[tuple[float, ...], ...]
    whole: WholeUse | None
    passage: Passage | None
    continuations: tuple[Continuation, ...]
    seconds: float
    config: EvaluationConfig


def evaluate(
    system: nn.Module,
    corpus: Corpus,
    config: EvaluationConfig,
    *,
    block_ticks: int,
    precision: str = "float32",
    weights: str = "",
    note: Note = lambda line: None,
) -> Evaluation:
    """Measure a system on the held-out units of a corpus.

    Args:
        system: In evaluation mode, on its device.
        corpus: With held-out units.
        config: How much is measured.
        block_ticks: Rows are filled up to a multiple of this; equal for all that are compared.
        precision: ``"bfloat16"`` computes under autocast.
        weights: Kept with the result, to know later what it belongs to.
        note: Told about progress.

    Raises:
        ValueError: Nothing is held out.
    """
    begin = time.perf_counter()
    units = spread(corpus.held_out, config.max_units)
    lengths = corpus.tokenizer.byte_lengths
    device = next(system.parameters()).device
    says = _Progress(note)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        scores = score(
            system, units, lengths, block_ticks=block_ticks, on_progress=says("held-out text")
        )
        whole = _whole_use(system, units, lengths, config, says("exchanging the whole"))
        passage = _passage(system, units, corpus, config, block_ticks)
    continuations = _continuations(system, units, corpus, config, note)
    edges = position_edges(max(one.num_bytes for one in scores) + 1)
    bits, num_bytes = by_position(scores, edges)
    return Evaluation(
        weights=weights,
        precision=precision,
        num_parameters=sum(p.numel() for p in system.parameters()),
        titles=tuple(one.title for one in scores),
        num_bytes=tuple(one.num_bytes for one in scores),
        bits=tuple(one.bits for one in scores),
        position_edges=edges,
        position_bytes=tuple(map(tuple, num_bytes.tolist())),
        position_bits=tuple(map(tuple, bits.tolist())),
        whole=whole,
        passage=passage,
        continuations=continuations,
        seconds=time.perf_counter() - begin,
        config=config,
    )


def spread(units: Sequence[Unit], count: int) -> list[Unit]:
    """``count`` units at equal distances, all when ``count`` is 0 or too large."""
    if not count or count >= len(units):
        return [units[i] for i in range(len(units))]
    return [units[int(i)] for i in np.linspace(0, len(units) - 1, count)]


def save_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write it into a run folder, whole or not at all."""
    partial = folder / f".{FILE}.partial"
    with partial.open("w", encoding="utf-8") as stream:
        json.dump(encode(evaluation), stream)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(folder / FILE)


def load_evaluation(folder: Path) -> Evaluation | None:
    """Read it back from a run folder; ``None`` when it was not evaluated.

    Raises:
        ValueError: The file is damaged or of another version.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        found: Evaluation = decode(Evaluation, json.loads(path.read_text(encoding="utf-8")))
    except ValueError as problem:
        raise ValueError(
            f"{path} must be an evaluation of this version: {problem} Delete it and evaluate again."
        ) from None
    return found


class _Progress:
    """Turns progress of any size into a line every few seconds."""

    def __init__(self, note: Note, every_seconds: float = 2.0) -> None:
        self._note = note
        self._every_seconds = every_seconds
        self._last = time.perf_counter()

    def __call__(self, what: str) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            now = time.perf_counter()
            if done == total or now - self._last >= self._every_seconds:
                self._last = now
                self._note(f"{what}: {done / total:.0%}")

        return report


def _whole_use(
    system: nn.Module,
    units: Sequence[Unit],
    byte_lengths: Int[np.ndarray, " V"],
    config: EvaluationConfig,
    on_progress: Progress,
) -> WholeUse | None:
    """How the whole is used, where there is one and another document's to exchange it with."""
    if not has_whole(system) or not _several_documents(units):
        return None
    return measure_whole(
        system,
        spread(units, config.whole_units),
        byte_lengths,
        max_ticks=config.whole_ticks,
        on_progress=on_progress,
    )


def _passage(
    system: nn.Module,
    units: Sequence[Unit],
    corpus: Corpus,
    config: EvaluationConfig,
    block_ticks: int,
) -> Passage | None:
    """The passage of the middle unit among those that are long enough, or of the longest."""
    if not config.passage_ticks:
        return None
    needed = config.passage_start + config.passage_ticks
    fitting = [unit for unit in units if len(unit.ids) > needed]
    unit = fitting[len(fitting) // 2] if fitting else max(units, key=lambda unit: len(unit.ids))
    # Aligned for all that are compared, so that all show the same ids.
    start = max(min(config.passage_start, len(unit.ids) // 2) // block_ticks, 1) * block_ticks
    return read_passage(system, unit, corpus.tokenizer, start, config.passage_ticks)


def _continuations(
    system: nn.Module,
    units: Sequence[Unit],
    corpus: Corpus,
    config: EvaluationConfig,
    note: Note,
) -> tuple[Continuation, ...]:
    """What the system writes after its prompts; nothing without another document's whole."""
    if not config.num_prompts or not _several_documents(units):
        return ()
    note("continuing prompts")
    return continue_prompts(
        cast("Streaming", system),
        _prompts(units, config.num_prompts),
        corpus.tokenizer,
        prompt_ticks=config.prompt_ticks,
        num_ticks=config.continuation_ticks,
    )


def _several_documents(units: Sequence[Unit]) -> bool:
    """Whether some unit can lend its whole to a unit of another document."""
    return len({unit.title for unit in units}) > 1


def _prompts(units: Sequence[Unit], count: int) -> list[tuple[Unit, Unit]]:
    """The first units of different documents, each with the unit that lends its whole."""
    firsts = {unit.title: i for i, unit in reversed(list(enumerate(units)))}
    partners: Any = donors(units)
    return [(units[i], units[partners[i]]) for i in sorted(firsts.values())[:count]]
