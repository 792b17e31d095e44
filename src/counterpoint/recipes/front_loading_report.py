"""Judges what the models of `counterpoint.recipes.front_loading` wrote, and writes the report."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from counterpoint.config_json import encode
from counterpoint.data.tasks.reasoning.item import ReasoningItem, judge
from counterpoint.errors import UserError
from counterpoint.evaluate.report.figures import to_png
from counterpoint.evaluate.report.front_loading_page import (
    PairRow,
    catch_up_figure,
    markdown,
    pair_rows,
)
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
PICTURE = "catch_up.png"
_CURVES = {
    "base, repeated items": {1: "base > small"}
    | {times: f"base > small x{times}" for times in (2, 4, 8, 16)},
    "base, new items": {1: "base > small many"}
    | {times: f"base > small many x{times}" for times in (2, 4, 8, 16)},
}
_LEVELS = {"small in pre-training": "small > small", "both in pre-training": "both > small"}


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


def floors(study: FrontLoading) -> dict[str, dict[str, float]]:
    """Return the scores of policies that learn nothing, by split and family.

    "constant" is the answer that is right most often in the scored items of a family; "part" knows
    a part of the statement; see `counterpoint.data.tasks.reasoning.family.Family.guess`.
    """
    found = {}
    for split in splits(study):
        items = scored_items(study, split)
        for family in dict.fromkeys(item.family for item in items):
            own = [item for item in items if item.family == family]
            answers = [item.text[item.answer_start + 1 : -1] for item in own]
            guess = splits(study)[split][0].policies()["part"]
            guessed = [guess(item, random.Random(number))[0] for number, item in enumerate(own)]
            found[f"{split}, {family}"] = {
                "constant": Counter(answers).most_common(1)[0][1] / len(own),
                "part": sum(map(str.__eq__, answers, guessed)) / len(own),
            }
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
    first = {record["arm"]: record for record in reversed(records)}
    findings = {
        "comparisons": [asdict(row) | {"verdict": row.verdict} for row in rows],
        "floors": floors(study),
        "ledgers": {arm: record["ledger"] for arm, record in first.items()},
        "agreement": agreement(study, records),
    }
    write_json(folder / FINDINGS, findings)
    said = f"{left_out}\n\n" if left_out else ""
    write_text(folder / REPORT, f"# {study.name}\n\n{said}{markdown(records, rows)}")
    if any(record["tuning"].startswith("small x") for record in records):
        write_bytes(folder / PICTURE, to_png(catch_up_figure(records, _CURVES, _LEVELS)))
    return rows
