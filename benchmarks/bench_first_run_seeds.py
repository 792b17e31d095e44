"""Does two_stream beat the control over seeds? The first run with several, and one paired table.

Initialisation and order of rows differ between seeds; what is done below ``--folder`` is not run
again. Differences are paired over chapters; intervals are hierarchical over
seeds and chapters. Bar: at least 3 % fewer bits a byte at equal training FLOPs, swap-delta above 0.

With ``--equal-seconds`` the control gets as many processor seconds as two_stream takes instead of
as many FLOPs: so many more steps, on new text, with the schedule stretched over them. The seconds
of a step are those of one thread, both arms in turns, and are measured once for a folder.

    python benchmarks/bench_first_run_seeds.py --out benchmarks/results/first_run_seeds.json
    python benchmarks/bench_first_run_seeds.py --equal-seconds --folder runs/first_run_seconds \
        --out benchmarks/results/first_run_seconds.json

With ``--books FOLDER`` the text is that of `docs/results/books_controls_declared.json`: books by
many authors, of which six are held out. ``--rows`` and ``--steps`` set the size of a training:

    python benchmarks/bench_first_run_seeds.py --equal-seconds --books FOLDER --rows 8 --steps 550 \
        --folder runs/books_seconds_rows
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import finish, quantile

from counterpoint.data.source import Preparation
from counterpoint.data.text.corpus import DataConfig, Folder
from counterpoint.evaluate.results import Evaluation, load_evaluation
from counterpoint.evaluate.statistics import Interval, bootstrap_ratio
from counterpoint.evaluate.whole import WholeUse
from counterpoint.progress import Progress
from counterpoint.recipes.first_run import first_run
from counterpoint.recipes.study import Study, run_study, training_flops
from counterpoint.systems import build_system, sketch
from counterpoint.train.distributed import World
from counterpoint.train.loop import Trainer
from counterpoint.train.precision import settle_precision
from counterpoint.train.run import Run
from counterpoint.train.stop_signal import StopSignal

AIM_PERCENT = -3.0
TIMED_STEPS = 24
UNTIMED_STEPS = 4
NUM_SECTIONS = 24
HELD_OUT_BOOKS = (
    "Title: Captain Blood",
    "Title: Essays",
    "Title: Jo's Boys",
    "Title: Lord of the World",
    "Title: Philosophical Dictionary",
    "Title: The Country of the Pointed Firs",
)


def evaluation(folder: Path) -> Evaluation:
    """The stored result of an arm."""
    found = load_evaluation(folder)
    assert found is not None
    return found


def as_list(interval: Interval) -> list[float]:
    """Value, low and high."""
    return [round(number, 4) for number in (interval.value, interval.low, interval.high)]


def swap_delta(whole: WholeUse) -> Interval:
    """Bits a byte lost under the whole of another document."""
    lost = np.array(whole.other_bits) - np.array(whole.own_bits)
    return bootstrap_ratio(lost, np.array(whole.num_bytes, float))


def evaluations(study: Study, folder: Path) -> dict[str, list[Evaluation]]:
    """The stored results of every arm, one a seed."""
    return {run.name: [evaluation(folder / name) for name in study.runs(run)] for run in study.arms}


def bits(found: Sequence[Evaluation]) -> dict[str, Any]:
    """Bits a byte of an arm, over all seeds and by seed."""
    own = np.array([one.bits for one in found])
    sizes = np.array([one.sizes for one in found], float)
    return {
        "bits_per_byte": as_list(bootstrap_ratio(own, sizes)),
        "by_seed": [round(float(number), 4) for number in own.sum(1) / sizes.sum(1)],
    }


def more_bits_percent(found: Sequence[Evaluation], than: Sequence[Evaluation]) -> list[float]:
    """Percent more bits of one arm than of another, paired over chapters and seeds."""
    own, other = (np.array([one.bits for one in arm]) for arm in (found, than))
    return as_list(bootstrap_ratio(own, other).map(100, -100))


def trainer(run: Run, study: Study) -> Trainer:
    """What takes the steps of an arm."""
    system = build_system(run.system, run.train.seed)
    data = run.data.prepare(system, Preparation(block_ticks=study.block_ticks, progress=Progress()))
    system.train()
    return Trainer(system, data.batches(run.train.batch_rows, run.train.seed, 0, 1), run.train)


def on_books(study: Study, folder: Path) -> Study:
    """The study on a folder of books instead of the Bible."""
    books = DataConfig(source=Folder(path=str(folder)), row_ticks=1024, held_out=HELD_OUT_BOOKS)
    return replace(
        study,
        arms=tuple(replace(run, data=books) for run in study.arms),
        evaluation=replace(study.evaluation, max_units=NUM_SECTIONS),
    )


def time_steps(study: Study, path: Path) -> dict[str, Any]:
    """Type of the products and processor seconds of a step of every arm; kept in a file."""
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text())
        return kept
    found = timed_steps(study, UNTIMED_STEPS, TIMED_STEPS)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return found


def timed_steps(study: Study, num_untimed: int, num_timed: int) -> dict[str, Any]:
    """Type of the products, and median processor seconds of a step; the arms take turns."""
    systems = [sketch(run.system) for run in study.arms]
    choice = settle_precision("auto", systems, [], World(device=torch.device("cpu")))
    study = of_type(study, choice.precision)
    trainers = {run.name: trainer(run, study) for run in study.arms}
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    stop = StopSignal()
    for _ in range(num_untimed + num_timed):
        for name, one in trainers.items():
            begin = time.process_time()
            one.step(stop)
            seconds[name].append(time.process_time() - begin)
    medians = {name: quantile(own[num_untimed:], 0.5) for name, own in seconds.items()}
    return {"precision": choice.precision, "processor_seconds_a_step": medians}


def of_type(study: Study, precision: Any) -> Study:
    """The study with one type of products for all arms."""
    arms = (replace(run, train=replace(run.train, precision=precision)) for run in study.arms)
    return replace(study, arms=tuple(arms))


def longer(control: Run, num_steps: int, factor: float) -> Run:
    """The control with more steps, and with its learning rates times a factor."""
    longer = replace(control, train=replace(control.train, num_steps=num_steps))
    return replace(at_rate(longer, factor), name=f"single_stream_rate_{factor:g}")


def at_rate(run: Run, factor: float) -> Run:
    """The run with its learning rates times a factor."""
    rates = run.train.optimizer
    assert rates.muon_lr is not None
    rates = replace(rates, lr=factor * rates.lr, muon_lr=factor * rates.muon_lr)
    return replace(run, train=replace(run.train, optimizer=rates))


def of_size(study: Study, rows: int, num_steps: int) -> Study:
    """The study with other numbers of rows a step and of steps."""
    sized = (
        replace(run, train=replace(run.train, batch_rows=rows, num_steps=num_steps))
        for run in study.arms
    )
    return replace(study, arms=tuple(sized))


def equal_seconds(args: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing, one seed after another, and compare the longer control."""
    torch.set_num_threads(1)
    study = of_size(replace(first_run(), minutes=None), args.rows, args.steps)
    if args.books is not None:
        study = on_books(study, args.books)
    timed = time_steps(study, args.folder / "step_seconds.json")
    seconds = timed["processor_seconds_a_step"]
    control, ours = of_type(study, timed["precision"]).arms
    ratio = seconds[ours.name] / seconds[control.name]
    num_steps = round(ratio * ours.train.num_steps)
    ours = at_rate(ours, args.own_rate_factor)
    print(f"A step of {ours.name} takes {ratio:.2f} times the seconds: {num_steps} steps.")
    rivals = tuple(longer(control, num_steps, factor) for factor in args.rate_factors)
    studies = {
        "as_before": replace(study, arms=(ours,)),
        "longer": replace(study, arms=rivals),
    }
    for number in range(len(args.seeds)):
        for name, one in studies.items():
            so_far = replace(one, seeds=tuple(args.seeds[: number + 1]))
            if run_study(so_far, args.folder / name) is None:
                raise SystemExit("Stopped: run it again to continue.")
    found: dict[str, list[Evaluation]] = {}
    for name, one in studies.items():
        found |= evaluations(replace(one, seeds=tuple(args.seeds)), args.folder / name)
    return {
        **timed,
        "rows": args.rows,
        "rate_factors": {ours.name: args.own_rate_factor, "single_stream": args.rate_factors},
        "num_steps": {ours.name: ours.train.num_steps, "single_stream": num_steps},
        "arms": {name: bits(own) for name, own in found.items()},
        "percent_more_bits_than_two_stream": {
            rival.name: more_bits_percent(found[rival.name], found[ours.name]) for rival in rivals
        },
    }


