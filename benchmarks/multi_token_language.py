"""Which part of Multi-Token Attention pays, in language modelling and in recall?

*text*: plain attention, mixing alone, convolutions alone, and all, on books, with bits a byte of
books by other authors. Training FLOPs are equal by the width of the MLPs, counting every pair that
is read once, for all kinds of attention. One more arm is plain attention that learns for as many
seconds as all of it. *recall*: key-value recall (`sections_small`) and needles in a haystack
(`needles_small`), plain beside all; small towers have no width to spare, so `--match steps` lets
plain attention learn for more steps instead.

The seeds of an arm are lanes of one stack. All arms get the same bytes in the same order. The form
is the chunked one, so seconds are those of this form.

    python benchmarks/multi_token_language.py record text recall --books books.tar.xz
"""

import argparse
import json
import math
import os
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from record import finish
from task_lanes import train_task_lanes
from torch import Tensor

from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.mixer import MixerConfig
from counterpoint.blocks.multi_token_attention import MultiTokenConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.data.tasks.items import ScoredTask
from counterpoint.data.tasks.named import named_task
from counterpoint.data.tasks.source import TaskData
from counterpoint.errors import UserError
from counterpoint.evaluate.statistics import student_quantile
from counterpoint.progress import Progress
from counterpoint.recipes.stacks import record_runs
from counterpoint.streams.batch import Batch
from counterpoint.systems import build_system
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.lane_batches import StackedBatch
from counterpoint.train.run import Run
from counterpoint.train.stacked import Stack

CONVOLUTION = MultiTokenConfig(mix_before=False, mix_after=False, head_norm="none")
MIXERS: dict[str, MixerConfig] = {
    "plain": AttentionConfig(),
    "all": MultiTokenConfig(form="naive"),
    "mixing": MultiTokenConfig(conv_before=False, conv_after=False),
    "convolution": CONVOLUTION,
}
RECALL_FORMS = ("sections", "sections_small", "needles", "needles_small")
PLAIN_HIDDEN = 688


def flops_of(tower: TowerConfig, num_ticks: int) -> float:
    """Forward FLOPs of a tick of a tower, counting each pair that is read once."""
    width, heads = tower.width, tower.num_heads
    pairs = (num_ticks + 1) / 2
    total = 0.0
    for layer in range(tower.num_layers):
        total += 2 * (4 * width**2 + 3 * width * tower.mlp_hidden) + 4 * width * pairs
        if isinstance(tower.mixer, MultiTokenConfig):
            config = tower.mixer
            maps = config.mix_before + config.mix_after
            convolutions = sum(rows > 0 for rows in config.num_rows(layer))
            taps = config.num_queries * config.num_keys
            total += 2 * heads * pairs * (heads * maps + taps * convolutions)
    return total


def plain_tower(arguments: argparse.Namespace, num_ticks: int) -> TowerConfig:
    """Return the tower with plain attention."""
    return TowerConfig(
        width=arguments.width,
        num_layers=arguments.layers,
        num_heads=arguments.heads,
        mlp_hidden=PLAIN_HIDDEN * arguments.width // 256,
        window=num_ticks,
    )


def matched(arguments: argparse.Namespace, mixer: MixerConfig, num_ticks: int) -> TowerConfig:
    """Return a tower with the FLOPs of the plain one, by the width of its MLPs."""
    tower = plain_tower(arguments, num_ticks)
    aim = flops_of(tower, num_ticks)
    own = replace(tower, mixer=mixer)
    a_unit = 6 * tower.width * tower.num_layers
    surplus = flops_of(own, num_ticks) - aim
    return replace(own, mlp_hidden=round(tower.mlp_hidden - surplus / a_unit))


