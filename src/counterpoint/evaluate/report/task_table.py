"""Scores of exported tasks as a table for a terminal."""

from collections.abc import Mapping

from rich.table import Table


def task_table(
    scores: Mapping[str, Mapping[str, Mapping[str, float]]], primary: Mapping[str, str]
) -> Table:
    """Return a row for each score of each task, with the ends of its interval.

    Args:
        scores: Scores by task and name.
        primary: The score of each task that decides, which stands first and is marked.
    """
    table = Table("task", "score", "value", "95 % interval")
    for name, own in scores.items():
        for kind in sorted(own, key=lambda kind: kind != primary.get(name)):
            found = own[kind]
            shown = f"{kind} (primary)" if kind == primary.get(name) else kind
            ends = f"{found['low']:.4f} to {found['high']:.4f}"
            table.add_row(name, shown, f"{found['value']:.4f}", ends)
    return table