def equal_flops(args: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing of the first run with several seeds, and compare."""
    study = replace(first_run(), seeds=tuple(args.seeds))
    if run_study(study, args.folder) is None:
        raise SystemExit("Stopped: run it again to continue.")
    found = evaluations(study, args.folder)
    arms = {name: bits(own) for name, own in found.items()}
    control, ours = found.values()
    return {
        "aim_percent": AIM_PERCENT,
        "training_flops_per_byte": training_flops(study),
        "bits_per_byte": {name: own["bits_per_byte"] for name, own in arms.items()},
        "bits_per_byte_by_seed": {name: own["by_seed"] for name, own in arms.items()},
        "difference_percent": more_bits_percent(ours, control),
        "swap_delta_by_seed": [
            as_list(swap_delta(one.whole)) for one in ours if one.whole is not None
        ],
    }


def main() -> None:
    """Run what is missing, print the table, and end with one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/first_run_seeds"))
    parser.add_argument("--equal-seconds", action="store_true")
    parser.add_argument(
        "--rate-factors",
        nargs="+",
        type=float,
        default=[1.0],
        help="factors of the longer control's learning rates: an arm each",
    )
    parser.add_argument(
        "--own-rate-factor", type=float, default=1.0, help="factor of two_stream's learning rates"
    )
    parser.add_argument("--rows", type=int, default=2, help="rows a step, with --equal-seconds")
    parser.add_argument("--steps", type=int, default=1100, help="steps of two_stream, likewise")
    parser.add_argument("--books", type=Path, help="a folder of books; with --equal-seconds")
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.books is not None and not (args.equal_seconds and args.books.is_dir()):
        parser.error(
            f"--books must be a folder of texts, and goes with --equal-seconds: got {args.books} "
            f"and --equal-seconds {'given' if args.equal_seconds else 'not given'}."
        )
    if (args.rows, args.steps) != (2, 1100) and not args.equal_seconds:
        parser.error("--rows and --steps go with --equal-seconds; else the recipe is run.")
    results = equal_seconds(args) if args.equal_seconds else equal_flops(args)
    for name, value in results.items():
        print(f"{name:26} {value}")
    question = "first_run_seconds" if args.equal_seconds else "first_run_seeds"
    finish(question, {"seeds": args.seeds, **results}, args.out)


if __name__ == "__main__":
    main()
