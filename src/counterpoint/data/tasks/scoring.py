"""Scores the answers of any model to exported tasks; it needs nothing but Python.

Usage: python score.py FOLDER ANSWERS.jsonl

FOLDER holds the tasks, one .jsonl file each. A line of ANSWERS.jsonl has the ``task`` and the
``id`` of a line there, and the model's answer:

- to a line with ``answers`` (kind, start, text): ``answers``, a list of as many texts. The prompt
  of each is ``text[:start]`` of the line, which contains the right answers before it; optionally
  also ``nats``, the negative log likelihood of each right answer. If the line has a ``plan``,
  optionally also ``poem``, what the model itself has written after ``text[:plan["start"]]``. If
  one line of a task has a poem, all lines with a plan are scored, and a missing one is empty.
- to a line with ``right`` and ``wrong`` texts: ``losses``, two numbers: the total loss of the texts
  of each list, such as the sum of their negative log likelihoods.
- to a line with ``contexts``: ``nats``, the negative log likelihood of ``text`` after every
  context, by the name of the context; optionally also ``name_nats``, that of the symbols at
  ``names``.

All numbers are finite and not negative. A text that was not answered counts as wrong. A line whose
losses are missing is an error, and so are ``nats`` or ``name_nats`` that only some lines of a task
have, a second answer to a line, and a field or a name that is not known.
"""

import json
import math
import random
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

NUM_RESAMPLES = 1000
VOWELS = "aeiou"
CONSONANTS = "bcdfghjklmnpqrstvwxyz"
Parts = dict[str, tuple[float, float]]
"""Numerator and denominator of a line, by score; a score is the ratio of their sums."""


