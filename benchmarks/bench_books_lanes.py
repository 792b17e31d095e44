"""Which arrangement of levels predicts books by unknown authors best, at equal training FLOPs?

Every arm learns from the same rows of bytes in the same order, with AdamW. If several rates are
given, each arm gets the one that is best with another seed, a quarter of the steps and two other
books. Lanes are trained as stacks.

    python benchmarks/bench_books_lanes.py --books books.tar.xz --prepare --work /tmp/books
    python benchmarks/bench_books_lanes.py --work /tmp/books --device cuda --out runs/books
    python benchmarks/bench_books_lanes.py --table runs/books/books.parquet

``--books`` is an archive, or the folder itself, with the folders ``train``, ``tune`` and ``valid``.
"""

import argparse
import json
import math
import os
import tarfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from counterpoint.blocks.block_grid import lay_blocks
from counterpoint.blocks.far_attention import FarAttentionConfig
from counterpoint.data.recorded import Recorded, read_recorded, record
from counterpoint.data.text.corpus import Corpus, DataConfig, Folder, prepare
from counterpoint.data.text.documents import read_folder
from counterpoint.data.text.shards import Unit
from counterpoint.errors import UserError
from counterpoint.evaluate.score import part_scores, score, target_nats
from counterpoint.evaluate.statistics import holm, student_quantile, student_tails
from counterpoint.evaluate.whole import has_whole, measure_whole
from counterpoint.recipes.cells import read_records, write_records
from counterpoint.recipes.stacks import train_lanes
from counterpoint.systems import SystemConfig, hnet, hrt, sketch, two_stream
from counterpoint.systems import single_stream as single
from counterpoint.systems.contract import HasWhole, System
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.systems.two_stream import WORDS
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.run import Run

ROW_TICKS = 1024
ALIGNED_TICKS = 32
"""Documents begin at multiples of this in a row: whole blocks of every arm."""
USUAL_TICKS = 4.9
"""Mean length of the words of these books, cut after eight bytes."""
GRAPH_BLOCKS = 256
"""Room for words in a row that is trained on a GPU, which `prepare_batches` checks."""
TUNING_SEED = 100
UNIT_TICKS = 2048
"""Bytes of a section that are scored, from its beginning."""
UNITS_A_BOOK = 12
SWAP_EVERY = 3
"""One unit in so many is also scored under the whole of another book."""
SWAP_AT = 512
SWAP_TICKS = 256


def arms() -> dict[str, SystemConfig]:
    """Return the arms; the training FLOPs of all but the last three are within 5 %."""
    ours = replace(two_stream.tiny(), usual_block_ticks=USUAL_TICKS, graph_blocks=GRAPH_BLOCKS)
    one = single.tiny()
    levels = hrt.tiny()
    fine = replace(levels.levels[0], mlp_hidden=448)
    levels = replace(levels, levels=(fine, *levels.levels[1:]))
    words = replace(
        levels,
        strides=(ours.block_ticks, 4),
        compressor="mean",
        boundary_ids=WORDS,
        usual_block_ticks=USUAL_TICKS,
        graph_blocks=GRAPH_BLOCKS,
    )
    fixed = replace(ours, boundary_ids=(), usual_block_ticks=None, graph_blocks=None, block_ticks=4)
    summaries = FarAttentionConfig(block_ticks=8, kept_blocks=64, num_summaries=1)
    narrow = replace(one.tower, width=128, num_heads=4, mlp_hidden=328, mixer=summaries)
    large = replace(one.tower, mlp_hidden=988)
    return {
        "two_stream": ours,
        "single_stream": one,
        "hrt": levels,
        "hnet": hnet.tiny(),
        "hrt_words": words,
        "two_stream_no_predict": replace(ours, predict_weight=0.0),
        "two_stream_fixed": fixed,
        "window_summary": SingleStreamConfig(tower=narrow),
        "shuffled_whole": replace(ours, whole_control="shuffled"),
        "frozen_pool": replace(ours, whole_control="frozen"),
        "single_as_large": SingleStreamConfig(tower=large),
    }


def titles_in(folder: Path) -> list[str]:
    """Return the titles of the books in a folder."""
    return [document.title for document in read_folder(str(folder))]


