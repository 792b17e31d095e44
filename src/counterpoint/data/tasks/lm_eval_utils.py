"""Documents and scores of exported tasks for lm-eval; the file is written next to the YAML files.

It needs the packages that lm-eval installs, and the .jsonl files in the folder above it.
"""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Doc = dict[str, Any]


def load(partwhole: str, **_: Any) -> Any:
    """Return the documents of a task as the data set for which lm-eval asks."""
    import datasets

    return datasets.DatasetDict({"test": datasets.Dataset.from_list(docs(partwhole))})


def docs(name: str) -> list[Doc]:
    """Return the documents of a task: each is a question of the primary kind, or a choice."""
    path = Path(__file__).resolve().parent.parent / f"{name}.jsonl"
    with path.open(encoding="utf-8") as file:
        return [doc for line in file for doc in _docs(json.loads(line))]


def _docs(line: Mapping[str, Any]) -> list[Doc]:
    if "answers" in line:
        kind = line.get("asked", line["primary"])
        return [
            {"prompt": line["text"][: one["start"]], "answer": one["text"]}
            for one in line["answers"]
            if one["kind"] == kind
        ]
    if "contexts" in line:
        pair = [line["contexts"]["own"], line["contexts"]["other"]]
        return [_shuffled(line, pair) | {"continuation": line["text"]}]
    if len(line["right"]) > 1:  # lm-eval cannot add up the losses of several texts
        return []
    return [_shuffled(line, [line["right"][0], line["wrong"][0]])]


def _shuffled(line: Mapping[str, Any], pair: list[str]) -> Doc:
    """Return a choice from (right, wrong) in random order, so that ties do not count as right."""
    if random.Random(f"{line['task']} {line['id']}").random() < 0.5:
        return {"choices": pair, "gold": 0}
    return {"choices": pair[::-1], "gold": 1}


def gold(doc: Doc) -> int:
    """Return the number of the right choice."""
    return int(doc["gold"])


def choices(doc: Doc) -> list[str]:
    """Return the choices."""
    return list(doc["choices"])


def continuation(doc: Doc) -> str:
    """Return the text below either context."""
    return str(doc["continuation"])


def right(doc: Doc, results: list[tuple[float, bool]]) -> dict[str, float]:
    """Return whether the answer is equal to what the model would have written."""
    return {"score": float(results[0][1])}


def chosen(doc: Doc, results: list[tuple[float, bool]]) -> dict[str, float]:
    """Return whether the right choice is the likeliest."""
    likely = [one[0] for one in results]
    return {"score": float(likely[doc["gold"]] > likely[1 - doc["gold"]])}


def flagged(doc: Doc, results: list[tuple[float, bool]]) -> dict[str, tuple[bool, bool]]:
    """Return whether the model flags, by the verdicts' likelihoods, and whether it should."""
    fine, flag = (one[0] for one in results)
    return {"score": (flag > fine, doc["answer"] == "!")}


def f1(pairs: Iterable[tuple[bool, bool]]) -> float:
    """Return the F1 of pairs that `flagged` returned."""
    pairs = list(pairs)
    found = pairs.count((True, True))
    return 2 * found / max(2 * found + pairs.count((True, False)) + pairs.count((False, True)), 1)
