"""Export of tasks as files on which any model can be scored, together with their scorer.

The folder has a .jsonl file for each task, ``score.py`` (a copy of the module
`counterpoint.data.tasks.scoring`) and ``lm_eval`` (a task group for lm-eval that reads the same
files). Nothing in it needs this library.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from counterpoint.data.tasks import lm_eval_utils, scoring
from counterpoint.data.tasks.books import BookLines, ContextText, Passages, TextChoice
from counterpoint.data.tasks.items import (
    REPORTED_SEED,
    AnyTask,
    HasPlan,
    Item,
    ItemAnswer,
    scored_items,
)
from counterpoint.data.tasks.named import REAL, named_task
from counterpoint.data.tasks.part_whole import TASKS
from counterpoint.errors import UserError
from counterpoint.files import read_json_lines, write_json_lines, write_text

EXPORT_SEED = REPORTED_SEED
"""Seed of the exported items, from which no run learns."""


def all_tasks(data_folder: str = "") -> dict[str, AnyTask]:
    """Return all tasks by name.

    Args:
        data_folder: Folder that may contain ``books``, ``trec-qc`` and ``sgd-mini``. Without
            ``books`` the passages are those of the King James Bible; without the others their
            tasks are left out.

    Raises:
        UserError: There is no such folder.
    """
    if data_folder and not Path(data_folder).is_dir():
        raise UserError(f"The folder of data must exist: {data_folder!r} does not.")
    real = [name for name, kind in REAL.items() if kind.place(data_folder) is not None]
    return {**TASKS, **{name: named_task(name, data_folder) for name in real}}


def lines(task: AnyTask, num_lines: int, seed: int = EXPORT_SEED) -> Iterator[dict[str, Any]]:
    """Yield the lines of a task: items 0 to ``num_lines - 1`` of a seed, none of them twice.

    There are fewer if the task has fewer: an item that counts twice would make intervals narrower
    than they are.

    Raises:
        UserError: The task has no item of this seed.
    """
    written = set()
    for number, item in enumerate(scored_items(task, seed, num_lines)):
        fields = asdict(item)
        content = json.dumps(fields, sort_keys=True)
        if content in written:  # real data to learn from are drawn, and so come again
            continue
        written.add(content)
        fields.pop("facts", None)
        if isinstance(task, HasPlan) and isinstance(item, Item):
            fields["plan"] = task.plan(item)
        scoring_rules = dict(getattr(task, "scoring", {}))
        head = {"task": task.name, "id": number, "primary": task.primary}
        yield head | scoring_rules | fields


def write_folder(
    folder: Path, tasks: Mapping[str, AnyTask], num_lines: int, seed: int = EXPORT_SEED
) -> dict[Path, int]:
    """Write tasks and their scorers; return the number of lines of each task file, by its path.

    Args:
        folder: Folder of the files; it is made if it is missing.
        tasks: Tasks by the name of their file.
        num_lines: Number of lines, one an item, of each task; fewer if a task has fewer items.
        seed: Seed of the items.

    Raises:
        UserError: A task has no item of this seed.
    """
    group = folder / "lm_eval"
    group.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, task in tasks.items():
        own = list(lines(task, num_lines, seed))
        counts[folder / f"{name}.jsonl"] = len(own)
        write_json_lines(folder / f"{name}.jsonl", own)
    write_text(folder / "score.py", Path(scoring.__file__).read_text("utf-8"))
    write_text(group / "utils.py", Path(lm_eval_utils.__file__).read_text("utf-8"))
    for name, task in tasks.items():
        write_text(group / f"partwhole_{name}.yaml", _lm_eval_task(name, task))
    write_text(group / "partwhole.yaml", _lm_eval_group(list(tasks)))
    return counts


def read_folder(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of all tasks of a folder, by task.

    Raises:
        UserError: The folder has no lines, or a line is not a line of a task.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for place, line in read_json_lines(path):
            if "task" not in line or "id" not in line:
                raise UserError(
                    f"{place} must be a line of a task, with `task` and `id`: it has "
                    f"{', '.join(line)}. Write tasks with `counterpoint task export`."
                )
            if not _is_complete(line):
                raise UserError(
                    f"{place} must have `answers` and an ASCII `text`; or `contexts`, `text` and "
                    "`names`; or `right` and `wrong`. Write tasks with `counterpoint task export`."
                )
            found.setdefault(line["task"], []).append(line)
    if not found:
        raise UserError(
            f"{folder} must be a folder of tasks: it has no .jsonl file with lines. Write one with "
            "`counterpoint task export`."
        )
    return found


def _is_complete(line: Mapping[str, Any]) -> bool:
    """Return whether a line has the texts of one of the three kinds."""
    if "answers" in line:
        text = line.get("text")
        return isinstance(text, str) and text.isascii()
    if "contexts" in line:
        contexts = line["contexts"]
        texts = list(contexts.values()) if isinstance(contexts, dict) else []
        return bool(texts) and "names" in line and _are_texts([*texts, line.get("text")])
    return _are_texts(line.get("right")) and _are_texts(line.get("wrong"))


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def score_folder(folder: Path, answers: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return the scores of some answers to the tasks of a folder; see `scoring.score`.

    Raises:
        UserError: An answer belongs to no line, or lacks a field.
    """
    given = [line for _, line in read_json_lines(answers)]
    try:
        asked = {line["task"] for line in given}
        told = [line for name, own in read_folder(folder).items() if name in asked for line in own]
        return scoring.score(told, given)
    except (KeyError, TypeError, ValueError) as problem:
        reason = str(problem) if isinstance(problem, ValueError) else f"A line lacks {problem}."
        raise UserError(f"{answers} must hold answers to the tasks of {folder}. {reason}") from None


