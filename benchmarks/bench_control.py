"""How far does each system follow another text's whole, and what does that cost?

Arms of `part_whole` learn four things as lanes of one stack: the answers of `logbook`, of `navon`
and of `acrostic` (first letters and rhymes under a plan), and all symbols of `navon`. Then held-out
items go on from a tick under their own whole and under that of another item, in every way that the
system allows (`evaluate/control.py`). In the lanes of all symbols the exchange happens after five
of eight blocks: the following blocks should show the other motif, and the cost is what all other
symbols lose. In those of `acrostic` it happens before the poem, whose lines should begin as the
other plan says, and the cost is that of the rhymes. The lanes of `logbook` also answer logs of up
to 16 times the length, beside the bytes of their states. Two lanes write by themselves after the
exchange: "acrostic all" whole poems (`evaluate/poem_control.py`), and "dialogues answer" the next
act of a real dialogue (`evaluate/turn_control.py`); this one needs a folder of data. On a GPU:

    python benchmarks/bench_control.py --device cuda --seconds 60 --out runs/control
    python benchmarks/bench_control.py --lanes "acrostic all" --arms deep --num-steps 800
    python benchmarks/bench_control.py --lanes "dialogues answer" --arms deep --data FOLDER
    python benchmarks/bench_control.py --table benchmarks/results/control.parquet
"""

import argparse
import multiprocessing
import os
import pickle
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import cast

from control_arms import system_of, train_of
from control_tables import KINDS, TIMES, length_pairs, length_table, poem_table, table, turn_table
from stack_lanes import (
    FORMS,
    ITEMS_SEED,
    TASKS,
    TRAIN,
    Record,
    form_of,
    in_time,
    learn,
    recorded,
    run_arms,
    scored_items,
    stack_parser,
)

from counterpoint.data.recorded import Recorded
from counterpoint.data.tasks.dialogues import ClosedActs
from counterpoint.data.tasks.items import Item, ItemAnswer, Trained
from counterpoint.data.tasks.part_whole.acrostic import Acrostic
from counterpoint.data.tasks.part_whole.logbook import Logbook
from counterpoint.data.tasks.source import label_stream
from counterpoint.evaluate.control import control
from counterpoint.evaluate.poem_control import control_poems, poem_floors
from counterpoint.evaluate.tasks import answer
from counterpoint.evaluate.turn_control import (
    control_turns,
    paired_turns,
    turn_floors,
    turns_of,
)
from counterpoint.files import whole_file
from counterpoint.recipes.cells import read_records
from counterpoint.streams.spec import Layout
from counterpoint.systems import build_system, sketch, system_layout
from counterpoint.systems.contract import System, state_bytes
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.train.config import TrainConfig

ARMS = (
    "two_stream",
    "hrt_words",
    "two_stream_text",
    "hdlm",
    "hnet",
    "window_summary",
    "full",
)
LANES: tuple[tuple[str, Trained], ...] = (
    ("logbook", "answer"),
    ("navon", "answer"),
    ("navon", "all"),
    ("acrostic", "answer"),
    ("acrostic", "all"),
    ("dialogues", "answer"),
)
FIRST = {
    ("logbook", "answer"): 73,
    ("navon", "answer"): 73,
    ("navon", "all"): 46,
    ("acrostic", "answer"): 54,
    ("acrostic", "all"): 54,
}
"""Ticks before the exchange: all events or blocks, five blocks, or the plan and what stands between
it and the poem; and the id of the beginning."""
NAVON = TASKS["navon"]
BLOCK = 9
"""Ticks of a block of `navon`, and of the space after it."""
LEAST_STATE = 476_000
"""Bytes of the state of two_stream, to which the window of full attention is cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What all arms share.

    Attributes:
        lanes: Tasks and the symbols that are trained.
        seeds: Seeds of each of them.
        train: Training of a lane.
        device: Device of training and scoring.
        folder: Folder of batches and items.
        num_items: Number of items that are continued.
        num_long: Number of logs of each length.
        data_folder: Folder of data of tasks with real texts.
        deadline: Time, as of `time.time`, after which no arm begins.
    """

    lanes: tuple[tuple[str, Trained], ...]
    seeds: tuple[int, ...]
    train: TrainConfig
    device: str
    folder: Path
    num_items: int
    num_long: int
    data_folder: str
    deadline: float


def asked(items: Sequence[Item], task: str, trained: Trained) -> list[Item]:
    """Return items with the answers that are scored.

    Where all symbols are trained, these are the first cells of blocks that show their own motif.
    """
    if task == "acrostic":  # rhymes stand at other places in other poems: lines are compared first
        first = [sorted(item.answers, key=lambda one: one.kind) for item in items]
        return [replace(item, answers=tuple(own)) for item, own in zip(items, first, strict=True)]
    if trained == "answer":
        return list(items)
    found = []
    for item in items:
        motif = motif_of(item)
        cells = [
            ItemAnswer("first cell", block * BLOCK, item.text[block * BLOCK])
            for block in range(8)
            if item.text[block * BLOCK] == motif[block % 4]
        ]
        found.append(replace(item, answers=tuple(cells)))
    return found


