"""Scores of exported tasks as a table for a terminal."""

from collections.abc import Mapping

from rich.table import Table


def task_table(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """Return a row for each score of each task, with the ends of its interval."""
    table = Table("task", "score", "value", "95 % interval")
    for name, own in scores.items():
        for kind, found in own.items():
            ends = f"{found['low']:.4f} to {found['high']:.4f}"
            table.add_row(name, kind, f"{found['value']:.4f}", ends)
    return table
