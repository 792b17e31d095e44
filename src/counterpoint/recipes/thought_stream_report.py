"""The tables of `counterpoint.recipes.thought_stream`."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from counterpoint.data.tasks.reasoning.aside import are_thoughts
from counterpoint.data.tasks.reasoning.corpus import answer_floors
from counterpoint.data.tasks.reasoning.item import judge
from counterpoint.evaluate.report.front_loading_page import PairRow, pair_rows, score
from counterpoint.evaluate.report.grid_table import TextTable
from counterpoint.files import write_json
from counterpoint.recipes.thought_stream import (
    FAMILIES,
    ThoughtStream,
    questions,
    scored,
    thinkers,
    thought_ledger,
    thought_pairs,
)
from counterpoint.systems import system_layout
from counterpoint.train.ledger import Ledger, read_ledger


def compare_thoughts(study: ThoughtStream, records: Sequence[dict[str, Any]]) -> list[PairRow]:
    """Return the declared comparisons of the models of each system."""
    return pair_rows(records, thought_pairs(study), [("in range", "answer")])


def report_thought_stream(
    study: ThoughtStream, folder: Path, records: Sequence[dict[str, Any]]
) -> list[str]:
    """Write the comparisons, and return the lines of a table of the scores."""
    rows = compare_thoughts(study, records)
    write_json(
        folder / "thought_stream.json",
        [
            {
                "better": row.better,
                "other": row.other,
                "difference": [row.difference.value, row.difference.low, row.difference.high],
                "p_value": row.p_value,
                "verdict": row.verdict,
            }
            for row in rows
        ],
    )
    heads = ("thoughts", "seeds", "answer %", "process %", *(f"{name} %" for name in FAMILIES))
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for policy, by_family in answer_floors(questions(study)).items():
        known = [100 * by_family[family] for family in FAMILIES]
        told = " | ".join(f"{share:.0f}" for share in known)
        lines.append(f"| {policy} | | {fmean(known):.1f} | 0 | {told} |")
    for arm in dict.fromkeys(record["arm"] for record in records):
        own = [record for record in records if record["arm"] == arm]
        shares = []
        for family in FAMILIES:
            rights = [
                right
                for record in own
                for name, right in zip(record["families"], record["right"], strict=True)
                if name == family
            ]
            shares.append(f"{100 * sum(rights) / len(rights):.0f}")
        lines.append(
            f"| {arm} | {len(own)} | {_percent(own, 'answer')} | {_process(study, own)} | "
            f"{' | '.join(shares)} |"
        )
    return [*lines, "", *_ledger_lines(study, records)]


def completeness(study: ThoughtStream, record: dict[str, Any]) -> list[bool] | None:
    """Return whether each answer is right after all steps that are needed, each valid.

    A thought in line is judged as in `counterpoint.recipes.front_loading`. A thought in the whole
    consists of ends of results, which do not say from what they follow, so each must be the true
    one, in its place.

    Args:
        study: The study.
        record: What a model answered; that of an older version has no thoughts of the whole, and
            then nobody knows.
    """
    answers = zip(scored(study, record["kind"]), record["texts"], record["right"], strict=True)
    if record["kind"] == "inline":
        return [judge(item, text).is_complete for item, text, _ in answers]
    if record.get("thoughts") is None:
        return None
    block_ticks = system_layout(dict(study.systems)["aside"]).block_ticks
    return [
        is_right and are_thoughts(item, thoughts, block_ticks)
        for (item, _, is_right), thoughts in zip(answers, record["thoughts"], strict=True)
    ]


def _process(study: ThoughtStream, records: Sequence[dict[str, Any]]) -> str:
    """Return the process score of an arm; a dash if it is not known of all its records."""
    judged = [record | {"complete": completeness(study, record)} for record in records]
    if any(record["complete"] is None for record in judged):
        return "-"
    return _percent(judged, "process")


def _percent(records: Sequence[dict[str, Any]], metric: str) -> str:
    value = score(records, metric).map(100)
    return f"{value.value:.1f} [{value.low:.1f}, {value.high:.1f}]"


def _ledger_lines(study: ThoughtStream, records: Sequence[dict[str, Any]]) -> list[str]:
    """Return a table of what the first model of each arm has read."""
    heads = ("thoughts", "phase", "source", "tokens", "with loss", "items", "unique", "repeated")
    first = {record["arm"]: record for record in reversed(records)}
    rows = []
    for arm in dict.fromkeys(record["arm"] for record in records):
        for entry in _ledger_of(study, first[arm]):
            counts = (entry.tokens, entry.targets, entry.items, entry.unique_items)
            told = (f"{count:,}" for count in (*counts, entry.repetitions))
            rows.append((arm, entry.phase, entry.source, *told))
    return TextTable(heads, rows).markdown().splitlines()


def _ledger_of(study: ThoughtStream, record: dict[str, Any]) -> Ledger:
    """Return the ledger of a record, or count it: it follows from the study and the seed."""
    if record.get("ledger") is not None:
        return read_ledger(json.loads(record["ledger"]))
    every = thinkers(replace(study, seeds=(record["seed"],)), record["kind"])
    (own,) = (one for one in every if one.arm == record["arm"])
    return thought_ledger(study, own)
