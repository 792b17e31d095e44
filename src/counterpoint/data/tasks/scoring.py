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
- to a line with ``contexts``: ``nats``, the negative log likelihood of ``text`` after each context,
  by the name of the context; optionally also ``name_nats``, that of the symbols at ``names``.

A text that was not answered counts as wrong; a line whose losses are missing is an error.
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
        ValueError: An answer belongs to no line, or has not the form that its line asks for.
    """
    given = {(line["task"], line["id"]): line for line in answers}
    by_task: dict[str, dict[Any, list[Parts]]] = {}
    with_poems = {task for (task, _), answer in given.items() if "poem" in answer}
    for line in lines:
        answer = given.pop((line["task"], line["id"]), {})
        if "plan" in line and line["task"] in with_poems:
            answer = {"poem": ""} | dict(answer)
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


_FORMS = {
    "plan": "`answers`, a list of texts, and perhaps `nats`, numbers, and `poem`, a text",
    "answers": "`answers`, a list of texts, and perhaps `nats`, a list of numbers",
    "contexts": '`nats`, such as {"own": 1.5, "other": 2.5, "absent": 3.5}',
    "right": "`losses`, two numbers: of the right texts, and of the wrong ones",
}
"""What the answer to a line with a field must have."""


def _checked(line: Mapping[str, Any], answer: Mapping[str, Any]) -> Parts:
    try:
        return parts_of(line, answer)
    except (AttributeError, KeyError, TypeError, ValueError):
        form = next((form for field, form in _FORMS.items() if field in line), None)
        if form is None:
            raise  # the line is at fault
        raise ValueError(
            f"The answer to {line['id']!r} of {line['task']!r} must have {form}: got "
            f"{json.dumps(answer)[:200]}."
        ) from None


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
    told = answer.get("answers", [])
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
    return sums_of(
        {f"bits, {one['kind']}": (paid / math.log(2), float(len(one["text"].encode())))}
        for one, paid in zip(line["answers"], nats or [], strict=False)
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
    rng = random.Random(0)
    found = {}
    for name, (above, below) in sums_of(documents).items():
        own = [parts[name] for parts in documents if name in parts]
        samples = []
        for _ in range(NUM_RESAMPLES):
            drawn = rng.choices(own, k=len(own))
            total = sum(pair[1] for pair in drawn)
            samples.append(sum(pair[0] for pair in drawn) / total if total else math.nan)
        samples = sorted(sample for sample in samples if sample == sample)
        last = len(samples) - 1
        found[name] = {
            "value": above / below if below else math.nan,
            "low": samples[round(0.025 * last)] if samples else math.nan,
            "high": samples[round(0.975 * last)] if samples else math.nan,
        }
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a .jsonl file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def main(folder: str, answers: str) -> None:
    """Print the scores as JSON; tasks without any answer are left out."""
    given = read_lines(Path(answers))
    tasks = {line["task"] for line in given}
    lines = [line for path in sorted(Path(folder).glob("*.jsonl")) for line in read_lines(path)]
    try:
        scores = score([one for one in lines if one.get("task") in tasks], given)
    except ValueError as problem:
        sys.exit(str(problem))
    sys.stdout.write(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