class Books:
    """Bytes of books, and those of other authors."""

    def __init__(self, archive: Path, device: str) -> None:
        texts: dict[str, list[tuple[str, bytes]]] = {}
        with tarfile.open(archive) as tar:
            for member in sorted(tar.getmembers(), key=lambda one: one.name):
                file = tar.extractfile(member)
                if file is not None:
                    part, _, name = member.name.rpartition("/")
                    texts.setdefault(part.rpartition("/")[2], []).append((name, file.read()))
        joined = b"".join(text for _, text in texts["train"])
        self.train = torch.frombuffer(bytearray(joined), dtype=torch.uint8).to(device)
        self.held_out = {
            name: torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)
            for name, text in texts["valid"]
        }


class BookLanes:
    """Random pieces of the books as batches of lanes; a `LaneSource`. The first seed draws them."""

    def __init__(self, text: Tensor, seeds: list[int], shape: tuple[int, int, int]) -> None:
        num_steps, rows, num_ticks = shape
        last = len(text) - num_ticks - 1
        drawn = [
            torch.randint(last, (num_steps, rows), generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        self._places = torch.stack(drawn, 1).to(text.device)
        self._text = text
        self._offset = torch.arange(num_ticks + 1, device=text.device)
        self._size = rows * num_ticks
        empty = torch.zeros(len(seeds), rows, num_ticks, dtype=torch.long, device=text.device)
        self.content = StackedBatch({"part": empty}, {"part": empty.clone()}, {}, empty.clone())

    def load(self, step: int) -> None:
        ids = self._text[self._places[step][..., None] + self._offset].long()
        self.content.ticks["part"].copy_(ids[..., :-1])
        self.content.targets["part"].copy_(ids[..., 1:])

    def sizes(self, step: int) -> list[int]:
        return [self._size] * len(self._places[step])


def held_out_bits(system: Any, books: Books, num_ticks: int, rows: int) -> dict[str, float]:
    """Bits a byte of evenly placed pieces of every held-out book."""
    found = {}
    for name, text in books.held_out.items():
        last = len(text) - num_ticks - 1
        places = torch.linspace(0, last, rows, device=text.device).long()
        ids = text[places[:, None] + torch.arange(num_ticks + 1, device=text.device)].long()
        batch = Batch(
            ticks={"part": ids[:, :-1]},
            targets={"part": ids[:, 1:]},
            document_start=torch.zeros_like(ids[:, 1:]),
            size=rows * num_ticks,
        )
        with torch.no_grad():
            scores = system(batch)["part"].float()
        nats = F.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten())
        found[name] = float(nats) / math.log(2)
    return found


def trainings(num_steps: int, arguments: argparse.Namespace) -> list[TrainConfig]:
    """Return the training of every seed."""
    return [
        TrainConfig(
            num_steps=num_steps,
            batch_rows=arguments.rows,
            precision=arguments.precision,
            seed=seed,
            log_every=max(num_steps // 20, 1),
            optimizer=OptimizerConfig(lr=arguments.lr),
            schedule=ScheduleConfig(warmup_steps=num_steps // 20),
        )
        for seed in arguments.seeds
    ]


def train_text(
    arm: str, num_steps: int, arguments: argparse.Namespace, books: Books, deadline: float
) -> dict[str, Any]:
    """Train the seeds of an arm."""
    tower = matched(arguments, MIXERS[arm], arguments.ticks)
    systems = [build_system(SingleStreamConfig(tower=tower), seed) for seed in arguments.seeds]
    stack = Stack(
        [one.eval() for one in systems], trainings(num_steps, arguments), arguments.device
    )
    shape = (num_steps, arguments.rows, arguments.ticks)
    source = BookLanes(books.train, arguments.seeds, shape)
    curve: list[Any] = []
    marks: list[float] = []
    pauses: list[float] = []
    scored: list[Any] = []
    quarter = max(num_steps // 4, 1)

    def measure(step: int) -> None:
        stack.finish()
        for one in systems:
            one.to(arguments.device)
        rows = (arguments.ticks, arguments.held_out_rows)
        scored.append((step, [held_out_bits(one, books, *rows) for one in systems]))

    def on_step(step: int, bits: list[float]) -> bool:
        marks.append(time.time())
        curve.append((step, [round(one, 4) for one in bits]))
        is_over = marks[-1] > deadline
        if is_over or step % quarter == 0 or step == num_steps:
            measure(step)
        pauses.append(time.time() - marks[-1])
        return is_over

    stack.learn(source, on_step)
    bits = scored[-1][1]
    first = min(1, len(marks) - 1)  # the steps before it make the graph
    seconds = marks[-1] - marks[first] - sum(pauses[first:-1])
    seconds /= max(curve[-1][0] - curve[first][0], 1)
    plain = matched(arguments, MIXERS["plain"], arguments.ticks)
    return {
        "steps": curve[-1][0],
        "of_steps": num_steps,
        "step_ms": 1e3 * seconds,
        "parameters": sum(one.numel() for one in systems[0].parameters()),
        "mlp_hidden": tower.mlp_hidden,
        "flops_to_plain": flops_of(tower, arguments.ticks) / flops_of(plain, arguments.ticks),
        "bits": bits,
        "mean": [sum(own.values()) / len(own) for own in bits],
        "curve": curve,
        "along": [
            (step, [sum(own.values()) / len(own) for own in every]) for step, every in scored
        ],
    }


def paired(found: list[float], base: list[float]) -> dict[str, float]:
    """Mean difference over seeds that read the same bytes, with its t interval."""
    differences = torch.tensor(found, dtype=torch.float64) - torch.tensor(base, dtype=torch.float64)
    number = len(differences)
    mean = float(differences.mean())
    if number < 2:
        return {"value": mean}
    half = student_quantile(number - 1) * float(differences.std()) / math.sqrt(number)
    return {"value": mean, "low": mean - half, "high": mean + half}


def bench_text(arguments: argparse.Namespace, results: dict[str, Any], stop: float) -> None:
    books = Books(arguments.books, arguments.device)
    order = [*arguments.arms, "plain_long"]
    for number, arm in enumerate(order):
        deadline = time.time() + (stop - time.time()) / (len(order) - number) - 1
        steps = arguments.steps
        if arm == "plain_long":
            ratio = results["text all"]["step_ms"] / results["text plain"]["step_ms"]
            steps = round(steps * ratio)
        name = "plain" if arm == "plain_long" else arm
        found = train_text(name, steps, arguments, books, deadline)
        if arm != "plain" and "text plain" in results:
            found["less_plain"] = paired(found["mean"], results["text plain"]["mean"])
        results[f"text {arm}"] = found
        shown = {k: v for k, v in found.items() if k not in ("curve", "bits", "along")}
        print(arm, shown, flush=True)
        write(results, arguments.out)


def recall_runs(arguments: argparse.Namespace, form: str) -> dict[str, list[Run]]:
    """Return the runs of every arm on a form of a task."""
    task = cast("ScoredTask", named_task(form, arguments.data))
    num_ticks = task.most_symbols + 1
    found = {}
    for arm in ("all", "plain"):
        tower = matched(arguments, MIXERS[arm], num_ticks)
        num_steps = arguments.recall_steps
        if arguments.match == "steps":
            plain = plain_tower(arguments, num_ticks)
            tower, dearest = (replace(plain, mixer=MIXERS[one]) for one in (arm, "all"))
            num_steps = round(num_steps * flops_of(dearest, num_ticks) / flops_of(tower, num_ticks))
        found[arm] = [
            Run(
                name=f"{form}-{arm}-{seed}",
                system=SingleStreamConfig(tower=tower),
                data=TaskData(task=task, seed=seed),
                train=TrainConfig(
                    num_steps=num_steps,
                    batch_rows=32,
                    precision="float32",
                    seed=seed,
                    log_every=max(num_steps // 20, 1),
                    evaluate_every=max(num_steps // 4, 1),
                    optimizer=OptimizerConfig(lr=arguments.lr),
                    schedule=ScheduleConfig(warmup_steps=100),
                ),
            )
            for seed in arguments.recall_seeds
        ]
    return found


def bench_recall(arguments: argparse.Namespace, results: dict[str, Any], stop: float) -> None:
    """Train all forms and arms, each for an equal share of the seconds that are left.

    Arms of which one was cut off before its last step are not compared.
    """
    runs = {form: recall_runs(arguments, form) for form in arguments.forms}
    left = sum(map(len, runs.values()))
    for form, arms in runs.items():
        scores: dict[str, list[dict[str, float]]] = {}
        is_cut = False
        for arm, own in arms.items():
            deadline = time.time() + (stop - time.time()) / left - 1
            left -= 1
            lanes = train_task_lanes(own, arguments.folder, arguments.device, 300, deadline)
            is_cut |= any(lane["steps"] < own[0].train.num_steps for lane in lanes)
            scores[arm] = [lane["scores"][-1][1] for lane in lanes]
            results[f"recall {form} {arm}"] = {"scores": scores[arm], "lanes": lanes}
            write(results, arguments.out)
        if is_cut:  # then FLOPs are not equal
            continue
        results[f"recall {form} less plain"] = {
            kind: paired(
                [one[kind] for one in scores["all"]], [one[kind] for one in scores["plain"]]
            )
            for kind in scores["plain"][0]
        }


def write(results: dict[str, Any], out: str | None) -> None:
    if out:
        Path(out).write_text(json.dumps(results))


def check_forms(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End the program with one line if a form lacks its data."""
    try:
        for form in arguments.forms:
            named_task(form, arguments.data)
    except UserError as error:
        parser.error(str(error))


def read_options() -> argparse.Namespace:
    """Return the options of the command line, which were checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=("record", "text", "recall"))
    parser.add_argument("--books", type=Path, help="archive with train/ and valid/")
    parser.add_argument("--arms", nargs="+", default=list(MIXERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--ticks", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--held-out-rows", type=int, default=64, help="pieces of each book")
    parser.add_argument(
        "--forms",
        nargs="+",
        choices=RECALL_FORMS,
        default=["sections_small", "needles_small"],
        help="tasks of recall",
    )
    parser.add_argument("--data", default="", help="folder with `books` that hide the needles")
    parser.add_argument("--recall-steps", type=int, default=1500)
    parser.add_argument(
        "--match",
        choices=("width", "steps"),
        default="width",
        help="how FLOPs of recall are equal: narrower MLPs, or more steps of plain attention",
    )
    parser.add_argument("--recall-seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs/multi_token_recall"))
    parser.add_argument("--recall-share", type=float, default=0.35, help="of the seconds")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", help="file for the record")
    arguments = parser.parse_args()
    check_forms(parser, arguments)
    return arguments


def main() -> None:
    arguments = read_options()
    begin = time.time()
    stop = min(begin + arguments.seconds, float(os.environ.get("DEADLINE", "inf")))
    results: dict[str, Any] = {"arguments": {k: str(v) for k, v in vars(arguments).items()}}
    if arguments.device == "cuda":
        results["gpu"] = torch.cuda.get_device_name()
    if "record" in arguments.parts:
        for form in arguments.forms:
            every = [run for runs in recall_runs(arguments, form).values() for run in runs]
            record_runs(every, arguments.folder, Progress(quiet=True))
    if "text" in arguments.parts:
        share = arguments.recall_share if "recall" in arguments.parts else 0.0
        bench_text(arguments, results, begin + (1 - share) * (stop - begin))
    if "recall" in arguments.parts:
        bench_recall(arguments, results, stop)
    if arguments.parts != ["record"]:
        finish("Which part of Multi-Token Attention pays?", results, arguments.out)


if __name__ == "__main__":
    main()