def motif_of(item: Item) -> str:
    """Return the letters that the blocks of an item repeat, as its last label says."""
    return item.whole[-1].text


def source_of(setting: Setting, task: str, trained: Trained, seed: int, layout: Layout) -> Recorded:
    """Return the batches of a lane, which stay in their file."""
    train = train_of(task, setting.train)
    return recorded(setting.folder, task, seed, train, layout, trained, setting.data_folder)


def make(setting: Setting, task: str, trained: Trained, seed: int, layout: Layout) -> None:
    """Make the batches of a lane."""
    source_of(setting, task, trained, seed, layout)


def prepare(arms_asked: Sequence[str], setting: Setting) -> None:
    """Make the batches of all lanes, in several processes, and the items."""
    for task, _ in setting.lanes:
        scored_items(setting.folder, task, setting.data_folder)
    if any(task == "logbook" for task, _ in setting.lanes):
        for times in TIMES:
            long_logs(setting.folder, times, setting.num_long)
    made = {}
    for arm, lane, seed in product(arms_asked, setting.lanes, setting.seeds):
        layout = system_layout(system_of(arm, *lane))
        made[str(layout.predicted), lane, seed] = (*lane, seed, layout)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), spawn) as pool:
        for one in [pool.submit(make, setting, *what) for what in made.values()]:
            one.result()


@cache
def long_logs(folder: Path, times: int, number: int) -> tuple[Item, ...]:
    """Return logs of so many times the length, which ask for the whole; they are made once."""
    path = folder / f"logs-{times}-{number}.pickle"
    task = replace(cast("Logbook", TASKS["logbook"]), num_events=24 * times)
    if not path.exists():
        items = tuple(task.item(ITEMS_SEED, one) for one in range(number))
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial_path:
            partial_path.write_bytes(pickle.dumps(items))
    found: tuple[Item, ...] = pickle.loads(path.read_bytes())
    return found


