"""Runs the study `counterpoint.recipes.front_loading`, stack by stack.

A stack that is finished has its records and weights in the folder, so a study that was stopped goes
on with the next one. The records hold what the models wrote; `counterpoint.recipes.
front_loading_report` judges it.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from counterpoint.data.tasks.items import HELD_OUT_SEED
from counterpoint.data.tasks.reasoning.item import ReasoningItem
from counterpoint.evaluate.attempts import lane_targets, lane_texts, lane_true_solutions
from counterpoint.locks import locked
from counterpoint.progress import Progress
from counterpoint.recipes.begun import keep_or_check_study
from counterpoint.recipes.cells import CELLS, WORK, read_records, write_records
from counterpoint.recipes.front_loading import SAMPLED, Chain, FrontLoading, chains, corpora, splits
from counterpoint.recipes.front_loading_lanes import (
    PLAIN,
    ChainPhase,
    chain_key,
    chain_run,
    last_segment,
    read_facts,
    record_segments,
    segments,
    stacks,
    train_segments,
    weights_path,
)
from counterpoint.recipes.stacks import keep_weights
from counterpoint.recipes.training import train_run
from counterpoint.runtime.lanes import Lanes
from counterpoint.systems import sketch
from counterpoint.systems.contract import System
from counterpoint.train.checkpoint import load_system, read_manifest, resolve
from counterpoint.train.distributed import World
from counterpoint.train.rollout_source import NoRewardError

STUDY = "study.json"
RESULTS = "results.parquet"
ITEMS_SEED = HELD_OUT_SEED
_STACK_TICKS = 140_000
"""Ticks of a step of a stack on a GPU; their activations take about 10 GB at 0.4 M parameters."""
_WRITTEN_ROWS = 6000
"""Rows that are written at once on a GPU; their caches take about 5 GB at 0.4 M parameters."""


def run_front_loading(
    study: FrontLoading,
    folder: Path,
    *,
    device: str = "cpu",
    batches_only: bool = False,
    stop_at: float = float("inf"),
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Run all chains that are missing.

    Args:
        study: The study.
        folder: Its folder; one that was begun there must be the same, but for seeds and groups.
        device: Device of the models. On a CPU, where a stack is not faster, chains are run alone.
        batches_only: Only record the batches of training.
        stop_at: Time (`time.time`) after which no further models are begun.
        progress: Shows how far the study is; on stderr by default.

    Returns:
        The records of all finished chains; ``results.parquet`` has them too.

    Raises:
        UserError: The folder belongs to another study.
    """
    progress = Progress() if progress is None else progress
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".study.lock", wait=False), closing(progress):
        keep_or_check_study(folder / STUDY, study, ("seeds", "groups"))
        every = segments(study)
        missing = [one for one in every if not _is_done(study, folder, one, every)]
        record_segments(study, folder, missing, progress)
        if not batches_only:
            _run_groups(study, folder, torch.device(device), stop_at, progress)
            _run_reinforced(study, folder, torch.device(device), stop_at)
    return join(study, folder)


def _run_groups(
    study: FrontLoading, folder: Path, device: torch.device, stop_at: float, progress: Progress
) -> None:
    """Run group by group, so that an early stop has all of the most important ones."""
    every = segments(study)
    for name in study.groups:
        own = segments(replace(study, groups=(name,)))
        missing = [one for one in own if not _is_done(study, folder, one, every)]
        groups = stacks(folder, missing, _most_lanes(study, device))
        task = progress.task(f"{study.name}: {name}")
        for number, group in enumerate(groups, 1):
            if time.time() > stop_at:
                return
            _run_stack(study, folder, group, every, device, progress)
            task(number, len(groups), figures=f"{len(group)} lanes from {group[0].key}")
            join(study, folder)


def chain_path(folder: Path, chain: Chain, seed: int) -> Path:
    """Return the path of the records of a chain."""
    return folder / WORK / CELLS / f"{chain_key(chain, seed)}.parquet"


def join(study: FrontLoading, folder: Path) -> list[dict[str, Any]]:
    """Return the records of all finished chains, and write them into one file."""
    paths = [chain_path(folder, one, seed) for seed in study.seeds for one in chains(study.groups)]
    records = [record for path in paths if path.exists() for record in read_records(path)]
    if records:
        write_records(folder / RESULTS, records)
    return records


def scored_items(study: FrontLoading, split: str) -> list[ReasoningItem]:
    """Return the items of a split, family by family."""
    count = study.num_items if split == "in range" else study.num_items // 2
    return [task.item(ITEMS_SEED, n) for task in splits(study)[split] for n in range(count)]


