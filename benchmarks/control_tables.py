"""Tables of the records of `bench_control.py`."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import product

import numpy as np
from stack_lanes import Record, interval

from counterpoint.data.tasks.items import Trained
from counterpoint.evaluate.poem_control import PoemScores
from counterpoint.evaluate.report.grid_rows import ScoreCounts
from counterpoint.evaluate.statistics import bootstrap_difference, holm

KINDS = {
    "logbook": ("whole", "part"),
    "navon": ("whole", "part"),
    "acrostic": ("acrostic", "rhyme"),
    "dialogues": ("act", "said"),
}
"""Kind of the answers that follow the whole, and of those that should stay, by task."""
TIMES = (1, 2, 4, 8, 16)
"""Lengths of logs, as multiples of the length in training."""


def table(records: Sequence[Record], task: str, trained: Trained, kind: str) -> Iterator[str]:
    """Yield the lines of a Markdown table: one line for each arm and way.

    The cost is that of all other symbols where these are trained, and otherwise that of the answers
    that should stay.
    """
    yield "| arm | way | right % | kept % | obeyed % | swap-delta, bits | cost of other symbols |"
    yield "|---|---|---|---|---|---|---|"
    own = [one for one in records if (one["task"], one["trained"]) == (task, trained)]
    for arm, way in dict.fromkeys((one["arm"], one["way"]) for one in own):
        cells = [one for one in own if (one["arm"], one["way"]) == (arm, way)]
        found = [
            next((a for a in one["answers"] if a["kind"] == kind), None)
            for one in sorted(cells, key=lambda one: one["seed"])
        ]
        answers = [one for one in found if one is not None]
        if trained == "all":
            cost = interval([one["other_symbol_bits"] - one["own_symbol_bits"] for one in cells], 3)
        else:
            parts = [
                answer
                for one in cells
                for answer in one["answers"]
                if answer["kind"] == KINDS[task][1]
            ]
            cost = interval([one["other_bits"] - one["own_bits"] for one in parts], 3)
        shares = [
            interval([100 * one[key] for one in answers]) for key in ("right", "kept", "obeyed")
        ]
        delta = interval([one["other_bits"] - one["own_bits"] for one in answers], 2)
        yield f"| {arm} | {way} | {' | '.join(shares)} | {delta} | {cost} |"


def length_table(records: Sequence[Record]) -> Iterator[str]:
    """Yield the lines of a Markdown table: answers about the whole by length, and state bytes."""
    yield f"| arm | {' | '.join(f'{times} times' for times in TIMES)} | state, kB |"
    yield "|---" * (len(TIMES) + 2) + "|"
    own = [one for one in records if one["way"] == "prompt" and one["lengths"]]
    for arm in dict.fromkeys(one["arm"] for one in own):
        for key, size in (("lengths", "state_bytes"), ("less_state", "less_state_bytes")):
            cells = [one for one in own if one["arm"] == arm and one[key]]
            if not cells:
                continue
            shares = [
                interval([100 * one[key][place]["whole"] for one in cells])
                for place in range(len(TIMES))
            ]
            name = arm if key == "lengths" else f"{arm}, shorter window"
            yield f"| {name} | {' | '.join(shares)} | {cells[0][size] / 1000:.0f} |"


def length_pairs(records: Sequence[Record], pairs: Sequence[str]) -> Iterator[str]:
    """Yield the differences of arms at the longest logs, by Welch's test over seeds.

    Args:
        records: Records of lanes of `logbook`.
        pairs: Pairs such as ``ours:theirs``, all of which Holm's correction counts.
    """
    own = [one for one in records if one["way"] == "prompt" and one["lengths"]]

    def counts(arm: str) -> ScoreCounts:
        shares = [[one["lengths"][-1]["whole"]] for one in own if one["arm"] == arm]
        return np.array(shares), np.ones((len(shares), 1))

    found = []
    for pair in pairs:
        ours, theirs = pair.split(":")
        found.append(bootstrap_difference(counts(ours), counts(theirs)))
    corrected = holm([p_value for _, p_value in found])
    for pair, (gap, _), p_value in zip(pairs, found, corrected, strict=True):
        ends = f"{100 * gap.value:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
        yield f"| {pair} | {ends} | p = {p_value:.2g} after Holm |"


def turn_table(records: Sequence[Record]) -> Iterator[str]:
    """Yield the lines of a Markdown table of the acts of dialogues: one line an arm and way."""
    yield "| arm | way | right % | already % | kept % | obeyed % | act, bits | words, bits |"
    yield "|---" * 8 + "|"
    own = [one for one in records if one["task"] == "dialogues"]
    for arm, way in dict.fromkeys((one["arm"], one["way"]) for one in own):
        cells = [one for one in own if (one["arm"], one["way"]) == (arm, way)]
        shares = [
            interval([100 * one[key] for one in cells])
            for key in ("right", "already", "kept", "obeyed")
        ]
        for kind in KINDS["dialogues"]:
            costs = [a for one in cells for a in one["answers"] if a["kind"] == kind]
            shares.append(interval([one["other_bits"] - one["own_bits"] for one in costs], 2))
        yield f"| {arm} | {way} | {' | '.join(shares)} |"


def poem_table(records: Sequence[Record]) -> Iterator[str]:
    """Yield the lines of a Markdown table of written poems: under the own and the other whole."""
    names = [one.name for one in fields(PoemScores)]
    yield f"| arm | way | temperature | whole | {' | '.join(names)} |"
    yield "|---" * (len(names) + 4) + "|"
    own = [one for one in records if one.get("poems")]
    for arm, way in dict.fromkeys((one["arm"], one["way"]) for one in own):
        cells = [one["poems"] for one in own if (one["arm"], one["way"]) == (arm, way)]
        for place, side in product(range(len(cells[0])), ("own", "other")):
            told = [poems[place][side] for poems in cells]
            scores = [
                interval([one[name] * (1 if name == "violations" else 100) for one in told])
                for name in names
            ]
            temperature = cells[0][place]["temperature"]
            yield f"| {arm} | {way} | {temperature:g} | {side} | {' | '.join(scores)} |"
