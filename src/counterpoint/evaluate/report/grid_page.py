"""The report of a grid: one HTML file that needs nothing else, and the tables as Markdown."""

import html
from pathlib import Path

from counterpoint.data.tasks.items import asked
from counterpoint.evaluate.report.grid_figures import cost_panels, task_panels
from counterpoint.evaluate.report.grid_findings import GridFindings, read_findings
from counterpoint.evaluate.report.grid_table import (
    about_task,
    comparisons,
    costs_table,
    grid_markdown,
    overview,
    task_table,
    verdict,
)
from counterpoint.evaluate.report.page import figure, made, page, side_by_side, table
from counterpoint.files import write_text

HTML = "report.html"
MARKDOWN = "report.md"

_COSTS = (
    "Mean score over all tasks, with its 95 % interval, against what an arm costs. The dashed line "
    "joins the arms that no other beats in both. Hollow points are arms that need not meet the "
    "budget. Milliseconds are those of one session on one thread of the machine that wrote this."
)
_TASK = (
    "Scores: mean over seeds with its 95 % interval; ticks are seeds, dotted lines are policies "
    "that see a part of the text only, and the best of these is named. Learning: mean over seeds; "
    "bands reach from the worst seed to the best."
)
_ONE_COST = "The same scores against what an arm costs"


def write_grid_report(folder: Path) -> GridFindings:
    """Write ``report.html`` and ``report.md`` from the contents of the folder of a grid.

    Returns:
        The findings of the grid.

    Raises:
        UserError: The folder holds no grid that was run, or a package is missing.
    """
    found = read_findings(folder)
    write_text(folder / MARKDOWN, grid_markdown(found))
    write_text(folder / HTML, grid_html(found))
    return found


def grid_html(found: GridFindings) -> str:
    """Return the report as one HTML text without any external reference."""
    about = found.about
    by_whom = {"command": about.command, **(about.machine or {})}
    compared = comparisons(found)
    body = [
        f"<h1>{html.escape(about.name)}</h1>",
        f'<p class="soft">{html.escape(about.purpose)}</p>',
        f'<p class="verdict">{html.escape(verdict(found))}</p>',
        f"<p>{html.escape(about.left_out)}</p>" if about.left_out else "",
        "<h2>All tasks</h2>",
        table(*overview(found)),
        "<p><small>Primary scores in %, with 95 % intervals over seeds and items.</small></p>",
        "<h2>What is shown, and what is not</h2>" + table(*compared, words=True)
        if compared.cells
        else "",
        figure("Quality against cost", _COSTS, cost_panels(found)),
        *(_task(found, task) for task in found.tasks),
        "<h2>Costs</h2>",
        table(*costs_table(found)),
        made(
            {
                "Command, versions and machine": by_whom,
                "The grid": about.grid,
            }
        ),
    ]
    return page(about.name, body)


def _task(found: GridFindings, task: str) -> str:
    """Return the table and the pictures of a task as HTML."""
    return (
        figure(task, _TASK, task_panels(found, task), lead=asked(found.about.task(task)))
        + f"<p><small>{html.escape(about_task(found, task))}</small></p>"
        + table(*task_table(found, task))
        + f"<details><summary>{_ONE_COST}</summary><figure>{side_by_side(cost_panels(found, task))}"
        "</figure></details>"
    )
