"""What the benchmarks of part and whole share: tasks, recorded rows, items, lanes of a stack."""

import argparse
import multiprocessing
import pickle
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from counterpoint.data.recorded import Recorded, record_once
from counterpoint.data.tasks import items as task_items
from counterpoint.data.tasks.dialogues import ClosedActs, Dialogues
from counterpoint.data.tasks.items import HELD_OUT_SEED, Item, ScoredTask, Trained
from counterpoint.data.tasks.named import data_digest, named_task
from counterpoint.data.tasks.part_whole.acrostic import Acrostic
from counterpoint.data.tasks.part_whole.logbook import Logbook
from counterpoint.data.tasks.part_whole.navon import Navon
from counterpoint.data.tasks.source import PreparedTask, TaskData
from counterpoint.evaluate.statistics import bootstrap_ratio
from counterpoint.files import whole_file
from counterpoint.recipes.begun import keep_or_check_begun
from counterpoint.recipes.cells import read_records, write_records
from counterpoint.recipes.compression import RATES, ROW_TICKS
from counterpoint.streams.spec import Layout
from counterpoint.systems.contract import System
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.stacked import Stack

TASKS: dict[str, ScoredTask] = {
    "logbook": Logbook(num_events=24, whole_share=1.0),
    "navon": Navon(num_blocks=8, block_symbols=8),
}
FORMS = TASKS | {"acrostic": Acrostic(filler=36, lengths=(4,))}
"""The tasks, and a poem of eight lines of four letters under a plan."""
REAL = {"dialogues": "dialogues_small"}
"""Names of the forms of tasks with real texts, which need a folder of data."""
TRAIN = TrainConfig(
    num_steps=400,
    batch_rows=16,
    precision="float32",
    log_every=50,
    schedule=ScheduleConfig(warmup_steps=40),
    optimizer=OptimizerConfig(lr=3e-3),
)
ITEMS_SEED = HELD_OUT_SEED - 1
NUM_ITEMS = 500

Curve = list[dict[str, float]]
Record = dict[str, Any]


def stack_parser(about: str | None, name: str) -> argparse.ArgumentParser:
    """Return the options that these benchmarks share; ``name`` is that of the folder of runs."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--num-steps", type=int, default=TRAIN.num_steps)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batches", type=Path, default=Path("runs") / name / "batches")
    parser.add_argument("--prepare", action="store_true", help="only make the batches")
    parser.add_argument("--out", type=Path, default=Path("runs") / name)
    parser.add_argument("--table", type=Path, help="print the tables of a Parquet file")
    return parser


def prepare_lanes(folder: Path, seeds: Sequence[int], train: TrainConfig, layout: Layout) -> None:
    """Make the batches of all tasks and seeds, and the items."""
    for task, seed in product(TASKS, seeds):
        recorded(folder, task, seed, train, layout)
        scored_items(folder, task)


def run_arms(
    works: Mapping[str, Callable[[], list[Record]]],
    begun: dict[str, Any],
    num_workers: int,
    path: Path,
) -> Iterator[list[Record]]:
    """Do the work of arms in several processes; yield and keep the records of each one at once.

    Arms of which the file has records are left out, so a run that was stopped goes on.

    Args:
        works: What makes the records of each arm.
        begun: JSON values on which the records depend beside the arm; a run that goes on must have
            the same.
        num_workers: Processes.
        path: The Parquet file; a record of ``begun`` lies beside it.
    """
    keep_or_check_begun(path.with_suffix(".begun.json"), begun, "benchmark")
    records = read_records(path) if path.exists() else []
    finished = {record["arm"] for record in records}
    with ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn")) as pool:
        left = [work for arm, work in works.items() if arm not in finished]
        for job in as_completed([pool.submit(work) for work in left]):
            done = job.result()
            if done:
                records += done
                write_records(path, records)
                yield done


def form_of(task: str, data_folder: str = "") -> ScoredTask:
    """Return the task with a name; those of `REAL` read a folder of data.

    Acts of dialogues are closed, so that systems learn to write them.
    """
    if task in FORMS:
        return FORMS[task]
    return ClosedActs(dialogues=cast("Dialogues", named_task(REAL[task], data_folder)))


def named_file(folder: Path, task: str, data_folder: str, rest: str) -> Path:
    """Return the path of a file of a task; of one that reads data its name has their digest."""
    if task in FORMS:
        return folder / f"{task}-{rest}"
    digest = data_digest(named_task(REAL[task], data_folder))
    return folder / f"{task}-{digest[:12]}-{rest}"


def recorded(
    folder: Path,
    task: str,
    seed: int,
    train: TrainConfig,
    layout: Layout,
    trained: Trained = "answer",
    data_folder: str = "",
) -> Recorded:
    """Return the batches of a task and seed, which all arms with these streams share."""
    form = form_of(task, data_folder)
    data = PreparedTask(TaskData(task=form, seed=seed, trained=trained), layout, max(RATES))
    if task in FORMS and data.num_ticks != ROW_TICKS:
        raise SystemExit(f"Rows must have {ROW_TICKS} ticks: {task} has {data.num_ticks}.")
    streams = "-".join(f"{one.name}{one.period_ticks}" for one in layout.predicted)
    rest = f"{trained}-{seed}-{train.num_steps}x{train.batch_rows}-{streams}.pt"
    path = named_file(folder, task, data_folder, rest)
    return record_once(data.batches(train.batch_rows, seed), train.num_steps, path)


@cache
def scored_items(folder: Path, task: str, data_folder: str = "") -> tuple[Item, ...]:
    """Return the items on which a task is scored; they are made once."""
    path = named_file(folder, task, data_folder, "items.pickle")
    if not path.exists():
        form = form_of(task, data_folder)
        items = tuple(task_items.scored_items(form, ITEMS_SEED, NUM_ITEMS))
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial_path:
            partial_path.write_bytes(pickle.dumps(items))
    found: tuple[Item, ...] = pickle.loads(path.read_bytes())
    return found


def learn(
    systems: Sequence[System],
    trains: Sequence[TrainConfig],
    sources: Sequence[Recorded],
    device: str,
) -> tuple[list[bool], list[Curve]]:
    """Train lanes as one stack, and put them on the device in evaluation mode.

    Returns:
        Whether the weights of each lane are finite, and its curve: the loss in bits a trained
        symbol, and the seconds since the beginning.
    """
    torch.set_num_threads(1)
    begin = time.perf_counter()
    curves: list[Curve] = [[] for _ in systems]

    def on_step(step: int, bits: Sequence[float]) -> bool:
        for points, loss in zip(curves, bits, strict=True):
            points.append({"step": step, "loss": loss, "at": time.perf_counter() - begin})
        return False

    stack = Stack(systems, trains, device)
    stack.train(sources, on_step)
    finite = stack.finish()
    for system in systems:
        system.to(device).eval()
    return finite, curves


def in_time(deadline: float, work: Callable[[], list[Record]]) -> list[Record]:
    """Do some work unless the time is over; what fails is printed and left out."""
    if time.time() > deadline:
        return []
    try:
        return work()
    except Exception:
        traceback.print_exc()
        return []


def interval(values: Sequence[float], digits: int = 1) -> str:
    """Return a mean over seeds with its t interval."""
    ratio = bootstrap_ratio(np.array(values)[:, None], np.ones((len(values), 1)))
    mean = f"{ratio.value:.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} [{ratio.low:.{digits}f}, {ratio.high:.{digits}f}]"
