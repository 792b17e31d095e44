"""All measurements of one trained system, as a value that is stored in its run folder."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from counterpoint.config_json import decode, encode
from counterpoint.data.source import HeldOutUnits, PreparedSource
from counterpoint.data.text.corpus import Corpus
from counterpoint.data.text.shards import Unit
from counterpoint.errors import UserError
from counterpoint.evaluate.passage import (
    Continuation,
    Passage,
    continue_prompts,
    read_passage,
)
from counterpoint.evaluate.score import CountProgress, by_position, position_edges, score
from counterpoint.evaluate.units import UnitScore, score_units, spread_places
from counterpoint.evaluate.whole import WholeUse, donors, has_whole, measure_whole
from counterpoint.files import write_text
from counterpoint.progress import Progress
from counterpoint.runtime.session import Streaming
from counterpoint.streams.batch import ContentUnit
from counterpoint.systems.contract import System
from counterpoint.train.distributed import World
from counterpoint.train.precision import settle_precision
from counterpoint.train.threads import computing, in_one_line, settle_threads

FILE = "evaluation.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """Extent of the measurements.

    Attributes:
        max_units: Number of held-out units that are scored, spread evenly; 0 scores all.
        whole_units: Number of units on which the whole is replaced, spread evenly.
        whole_ticks: Ticks of each of them.
        passage_ticks: Ticks of the drawn passage.
        passage_start: First tick of the passage.
        num_prompts: Number of prompts that are continued.
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
class StreamCosts:
    """The cost of one predicted stream.

    Attributes:
        num_ticks: Ticks with targets in each unit; see `LossSums.num_ticks`.
        nats: Nats of these targets.
    """

    num_ticks: tuple[float, ...]
    nats: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Positions:
    """The cost of text by its position in its unit.

    Attributes:
        edges: K + 1 edges in bytes since the start of a unit.
        num_bytes: Bytes of each unit in each of K bins.
        bits: Bits of each unit in each of K bins.
    """

    edges: tuple[int, ...]
    num_bytes: tuple[tuple[int, ...], ...]
    bits: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The measurements of one system.

    Attributes:
        weights: SHA-256 of the weights; empty if they are not on disk.
        precision: Precision of the computation.
        num_parameters: Number of trainable parameters of the system.
        unit: Unit of sizes: bytes of text, or frames of speech.
        titles: Source of each scored unit.
        sizes: Size of each unit.
        bits: Bits of each unit, over all predicted streams.
        streams: Costs by stream, if several are predicted.
        positions: Costs by position, for text.
        whole: Use of the whole; ``None`` without one.
        passage: Record of one passage of text.
        continuations: Continuations of the same prompts.
        seconds: Duration of all measurements.
        config: Extent of the measurements.
    """

    weights: str = ""
    precision: str
    num_parameters: int
    unit: ContentUnit
    titles: tuple[str, ...]
    sizes: tuple[int, ...]
    bits: tuple[float, ...]
    streams: Mapping[str, StreamCosts] = field(default_factory=dict)
    positions: Positions | None = None
    whole: WholeUse | None = None
    passage: Passage | None = None
    continuations: tuple[Continuation, ...] = ()
    seconds: float = 0.0
    config: EvaluationConfig


def evaluate(
    system: System,
    data: PreparedSource,
    config: EvaluationConfig,
    *,
    precision: str = "auto",
    world: World | None = None,
    weights: str = "",
    progress: Progress | None = None,
    title: str = "",
) -> Evaluation:
    """Measure a system on the held-out units of its data.

    Args:
        system: The system in evaluation mode, on its device.
        data: Data with held-out units.
        config: Extent of the measurements.
        precision: ``"bfloat16"`` computes under autocast; ``"auto"`` chooses the faster type.
        world: The only process; if its number of threads was not chosen, it is chosen here.
        weights: Stored with the result, to identify the weights later.
        progress: Shows the progress; ``None`` shows nothing.
        title: Stands before what is shown, such as a run's name.

    Raises:
        UserError: Nothing is held out.
    """
    begin = time.perf_counter()
    shows = _Tasks(Progress(quiet=True) if progress is None else progress, title)
    units = data.held_out_units()
    if units is None or not len(units):
        raise UserError(
            "At least one unit must be held out to be scored: got none. Set `held_out`."
        )
    world = World(device=next(system.parameters()).device) if world is None else world
    choice = settle_precision(precision, [system], [], world)
    precision = choice.precision
    world, threads = settle_threads([system], [], world)
    if told := in_one_line(choice.why, threads):
        shows.progress.note(told)
    with computing(world.num_threads):
        if isinstance(data, Corpus):
            found = _evaluate_text(system, data, config, precision, shows)
        else:
            found = _evaluate_units(system, units, config, precision, shows)
    return replace(found, weights=weights, seconds=time.perf_counter() - begin)


def _num_parameters(system: nn.Module) -> int:
    return sum(parameter.numel() for parameter in system.parameters())


def _autocast(system: nn.Module, precision: str) -> torch.autocast:
    device = next(system.parameters()).device
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _evaluate_units(
    system: System,
    units: HeldOutUnits,
    config: EvaluationConfig,
    precision: str,
    shows: "_Tasks",
) -> Evaluation:
    """Score units in the way of their kind."""
    with _autocast(system, precision):
        scores = score_units(system, units, config.max_units, shows("held-out units"))
    return Evaluation(
        precision=precision,
        config=config,
        num_parameters=_num_parameters(system),
        unit=scores[0].unit,
        titles=tuple(score.title for score in scores),
        sizes=tuple(score.size for score in scores),
        bits=tuple(score.bits for score in scores),
        streams=_by_stream(system, scores),
    )


def _by_stream(system: System, scores: Sequence[UnitScore]) -> dict[str, StreamCosts]:
    """Return the costs of every predicted stream with targets; a unit may lack some streams."""
    found = {}
    for stream in system.layout.predicted:
        own = [score.losses.get(stream.name) for score in scores]
        if any(sums is not None for sums in own):
            found[stream.name] = StreamCosts(
                num_ticks=tuple(0.0 if sums is None else float(sums.num_ticks) for sums in own),
                nats=tuple(0.0 if sums is None else float(sums.nats) for sums in own),
            )
    return found


def _evaluate_text(
    system: nn.Module, corpus: Corpus, config: EvaluationConfig, precision: str, shows: "_Tasks"
) -> Evaluation:
    """Score text id by id, which also gives positions and a passage to be drawn."""
    units = spread(corpus.held_out, config.max_units)
    lengths = corpus.tokenizer.byte_lengths
    block_ticks = corpus.train.block_ticks
    with _autocast(system, precision):
        scores = score(
            system, units, lengths, block_ticks=block_ticks, on_progress=shows("held-out text")
        )
        whole = _whole_use(system, units, lengths, config, shows("exchanging the whole"))
        passage = _passage(system, units, corpus, config, block_ticks)
    edges = position_edges(max(one.num_bytes for one in scores) + 1)
    bits, num_bytes = by_position(scores, edges)
    return Evaluation(
        precision=precision,
        config=config,
        num_parameters=_num_parameters(system),
        unit="byte",
        titles=tuple(one.title for one in scores),
        sizes=tuple(one.num_bytes for one in scores),
        bits=tuple(one.bits for one in scores),
        positions=Positions(
            edges=edges,
            num_bytes=tuple(map(tuple, num_bytes.tolist())),
            bits=tuple(map(tuple, bits.tolist())),
        ),
        whole=whole,
        passage=passage,
        continuations=_continuations(system, units, corpus, config, shows("continuing prompts")),
    )


def spread(units: Sequence[Unit], count: int) -> list[Unit]:
    """Return ``count`` units at equal distances, or all if ``count`` is 0 or too large."""
    return [units[int(place)] for place in spread_places(len(units), count)]


def save_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write an evaluation into a run folder, completely or not at all."""
    write_text(folder / FILE, json.dumps(encode(evaluation)))


