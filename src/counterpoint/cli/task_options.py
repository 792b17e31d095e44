"""Options of the command ``task``."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from counterpoint.data.tasks import exported
from counterpoint.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskExportOptions:
    """Options of ``task export``.

    Attributes:
        folder: Folder in which the files are written.
        tasks: Names of the tasks to export; all by default.
        num_items: Number of lines of each task, or all items that a real task has if it has fewer.
        seed: Seed of the items; no run learns from the items of the default.
        data: Folder with `books`, `trec-qc`, `sgd-mini`; without books the passages are the
            Bible's.
    """

    folder: tyro.conf.Positional[Path]
    tasks: tuple[str, ...] = ()
    num_items: int = 1000
    seed: int = exported.EXPORT_SEED
    data: str = ""

    def __post_init__(self) -> None:
        if self.num_items < 1:
            raise UserError(f"`--num-items` must be >= 1: got {self.num_items}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskAnswerOptions:
    """Options of ``task answer``.

    Attributes:
        checkpoint: A checkpoint or a run folder of a model that reads and writes bytes.
        folder: Folder of tasks that `export` has written.
        tasks: Names of the tasks to answer; all by default.
        out: File in which the answers are written.
    """

    checkpoint: tyro.conf.Positional[Path]
    folder: tyro.conf.Positional[Path]
    tasks: tuple[str, ...] = ()
    out: Path = Path("answers.jsonl")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScoreOptions:
    """Options of ``task score``.

    Attributes:
        folder: Folder of tasks that `export` has written.
        answers: File of answers, one a line; the folder's score.py describes them.
        json: Print the results as one JSON object and nothing else.
    """

    folder: tyro.conf.Positional[Path]
    answers: tyro.conf.Positional[Path]
    json: bool = False
