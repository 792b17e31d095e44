"""Does thinking help to find the errors of a speaker? Runs of one arrangement at once, on a GPU.

Runs differ in their seeds or learning rates and are lanes of one stack; arrangements with the same
system are joined by "+". The protocol and the result are in docs/results/shanks.md. Problems are
made beforehand:

    python benchmarks/shanks_stacks.py make --folder /tmp/spoken --rows 20000 \
        --arrangements interleaved-recalled silent-recalled
    python benchmarks/shanks_stacks.py train --folder /tmp/spoken --out runs/spoken_maths_run \
        --arrangements interleaved-recalled+silent-recalled --steps 3000 --seeds 1 2 3

The arrangement "sound-recalled" hears problems that are joined from spoken words (`--bank FILE`,
which the command `bank` makes with Piper). It begins with the weights of "interleaved-recalled"
with the same seed and rate, where they are in `--out`: only its ears are new.

`train` writes weights in 16 bits and what was learned by kind of word; bench_shanks.py reads them.
"""

import argparse
import io
import json
import lzma
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from counterpoint.config_json import encode
from counterpoint.data.recorded import Recorded, record
from counterpoint.data.tasks.spoken_maths.bank import make_bank, read_bank
from counterpoint.data.tasks.spoken_maths.problems import SpokenMaths
from counterpoint.data.tasks.spoken_maths.source import Arrangement, PreparedMaths, SpokenMathsData
from counterpoint.data.tasks.spoken_maths.thoughts import Style
from counterpoint.errors import UserError
from counterpoint.evaluate.duplex.thought_kinds import KindScorer
from counterpoint.processes import work_in_processes
from counterpoint.recipes.begun import keep_or_check_begun
from counterpoint.recipes.shanks_small import spoken_maths_run
from counterpoint.speech.voices import JOE_FORMANTS, Synthesizer, find_voices
from counterpoint.streams.batch import Batch
from counterpoint.streams.rounds import HEARD
from counterpoint.systems import build_system, system_layout
from counterpoint.systems.contract import System
from counterpoint.train.config import OptimizerConfig
from counterpoint.train.lane_batches import LaneBatches
from counterpoint.train.run import Run
from counterpoint.train.stacked import Stack

PIECE_ROWS = 512
"""Rows that one process makes at once."""

TUNING_PROBLEMS = range(100_000, 100_200)
"""Held-out problems on which rates are chosen; those that are reported have lower numbers."""

TICKS = "ticks"
TARGETS = "targets"
SOUND = "sound"
"""Arrangement of models that hear frames instead of words."""

NUM_POINTS = 4
"""Points of the learning curves."""

TIMED_STEPS = 24

AGREEING_S = 6.0
"""Seconds for which a process waits for the other one."""