def load_evaluation(folder: Path) -> Evaluation | None:
    """Read the evaluation of a run folder; ``None`` if the run was not evaluated.

    Raises:
        UserError: The file is damaged or of another version.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        found: Evaluation = decode(Evaluation, json.loads(path.read_text(encoding="utf-8")))
    except ValueError as problem:
        raise UserError(
            f"{path} must be an evaluation of this version: {problem} Delete it and evaluate again."
        ) from None
    return found


@dataclass(frozen=True, slots=True)
class _Tasks:
    """Makes the progress tasks of an evaluation."""

    progress: Progress
    title: str

    def __call__(self, what: str) -> Callable[[int, int], None]:
        return self.progress.task(f"{self.title}: {what}" if self.title else what)


def _whole_use(
    system: nn.Module,
    units: Sequence[Unit],
    byte_lengths: Int[np.ndarray, " V"],
    config: EvaluationConfig,
    on_progress: CountProgress,
) -> WholeUse | None:
    """Measure the use of the whole if there is one, and another document's to replace it with."""
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
    """Read a passage of the middle unit among those that are long enough, or of the longest."""
    if not config.passage_ticks:
        return None
    needed = config.passage_start + config.passage_ticks
    fitting = [unit for unit in units if len(unit.ids) > needed]
    unit = fitting[len(fitting) // 2] if fitting else max(units, key=lambda unit: len(unit.ids))
    # The start is aligned for all systems that are compared, so that all show the same ids.
    start = max(min(config.passage_start, len(unit.ids) // 2) // block_ticks, 1) * block_ticks
    return read_passage(system, unit, corpus.tokenizer, start, config.passage_ticks)


def _continuations(
    system: nn.Module,
    units: Sequence[Unit],
    corpus: Corpus,
    config: EvaluationConfig,
    on_progress: CountProgress,
) -> tuple[Continuation, ...]:
    """Return what the system writes after its prompts; nothing without another document's whole."""
    if not config.num_prompts or not _several_documents(units):
        return ()
    return continue_prompts(
        cast("Streaming", system),
        _prompts(units, config.num_prompts),
        corpus.tokenizer,
        prompt_ticks=config.prompt_ticks,
        num_ticks=config.continuation_ticks,
        on_progress=on_progress,
    )


def _several_documents(units: Sequence[Unit]) -> bool:
    """Return whether some unit can give its whole to a unit of another document."""
    return len({unit.title for unit in units}) > 1


def _prompts(units: Sequence[Unit], count: int) -> list[tuple[Unit, Unit]]:
    """Return the first units of different documents, each with the unit whose whole is used."""
    firsts = {unit.title: i for i, unit in reversed(list(enumerate(units)))}
    partners: Any = donors(units)
    return [(units[i], units[partners[i]]) for i in sorted(firsts.values())[:count]]