def score(
    lines: Iterable[Mapping[str, Any]], answers: Iterable[Mapping[str, Any]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return scores by task and name: ``value``, and ``low`` and ``high`` of a 95 % interval.

    Intervals come from a bootstrap over documents, or over lines if these name no document.

    Raises:
        ValueError: An answer belongs to no line, is the second one to a line, or has not the form
            that its line asks for.
    """
    given = _by_line(answers)
    if not given:
        raise ValueError("There must be an answer to a line: got none.")
    by_task: dict[str, dict[Any, list[Parts]]] = {}
    told: dict[str, set[str]] = {}
    for (task, _), answer in given.items():
        told.setdefault(task, set()).update(answer)
    for line in lines:
        own = given.pop((line["task"], line["id"]), None)
        answer = _completed(line, own, told.get(line["task"], set()))
        documents = by_task.setdefault(line["task"], {})
        documents.setdefault(line.get("document", line["id"]), []).append(_checked(line, answer))
    if given:
        task, number = next(iter(given))
        raise ValueError(
            f"An answer must belong to a line of a task: there is no {number!r} of {task!r}."
        )
    return {
        task: _intervals([sums_of(parts) for parts in documents.values()])
        for task, documents in by_task.items()
    }


def _by_line(answers: Iterable[Mapping[str, Any]]) -> dict[tuple[str, Any], Mapping[str, Any]]:
    """Return answers by the task and the id of their line."""
    found: dict[tuple[str, Any], Mapping[str, Any]] = {}
    for answer in answers:
        for field, kinds in (("task", str), ("id", (int, str))):
            if not isinstance(answer.get(field), kinds):
                raise ValueError(
                    "An answer must have the `task` and `id` of a line: "
                    f"{json.dumps(dict(answer))[:200]} lacks {field!r}."
                )
        key = (answer["task"], answer["id"])
        if key in found:
            raise ValueError(
                f"A line must have one answer: {key[1]!r} of {key[0]!r} has a second one."
            )
        found[key] = answer
    return found


def _completed(
    line: Mapping[str, Any], answer: Mapping[str, Any] | None, told: set[str]
) -> dict[str, Any]:
    """Return an answer with what counts as wrong where it is missing.

    Args:
        line: The line.
        answer: The answer to it; ``None`` if there is none.
        told: Fields that some answer to a line of the task has.
    """
    completed = dict(answer or {})
    if answer is None and "answers" in line:
        completed["answers"] = []
    if "plan" in line and "poem" in told:
        completed.setdefault("poem", "")
    for field in ("nats", "name_nats"):
        if field in told and field not in completed:
            raise ValueError(
                f"All answers to lines of {line['task']!r} must have `{field}`, or none: that to "
                f"{line['id']!r} has not."
            )
    return completed


_FORMS = {
    "plan": "`answers`, a list of texts, and perhaps `nats`, as many numbers, and `poem`, a text",
    "answers": "`answers`, a list of texts, and perhaps `nats`, as many numbers",
    "contexts": '`nats`, such as {"own": 1.5, "other": 2.5, "absent": 3.5}, perhaps `name_nats`',
    "right": "`losses`, two numbers: of the right texts, and of the wrong ones",
}
"""What the answer to a line with a field must have."""


def _checked(line: Mapping[str, Any], answer: Mapping[str, Any]) -> Parts:
    form = next((form for field, form in _FORMS.items() if field in line), None)
    if form is None:
        raise ValueError(f"Line {line['id']!r} of {line['task']!r} must be a line of a task.")
    if not _has_form(line, answer):
        names = f" for {', '.join(line['contexts'])}" if "contexts" in line else ""
        raise ValueError(
            f"The answer to {line['id']!r} of {line['task']!r} must have {form}{names}, finite "
            f"and not negative, and nothing else: got {json.dumps(answer)[:200]}."
        )
    return parts_of(line, answer)


def _has_form(line: Mapping[str, Any], answer: Mapping[str, Any]) -> bool:
    """Return whether an answer has all that its line asks for, and nothing else."""
    fields = set(answer) - {"task", "id"}
    if "answers" in line:
        count = len(line["answers"])
        known = {"answers", "nats", "poem"} if "plan" in line else {"answers", "nats"}
        return (
            {"answers"} <= fields <= known
            and _are_texts(answer["answers"], count)
            and _are_costs(answer.get("nats", [0] * count), count)
            and isinstance(answer.get("poem", ""), str)
        )
    if "contexts" in line:
        return {"nats"} <= fields <= {"nats", "name_nats"} and all(
            isinstance(answer[field], dict)
            and set(answer[field]) == set(line["contexts"])
            and _are_costs(list(answer[field].values()), len(line["contexts"]))
            for field in fields
        )
    return fields == {"losses"} and _are_costs(answer["losses"], 2)


def _are_texts(values: Any, most: int) -> bool:
    """Return whether it is a list of texts; one that is ``None`` was not answered."""
    return (
        isinstance(values, list)
        and len(values) <= most
        and all(value is None or isinstance(value, str) for value in values)
    )


def _are_costs(values: Any, count: int) -> bool:
    """Return whether it is a list of so many costs."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        and all(0 <= value <= sys.float_info.max for value in values)  # NaN is not
    )


def parts_of(line: Mapping[str, Any], answer: Mapping[str, Any]) -> Parts:
    """Return the numerator and denominator of every score of a line, from the answer to it."""
    if "answers" in line:
        parts = _right(line, answer) | _answer_bits(line, answer.get("nats"))
        if "plan" in line and "poem" in answer:
            judged = judge_poem(line["plan"], answer["poem"])
            parts |= {f"poem, {name}": value for name, value in judged.items()}
        return parts
    return _costs(line, answer) if "contexts" in line else _choice(line, answer["losses"])


def _right(line: Mapping[str, Any], answer: Mapping[str, Any]) -> Parts:
    told = answer["answers"]
    right = [one["text"] for one in line["answers"]]
    pairs = [(told[i] if i < len(told) else None, text) for i, text in enumerate(right)]
    if "flag" in line:
        return _flagged(pairs, line["flag"])
    parts = sums_of(
        {one["kind"]: (float(text == true), 1.0)}
        for one, (text, true) in zip(line["answers"], pairs, strict=True)
    )
    if "together" in line:
        parts[line["together"]] = (float(all(text == true for text, true in pairs)), 1.0)
    return parts


def _answer_bits(line: Mapping[str, Any], nats: list[float] | None) -> Parts:
    """Return the bits a byte of the right answers by kind, if their nats are given."""
    if nats is None:
        return {}
    return sums_of(
        {f"bits, {one['kind']}": (paid / math.log(2), float(len(one["text"].encode())))}
        for one, paid in zip(line["answers"], nats, strict=True)
    )


def lines_of(plan: Mapping[str, Any], poem: str) -> list[str]:
    """Return as many lines of a text as a plan asks for; those that are missing are empty."""
    count = len(plan["letters"])
    found = poem.split("\n")[:count]
    return found + [""] * (count - len(found))


def judge_poem(plan: Mapping[str, Any], poem: str) -> Parts:
    """Return the parts of the scores of a poem that was written after a plan.

    Args:
        plan: ``letters``, a list with the first letter of every line, in stanzas of four lines;
            ``rhymes`` of a stanza, such as "ABBA"; and ``length``, the number of letters of a line.
        poem: What was written; what follows the last line that was asked for does not count.

    Returns:
        Of all lines: "acrostic", those with the right first letter, "rhyme", those that rhyme as
        the plan says with all lines of their stanza, "length", those with the right length, and
        "written", those that are not empty; and "violations", of each 100 letters that were
        written those that are no consonant at an even place (the first is 0) or no vowel at an odd
        one. An empty poem has no violations, so read them beside "written".
    """
    lines = lines_of(plan, poem)
    count = len(lines)
    ends = [line[-2:] for line in lines]
    rhymes = plan["rhymes"]
    rhyming = [
        bool(ends[i])
        and all(
            (ends[i] == ends[j]) == (rhymes[i % 4] == rhymes[j % 4])
            for j in range(i // 4 * 4, i // 4 * 4 + 4)
        )
        for i in range(count)
    ]
    broken = sum(
        symbol not in (VOWELS if place % 2 else CONSONANTS)
        for line in lines
        for place, symbol in enumerate(line)
    )
    begun = sum(line[:1] == letter for line, letter in zip(lines, plan["letters"], strict=True))
    return {
        "acrostic": (float(begun), float(count)),
        "rhyme": (float(sum(rhyming)), float(count)),
        "length": (float(sum(len(line) == plan["length"] for line in lines)), float(count)),
        "written": (float(sum(map(bool, lines))), float(count)),
        "violations": (100.0 * broken, float(sum(map(len, lines)))),
    }


def _flagged(pairs: list[tuple[Any, str]], flag: str) -> Parts:
    """Return the F1 of finding what has to be flagged."""
    found = sum(text == flag == true for text, true in pairs)
    missed = sum(true == flag != text for text, true in pairs)
    alarms = sum(text == flag != true for text, true in pairs)
    return {
        "f1": (2 * found, 2 * found + missed + alarms),
        "recall": (found, found + missed),
        "false alarms": (alarms, 1),
    }


def _choice(line: Mapping[str, Any], losses: list[float]) -> Parts:
    """Return whether the original has the lower loss; equal losses count a half."""
    right, wrong = losses
    won = 0.5 if right == wrong else float(right < wrong)
    return {"all": (won, 1), line["kind"]: (won, 1)}


def _costs(line: Mapping[str, Any], answer: Mapping[str, Any]) -> Parts:
    """Return bits a byte after every context, and the excess of other contexts over the own.

    "saved" is the share of 8 bits a byte that is saved after the own context.
    """
    num_bytes = len(line["text"].encode())
    num_names = sum(len(line["text"][first:stop].encode()) for first, stop in line["names"])
    parts = _bits(answer["nats"], num_bytes, "")
    if "own" in parts:
        uniform = 8.0 * num_bytes
        parts["saved"] = (uniform - parts["own"][0], uniform)
    return parts | _bits(answer.get("name_nats", {}), num_names, "names, ")


def _bits(nats: Mapping[str, float], num_bytes: int, head: str) -> Parts:
    bits = {name: value / math.log(2) for name, value in nats.items()}
    parts = {f"{head}{name}": (value, float(num_bytes)) for name, value in bits.items()}
    for name in ("other", "absent"):
        if name in bits and "own" in bits:
            more = bits[name] - bits["own"]
            parts[f"{head}{name} minus own"] = (more, float(num_bytes))
    return parts


def sums_of(parts: Iterable[Parts]) -> Parts:
    """Return the sums of numerators and denominators, by score."""
    sums: Parts = {}
    for one in parts:
        for name, (above, below) in one.items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = (before[0] + above, before[1] + below)
    return sums


def _intervals(documents: list[Parts]) -> dict[str, dict[str, float]]:
    """Return scores with intervals by name; one for which no line has anything is left out."""
    rng = random.Random(0)
    found = {}
    for name, (above, below) in sums_of(documents).items():
        if not below:
            continue
        own = [parts[name] for parts in documents if name in parts]
        samples = []
        for _ in range(NUM_RESAMPLES):
            drawn = rng.choices(own, k=len(own))
            total = sum(pair[1] for pair in drawn)
            samples.append(sum(pair[0] for pair in drawn) / total if total else math.nan)
        samples = sorted(sample for sample in samples if sample == sample)
        last = len(samples) - 1
        found[name] = {
            "value": above / below,
            "low": samples[round(0.025 * last)],
            "high": samples[round(0.975 * last)],
        }
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a .jsonl file.

    Raises:
        OSError: The file cannot be read.
        ValueError: A line is no JSON object.
    """
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise ValueError(f"{path}, line {number} must be a JSON object: {problem}.") from None
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {number} must be a JSON object: got {value!r:.80}.")
        found.append(value)
    return found


def main(arguments: list[str]) -> None:
    """Print the scores as JSON; tasks without any answer are left out."""
    if len(arguments) != 2:
        sys.exit("usage: python score.py FOLDER ANSWERS.jsonl")
    folder, answers = map(Path, arguments)
    try:
        given = read_lines(answers)
        tasks = [line.get("task") for line in given]
        lines = [line for path in sorted(folder.glob("*.jsonl")) for line in read_lines(path)]
        scores = score([one for one in lines if one.get("task") in tasks], given)
    except (OSError, ValueError) as problem:
        sys.exit(str(problem))
    except (AttributeError, KeyError, TypeError) as problem:
        sys.exit(f"{folder} must hold lines of tasks as they were exported: {problem!r}.")
    sys.stdout.write(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