def main(argv: Sequence[str] | None = None) -> None:
    """Make problems, or learn from them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    making = parts.add_parser("make")
    making.add_argument("--rows", type=int, default=20_000)
    making.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    talking = parts.add_parser("bank")
    talking.add_argument("--takes", type=int, default=4, help="of every word by every voice")
    talking.add_argument("--out", type=Path, required=True)
    talking.add_argument("--samples", action="store_true", help="keep them, for noise")
    joes = [f"piper:joe:{formant:g}" for formant in JOE_FORMANTS]
    talking.add_argument("--voices", nargs="+", default=joes, help="such as kokoro:jm_kumo")
    training = parts.add_parser("train")
    training.add_argument("--steps", type=int, default=0, help="0: as many as fit into --seconds")
    training.add_argument(
        "--seconds", type=float, nargs="+", default=[60.0], help="of each; it is cut off then"
    )
    training.add_argument(
        "--agree", type=Path, help="folder in which two processes agree on equal steps"
    )
    training.add_argument("--without-weights", action="store_true", help="write only numbers")
    training.add_argument("--problems", type=int, default=len(TUNING_PROBLEMS))
    training.add_argument("--batch-rows", type=int, default=32)
    training.add_argument("--seeds", type=int, nargs="+", default=[0])
    training.add_argument("--rates", type=float, nargs="+", default=[2e-3])
    training.add_argument("--device", default="cuda")
    training.add_argument("--out", type=Path, required=True)
    for one in (making, training):
        one.add_argument("--arrangements", nargs="+", required=True)
        one.add_argument("--bank", default="", help="file of spoken words")
        one.add_argument("--folder", type=Path, required=True, help="folder of the problems")
    options = parser.parse_args(argv)
    if options.part == "bank":
        voices = find_voices(options.voices)
        problems = (SpokenMaths().problem(0, number) for number in range(400))
        bank = make_bank(Synthesizer(), voices, problems, options.takes, sampled=options.samples)
        bank.save(options.out)
    elif options.part == "make":
        make(options)
    else:
        last_s = float(os.environ.get("DEADLINE", "inf"))
        for number, name in enumerate(options.arrangements):
            seconds = options.seconds[min(number, len(options.seconds) - 1)]
            train(name, min(time.time() + seconds, last_s), options)


def run_of(name: str, bank: str = "") -> Run:
    """Return the run with a name such as "interleaved-checked" or "sound-recalled"."""
    arrangement, _, style = name.partition("-")
    if arrangement == SOUND:
        return spoken_maths_run("interleaved", cast("Style", style), bank)
    return spoken_maths_run(cast("Arrangement", arrangement), cast("Style", style))


def make(options: argparse.Namespace) -> None:
    """Make the rows of some arrangements, in as many processes as there are cores."""
    begin = time.time()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.arrangements:
        keep_or_check_begun(options.folder / f"{name}.json", made_of(name, options.bank), "pool")
    size = min(PIECE_ROWS, options.rows)
    pieces = [
        (name, first) for first in range(0, options.rows, size) for name in options.arrangements
    ]
    work = partial(make_piece, options.folder, options.bank, size)
    with closing(work_in_processes(work, pieces, options.processes)) as done:
        number = sum(1 for _ in done)
    print(f"{number} pieces in {time.time() - begin:.1f} s", flush=True)


def made_of(name: str, bank: str) -> dict[str, Any]:
    """Return the digests of the problems and the bank of which the rows of an arrangement are."""
    return {key: {**own} for key, own in numbered(name, bank).fingerprint.items()}


def numbered(name: str, bank: str) -> PreparedMaths:
    """Return the rows of an arrangement; what sounds stays numbers of frames."""
    run = run_of(name, bank)
    data = cast("SpokenMathsData", run.data)
    return PreparedMaths(data, system_layout(run.system), numbered=True)


def make_piece(folder: Path, bank: str, size: int, piece: tuple[str, int]) -> None:
    """Make some rows and write them to a file."""
    name, first = piece
    one = numbered(name, bank).batches(size, 0).batch(first // size)
    arrays = {f"{TICKS}.{stream}": ids for stream, ids in one.ticks.items()}
    arrays |= {f"{TARGETS}.{stream}": ids for stream, ids in one.targets.items()}
    arrays["start"] = one.document_start
    small: Any = {key: narrow(ids.numpy()) for key, ids in arrays.items()}
    content = io.BytesIO()
    np.savez(content, **small)
    (folder / f"{name}-{first}.xz").write_bytes(lzma.compress(content.getvalue(), preset=9))


def narrow(ids: np.ndarray) -> np.ndarray:
    """Return ids in as few bytes as they need."""
    return ids.astype(np.int8 if ids.max() <= np.iinfo(np.int8).max else np.int16)


class Pool:
    """Rows that were made beforehand, in a new order in every pass; a `BatchSource`.

    Args:
        folder: Folder of the rows.
        name: Name of the arrangement.
        batch_rows: Number of rows of a batch.
        bank: File of spoken words; empty for words without sound.

    Raises:
        UserError: There are no rows, or they are of other problems or another bank.
    """

    def __init__(self, folder: Path, name: str, batch_rows: int, bank: str) -> None:
        files = sorted(folder.glob(f"{name}-[0-9]*.xz"))
        pieces = [np.load(io.BytesIO(lzma.decompress(file.read_bytes()))) for file in files]
        record = folder / f"{name}.json"
        if not pieces or not record.exists():
            raise UserError(
                f"{folder} must hold rows of {name}, and {record.name}, which says of what they "
                f"are made: got {len(pieces)} files of rows. Use `make` with an empty folder."
            )
        keep_or_check_begun(record, made_of(name, bank), "pool")
        rows = {
            key: torch.from_numpy(np.concatenate([piece[key] for piece in pieces]))
            for key in pieces[0].files
        }
        self._start = rows.pop("start")
        self._ticks = {key[6:]: own for key, own in rows.items() if key.startswith(TICKS)}
        self._targets = {key[8:]: own for key, own in rows.items() if key.startswith(TARGETS)}
        self._batch_rows = batch_rows
        self.seed = 0

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        steps = len(self._start) // self._batch_rows
        epoch, place = divmod(step, steps)
        order = torch.randperm(
            len(self._start), generator=torch.Generator().manual_seed(self.seed * 1000 + epoch)
        )
        rows = order[place * self._batch_rows : (place + 1) * self._batch_rows]
        targets = {stream: ids[rows].long() for stream, ids in self._targets.items()}
        return Batch(
            ticks={stream: ids[rows].long() for stream, ids in self._ticks.items()},
            targets=targets,
            document_start=self._start[rows].long(),
            size=sum(int((ids >= 0).sum()) for ids in targets.values()),
        )


class OverError(Exception):
    """The time of an arrangement is over."""


class Lane(NamedTuple):
    """What a lane learns."""

    run: Run
    seed: int
    rate: float

    @property
    def name(self) -> str:
        """Name of the file with its weights."""
        return file_name(self.run.name, self.seed, self.rate)


def train(names: str, deadline: float, options: argparse.Namespace) -> None:
    """Train all seeds and rates of some arrangements; write what they learned as it comes."""
    options.out.mkdir(parents=True, exist_ok=True)
    runs = [run_of(name, options.bank) for name in names.split("+")]
    pools = {
        run.name: Pool(options.folder, run.name, options.batch_rows, options.bank) for run in runs
    }
    lanes = [
        Lane(run, seed, rate) for run in runs for seed in options.seeds for rate in options.rates
    ]
    step_s = timed(lanes, pools, options)
    steps = int(0.85 * (deadline - time.time()) / step_s)
    steps = min(steps, options.steps) if options.steps else steps
    if options.agree is not None:
        steps = agreed(steps, options.agree, names)
    print(f"{names}: {1000 * step_s:.1f} ms a step, {steps} steps", flush=True)
    try:
        learn(lanes, pools, steps, options, deadline)
    except OverError as error:
        print(error, flush=True)


def agreed(steps: int, folder: Path, name: str) -> int:
    """Return the steps for which two processes beside each other, one for each half, have time."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(str(steps))
    ends = time.time() + AGREEING_S
    while len(list(folder.iterdir())) < 2 and time.time() < ends:
        time.sleep(0.2)
    return min(int(file.read_text() or steps) for file in folder.iterdir())


