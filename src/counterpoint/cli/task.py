"""The command ``task``: export the tasks, answer them with a checkpoint, or score answers."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import tyro
from rich.console import Console

from counterpoint.cli.running import Running
from counterpoint.data.tasks import exported
from counterpoint.data.tasks.source import TaskData
from counterpoint.errors import UserError, nearest
from counterpoint.evaluate.report.task_table import task_table
from counterpoint.evaluate.tasks import answer_lines
from counterpoint.files import write_json_lines
from counterpoint.recipes.options import REQUIRED
from counterpoint.recipes.overrides import parse, parse_options
from counterpoint.runtime.load import load

_HELP = """usage: counterpoint task export|answer|score ...

partwhole: tasks that need the whole of a text, its detail, or both, for any model.

  export FOLDER              write the tasks as .jsonl files, with a scorer and a group for lm-eval
  answer CKPT FOLDER         let a checkpoint of this library answer them
  score FOLDER ANSWERS       score the answers of any model

Example: counterpoint task export partwhole --num-items 200
"""
_EXPORT = """Write the tasks as .jsonl files, with a scorer and a group for lm-eval.

Example: counterpoint task export partwhole --num-items 200
"""
_ANSWER = """Let a checkpoint of this library answer tasks that `export` has written.

Example: counterpoint task answer runs/NAME partwhole --out answers.jsonl
"""
_SCORE = """Score the answers of any model to tasks that `export` has written.

Example: counterpoint task score partwhole answers.jsonl
"""
_Task = TypeVar("_Task")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskExportOptions:
    """Options of ``task export``.

    Attributes:
        folder: Folder in which the files are written.
        tasks: Names of the tasks to export; all by default.
        num_items: Number of lines of each task.
        seed: Seed of the items; no run learns from the items of the default.
        data: Folder with `books`, `trec-qc`, `sgd-mini`; without books the passages are the
            Bible's.
    """

    folder: tyro.conf.Positional[Path]
    tasks: tuple[str, ...] = ()
    num_items: int = 1000
    seed: int = exported.EXPORT_SEED
    data: str = ""


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


def main(arguments: Sequence[str]) -> int:
    """Run the command ``task`` with the words that follow it."""
    what, *rest = arguments or ["--help"]
    work = {"export": _export, "answer": _answer, "score": _score}
    if what in ("-h", "--help", "--help-all"):
        print(_HELP, end="")
        return 0
    if what not in work:
        raise UserError(
            f"`task` must be told to {', '.join(work)}: got {what!r}. {nearest(what, work)}"
        )
    work[what](rest)
    return 0


def _export(arguments: Sequence[str]) -> None:
    options = parse_options(TaskExportOptions, arguments, "task export", _EXPORT)
    tasks = _chosen(exported.all_tasks(options.data), options.tasks)
    for path in exported.write_folder(options.folder, tasks, options.num_items, options.seed):
        print(path)


def _answer(arguments: Sequence[str]) -> None:
    fields = [("options", TaskAnswerOptions, REQUIRED), ("running", Running, Running())]
    chosen = parse(fields, arguments, "task answer", _ANSWER)
    options: TaskAnswerOptions = chosen.options
    tasks = _chosen(exported.read_folder(options.folder), options.tasks)
    system = load(options.checkpoint, chosen.running.device).system.eval()
    if not TaskData.fits(system.layout):
        raise UserError("Tasks must be answered by a model that reads and writes bytes.")
    with closing(chosen.running.progress()) as progress:
        given = [
            line
            for name, lines in tasks.items()
            for line in progress.over(name, answer_lines(system, lines), len(lines))
        ]
    write_json_lines(options.out, given)
    print(options.out)


def _score(arguments: Sequence[str]) -> None:
    options = parse_options(TaskScoreOptions, arguments, "task score", _SCORE)
    scores = exported.score_folder(options.folder, options.answers)
    if options.json:
        print(json.dumps(scores))
        return
    Console(markup=False, emoji=False).print(task_table(scores))


def _chosen(tasks: dict[str, _Task], names: Sequence[str]) -> dict[str, _Task]:
    """Return the tasks with these names; all tasks if there are no names."""
    unknown = [name for name in names if name not in tasks]
    if unknown:
        raise UserError(f"`--tasks` must be some of {', '.join(tasks)}: got {unknown[0]!r}.")
    return {name: tasks[name] for name in names or tasks}
