"""Judges what the models of `counterpoint.recipes.front_loading` wrote, and writes the report."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from counterpoint.config_json import encode
from counterpoint.data.tasks.reasoning.corpus import answer_floors
from counterpoint.data.tasks.reasoning.item import ReasoningItem, judge
from counterpoint.errors import UserError
from counterpoint.evaluate.report.figures import styled, to_png
from counterpoint.evaluate.report.front_loading_figure import answers_figure
from counterpoint.evaluate.report.front_loading_page import PairRow, markdown, pair_rows
from counterpoint.files import write_bytes, write_json, write_text
from counterpoint.recipes.cells import read_records
from counterpoint.recipes.front_loading import (
    CLAIMS,
    COMPARED,
    METRICS,
    FrontLoading,
    chains,
    corpora,
    splits,
)
from counterpoint.recipes.front_loading_run import ITEMS_SEED, RESULTS, scored_items

REPORT = "report.md"
FINDINGS = "findings.json"
PICTURE = "answers.png"
_TUNINGS = ("nothing", "small", "large", "both", "longest")
_CROSS = {
    f"{backbone} backbone": {tuning: f"{backbone} > {tuning}" for tuning in _TUNINGS}
    for backbone in ("base", "small", "large", "both")
}
_CURVES = {
    "base, items again": {1: "base > small"}
    | {times: f"base > small x{times}" for times in (2, 4, 8, 16)},
    "base, new items": {1: "base > small many"}
    | {times: f"base > small many x{times}" for times in (2, 4, 8, 16)},
}
_LEVELS = {f"{backbone} backbone, once": f"{backbone} > small" for backbone in ("small", "both")}


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
        "compared": COMPARED,
        "correction": "Holm over all comparisons and what is compared; p below 0.05 is shown",
    }


def judged(study: FrontLoading, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return records with a judgement of what was written."""
    items = {split: scored_items(study, split) for split in splits(study)}
    return [dict(record) | _judgement(items[record["split"]], record) for record in records]


def _judgement(items: Sequence[ReasoningItem], record: Mapping[str, Any]) -> dict[str, Any]:
    verdicts = [judge(item, text) for item, text in zip(items, record["texts"], strict=True)]
    sampled = record["sampled"] or [[] for _ in items]
    return {
        "families": [item.family for item in items],
        "right": [one.is_right for one in verdicts],
        "complete": [one.is_complete for one in verdicts],
        "symbols": [len(item.solution) for item in items],
        "lengths": [len(text) for text in record["texts"]],
        "sampled_right": [
            sum(judge(item, text).is_right for text in texts)
            for item, texts in zip(items, sampled, strict=True)
        ],
    }


def floors(study: FrontLoading) -> dict[str, dict[str, dict[str, float]]]:
    """Return the right answers of policies that learn nothing, by policy, split and family."""
    found = dict[str, dict[str, dict[str, float]]]()
    for split in splits(study):
        for policy, shares in answer_floors(scored_items(study, split)).items():
            found.setdefault(policy, {})[split] = shares
    return found


def agreement(study: FrontLoading, records: Sequence[Mapping[str, Any]]) -> float:
    """Return how often writing and scoring agree whether the true solution is the likeliest.

    A model writes exactly the true solution if each of its symbols is the likeliest one after the
    true text before it. The two are computed in different ways, so a fault of either shows here.
    """
    solutions = {split: [i.solution for i in scored_items(study, split)] for split in splits(study)}
    same = [
        likeliest == (text == solution)
        for one in records
        for likeliest, text, solution in zip(
            one["likeliest"], one["texts"], solutions[one["split"]], strict=True
        )
    ]
    return sum(same) / len(same)


def report_front_loading(study: FrontLoading, folder: Path, left_out: str = "") -> list[PairRow]:
    """Write the report from the records of a folder, and return the comparisons.

    Args:
        study: The study.
        folder: Its folder.
        left_out: Sentence that says what was left out for lack of time.

    Raises:
        UserError: The folder has no records yet.
    """
    if not (folder / RESULTS).exists():
        raise UserError(f"{folder} must have finished chains: it has no {RESULTS}. Run the study.")
    records = judged(study, read_records(folder / RESULTS))
    rows = pair_rows(records, claim_pairs(study), COMPARED)
    known_floors = floors(study)
    first = {record["arm"]: record for record in reversed(records)}
    findings = {
        "comparisons": [asdict(row) | {"verdict": row.verdict} for row in rows],
        "floors": known_floors,
        "ledgers": {arm: record["ledger"] for arm, record in first.items()},
        "agreement": agreement(study, records),
    }
    write_json(folder / FINDINGS, findings)
    said = f"{left_out}\n\n" if left_out else ""
    tables = markdown(records, rows, known_floors)
    write_text(folder / REPORT, f"# {study.name}\n\n{said}{tables}")
    constant = fmean(known_floors["constant answer"]["in range"].values())
    with styled():
        figure = answers_figure(records, _CROSS, _CURVES, _LEVELS, constant)
        if figure is not None:
            write_bytes(folder / PICTURE, to_png(figure))
    return rows