def _most_lanes(study: FrontLoading, device: torch.device) -> int:
    if device.type == "cpu":
        return 1
    return max(_STACK_TICKS // (study.train.batch_rows * study.row_ticks), 1)


def _chains_of(study: FrontLoading, segment: ChainPhase) -> list[Chain]:
    """Return the chains that end with a segment."""
    return [
        one
        for one in chains(study.groups)
        if not one.tuning.is_reinforced and last_segment(one, segment.seed).key == segment.key
    ]


def _has_children(segment: ChainPhase, every: Sequence[ChainPhase]) -> bool:
    return any(one.parent is not None and one.parent.key == segment.key for one in every)


def _is_done(
    study: FrontLoading, folder: Path, segment: ChainPhase, every: Sequence[ChainPhase]
) -> bool:
    needed = [chain_path(folder, one, segment.seed) for one in _chains_of(study, segment)]
    if _has_children(segment, every):
        needed.append(weights_path(folder, segment))
    return all(path.exists() for path in needed)


def _run_stack(
    study: FrontLoading,
    folder: Path,
    group: Sequence[ChainPhase],
    every: Sequence[ChainPhase],
    device: torch.device,
    progress: Progress,
) -> None:
    """Train segments together, and let the chains that end with them answer."""
    begin = time.perf_counter()
    systems = train_segments(study, folder, group, device, progress)
    trained = time.perf_counter() - begin
    for segment, system in zip(group, systems, strict=True):
        if _has_children(segment, every):
            keep_weights(weights_path(folder, segment), system)
    ends = [
        (segment, chain, system.eval())
        for segment, system in zip(group, systems, strict=True)
        for chain in _chains_of(study, segment)
    ]
    facts = {"lanes": len(group), "device": str(device), "training_seconds": trained}
    for sampled in (False, True):
        some = [one for one in ends if (one[1].name in SAMPLED) == sampled]
        if not some:
            continue
        answers = answered(study, [system for _, _, system in some], sampled=sampled)
        for (segment, chain, _), own in zip(some, answers, strict=True):
            about = _about(chain, segment.seed, _ledger(folder, segment)) | facts
            write_records(chain_path(folder, chain, segment.seed), [about | one for one in own])


def _ledger(folder: Path, segment: ChainPhase) -> list[dict[str, Any]]:
    """Return the ledger of a chain, with the phases that other chains share."""
    before = [] if segment.parent is None else _ledger(folder, segment.parent)
    return [*before, *read_facts(folder, segment)["ledger"]]


def _about(chain: Chain, seed: int, ledger: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "arm": chain.name,
        "backbone": chain.backbone.name,
        "tuning": chain.tuning.name,
        "seed": seed,
        "note": "",
        "ledger": json.dumps(ledger),
        "flops": sum(entry["flops"] for entry in ledger),
    }


def answered(
    study: FrontLoading, systems: Sequence[System], *, sampled: bool
) -> list[list[dict[str, Any]]]:
    """Let models of one shape answer.

    Args:
        study: The study.
        systems: The models, in evaluation mode.
        sampled: Whether they also sample solutions.

    Returns:
        For each model what it wrote, by split.
    """
    items = {split: scored_items(study, split) for split in splits(study)}
    every = [item for own in items.values() for item in own]
    count = study.num_samples if sampled else 0
    most = max(len(every), count * len(items["in range"]))
    at_once = 1 if systems[0].device.type == "cpu" else max(_WRITTEN_ROWS // most, 1)
    found = list[list[dict[str, Any]]]()
    for first in range(0, len(systems), at_once):
        lanes = Lanes(systems[first : first + at_once])
        samples = (
            lane_texts(lanes, items["in range"], count, temperature=1.0)
            if count
            else [[] for _ in range(lanes.num_lanes)]
        )
        for own, sample in zip(_written(study, lanes, every), samples, strict=True):
            begin = 0
            records = list[dict[str, Any]]()
            for split, some in items.items():
                cut = slice(begin, begin + len(some))
                begin = cut.stop
                record = {name: values[cut] for name, values in own.items() if name != "base_bits"}
                drawn = sample if split == "in range" else []
                about = {"split": split, "num_samples": count if drawn else 0, "sampled": drawn}
                records.append(about | record | {"base_bits": own["base_bits"]})
            found.append(records)
    return found


def _written(
    study: FrontLoading, lanes: Lanes, items: Sequence[ReasoningItem]
) -> Iterator[dict[str, Any]]:
    """Yield what each lane wrote, and what true solutions and text without reasoning cost it."""
    texts = lane_texts(lanes, items)
    true = lane_true_solutions(lanes, items)
    plain = corpora(study)[PLAIN]
    rows = plain.prepare(sketch(study.system)).batch(
        [plain.task.item(ITEMS_SEED, number) for number in range(plain.num_held_out)]
    )
    base = lane_targets(lanes, rows).bits.sum(1).tolist()
    for lane, own in enumerate(texts):
        yield {
            "texts": [text for (text,) in own],
            "bits": true.bits[lane].tolist(),
            "likeliest": true.are_likeliest[lane].tolist(),
            "base_bits": base[lane] / rows.size,
        }


def _run_reinforced(
    study: FrontLoading, folder: Path, device: torch.device, stop_at: float
) -> None:
    """Train chains with reinforcement one by one: a model writes what it learns from."""
    for seed in study.seeds:
        for chain in (one for one in chains(study.groups) if one.tuning.is_reinforced):
            path = chain_path(folder, chain, seed)
            if path.exists() or time.time() > stop_at:
                continue
            place = folder / WORK / path.stem
            note = ""
            try:
                run = chain_run(study, chain, seed)
                result = train_run(run, place, World(), progress=Progress(quiet=True), loggers=())
                if not result.finished:
                    raise KeyboardInterrupt
            except NoRewardError as problem:
                note = str(problem)
            checkpoint = resolve(place)
            system = load_system(checkpoint)
            about = _about(chain, seed, read_manifest(checkpoint)["ledger"]) | {"note": note}
            (own,) = answered(study, [system.to(device).eval()], sampled=False)
            write_records(path, [about | one for one in own])
