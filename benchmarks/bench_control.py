"""How far does each system follow another text's whole, and what does that cost?

Arms of `part_whole` learn four things as lanes of one stack: the answers of `logbook`, of `navon`
and of `acrostic` (first letters and rhymes under a plan), and all symbols of `navon`. Then held-out
items go on from a tick under their own whole and under that of another item, in every way that the
system allows (`evaluate/control.py`). In the lanes of all symbols the exchange happens after five
of eight blocks: the following blocks should show the other motif, and the cost is what all other
symbols lose. In those of `acrostic` it happens before the poem, whose lines should begin as the
other plan says, and the cost is that of the rhymes. The lanes of `logbook` also answer logs of up
to 16 times the length, beside the bytes of their states. On a GPU:

    python benchmarks/bench_control.py --device cuda --seconds 60 --out runs/control
    python benchmarks/bench_control.py --lanes "acrostic answer" --arms deep --num-steps 800
    python benchmarks/bench_control.py --table benchmarks/results/control.parquet
"""

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

from stack_lanes import (
    ITEMS_SEED,
    TASKS,
    TRAIN,
    Record,
    in_time,
    interval,
    learn,
    recorded,
    run_arms,
    scored_items,
    stack_parser,
)

from counterpoint.blocks.level_config import LevelConfig
from counterpoint.data.tasks.items import Item, ItemAnswer, Trained
from counterpoint.data.tasks.part_whole.logbook import Logbook
from counterpoint.data.tasks.source import label_stream
from counterpoint.evaluate.control import control
from counterpoint.evaluate.tasks import answer
from counterpoint.files import whole_file
from counterpoint.recipes.cells import read_records
from counterpoint.recipes.compression import ROW_TICKS
from counterpoint.recipes.part_whole import part_whole, tower, two_stream
from counterpoint.streams.spec import Layout
from counterpoint.systems import build_system, sketch, system_layout
from counterpoint.systems.contract import System, SystemConfig, state_bytes
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
)
KINDS = {
    "logbook": ("whole", "part"),
    "navon": ("whole", "part"),
    "acrostic": ("acrostic", "rhyme"),
}
"""Kind of the answers that follow the whole, and of those that should stay, by task."""
TWO_LEVELS = replace(
    two_stream(),
    levels=(LevelConfig(whole=tower(48, 1, 64), lower_layers=1, block_ticks=4, compressor="mean"),),
)
"""The arm two_stream with a second level above its whole: a step for four words."""
FIRST = {
    ("logbook", "answer"): 73,
    ("navon", "answer"): 73,
    ("navon", "all"): 46,
    ("acrostic", "answer"): 54,
}
"""Ticks before the exchange: all events or blocks, five blocks, or the plan and what stands between
it and the poem; and the id of the beginning."""
NAVON = TASKS["navon"]
BLOCK = 9
"""Ticks of a block of `navon`, and of the space after it."""
TIMES = (1, 2, 4, 8, 16)
"""Lengths of logs, as multiples of the length in training."""
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
        deadline: Time, as of `time.time`, after which no arm begins.
    """

    lanes: tuple[tuple[str, Trained], ...]
    seeds: tuple[int, ...]
    train: TrainConfig
    device: str
    folder: Path
    num_items: int
    num_long: int
    deadline: float


def system_of(arm: str) -> SystemConfig:
    """Return the system of an arm of `part_whole` or of this file."""
    systems: dict[str, SystemConfig] = {one.name: one.system for one in part_whole().arms}
    return (systems | {"two_levels": TWO_LEVELS})[arm]


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


def make(
    folder: Path, task: str, seed: int, train: TrainConfig, layout: Layout, trained: Trained
) -> None:
    """Make the batches of a lane, which stay in their file."""
    recorded(folder, task, seed, train, layout, trained)


def prepare(arms: Sequence[str], setting: Setting) -> None:
    """Make the batches of all lanes, in several processes, and the items."""
    for task, _ in setting.lanes:
        scored_items(setting.folder, task)
    for times in TIMES:
        long_logs(setting.folder, times, setting.num_long)
    layouts = [system_layout(system_of(arm)) for arm in arms]
    streams = {str(one.predicted): one for one in layouts}.values()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), spawn) as pool:
        made = [
            pool.submit(make, setting.folder, task, seed, setting.train, layout, trained)
            for layout, (task, trained), seed in product(streams, setting.lanes, setting.seeds)
        ]
        for one in made:
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
    """Train all lanes of an arm and exchange their wholes; return one record a lane and way."""
    begin = time.perf_counter()
    config = system_of(arm)
    lanes = [(*lane, seed) for lane, seed in product(setting.lanes, setting.seeds)]
    trains = [replace(setting.train, seed=seed) for *_, seed in lanes]
    systems = [build_system(config, one.seed) for one in trains]
    sources = [
        recorded(setting.folder, task, seed, setting.train, systems[0].layout, trained)
        for task, trained, seed in lanes
    ]
    finite, curves = learn(systems, trains, sources, setting.device)
    records = []
    for lane, system, curve, good in zip(lanes, systems, curves, finite, strict=True):
        task, trained, seed = lane
        items = asked(scored_items(setting.folder, task)[: setting.num_items], task, trained)
        first = FIRST[task, trained]
        ways = control(system, items, first, symbols=trained == "all") if good else []
        lengths = by_length(system, setting) if good and lane[:2] == LANES[0] else []
        smaller = with_less_state(system, LEAST_STATE) if lengths else None
        for way in ways:
            told = asdict(way)
            records.append(
                {"arm": arm, "task": task, "trained": trained, "seed": seed}
                | told
                | {
                    "answers": list(told["answers"]),
                    "steps": setting.train.num_steps,
                    "flops_per_tick": system.flops_per_tick(ROW_TICKS, training=True),
                    "lengths": lengths,
                    "state_bytes": state_bytes(system.initial_state(1)),
                    "less_state": [] if smaller is None else by_length(smaller, setting),
                    "less_state_bytes": 0
                    if smaller is None
                    else state_bytes(smaller.initial_state(1)),
                    "curve": curve,
                    "seconds": time.perf_counter() - begin,
                }
            )
    return records


def run_in_time(arm: str, setting: Setting) -> list[Record]:
    """Run an arm unless the time is over."""
    return in_time(setting.deadline, partial(run_arm, arm, setting))


def table(records: Sequence[Record], task: str, trained: Trained, kind: str) -> Iterator[str]:
    """Yield the lines of a Markdown table: one line for each arm and way.

    The cost is that of all other symbols where these are trained, and otherwise that of the answers
    that should stay.
    """
    yield "| arm | way | right % | kept % | obeyed % | swap-delta, bits | cost of other symbols |"
    yield "|---|---|---|---|---|---|---|"
    own = [one for one in records if (one["task"], one["trained"]) == (task, trained)]
    for arm, way in dict.fromkeys((one["arm"], one["way"]) for one in own):
        cells = [one for one in own if (one["arm"], one["way"]) == (arm, way)]
        found = [
            next((a for a in one["answers"] if a["kind"] == kind), None)
            for one in sorted(cells, key=lambda one: one["seed"])
        ]
        answers = [one for one in found if one is not None]
        if trained == "all":
            cost = interval([one["other_symbol_bits"] - one["own_symbol_bits"] for one in cells], 3)
        else:
            parts = [
                answer
                for one in cells
                for answer in one["answers"]
                if answer["kind"] == KINDS[task][1]
            ]
            cost = interval([one["other_bits"] - one["own_bits"] for one in parts], 3)
        shares = [
            interval([100 * one[key] for one in answers]) for key in ("right", "kept", "obeyed")
        ]
        delta = interval([one["other_bits"] - one["own_bits"] for one in answers], 2)
        yield f"| {arm} | {way} | {' | '.join(shares)} | {delta} | {cost} |"


def length_table(records: Sequence[Record]) -> Iterator[str]:
    """Yield the lines of a Markdown table: answers about the whole by length, and state bytes."""
    yield f"| arm | {' | '.join(f'{times} times' for times in TIMES)} | state, kB |"
    yield "|---" * (len(TIMES) + 2) + "|"
    own = [one for one in records if one["way"] == "prompt" and one["lengths"]]
    for arm in dict.fromkeys(one["arm"] for one in own):
        for key, size in (("lengths", "state_bytes"), ("less_state", "less_state_bytes")):
            cells = [one for one in own if one["arm"] == arm and one[key]]
            if not cells:
                continue
            shares = [
                interval([100 * one[key][place]["whole"] for one in cells])
                for place in range(len(TIMES))
            ]
            name = arm if key == "lengths" else f"{arm}, shorter window"
            yield f"| {name} | {' | '.join(shares)} | {cells[0][size] / 1000:.0f} |"


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
    parser.add_argument("--items", type=int, default=300, help="items that are continued")
    parser.add_argument("--long-items", type=int, default=200, help="logs of each length")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    if args.table:
        records = read_records(args.table)
        for task, trained in LANES:
            kind = "first cell" if trained == "all" else KINDS[task][0]
            print(task, trained, *table(records, task, trained, kind), sep="\n")
        print("by length", *length_table(records), sep="\n")
        for times in TIMES:
            print(f"{times} times:", floor_by_length(args.batches, times, args.long_items))
        return
    setting = Setting(
        lanes=tuple(lane for lane in LANES if " ".join(lane) in args.lanes),
        seeds=tuple(args.seeds),
        train=replace(TRAIN, num_steps=args.num_steps),
        device=args.device,
        folder=args.batches,
        num_items=args.items,
        num_long=args.long_items,
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
