"""The command ``task``: export the tasks, answer them with a checkpoint, or score answers."""

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TypeVar

from rich.console import Console

from counterpoint.cli.running import Running
from counterpoint.cli.task_options import TaskAnswerOptions, TaskExportOptions, TaskScoreOptions
from counterpoint.data.tasks import exported
from counterpoint.data.tasks.source import TaskData
from counterpoint.errors import UserError, nearest
from counterpoint.evaluate.report.task_table import task_table
from counterpoint.evaluate.tasks import answer_lines
from counterpoint.files import write_json_lines
from counterpoint.recipes.options import REQUIRED
from counterpoint.recipes.overrides import parse, parse_options

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
    asked = options.num_items
    for path, count in exported.write_folder(options.folder, tasks, asked, options.seed).items():
        print(path)
        if count < asked:
            note = f"{path} has {count:,} lines and not {asked:,}: no item is written twice."
            print(note, file=sys.stderr)


def _answer(arguments: Sequence[str]) -> None:
    fields = [("options", TaskAnswerOptions, REQUIRED), ("running", Running, Running())]
    chosen = parse(fields, arguments, "task answer", _ANSWER)
    options: TaskAnswerOptions = chosen.options
    tasks = _chosen(exported.read_folder(options.folder), options.tasks)
    system = chosen.running.load(options.checkpoint).system.eval()
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
    tasks = exported.read_folder(options.folder)
    primary = {name: str(lines[0].get("primary", "")) for name, lines in tasks.items() if lines}
    Console(markup=False, emoji=False).print(task_table(scores, primary))


def _chosen(tasks: dict[str, _Task], names: Sequence[str]) -> dict[str, _Task]:
    """Return the tasks with these names; all tasks if there are no names."""
    unknown = [name for name in names if name not in tasks]
    if unknown:
        raise UserError(f"`--tasks` must be some of {', '.join(tasks)}: got {unknown[0]!r}.")
    return {name: tasks[name] for name in names or tasks}
