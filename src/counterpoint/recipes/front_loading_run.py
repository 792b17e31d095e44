"""Runs the study `counterpoint.recipes.front_loading`, backbone by backbone.

Each finished chain is a Parquet file, so a study that was stopped goes on where it was, with the
same outcome. Training of a chain is a run of phases that begins with the weights of its backbone.
"""

import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from counterpoint.config_json import encode, first_difference
from counterpoint.data.tasks.items import HELD_OUT_SEED
from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.token_deal import MemberWeight
from counterpoint.errors import UserError
from counterpoint.evaluate.report.front_loading_page import markdown, pair_rows
from counterpoint.evaluate.solutions import solve
from counterpoint.files import read_json, write_json, write_text
from counterpoint.locks import locked
from counterpoint.processes import work_in_processes
from counterpoint.progress import Progress
from counterpoint.recipes.cells import CELLS, WORK, read_records, write_records
from counterpoint.recipes.front_loading import (
    CLAIMS,
    FAMILIES,
    FOLDS,
    METRICS,
    NOTHING,
    Backbone,
    Chain,
    FrontLoading,
    chains,
    corpora,
    splits,
)
from counterpoint.recipes.phased import Phase, phased_run, placed
from counterpoint.recipes.training import train_run
from counterpoint.train.checkpoint import load_system, read_manifest, resolve
from counterpoint.train.config import FineTuneConfig, ScheduleConfig
from counterpoint.train.distributed import World
from counterpoint.train.metrics import read_metrics
from counterpoint.train.phases import PhaseSource
from counterpoint.train.reinforce import GroupConfig
from counterpoint.train.rewarded import RewardedData
from counterpoint.train.rollout_source import NoRewardError
from counterpoint.train.run import Run

STUDY = "study.json"
RESULTS = "results.parquet"
ITEMS_SEED = HELD_OUT_SEED
PLAIN = "plain"
_REINFORCED_TIMES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainGroup:
    """The chains of a backbone with a seed, which one process runs."""

    backbone: Backbone
    seed: int
    chains: tuple[Chain, ...]

    @property
    def key(self) -> str:
        """Name of the backbone's run."""
        return f"{_word(self.backbone.name)}-seed{self.seed}"

    def only(self, *, reinforced: bool) -> "ChainGroup":
        """Return the group with the chains that are reinforced, or with the others."""
        own = tuple(one for one in self.chains if one.tuning.is_reinforced == reinforced)
        return replace(self, chains=own)

    def path(self, folder: Path, chain: Chain) -> Path:
        """Return the path of the results of a chain."""
        return folder / CELLS / f"{self.key}-{_word(chain.tuning.name)}.parquet"