def item_of(line: Mapping[str, Any]) -> Item:
    """Return the item of a line, without its facts.

    Raises:
        UserError: The line is not an item.
    """
    try:
        answers = tuple(ItemAnswer(**one) for one in line["answers"])
        item = Item(line["text"], answers)
        stands = all(
            one.start >= 0 and item.text.startswith(one.text, one.start) for one in answers
        )
    except (KeyError, TypeError, AttributeError) as problem:
        raise _no_item(line) from problem
    if not stands:
        raise _no_item(line)
    return item


def read_item_of(line: Mapping[str, Any]) -> TextChoice | ContextText:
    """Return the item of a line of texts whose costs are asked."""
    document = str(line.get("document", ""))
    if "contexts" in line:
        names = tuple((first, stop) for first, stop in line["names"])
        return ContextText(document, line["contexts"], line["text"], names)
    return TextChoice(
        str(line.get("kind", "")), document, tuple(line["right"]), tuple(line["wrong"])
    )


def _no_item(line: Mapping[str, Any]) -> UserError:
    return UserError(
        f"Line {line.get('id')!r} of {line.get('task')!r} must be an item: `text`, and `answers` "
        "(kind, start, text) that stand in the text. Write items with `counterpoint task export`."
    )


def _lm_eval_task(name: str, task: AnyTask) -> str:
    """Return a task of lm-eval: exact match, or a choice by likelihood."""
    aggregation = "mean"
    if isinstance(task, Passages):
        has_contexts = isinstance(task, BookLines)
        body: dict[str, Any] = {
            "output_type": "multiple_choice",
            "doc_to_text": "!function utils.gold" if has_contexts else "",
            "doc_to_target": f"!function utils.{'continuation' if has_contexts else 'gold'}",
            "doc_to_choice": "!function utils.choices",
            "process_results": "!function utils.chosen",
        }
    elif "flag" in getattr(task, "scoring", {}):
        aggregation = "!function utils.f1"
        body = {
            "output_type": "multiple_choice",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{['.', '!'].index(answer)}}",
            "doc_to_choice": [".", "!"],
            "process_results": "!function utils.flagged",
        }
    else:
        body = {
            "output_type": "loglikelihood",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{answer}}",
            "process_results": "!function utils.right",
        }
    head = {"task": f"partwhole_{name}", "custom_dataset": "!function utils.load"}
    tail: dict[str, Any] = {"test_split": "test", "target_delimiter": ""}
    text = "".join(f"{key}: {_yaml(value)}\n" for key, value in (head | body | tail).items())
    metric = f"metric_list:\n  - metric: score\n    aggregation: {aggregation}\n"
    metadata = f"metadata:\n  version: 1.0\n  partwhole: {name}\n"
    return f"{text}{metric}    higher_is_better: true\n{metadata}"


def _lm_eval_group(names: list[str]) -> str:
    tasks = "".join(f"  - partwhole_{name}\n" for name in names)
    metric = "  - metric: score\n    aggregation: mean\n    weight_by_size: false\n"
    return (
        f"group: partwhole\ntask:\n{tasks}aggregate_metric_list:\n{metric}"
        "metadata:\n  version: 1.0\n"
    )


def _yaml(value: Any) -> str:
    """Return a value as YAML: JSON, except that the tags of lm-eval stand without quotes."""
    is_function = isinstance(value, str) and value.startswith("!function")
    return str(value) if is_function else json.dumps(value)
