"""Tasks by name, with synthetic or real texts: what a study trains its arms on.

`named_task` is the one place that resolves a name. The texts of real tasks are in a folder of data
with ``books``, ``trec-qc`` and ``sgd-mini``; the King James Bible, which comes with this library,
takes the place of ``books``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from counterpoint.config_json import encode
from counterpoint.data.source import DataSource
from counterpoint.data.tasks.books import FOREIGN, SWAPPED, BookLines, ShuffleChoice
from counterpoint.data.tasks.dialogues import Dialogues
from counterpoint.data.tasks.items import AnyTask, ScoredTask
from counterpoint.data.tasks.needles import Needles
from counterpoint.data.tasks.part_whole import FORMS
from counterpoint.data.tasks.questions import Questions
from counterpoint.data.tasks.source import TaskData
from counterpoint.digests import file_digest, json_digest
from counterpoint.errors import UserError, nearest


@runtime_checkable
class ReadsFiles(Protocol):
    """A task whose texts are in files of a folder."""

    @property
    def files(self) -> Mapping[str, Path]:
        """Files on which its items depend, by a name that is the same on every machine."""


@runtime_checkable
class LearnsText(Protocol):
    """A task that is learned from running text, because its items have no answers."""

    def learned(self) -> DataSource:
        """Return the text to learn from, in which nothing stands that is scored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RealTask:
    """A task with real texts.

    Attributes:
        folder: Name of the folder of its texts.
        build: Function that returns the task, given the path of that folder.
        is_embedded: Whether it has texts without a folder too.
    """

    folder: str
    build: Callable[..., AnyTask]
    is_embedded: bool = False

    def place(self, data_folder: str) -> str | None:
        """Return the folder of its texts, "" for those of this library; ``None`` without texts."""
        path = Path(data_folder) / self.folder
        if data_folder and path.is_dir():
            return str(path)
        return "" if self.is_embedded else None


def _books(build: Callable[..., AnyTask]) -> RealTask:
    return RealTask(folder="books", build=build, is_embedded=True)


REAL: Mapping[str, RealTask] = {
    "shuffle": _books(ShuffleChoice),
    "book_lm": _books(BookLines),
    "needles": _books(Needles),
    "questions": RealTask(folder="trec-qc", build=Questions),
    "dialogues": RealTask(folder="sgd-mini", build=Dialogues),
}
"""The tasks with real texts in their default size, by name."""

REAL_SMALL: Mapping[str, RealTask] = {
    "paragraphs_small": _books(
        partial(ShuffleChoice, passage_symbols=288, kinds=(SWAPPED, FOREIGN))
    ),
    "book_lm_small": _books(partial(BookLines, passage_symbols=800, window=64)),
    "needles_small": _books(
        partial(Needles, num_needles=4, haystack_symbols=120, value_digits=2, num_sharing=1)
    ),
    "dialogues_small": RealTask(folder="sgd-mini", build=partial(Dialogues, most=400)),
}
"""Forms with shorter texts, which are learned sooner, by name."""


def task_names() -> list[str]:
    """Return the names of all tasks that a study may have."""
    return [*FORMS, *REAL, *REAL_SMALL]


def named_task(name: str, data_folder: str = "") -> AnyTask:
    """Return a task.

    Args:
        name: One of `task_names`.
        data_folder: Folder of data; tasks with synthetic texts need none.

    Raises:
        UserError: There is no such task or folder, or its texts are not in the folder.
    """
    if name in FORMS:
        return FORMS[name]
    kind = {**REAL, **REAL_SMALL}.get(name)
    if kind is None:
        known = task_names()
        raise UserError(
            f"A task must be one of {', '.join(known)}: got {name!r}. {nearest(name, known)}"
        )
    if data_folder and not Path(data_folder).is_dir():
        raise UserError(
            f"The folder of data must exist: {data_folder!r} does not. Name the folder with the "
            "texts of tasks with `--data FOLDER`."
        )
    place = kind.place(data_folder)
    if place is None:
        raise UserError(
            f"The task {name!r} must have a folder {kind.folder!r} with its texts: it is not in "
            f"{data_folder or 'any folder of data'!r}. Name the folder that contains it with "
            "`--data FOLDER`."
        )
    return kind.build(folder=place)


def learned_data(task: AnyTask, seed: int) -> DataSource:
    """Return the data from which a run learns a task: text, or items of a seed for training."""
    if isinstance(task, LearnsText):
        return task.learned()
    return TaskData(task=cast("ScoredTask", task), seed=seed)


def data_digest(task: AnyTask) -> str:
    """Return a digest of everything on which the items of a task depend.

    These are its options and the content of its files or, without files, its first item, which
    tells a later version of a generator; the place of a folder does not matter.
    """
    options = {key: value for key, value in encode(task).items() if key != "folder"}
    facts: dict[str, Any] = {"task": options}
    if isinstance(task, ReadsFiles):
        facts["files"] = {name: file_digest(path) for name, path in task.files.items()}
    else:
        first = task.item(0, 0)
        facts["first"] = [first.text, [[label.start, label.text] for label in first.whole]]
    return json_digest(facts)