def by_length(system: System, setting: Setting) -> list[Record]:
    """Return the share of right answers about the whole, by length of the log.

    Systems that write a whole themselves are left out: they do so tick by tick.
    """
    if label_stream(system.layout) is not None:
        return []
    found = []
    for times in TIMES:
        items = long_logs(setting.folder, times, setting.num_long)
        batch_items = max(len(items) // times, 25)
        task = TASKS["logbook"]
        scores = task.score(items, list(answer(system, items, batch_items)))
        found.append({"times": times, "whole": scores["whole"]})
    return found


def with_less_state(system: System, most_bytes: int) -> System | None:
    """Return the same weights with the longest window whose state has at most so many bytes.

    ``None`` if the system is no single stream, or its state is small enough.
    """
    config = system.config
    if not isinstance(config, SingleStreamConfig) or config.num_summaries:
        return None
    if state_bytes(system.initial_state(1)) <= most_bytes:
        return None
    window = config.tower.window
    while state_bytes(sketch(config).initial_state(1)) > most_bytes:
        window -= 8
        config = replace(config, tower=replace(config.tower, window=window))
    smaller = build_system(config, 0)
    smaller.load_state_dict(system.state_dict())
    return smaller.to(system.device).eval()


def floor_by_length(folder: Path, times: int, number: int) -> dict[str, float]:
    """Return the scores of policies about the whole of logs of some length."""
    task = replace(cast("Logbook", TASKS["logbook"]), num_events=24 * times)
    items = long_logs(folder, times, number)
    found = {}
    for name, policy in task.policies().items():
        rng = random.Random(0)
        given = [policy(item, rng) for item in items]
        found[name] = task.score(items, given)["whole"]
    return found


def run_arm(arm: str, setting: Setting) -> list[Record]:
    """Train all lanes of an arm and exchange their wholes; return one record a lane and way.

    Lanes with systems of one shape are trained together.
    """
    begin = time.perf_counter()
    stacks: dict[str, list[tuple[str, Trained]]] = {}
    for task, trained in setting.lanes:
        shape = f"{system_of(arm, task, trained)} {train_of(task, setting.train)}"
        stacks.setdefault(shape, []).append((task, trained))
    return [
        record | {"seconds": time.perf_counter() - begin}
        for lanes in stacks.values()
        for record in run_stack(arm, lanes, setting)
    ]


def run_stack(arm: str, alike: Sequence[tuple[str, Trained]], setting: Setting) -> Iterator[Record]:
    """Train lanes with systems of one shape as a stack, and yield their records."""
    config = system_of(arm, *alike[0])
    train = train_of(alike[0][0], setting.train)
    lanes = [(*lane, seed) for lane, seed in product(alike, setting.seeds)]
    trains = [replace(train, seed=seed) for *_, seed in lanes]
    systems = [build_system(config, one.seed) for one in trains]
    sources = [source_of(setting, *lane, systems[0].layout) for lane in lanes]
    finite, curves = learn(systems, trains, sources, setting.device)
    for lane, system, curve, good in zip(lanes, systems, curves, finite, strict=True):
        task, trained, seed = lane
        lengths = by_length(system, setting) if good and lane[:2] == LANES[0] else []
        smaller = with_less_state(system, LEAST_STATE) if lengths else None
        for told in exchanged(system, task, trained, setting) if good else []:
            yield (
                {"arm": arm, "task": task, "trained": trained, "seed": seed}
                | told
                | {
                    "steps": setting.train.num_steps,
                    "flops_per_tick": system.flops_per_tick(sources[0].num_ticks, training=True),
                    "lengths": lengths,
                    "state_bytes": state_bytes(system.initial_state(1)),
                    "less_state": [] if smaller is None else by_length(smaller, setting),
                    "less_state_bytes": 0
                    if smaller is None
                    else state_bytes(smaller.initial_state(1)),
                    "curve": curve,
                }
            )


def exchanged(system: System, task: str, trained: Trained, setting: Setting) -> list[Record]:
    """Exchange the wholes of items; return what changes, one record a way."""
    items = scored_items(setting.folder, task, setting.data_folder)[: setting.num_items]
    if task == "dialogues":
        return [
            {name: value for name, value in asdict(one).items() if name != "costs"}
            | {"answers": [asdict(cost) for cost in one.costs]}
            for one in control_turns(system, items)
        ]
    ways = control(
        system, asked(items, task, trained), FIRST[task, trained], symbols=trained == "all"
    )
    found = {one.way: asdict(one) | {"answers": [asdict(a) for a in one.answers]} for one in ways}
    if (task, trained) == ("acrostic", "all"):
        form = cast("Acrostic", FORMS[task])
        for temperature in (0.0, 1.0):
            for poems in control_poems(system, form, items, temperature=temperature):
                found[poems.way].setdefault("poems", []).append(asdict(poems))
    return list(found.values())


def run_in_time(arm: str, setting: Setting) -> list[Record]:
    """Run an arm unless the time is over."""
    return in_time(setting.deadline, partial(run_arm, arm, setting))


def print_floors(args: argparse.Namespace, records: Sequence[Record]) -> None:
    """Print the scores of policies on the same items."""
    tasks = {one["task"] for one in records}
    if "logbook" in tasks:
        for times in TIMES:
            print(f"{times} times:", floor_by_length(args.batches, times, args.long_items))
    if any(one.get("poems") for one in records):
        form = cast("Acrostic", FORMS["acrostic"])
        items = scored_items(args.batches, "acrostic")[: args.items]
        strangers = [form.item(0, number) for number in range(len(items))]
        print("poems:", poem_floors(form, items, strangers))
    if "dialogues" in tasks:
        items = scored_items(args.batches, "dialogues", args.data)[: args.items]
        dialogues = cast("ClosedActs", form_of("dialogues", args.data))
        pairs = paired_turns(items)
        acts = [turn.name for turn in turns_of(dialogues.learned_items())]
        print(f"{len(pairs.turns)} turns:", turn_floors(pairs, acts))


def main() -> None:
    """Run the arms, or print the tables."""
    parser = stack_parser(__doc__, "control")
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument(
        "--lanes",
        nargs="+",
        default=[" ".join(lane) for lane in LANES[:3]],
        help='such as "acrostic answer"; the first three by default',
    )
    parser.add_argument("--data", default="", help='folder of data for "dialogues answer"')
    parser.add_argument("--pairs", nargs="+", default=[], help="OURS:THEIRS at the longest logs")
    parser.add_argument("--items", type=int, default=300, help="items that are continued")
    parser.add_argument("--long-items", type=int, default=200, help="logs of each length")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    if args.table:
        records = read_records(args.table)
        for task, trained in dict.fromkeys((one["task"], one["trained"]) for one in records):
            if task != "dialogues":
                kind = "first cell" if (task, trained) == ("navon", "all") else KINDS[task][0]
                print(task, trained, *table(records, task, trained, kind), sep="\n")
        print("by length", *length_table(records), *length_pairs(records, args.pairs), sep="\n")
        print("dialogues", *turn_table(records), sep="\n")
        print("poems", *poem_table(records), sep="\n")
        print_floors(args, records)
        return
    setting = Setting(
        lanes=tuple(lane for lane in LANES if " ".join(lane) in args.lanes),
        seeds=tuple(args.seeds),
        train=replace(TRAIN, num_steps=args.num_steps),
        device=args.device,
        folder=args.batches,
        num_items=args.items,
        num_long=args.long_items,
        data_folder=args.data,
        deadline=time.time() + args.seconds,
    )
    prepare(args.arms, setting)
    if args.prepare:
        return
    works = {arm: partial(run_in_time, arm, setting) for arm in args.arms}
    begun = {
        "lanes": [" ".join(lane) for lane in setting.lanes],
        "seeds": args.seeds,
        "steps": args.num_steps,
        "device": args.device,
        "items": args.items,
        "long_items": args.long_items,
    }
    for done in run_arms(works, begun, args.workers, args.out / "control.parquet"):
        print(f"{done[0]['arm']:18} {done[-1]['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    main()
