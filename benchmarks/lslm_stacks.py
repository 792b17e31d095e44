"""What does it cost an LSLM to listen, and which fusion stops best? Lanes of stacks on one GPU.

    python benchmarks/lslm_rows.py make --pack PACK --out ROWS
    python benchmarks/lslm_stacks.py --rows ROWS --arms early --seeds 0 1 2 --device cuda --out OUT

Every lane has its own seed and its own order of the rows; arms with the same fusion share a stack.
`silent` is middle fusion that hears nothing and is never interrupted: what listening costs is
measured against it. `frozen` keeps the random weights of its listening network. Each lane then
speaks all trials by itself: the probabilities of the stop and the codes of the words are written,
and `lslm_scores.py` reads them.
"""

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from bench_interruptions import LONGEST_S
from lslm_rows import num_phrases_of, speech
from torch import Tensor

from counterpoint.evaluate.duplex.speaking import (
    PUBLISHED,
    Spoke,
    ToSpeak,
    TrialSpeaker,
    speak_and_listen,
)
from counterpoint.formats import open_codec
from counterpoint.recipes.lslm_small import lslm_small
from counterpoint.recipes.stacks import save_lane
from counterpoint.runtime.sampler import Sampling
from counterpoint.speech.mels import LogMels
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems import build_system, lslm
from counterpoint.systems.contract import System
from counterpoint.systems.lslm import Fusion
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.lane_batches import StackedBatch
from counterpoint.train.stacked import Stack

ARMS: dict[str, Fusion] = {
    "middle": "middle",
    "silent": "middle",
    "frozen": "middle",
    "early": "early",
    "late": "late",
    "cross_attention": "cross_attention",
}
COOL = Sampling(temperature=0.5, top_p=0.99)
FIELDS = ("ticks", "targets", "elements")
TEXT_PADDING = 3
SAVED_WORDS = 100  # trials without interruption whose codes are written
ROWS_AT_A_TIME = 3500
TIMED_STEPS = 100


def say(text: str) -> None:
    print(f"[{time.perf_counter():7.1f}] {text}", flush=True)


class Rows:
    """Rows of all lanes on the device; each lane takes them in its own order.

    Args:
        folder: What `lslm_rows.py make` wrote.
        silent: For each lane, whether it reads the rows in silence.
        orders: Numbers of the rows that each lane reads in each step.
        device: Device.
    """

    def __init__(
        self,
        folder: Path,
        silent: Sequence[bool],
        orders: Tensor,
        device: torch.device,
    ) -> None:
        self._rows = {path.stem: _loaded(path, device) for path in sorted(folder.glob("*.npy"))}
        self._silent = torch.tensor(silent, device=device)
        self._lanes = [torch.nonzero(self._silent == kind)[:, 0] for kind in (False, True)]
        self._orders = orders.to(device)
        self._device = device
        sizes = [
            (self._rows[f"{prefix}targets.semantic"][..., 0] != UNSET_ID).sum(1)
            for prefix in ("", "silent.")
        ]
        self._sizes = torch.stack(sizes)
        self.content = self._content(orders.shape[1], orders.shape[2])

    def _content(self, num_lanes: int, num_rows: int) -> StackedBatch:
        named: dict[str, dict[str, Tensor]] = {field: {} for field in FIELDS}
        num_ticks = 0
        for name, rows in self._rows.items():
            field, _, stream = name.partition(".")
            if field in FIELDS:
                dtype = torch.float32 if rows.is_floating_point() else torch.long
                shape = (num_lanes, num_rows, *rows.shape[1:])
                named[field][stream] = torch.zeros(shape, dtype=dtype, device=self._device)
                num_ticks = rows.shape[1]
        start = torch.zeros(num_lanes, num_rows, num_ticks, dtype=torch.long, device=self._device)
        return stacked(named, start)

    def load(self, step: int) -> None:
        """Copy the rows of a step."""
        for field in FIELDS:
            for stream, target in getattr(self.content, field).items():
                for lanes, prefix in zip(self._lanes, ("", "silent."), strict=True):
                    if len(lanes) and f"{prefix}{field}.{stream}" in self._rows:
                        source = self._rows[f"{prefix}{field}.{stream}"]
                        target[lanes] = source[self._orders[step, lanes]].to(target.dtype)

    def sizes(self, step: int) -> list[int]:
        """Number of frames of each lane."""
        kind = self._silent.long()[:, None]
        found: list[int] = self._sizes[kind, self._orders[step]].sum(1).tolist()
        return found


