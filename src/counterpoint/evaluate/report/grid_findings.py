"""What the folder of a grid holds, and what can be said of it.

The folder of a grid holds

- ``cells/``: a Parquet file of every cell that is done, and beside it how long it took,
- ``results.parquet``: the records of all cells that are reported,
- ``about.json``: what was compared, what it costs, the command, versions and the machine,
- ``latency.json``: how long a tick takes, which is no outcome,
- ``report.md`` and ``report.html``: both are made from the files above.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.config_json import decode
from counterpoint.data.tasks.part_whole import TASKS
from counterpoint.errors import UserError
from counterpoint.evaluate.latency import TickLatency
from counterpoint.evaluate.report.grid_rows import GridRow, grid_rows, mean_scores
from counterpoint.evaluate.statistics import Interval
from counterpoint.files import read_json
from counterpoint.packages import optional_module

ABOUT = "about.json"
LATENCY = "latency.json"
RESULTS = "results.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmCost:
    """What an arm costs on a task.

    Attributes:
        parameters: Trainable parameters.
        flops: Training FLOPs a tick, which is a byte. AdamW has no matrix products.
        state: State bytes of a session.
    """

    parameters: int
    flops: float
    state: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GridAbout:
    """What was compared, and how.

    Attributes:
        name: The name of the grid.
        arms: Names of the arms; the first is the one whose differences are asked about.
        costs: What each costs, by task and arm.
        num_items: Items that were scored on each task.
        items_seed: Their seed.
        purpose: What it was to show.
        unmatched: Why an arm is not held to the budget, by its name.
        left_out: What of the declared grid was left out for lack of time, in a sentence.
        command: How a person would start this again.
        machine: Versions and the machine.
        grid: The whole grid as JSON.
    """

    name: str
    arms: tuple[str, ...]
    costs: Mapping[str, Mapping[str, ArmCost]]
    num_items: int
    items_seed: int
    purpose: str = ""
    unmatched: Mapping[str, str] = field(default_factory=dict)
    left_out: str = ""
    command: str = ""
    machine: Any = None
    grid: Any = None

    @property
    def subject(self) -> str:
        """The arm whose differences to all others are asked about."""
        return self.arms[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class GridFindings:
    """What a grid showed.

    Attributes:
        about: What was compared.
        records: What each cell that is reported gave.
        rows: Arms and policies, by task.
        means: Mean score over all tasks, by arm.
        latency: How long a tick takes, by arm; of those for which it was measured.
    """

    about: GridAbout
    records: Sequence[Mapping[str, Any]]
    rows: Sequence[GridRow]
    means: Mapping[str, Interval]
    latency: Mapping[str, TickLatency]

    @property
    def tasks(self) -> list[str]:
        """Tasks with results, in the order of the grid."""
        found = {row.task for row in self.rows}
        return [task for task in self.about.costs if task in found]

    @property
    def num_seeds(self) -> int:
        """Training seeds of the arm that has most."""
        return max(len(row.by_seed) for row in self.rows)

    def of_task(self, task: str) -> list[GridRow]:
        """The rows of a task: arms, then policies."""
        return [row for row in self.rows if row.task == task]

    def arms_of(self, task: str) -> list[GridRow]:
        """Its arms."""
        return [row for row in self.of_task(task) if not row.is_policy]


def is_grid(folder: Path) -> bool:
    """Whether a folder holds a grid that has been run."""
    return (folder / ABOUT).is_file()


def read_findings(folder: Path) -> GridFindings:
    """What the folder of a grid shows.

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
    """What records show: rows of arms and policies, and means over tasks."""
    items = {
        task: [TASKS[task].item(about.items_seed, number) for number in range(about.num_items)]
        for task in {record["task"] for record in records}
    }
    return GridFindings(
        about=about,
        records=records,
        rows=grid_rows(records, about.subject, items),
        means=mean_scores(records),
        latency=latency,
    )