def corpus_of(work: Path) -> Corpus:
    """Return the corpus: ``train`` is learned from, ``tune`` and ``valid`` are held out."""
    held_out = (*titles_in(work / "tune"), *titles_in(work / "valid"))
    source = Folder(path=str(work))
    config = DataConfig(
        source=source, row_ticks=ROW_TICKS, held_out=held_out, cache_folder=str(work / "cache")
    )
    return prepare(config, ALIGNED_TICKS)


def units_of(corpus: Corpus, work: Path, name: str) -> list[Unit]:
    """Return the beginnings of the longest sections of the books in a folder."""
    found = []
    for title in titles_in(work / name):
        own = [unit for unit in corpus.held_out if unit.title == title]
        own = sorted(own, key=lambda unit: -len(unit.ids))[:UNITS_A_BOOK]
        for unit in own:
            ids = unit.ids[:UNIT_TICKS]
            size = int(corpus.tokenizer.byte_lengths[ids].sum())
            found.append(replace(unit, ids=ids, num_bytes=size))
    return found


def recorded_path(work: Path, seed: int, steps: int, rows: int) -> Path:
    """Return the path of recorded batches."""
    return work / f"seed{seed}_{steps}x{rows}.pt"


def run_of(name: str, system: SystemConfig, seed: int, rate: float, steps: int, rows: int) -> Run:
    """Return the run of a lane; its data are recorded batches."""
    return Run(
        name=name,
        system=system,
        data=DataConfig(row_ticks=ROW_TICKS),
        train=TrainConfig(
            num_steps=steps,
            batch_rows=rows,
            seed=seed,
            precision="float32",
            log_every=50,
            optimizer=OptimizerConfig(lr=rate),
            schedule=ScheduleConfig(warmup_steps=min(50, steps // 4)),
        ),
    )


def unit_bits(system: System, units: Sequence[Unit], corpus: Corpus) -> list[float]:
    """Return the bits of each unit."""
    lengths = corpus.tokenizer.byte_lengths
    with torch.no_grad():
        found = score(system, units, lengths, block_ticks=ALIGNED_TICKS)
    return [one.bits for one in found]


@torch.no_grad()
def swap_cost(system: System, units: Sequence[Unit]) -> float | None:
    """Return the bits a byte that the coarse past of another book costs in the bytes after it.

    Every session reads `SWAP_AT` bytes, gets the coarse past of a session of another book, and is
    scored on the next bytes.

    Returns:
        The mean over sessions that have a donor; ``None`` if the system keeps no coarse past apart.
    """
    long = [unit for unit in units if len(unit.ids) > SWAP_AT + SWAP_TICKS]
    ids = torch.tensor(np.stack([unit.ids[: SWAP_AT + SWAP_TICKS + 1] for unit in long]))
    ids = ids.to(system.device, torch.long)
    _, state = system.read({"part": ids[:, :SWAP_AT]}, system.initial_state(len(ids)))
    count = torch.zeros(len(ids))
    if isinstance(system, HasWhole):
        count = system.finished_blocks(state).cpu()
    pairs = []
    for row, unit in enumerate(long):
        fits = [
            other
            for other, one in enumerate(long)
            if one.title != unit.title and count[other] >= count[row]
        ]
        if fits:
            pairs.append((row, min(fits, key=lambda other: float(count[other]))))
    rows, donors = (torch.tensor(column, device=ids.device) for column in zip(*pairs, strict=True))
    nats = []
    for swaps in (False, True):
        _, own = system.read({"part": ids[rows, :SWAP_AT]}, system.initial_state(len(rows)))
        if swaps:
            _, other = system.read({"part": ids[donors, :SWAP_AT]}, system.initial_state(len(rows)))
            try:
                own = system.swap(own, other)
            except UserError:  # it has no coarse past, or the donor's does not fit
                return None
        hidden, _ = system.read({"part": ids[rows, SWAP_AT:-1]}, own)
        # The first byte after the swap is read, not predicted.
        targets = ids[rows, SWAP_AT + 1 :]
        nats.append(float(target_nats(part_scores(system, hidden), targets).double().mean()))
    return (nats[1] - nats[0]) / math.log(2)


def lane_record(
    arm: str, seed: int, rate: float, system: System, corpus: Corpus, units: Sequence[Unit]
) -> dict[str, Any]:
    """Score a lane."""
    lengths = corpus.tokenizer.byte_lengths
    record: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "learning_rate": rate,
        "titles": [unit.title for unit in units],
        "bits": unit_bits(system, units, corpus),
        "bytes": [int(lengths[unit.ids[1:]].sum()) for unit in units],
        "parameters": sum(w.numel() for w in system.parameters() if w.requires_grad),
        "flops_per_byte": system.flops_per_tick(ROW_TICKS, training=True),
        "swap_cost": swap_cost(system, units),
        "swap_delta": None,
    }
    if has_whole(system):
        use = measure_whole(system, units[::SWAP_EVERY], lengths, max_ticks=ROW_TICKS)
        record["swap_delta"] = (sum(use.other_bits) - sum(use.own_bits)) / sum(use.num_bytes)
        record["null_share"] = use.null_share
        record["effective_rank"] = use.effective_rank
    return record


def best_rate(
    name: str, system: SystemConfig, args: argparse.Namespace, corpus: Corpus
) -> tuple[float, dict[float, float]]:
    """Return the rate with the lowest bits on the tuning books, and the bits a byte of all."""
    if len(args.rates) == 1:
        return args.rates[0], {}
    steps = args.steps // 4
    runs = [run_of(name, system, TUNING_SEED, rate, steps, args.rows) for rate in args.rates]
    path = recorded_path(args.work, TUNING_SEED, steps, args.rows)
    source = read_recorded(path)
    systems = train_lanes(runs, [source] * len(runs), args.device)
    units = units_of(corpus, args.work, "tune")
    size = sum(int(corpus.tokenizer.byte_lengths[unit.ids[1:]].sum()) for unit in units)
    found = {
        rate: math.inf if one is None else sum(unit_bits(one.to(args.device), units, corpus)) / size
        for rate, one in zip(args.rates, systems, strict=True)
    }
    return min(found, key=found.__getitem__), found


def run_arm(
    name: str, system: SystemConfig, args: argparse.Namespace, corpus: Corpus
) -> list[dict[str, Any]]:
    """Choose a rate, train all seeds, and score them."""
    begin = time.perf_counter()
    rate, tried = best_rate(name, system, args, corpus)
    runs = [run_of(name, system, seed, rate, args.steps, args.rows) for seed in args.seeds]
    paths = [recorded_path(args.work, seed, args.steps, args.rows) for seed in args.seeds]
    curve: list[tuple[int, list[float]]] = []
    sources: list[Recorded] = [read_recorded(path) for path in paths]

    def on_step(step: int, bits: list[float]) -> bool:
        curve.append((step, bits))
        return False

    systems = train_lanes(runs, sources, args.device, on_step)
    trained = time.perf_counter() - begin
    units = units_of(corpus, args.work, "valid")
    records = []
    for lane, (seed, one) in enumerate(zip(args.seeds, systems, strict=True)):
        if one is None:
            print(f"{name}, seed {seed}: weights are not finite", flush=True)
            continue
        record = lane_record(name, seed, rate, one.to(args.device).eval(), corpus, units)
        record["tried"] = [{"rate": key, "bits": value} for key, value in tried.items()]
        record["curve"] = [{"step": step, "loss": bits[lane]} for step, bits in curve]
        records.append(record)
    shown = [round(sum(one["bits"]) / sum(one["bytes"]), 4) for one in records]
    swaps = [one["swap_cost"] for one in records]
    seconds = time.perf_counter() - begin
    print(
        f"{name}: rate {rate}, {shown} bits a byte, swap {swaps}, {trained:.1f} s to train, "
        f"{seconds:.1f} s",
        flush=True,
    )
    return records


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table; intervals and p-values are Student's, over seeds."""
    by_arm: dict[str, dict[int, Mapping[str, Any]]] = {}
    for one in records:
        by_arm.setdefault(one["arm"], {})[one["seed"]] = one
    ours = by_arm["two_stream"]
    lines = [
        "| arm | bits a byte | two_stream minus it, % | p (Holm) | swap, bits | FLOPs | weights |",
        "|---|---|---|---|---|---|---|",
    ]
    compared = {arm: _difference(ours, own) for arm, own in by_arm.items() if arm != "two_stream"}
    p_values = holm([p for _, _, p in compared.values()])
    corrected = dict(zip(compared, p_values, strict=True))
    for arm, own in by_arm.items():
        mean, half = _mean([_bits_a_byte(one) for one in own.values()])
        ahead, p_text = "", ""
        if arm in compared:
            value, width, _ = compared[arm]
            ahead = f"{value:+.2f} [{value - width:+.2f}, {value + width:+.2f}]"
            p_text = f"{corrected[arm]:.3f}"
        first = next(iter(own.values()))
        flops = first["flops_per_byte"] / next(iter(ours.values()))["flops_per_byte"]
        swaps = [one["swap_cost"] for one in own.values() if one["swap_cost"] is not None]
        swap = f"{np.mean(swaps):+.3f}" if swaps else "–"
        lines.append(
            f"| {arm} | {mean:.3f} [{mean - half:.3f}, {mean + half:.3f}] | {ahead} | {p_text} | "
            f"{swap} | {flops:.2f} | {1e-6 * first['parameters']:.1f} M |"
        )
    return "\n".join(lines)


def _bits_a_byte(record: Mapping[str, Any]) -> float:
    return float(sum(record["bits"]) / sum(record["bytes"]))


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and half the width of its interval of 95 %."""
    spread = np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values)), float(spread * student_quantile(len(values) - 1))


def _difference(
    ours: Mapping[int, Mapping[str, Any]], theirs: Mapping[int, Mapping[str, Any]]
) -> tuple[float, float, float]:
    """Return by how many percent ours needs more bits, half the interval, and the p-value."""
    shares = [
        100 * (_bits_a_byte(ours[seed]) / _bits_a_byte(theirs[seed]) - 1)
        for seed in sorted(ours.keys() & theirs.keys())
    ]
    value, half = _mean(shares)
    freedom = len(shares) - 1
    spread = half / student_quantile(freedom)
    return value, half, student_tails(abs(value) / spread, freedom)


def unpack(books: Path, work: Path) -> None:
    """Put the books into the folder of the work."""
    if work.exists():
        return
    work.mkdir(parents=True)
    if books.is_dir():
        for path in books.rglob("*.md"):
            place = work / path.relative_to(books)
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(path.read_bytes())
        return
    with tarfile.open(books) as archive:
        archive.extractall(work, filter="data")


def prepare_batches(args: argparse.Namespace) -> None:
    """Record the batches of all seeds."""
    unpack(args.books, args.work)
    corpus = corpus_of(args.work)
    print(corpus.describe(), flush=True)
    wanted = [(seed, args.steps) for seed in args.seeds]
    if len(args.rates) > 1:
        wanted.append((TUNING_SEED, args.steps // 4))
    for seed, steps in wanted:
        path = recorded_path(args.work, seed, steps, args.rows)
        if not path.exists():
            recorded = record(corpus.batches(args.rows, seed), steps)
            _check_room(recorded)
            torch.save(tuple(recorded), path)


def _check_room(recorded: Recorded) -> None:
    """Refuse rows with more words than rows of a graph have room for."""
    ids = recorded.ticks["part"].long()
    ends = (ids[..., None] == torch.tensor(WORDS)).any(-1)
    most = two_stream.tiny().block_ticks
    found = int(lay_blocks(ends, recorded.document_start.long(), most).finished[:, -1].max())
    if found > GRAPH_BLOCKS:
        raise SystemExit(f"A row has {found} words: GRAPH_BLOCKS must be as many.")


def main() -> None:
    """Prepare, or train arm by arm until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--books", type=Path)
    parser.add_argument("--work", type=Path, default=Path("/tmp/books_lanes"))
    parser.add_argument("--arms", nargs="+", choices=arms())
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", type=float, default=[2e-3])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/books"))
    parser.add_argument("--table", nargs="+", type=Path)
    args = parser.parse_args()
    if args.table:
        print(table([record for path in args.table for record in read_records(path)]))
        return
    if args.prepare:
        prepare_batches(args)
        return
    deadline = min(float(os.environ.get("DEADLINE", "inf")) - 15, time.time() + args.seconds)
    corpus = corpus_of(args.work)
    records: list[dict[str, Any]] = []
    slowest = 0.0
    for name, system in arms().items():
        if (args.arms and name not in args.arms) or time.time() + slowest > deadline:
            continue
        begin = time.time()
        try:
            records += run_arm(name, system, args, corpus)
        except Exception:  # one arm must not cost the others
            traceback.print_exc()
            continue
        slowest = max(slowest, time.time() - begin)
        write_records(args.out / "books.parquet", records)
    costs = {
        name: sketch(system).flops_per_tick(ROW_TICKS, training=True)
        for name, system in arms().items()
    }
    (args.out / "costs.json").write_text(json.dumps(costs, indent=1))


if __name__ == "__main__":
    main()
