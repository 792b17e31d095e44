"""The contents of the folder of a grid, and the findings that follow from them.

The folder of a grid contains

- ``cells/``: a Parquet file of every finished cell, and a file with its duration,
- ``results.parquet``: the records of all reported cells,
- ``about.json``: the arms and their costs, the command, versions and the machine,
- ``latency.json``: the time of a tick, which is not a result,
- ``report.md`` and ``report.html``, which are made from the files above.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.config_json import decode
from counterpoint.data.tasks.items import AnyTask, scored_items
from counterpoint.data.tasks.named import ReadsFiles, data_digest, named_task
from counterpoint.errors import UserError
from counterpoint.evaluate.latency import TickLatency
from counterpoint.evaluate.report.grid_rows import AskedTask, GridRow, grid_rows, mean_scores
from counterpoint.evaluate.statistics import Interval
from counterpoint.files import read_json
from counterpoint.packages import optional_module

ABOUT = "about.json"
LATENCY = "latency.json"
RESULTS = "results.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmCost:
    """Cost of an arm on a task.

    Attributes:
        parameters: Number of trainable parameters.
        flops: Training FLOPs a tick, which is a byte. AdamW has no matrix products.
        state: State bytes of a session.
        task_flops: The same FLOPs, counted with the words of the task where blocks end at words; 0
            in older files.
    """

    parameters: int
    flops: float
    state: int
    task_flops: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class GridAbout:
    """Description of a comparison.

    Attributes:
        name: Name of the grid.
        arms: Names of the arms; the first one is compared with all others.
        costs: Cost of each arm, by task and arm.
        num_items: Number of items that were scored on each task.
        items_seed: Seed of the items.
        purpose: What the grid was to show.
        unmatched: Reason why an arm need not meet the budget, by the arm's name.
        left_out: Sentence that says what was left out for lack of time.
        unjudged: Reason why there is no verdict, as the end of a sentence; empty if there is one.
        command: Command that starts the grid again.
        machine: Versions and the machine.
        grid: The whole grid as JSON.
        data: Folder of the texts of real tasks; see `counterpoint.data.tasks.named`.
        digests: Digest of the data of each task; empty if they were not recorded.
    """

    name: str
    arms: tuple[str, ...]
    costs: Mapping[str, Mapping[str, ArmCost]]
    num_items: int
    items_seed: int
    purpose: str = ""
    unmatched: Mapping[str, str] = field(default_factory=dict)
    left_out: str = ""
    unjudged: str = ""
    command: str = ""
    machine: Any = None
    grid: Any = None
    data: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)

    def task(self, name: str) -> AnyTask:
        """Return one of the tasks.

        Raises:
            UserError: Its texts are missing, or other ones than those on which arms were scored.
        """
        task = named_task(name, self.data)
        recorded = self.digests.get(name)
        if recorded is not None and isinstance(task, ReadsFiles) and data_digest(task) != recorded:
            raise UserError(
                f"The texts of {name!r} must be those of the study, for policies answer the same "
                f"items as arms: {self.data or 'this library'!r} has others. Restore them."
            )
        return task

    @property
    def subject(self) -> str:
        """Name of the arm that is compared with all others."""
        return self.arms[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class GridFindings:
    """Findings of a grid.

    Attributes:
        about: Description of the comparison.
        records: Record of each reported cell.
        rows: Arms and policies, by task.
        means: Mean score over all tasks, by arm.
        latency: Time of a tick by arm, for those for which it was measured.
        num_items: Number of items that were scored, by task.
    """

    about: GridAbout
    records: Sequence[Mapping[str, Any]]
    rows: Sequence[GridRow]
    means: Mapping[str, Interval]
    latency: Mapping[str, TickLatency]
    num_items: Mapping[str, int]

    @property
    def tasks(self) -> list[str]:
        """Tasks with results, in the order of the grid."""
        found = {row.task for row in self.rows}
        return [task for task in self.about.costs if task in found]

    @property
    def num_seeds(self) -> int:
        """Number of training seeds of the arm that has most."""
        return max(len(row.by_seed) for row in self.rows)

    def of_task(self, task: str) -> list[GridRow]:
        """Return the rows of a task: arms, then policies."""
        return [row for row in self.rows if row.task == task]

    def arms_of(self, task: str) -> list[GridRow]:
        """Return the rows of a task that are arms."""
        return [row for row in self.of_task(task) if not row.is_policy]


def is_grid(folder: Path) -> bool:
    """Return whether a folder holds a grid that has been run."""
    return (folder / ABOUT).is_file()


def read_findings(folder: Path) -> GridFindings:
    """Return the findings in the folder of a grid.

    Raises:
        UserError: A file is missing or damaged, or the package ``pyarrow`` is missing.
    """
    try:
        about: GridAbout = decode(GridAbout, read_json(folder / ABOUT))
        records = optional_module("pyarrow.parquet").read_table(folder / RESULTS).to_pylist()
        latency = {}
        if (folder / LATENCY).is_file():
            latency = decode(Mapping[str, TickLatency], read_json(folder / LATENCY))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} must hold a grid that was run: {error}. Run `counterpoint study` with this "
            "folder again, which continues from where it stopped."
        ) from error
    place = {arm: number for number, arm in enumerate(about.arms)}
    records = sorted(records, key=lambda record: (place[record["arm"]], record["seed"]))
    return findings(about, records, latency)


def findings(
    about: GridAbout, records: Sequence[Mapping[str, Any]], latency: Mapping[str, TickLatency]
) -> GridFindings:
    """Return the findings that follow from records: rows of arms and policies, and means."""
    names = {record["task"] for record in records}
    asked = {}
    for name in names:
        task = about.task(name)
        asked[name] = AskedTask(task, scored_items(task, about.items_seed, about.num_items))
    return GridFindings(
        about=about,
        records=records,
        rows=grid_rows(records, about.subject, asked, is_judged=not about.unjudged),
        means=mean_scores(records),
        latency=latency,
        num_items={name: len(one.items) for name, one in asked.items()},
    )