def stacked(named: dict[str, dict[str, Tensor]], start: Tensor) -> StackedBatch:
    """A batch of all lanes, whose rows are all of one length."""
    return StackedBatch(
        ticks=named["ticks"],
        targets=named["targets"],
        elements=named["elements"],
        document_start=start,
        lengths=torch.full(start.shape[:2], start.shape[2], device=start.device),
    )


def _loaded(path: Path, device: torch.device) -> Tensor:
    return torch.from_numpy(np.load(path)).to(device)


def orders(seeds: Sequence[int], num_rows: int, steps: int, batch_rows: int) -> Tensor:
    """Numbers of the rows by step and lane: each seed reads all rows before it reads one again."""
    found = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(1000 + seed)
        epochs = -(-steps * batch_rows // num_rows)
        every = torch.cat([torch.randperm(num_rows, generator=generator) for _ in range(epochs)])
        found.append(every[: steps * batch_rows].view(steps, batch_rows))
    return torch.stack(found, 1)


def config(seed: int, rate: float, options: argparse.Namespace) -> TrainConfig:
    """Training of one lane: as in the recipe, with other numbers of rows and steps."""
    factors = (("listener.", 0.0),) if options.arm == "frozen" else ()
    optimizer = replace(lslm_small().train.optimizer, lr=rate, lr_factors=factors)
    assert isinstance(optimizer, OptimizerConfig)
    return TrainConfig(
        num_steps=options.steps,
        batch_rows=options.batch_rows,
        seed=seed,
        precision="float32",
        log_every=options.log_every,
        optimizer=optimizer,
        schedule=ScheduleConfig(kind="cosine", warmup_steps=options.warmup, final_ratio=0.02),
    )


class TooSlowError(Exception):
    """The steps would take longer than they may; the argument is the number that would not."""


def train(arms: Sequence[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train all lanes of one fusion, with fewer steps if there is no time for all of them."""
    try:
        return train_steps(arms, options)
    except TooSlowError as slow:
        (steps,) = slow.args
        say(f"there is time for {steps} steps only")
        fewer = argparse.Namespace(**{**vars(options), "steps": steps, "seconds": math.inf})
        return train_steps(arms, fewer)


def train_steps(arms: Sequence[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train all lanes of one fusion; return each with its arm, seed, rate and curve."""
    device = torch.device(options.device)
    lanes = [
        {"arm": arm, "seed": seed, "rate": rate, "steps": options.steps, "curve": []}
        for arm in arms
        for rate in options.rates
        for seed in options.seeds
    ]
    systems = []
    configs = []
    for lane in lanes:
        options.arm = lane["arm"]
        shape = lslm.small(ARMS[lane["arm"]])
        systems.append(build_system(shape, lane["seed"]).to(device))
        configs.append(config(lane["seed"], lane["rate"], options))
    seeds = [cast("int", lane["seed"]) for lane in lanes]
    silent = [lane["arm"] == "silent" for lane in lanes]
    num_rows = len(np.load(options.rows / "targets.semantic.npy", mmap_mode="r"))
    plan = orders(seeds, num_rows, options.steps, options.batch_rows)
    rows = Rows(options.rows, silent, plan, device)
    say(f"{len(lanes)} lanes of {', '.join(arms)}: {num_rows} rows on the device")
    begin = time.perf_counter()
    deadline = float(os.environ.get("DEADLINE", "inf"))

    def on_step(step: int, bits: list[float]) -> bool:
        for lane, own in zip(lanes, bits, strict=True):
            lane["curve"].append((step, round(own, 4)))
        seconds = time.perf_counter() - begin
        say(f"step {step}, {1000 * seconds / step:.1f} ms a step, bits a frame {rounded(bits)}")
        if step == TIMED_STEPS and seconds * options.steps / step > options.seconds:
            raise TooSlowError(max(int(0.85 * step * options.seconds / seconds) - step, 300))
        return time.time() > deadline - 25

    stack = Stack(systems, configs)
    stack.learn(rows, on_step)
    finite = stack.finish()
    seconds = time.perf_counter() - begin
    for lane, system, good in zip(lanes, systems, finite, strict=True):
        lane |= {"finite": good, "system": system, "seconds": seconds / len(lanes)}
    return lanes


def rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 2) for value in values]


# Measuring


@torch.no_grad()
def held_out_bits(
    system: System, folder: Path, *, silent: bool, shuffled: bool = False
) -> dict[str, float]:
    """Bits a frame of held-out rows, and those of each stream.

    If the words of each text are ``shuffled``, a model that reads its text pays more.
    """
    rows = torch.load(folder / "held_out.pt", weights_only=False)
    prefix = "silent/" if silent else ""
    named: dict[str, dict[str, Tensor]] = {field: {} for field in FIELDS}
    for field in FIELDS:
        for name, x in rows.items():
            if name.startswith(f"{prefix}{field}/"):
                values = torch.from_numpy(x).to(system.device)
                whole = values.float() if values.is_floating_point() else values.long()
                named[field][name.rpartition("/")[2]] = whole
    if silent:
        named["ticks"]["heard"] = torch.zeros_like(
            torch.from_numpy(rows["ticks/heard"]).float(), device=system.device
        )
    text = named["ticks"]["text"]
    if shuffled:
        generator = torch.Generator().manual_seed(0)
        for row in text:
            words = (row != TEXT_PADDING).nonzero()[1:, 0]  # the first tick is empty
            row[words] = row[words[torch.randperm(len(words), generator=generator)]]
    start = torch.zeros_like(text)
    batch = Batch(
        ticks=named["ticks"],
        targets=named["targets"],
        elements=named["elements"],
        document_start=start,
        size=0,
    )
    losses = system.losses(batch)
    frames = float(losses["semantic"].num_ticks)
    found = {name: float(sums.nats) / frames / math.log(2) for name, sums in losses.items()}
    return {**found, "all": sum(found.values())}


def speak(
    system: System,
    trials: Sequence[dict[str, Any]],
    *,
    silent: bool,
    sampling: Sampling = PUBLISHED,
) -> list[Spoke]:
    """Let a model speak trials by itself."""
    shape = cast("lslm.LSLMConfig", system.config)
    codec = open_codec("codec2", len(shape.codebook_sizes))
    mels = LogMels(codec.frame_rate_hz)
    speaker = TrialSpeaker(system, codec, mels, shape.end_id, shape.interrupted_id)
    spoke = list[Spoke]()
    for first in range(0, len(trials), ROWS_AT_A_TIME):
        rows = [to_speak(trial, silent=silent) for trial in trials[first : first + ROWS_AT_A_TIME]]
        spoke += speak_and_listen(speaker, rows, LONGEST_S, sampling)
    return spoke


def to_speak(trial: dict[str, Any], *, silent: bool) -> ToSpeak:
    """A trial as a row."""
    num_text = len(trial["text"])
    prompt = {
        "semantic": torch.full((1, num_text, 1), UNSET_ID),
        "acoustic": torch.full((1, num_text, 3), UNSET_ID),
        "text": trial["text"][None].long(),
        "heard": torch.zeros(1, num_text, 160),
    }
    heard = torch.zeros(1, 160) if silent else trial["heard"]
    return ToSpeak(prompt=prompt, heard=heard, seed=trial["seed"])


def measured(lane: dict[str, Any], options: argparse.Namespace, out: Path) -> None:
    """Let a trained lane speak, and write what it did."""
    system: System = lane.pop("system")
    system.eval()
    silent = lane["arm"] == "silent"
    bits = partial(held_out_bits, system, options.rows, silent=silent)
    facts = {**lane, "held_out_bits": bits(), "with_shuffled_text": bits(shuffled=True)}
    (out / "lane.json").write_text(json.dumps(facts))
    say(f"{out.name}: held-out bits {facts['held_out_bits']}, {facts['with_shuffled_text']}")
    trials = torch.load(options.rows / "trials.pt", weights_only=False)
    if silent:
        trials = [one for one in trials if one[0] == "clean" and one[1]["onset_s"] is None]
    begin = time.perf_counter()
    spoke = speak(system, [trial for _, trial in trials], silent=silent)
    kept: dict[str, list[Any]] = {}
    words: dict[str, int] = {}
    for number, ((name, trial), said) in enumerate(zip(trials, spoke, strict=True)):
        entry = {"onset_s": trial["onset_s"], "drawn_s": said.drawn_s, "frames": len(said.codes)}
        kept.setdefault(name, []).append({**entry, "ended": said.ended, "number": number})
        if trial["onset_s"] is None and name in ("clean", "noisy"):
            words[name] = words.get(name, 0) + 1
            if words[name] <= SAVED_WORDS:
                kept[name][-1]["words"] = trial["words"]
                kept[name][-1]["codes"] = said.codes.tolist()
    said_aloud = [entry for some in kept.values() for entry in some if "codes" in entry]
    some = [trials[entry["number"]][1] for entry in said_aloud]
    for entry, said in zip(
        said_aloud, speak(system, some, silent=silent, sampling=COOL), strict=True
    ):
        entry["cool"] = said.codes.tolist()
    (out / "trials.json").write_text(json.dumps(kept, separators=(",", ":")))
    scores = torch.cat([said.stops.scores for said in spoke]).half()
    np.savez_compressed(out / "scores.npz", scores=scores.numpy())
    ends = sum(said.ended for said in spoke) / len(spoke)
    say(f"{out.name}: spoke in {time.perf_counter() - begin:.1f} s; {ends:.2f} end by themselves")
    if lane["seed"] in options.save and not silent:
        shape = cast("lslm.LSLMConfig", system.config)
        data = speech(num_phrases=num_phrases_of(options.rows))
        run = replace(lslm_small(), name=out.name, system=shape, data=data, minutes=None)
        save_lane(system.cpu(), run, out / "run")
        for file in options.rows.glob("*.model"):
            shutil.copy(file, out / "run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=["middle"], choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", type=float, default=[2e-3])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--batch-rows", type=int, default=64)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument(
        "--seconds",
        type=float,
        default=math.inf,
        help="of the training of a fusion; fewer steps if they are too short",
    )
    parser.add_argument(
        "--save",
        nargs="*",
        type=int,
        default=[],
        help="seeds whose models are kept, in run folders",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    deadline = float(os.environ.get("DEADLINE", "inf"))
    for fusion in dict.fromkeys(ARMS[arm] for arm in options.arms):
        arms = [arm for arm in options.arms if ARMS[arm] == fusion]
        for lane in train(arms, options):
            name = f"{lane['arm']}-{lane['rate']:g}-{lane['seed']}"
            out = options.out / name
            out.mkdir(parents=True, exist_ok=True)
            if not lane["finite"] or time.time() > deadline - 5:
                say(f"{name} is not measured: its weights are not finite, or the time is over")
                continue
            guarded(measured, lane, options, out)


def guarded(function: Callable[..., None], *args: Any) -> None:
    """Call a function; its failure must not lose the other lanes."""
    try:
        function(*args)
    except Exception as error:
        say(f"failed: {error!r}")


if __name__ == "__main__":
    main()