def timed(lanes: Sequence[Lane], pools: Mapping[str, Pool], options: Any) -> float:
    """Return the seconds of a step."""
    times: list[float] = []

    def on_step(step: int, bits: list[float]) -> None:
        times.append(time.time())

    stack, batches = stacked(lanes, pools, TIMED_STEPS, options, log_every=TIMED_STEPS // 3)
    with closing(batches):
        stack.learn(batches, on_step)
    return (times[2] - times[1]) / (TIMED_STEPS // 3)


def stacked(
    lanes: Sequence[Lane],
    pools: Mapping[str, Pool],
    steps: int,
    options: argparse.Namespace,
    log_every: int,
) -> tuple[Stack, "LaneBatches | Sounding"]:
    """Return a stack, and the batches of its lanes; those of one seed are the same."""
    systems = []
    configs = []
    sources: dict[tuple[str, int], Recorded] = {}
    for run, seed, rate in lanes:
        pool = pools[run.name]
        if (run.name, seed) not in sources:
            pool.seed = seed
            sources[run.name, seed] = record(pool, steps)
        system = build_system(run.system, seed)
        if run.name.startswith(SOUND):
            begin_with(
                system, options.out / file_name(run.name.replace(SOUND, "interleaved"), seed, rate)
            )
        systems.append(system)
        configs.append(
            replace(
                run.train,
                num_steps=steps,
                batch_rows=options.batch_rows,
                log_every=log_every,
                seed=seed,
                optimizer=OptimizerConfig(lr=rate, weight_decay=0.01),
            )
        )
    stack = Stack(systems, configs, options.device)
    batches = LaneBatches([sources[run.name, seed] for run, seed, _ in lanes], stack.device)
    if lanes[0].run.name.startswith(SOUND):
        frames = read_bank(Path(options.bank)).frames
        return stack, Sounding(batches, frames.to(options.device))
    return stack, batches


def begin_with(system: System, path: Path) -> None:
    """Give a model that hears frames the weights of one that hears words, if they are there."""
    if path.exists():
        weights = {name: own.float() for name, own in load_file(path).items()}
        system.load_state_dict({**system.state_dict(), **known(system, weights)})


def known(system: System, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that a system has, too."""
    return {name: own for name, own in weights.items() if name in system.state_dict()}


class Sounding:
    """Batches in which numbers of frames are replaced by the frames; a `LaneSource`.

    Args:
        batches: The batches.
        frames: Frames by their numbers; the last one is silence.
    """

    def __init__(self, batches: LaneBatches, frames: Tensor) -> None:
        self._batches = batches
        self._frames = frames
        numbers = batches.content.ticks[HEARD]
        heard = frames.new_zeros(*numbers.shape, frames.shape[1])
        self.content = batches.content._replace(ticks={**batches.content.ticks, HEARD: heard})

    def load(self, step: int) -> None:
        """Write the batches of a step into `content`."""
        self._batches.load(step)
        torch.index_select(
            self._frames,
            0,
            (self._batches.content.ticks[HEARD] % len(self._frames)).flatten(),
            out=self.content.ticks[HEARD].view(-1, self._frames.shape[1]),
        )

    def sizes(self, step: int) -> list[int]:
        """Return `Batch.size` of every lane at a step."""
        return self._batches.sizes(step)

    def close(self) -> None:
        """See `LaneBatches.close`."""
        self._batches.close()


def file_name(name: str, seed: int, rate: float) -> str:
    """Return the name of the file with the weights of a lane."""
    return f"{name}-{seed}-{rate:g}.safetensors"


def learn(
    lanes: Sequence[Lane],
    pools: Mapping[str, Pool],
    steps: int,
    options: argparse.Namespace,
    deadline: float,
) -> None:
    """Take all steps, or as many as there is time for."""
    begin = time.time()
    every = max(steps // NUM_POINTS, 1)
    stack, batches = stacked(lanes, pools, steps, options, log_every=every)
    scorers = {
        run.name: scorer_of(run, options)
        for run in {lane.run.name: lane.run for lane in lanes}.values()
    }
    curves: list[list[dict[str, Any]]] = [[] for _ in lanes]
    print(f"{time.time() - begin:.1f} s for the batches", flush=True)

    def on_step(step: int, bits: list[float]) -> None:
        stack.finish()
        for lane, system, curve, own in zip(lanes, stack.systems, curves, bits, strict=True):
            scores = scorers[lane.run.name].score(system.to(options.device).eval())
            kinds = {kind: score._asdict() for kind, score in scores.items()}
            system.to("cpu").train()
            curve.append(
                {"step": step, "seconds": time.time() - begin, "bits": own, "kinds": kinds}
            )
            print(lane.name, json.dumps(_short(curve[-1])), flush=True)
        write(lanes, stack, steps, curves, options)
        if time.time() > deadline and step < steps:
            raise OverError(f"Stopped after {step} of {steps} steps.")

    with closing(batches):
        stack.learn(batches, on_step)


def scorer_of(run: Run, options: argparse.Namespace) -> KindScorer:
    """Return the scorer of an arrangement on the problems for tuning."""
    data = cast("SpokenMathsData", run.data)
    problems = [data.heard(number, held_out=True) for number in TUNING_PROBLEMS[: options.problems]]
    return KindScorer(system_layout(run.system), data, problems, options.device)


def write(
    lanes: Sequence[Lane],
    stack: Stack,
    steps: int,
    curves: list[list[dict[str, Any]]],
    options: argparse.Namespace,
) -> None:
    """Write the weights of every lane, and what they learned so far, by arrangement."""
    card = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    for run in {lane.run.name: lane.run for lane in lanes}.values():
        own = [number for number, lane in enumerate(lanes) if lane.run.name == run.name]
        facts = {
            "arrangement": run.name,
            "steps": steps,
            "batch_rows": options.batch_rows,
            "run": encode(run),
            "parameters": sum(weight.numel() for weight in stack.systems[own[0]].parameters()),
            "device": card,
            "lanes": [
                {"seed": lanes[one].seed, "rate": lanes[one].rate, "curve": curves[one]}
                for one in own
            ],
        }
        (options.out / f"{run.name}.json").write_text(json.dumps(facts))
    if options.without_weights:
        return
    for lane, system in zip(lanes, stack.systems, strict=True):
        weights = {n: w.detach().half().cpu() for n, w in system.state_dict().items()}
        save_file(weights, options.out / lane.name)


def _short(point: dict[str, Any]) -> dict[str, Any]:
    """Return a point with the bits and right words of each kind only."""
    kinds = {
        k: [round(own["bits"], 3), round(own["right"], 3)] for k, own in point["kinds"].items()
    }
    return {**point, "seconds": round(point["seconds"], 1), "kinds": kinds}


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