def run_front_loading(
    study: FrontLoading, folder: Path, *, workers: int = 1, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Run all chains that are missing.

    Args:
        study: The study.
        folder: Its folder; one that was begun there must be the same, but for seeds and groups.
        workers: Number of processes, each with one thread and one backbone at a time.
        progress: Shows how far the study is; on stderr by default.

    Returns:
        The records of all finished chains; ``results.parquet`` has them too.

    Raises:
        UserError: The folder belongs to another study.
    """
    progress = Progress() if progress is None else progress
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".study.lock", wait=False), closing(progress):
        _keep_or_check(study, folder)
        groups = list(chain_groups(study))
        missing = [
            group
            for group in groups
            if not all(group.path(folder, chain).exists() for chain in group.chains)
        ]
        # Verifiers start processes of their own, which workers may not do.
        apart = [group.only(reinforced=True) for group in missing]
        shared = [group.only(reinforced=False) for group in missing]
        task = progress.task(study.name)
        work = partial(run_group, study, folder)
        with closing(work_in_processes(work, shared, workers)) as done:
            for number, key in enumerate(itertools.chain(done, map(work, apart)), 1):
                task(number, len(shared) + len(apart), figures=key)
                _join(groups, folder)
    return _join(groups, folder)


def chain_groups(study: FrontLoading) -> Iterator[ChainGroup]:
    """Yield the groups by seed, so that an early stop has all backbones of some seeds."""
    found = chains(study.groups)
    backbones = list(dict.fromkeys(chain.backbone for chain in found))
    for seed in study.seeds:
        for backbone in backbones:
            own = tuple(chain for chain in found if chain.backbone == backbone)
            yield ChainGroup(backbone=backbone, seed=seed, chains=own)


def run_group(study: FrontLoading, folder: Path, group: ChainGroup) -> str:
    """Train a backbone, unless that was done, and run its chains that are missing."""
    if all(group.path(folder, chain).exists() for chain in group.chains):
        return group.key
    work = folder / WORK / group.key
    backbone, _ = _train(backbone_run(study, group), work / "backbone")
    for chain in group.chains:
        path = group.path(folder, chain)
        if path.exists():
            continue
        checkpoint = backbone
        note = ""
        place = work / _word(chain.tuning.name)
        if chain.tuning.corpus:
            run = tuning_run(study, group, chain, work / "backbone")
            checkpoint, note = _train(run, place)
        write_records(path, list(_records(study, group, chain, checkpoint, note)))
        if chain.tuning.corpus:
            shutil.rmtree(place)
    return group.key


def backbone_run(study: FrontLoading, group: ChainGroup) -> Run:
    """Return the run of pre-training."""
    backbone = group.backbone
    tokens = study.pretrain_tokens
    if backbone.without_share:
        tokens = round(tokens * (1 - study.share))
    shares = {backbone.corpus: study.share} if backbone.corpus else {}
    phase = Phase(
        name="pretraining",
        tokens=tokens,
        weights=placed(PLAIN, shares, backbone.placement),
        row_ticks=study.row_ticks,
        trained=backbone.trained,
    )
    return _run(study, group.key, group.seed, [phase])


def tuning_run(study: FrontLoading, group: ChainGroup, chain: Chain, backbone: Path) -> Run:
    """Return the run of fine-tuning, which begins with the weights of the backbone."""
    tuning = chain.tuning
    reasoning = round(study.share * study.pretrain_tokens)
    wanted = {tuning.before: reasoning} if tuning.before else {}
    wanted[tuning.corpus] = study.tuning_tokens * tuning.times
    phases = [
        Phase(
            name=f"tuning on {corpus}",
            tokens=tokens,
            weights=(MemberWeight(member=corpus, weight=1.0),),
            row_ticks=study.row_ticks,
            trained="spans",
            schedule=study.train.schedule,
            lr_factor=study.tuning_lr_factor,
            reset_optimizer=True,
        )
        for corpus, tokens in wanted.items()
    ]
    if tuning.is_reinforced:
        phases.append(reinforcement(study))
    run = _run(study, f"{group.key}-{_word(tuning.name)}", group.seed, phases)
    begin = FineTuneConfig(init_from=str(backbone))
    return replace(run, train=replace(run.train, fine_tune=begin))


def reinforcement(study: FrontLoading) -> Phase:
    """Return a phase of GRPO over questions of all families, with the rows of 4 fine-tunings."""
    rows = _REINFORCED_TIMES * study.tuning_tokens // study.row_ticks
    task = Reasoning(
        families=FAMILIES, operations=study.operations, most_symbols=study.row_ticks, folds=FOLDS
    )
    group = GroupConfig(most_ticks=study.row_ticks, kl_weight=0.001)
    return Phase(
        name="reinforcement",
        rewarded=RewardedData(task=task, group=group),
        num_steps=max(rows // study.train.batch_rows, 1),
        schedule=ScheduleConfig(warmup_steps=0, final_ratio=1.0),
        lr_factor=study.tuning_lr_factor / 5,
        reset_optimizer=True,
    )


def _run(study: FrontLoading, name: str, seed: int, phases: Sequence[Phase]) -> Run:
    data = corpora(study)
    used = {PLAIN, *(one.member for phase in phases for one in phase.weights)}
    sources = [PhaseSource(name=name, data=own) for name, own in data.items() if name in used]
    train = replace(study.train, seed=seed)
    return phased_run(name, study.system, sources, phases, train, held_out=(PLAIN,))


def _train(run: Run, folder: Path) -> tuple[Path, str]:
    """Train a run, and return its last checkpoint, and why it could not go on, if it could not."""
    try:
        result = train_run(run, folder, World(), progress=Progress(quiet=True), loggers=())
    except NoRewardError as problem:
        return resolve(folder), str(problem)
    if not result.finished:
        raise KeyboardInterrupt
    return result.checkpoint, ""


def _records(
    study: FrontLoading, group: ChainGroup, chain: Chain, checkpoint: Path, note: str
) -> Iterator[dict[str, Any]]:
    """Yield what a model answers, for each split."""
    system = load_system(checkpoint)
    manifest = read_manifest(checkpoint)
    metrics = read_metrics(checkpoint.parents[1] / "metrics.jsonl")
    measured = [row for row in metrics if "evaluation" in row]
    about = {
        "arm": chain.name,
        "backbone": chain.backbone.name,
        "tuning": chain.tuning.name,
        "seed": group.seed,
        "note": note,
        "base_bits": measured[-1]["evaluation"]["bits_per_byte"],
        "ledger": json.dumps(manifest["ledger"]),
        "flops": manifest["counters"]["flops"],
        "seconds": manifest["counters"]["seconds"],
    }
    for split, tasks in splits(study).items():
        items = [task.item(ITEMS_SEED, n) for task in tasks for n in range(study.num_items)]
        solved = solve(system, items, study.num_samples, group.seed)
        yield about | {
            "split": split,
            "families": [item.family for item in items],
            "right": [one.is_right for one in solved],
            "sound": [one.is_sound for one in solved],
            "bits": [one.bits for one in solved],
            "symbols": [one.num_symbols for one in solved],
            "lengths": [len(one.text) for one in solved],
            "sampled_right": [one.num_sampled_right for one in solved],
            "num_samples": study.num_samples,
        }


def _join(groups: Sequence[ChainGroup], folder: Path) -> list[dict[str, Any]]:
    paths = [group.path(folder, chain) for group in groups for chain in group.chains]
    records = [record for path in paths if path.exists() for record in read_records(path)]
    if records:
        write_records(folder / RESULTS, records)
    return records


def _keep_or_check(study: FrontLoading, folder: Path) -> None:
    """Refuse the folder of another study; seeds and groups change no chain."""
    path = folder / STUDY
    new = {key: own for key, own in encode(study).items() if key not in ("seeds", "groups")}
    if path.exists():
        changed = first_difference(read_json(path), new, "study")
        if changed is not None:
            raise UserError(
                f"{folder} must belong to this study: it was begun with another {changed}. Name "
                "another folder."
            )
    write_json(path, new)


def _word(name: str) -> str:
    return name.replace(",", "").replace(" ", "_") if name != NOTHING else NOTHING


def claim_pairs(study: FrontLoading) -> list[tuple[str, str, str]]:
    """Return claim, better chain and other chain of all comparisons of the study's groups."""
    known = {chain.name for chain in chains(study.groups)}
    return [(claim.text, *pair) for claim in CLAIMS for pair in claim.pairs if set(pair) <= known]


def declared(study: FrontLoading) -> dict[str, Any]:
    """Return what is declared before the study is run, as JSON."""
    return {
        "study": encode(study),
        "metrics": METRICS,
        "scored": {name: encode(tasks) for name, tasks in splits(study).items()},
        "items_seed": ITEMS_SEED,
        "corpora": encode(corpora(study)),
        "chains": [chain.name for chain in chains(study.groups)],
        "comparisons": claim_pairs(study),
        "correction": "Holm over all comparisons, scored splits and metrics; p below 0.05 is shown",
    }


def report_front_loading(study: FrontLoading, folder: Path) -> Path:
    """Write ``report.md`` from the records of a folder, and return its path."""
    records = read_records(folder / RESULTS)
    names = list(splits(study))
    rows = pair_rows(records, claim_pairs(study), list(METRICS), names)
    path = folder / "report.md"
    write_text(path, f"# {study.name}\n\n{markdown(records, rows, names)}")
    return path
