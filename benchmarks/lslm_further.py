"""Trains one LSLM on one CPU core, with whole phrases, from random weights or from a trained run.

    python benchmarks/lslm_further.py --pack PACK --work FOLDER --steps 600 --out LANE [--init RUN]

It can be stopped, and started again with the same options and the same pack. Rows of like length
share a batch, so that little is padded. Held-out rows are read every 80 steps, and the weights that
read them best are kept. `--items 20` learns 20 utterances by heart in silence: can the model say at
all what it reads? `lslm_scores.py` reads what `--rows` lets the model say, and `--words` counts
word errors here.
"""

import argparse
import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lslm_limits import FIRST, bits, words
from lslm_rows import KINDS, SILENCE, digests_of, unpacked
from lslm_stacks import ARMS, measured, say
from record import finish

from counterpoint.data.making.interrupted import Items, PreparedUtterances
from counterpoint.data.source import Preparation
from counterpoint.errors import UserError
from counterpoint.recipes.begun import keep_or_check_begun
from counterpoint.runtime.load import load
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems import build_system, lslm
from counterpoint.systems.contract import System
from counterpoint.train.config import ScheduleConfig
from counterpoint.train.optimizer import lr_ratio

ROWS = 32
POOL = 8  # batches that are sorted by length together
EVERY = 80
HELD_OUT = 64
BEGIN = 8  # frames
TRAINING = "training.pt"
FREE = {"until", "best", "rows", "words", "brief", "work", "out"}  # may change in a training


def content(
    prepared: PreparedUtterances, items: Items, number: int, *, silent: bool
) -> dict[str, torch.Tensor]:
    """An item."""
    said = items.utterance(number)
    scene = SILENCE if silent else items.scene(number, prepared.seconds(said))
    return prepared.content(said, scene)


def pool(
    prepared: PreparedUtterances, items: Items, number: int, options: argparse.Namespace
) -> list[Batch]:
    """The batches of a pool, of rows of like length, in any order."""
    if options.items:
        numbers = range(options.items)
        few = [content(prepared, items, one, silent=True) for one in numbers]
        return [prepared.misread(prepared.batch(few), items, numbers)] * POOL
    numbers = range(number * POOL * ROWS, (number + 1) * POOL * ROWS)
    silent = options.arm == "silent"
    rows = [(one, content(prepared, items, one, silent=silent)) for one in numbers]
    rows.sort(key=lambda row: row[1]["text"].shape[1])
    batches = []
    for first in range(0, len(rows), ROWS):
        some, contents = zip(*rows[first : first + ROWS], strict=True)
        batches.append(prepared.misread(prepared.batch(contents), items, some))
    random.Random(number).shuffle(batches)
    return batches


@torch.no_grad()
def held_out_bits(system: System, batch: Batch) -> float:
    """Bits a frame."""
    losses = system.losses(batch)
    nats = sum(float(sums.nats) for sums in losses.values())
    return nats / float(losses["semantic"].num_ticks) / 0.6931


@torch.no_grad()
def accuracy(system: System, prepared: PreparedUtterances, items: Items) -> dict[str, float]:
    """Share of ids of the first codebook that are likeliest, with the own and another text.

    Only the text tells with which phrase an utterance begins; later codes also follow from earlier
    ones.
    """
    said = [items.utterance(FIRST + number) for number in range(HELD_OUT)]
    found: dict[str, float] = {}
    for kind, shift in (("own text", 0), ("another text", 1)):
        right = {"beginning": 0, "rest": 0}
        of = dict(right)
        for number, one in enumerate(said):
            text = said[(number + shift) % len(said)].text
            batch = prepared.batch([prepared.content(one._replace(text=text), SILENCE)])
            targets = batch.targets["semantic"][0, :, 0]
            same = system(batch)["semantic"][0, :, 0].argmax(-1) == targets
            spoken = same[targets != UNSET_ID].long()
            for part, some in zip(right, spoken.split([BEGIN, len(spoken) - BEGIN]), strict=True):
                right[part] += int(some.sum())
                of[part] += len(some)
        found |= {f"{kind}, {part}": round(right[part] / of[part], 3) for part in right}
    return found


class Training:
    """A training that can go on."""

    def __init__(self, system: System, options: argparse.Namespace) -> None:
        self.system = system
        self.options = options
        self.step = 0
        self.seconds = 0.0
        self.curve: list[list[float]] = []
        self.best: dict[str, Any] = {"bits": float("inf"), "step": 0, "weights": {}}
        self.optimizer = torch.optim.AdamW(
            system.parameters(), lr=options.rate, betas=(0.9, 0.95), weight_decay=0.0
        )
        self.path: Path = options.out / TRAINING
        if self.path.exists():
            kept = torch.load(self.path, weights_only=False)
            system.load_state_dict(kept["weights"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.step, self.seconds = kept["step"], kept["seconds"]
            self.curve, self.best = kept["curve"], kept["best"]
            say(f"goes on after step {self.step}")

    def save(self) -> None:
        """Keep everything that is needed to go on."""
        kept = {name: getattr(self, name) for name in ("step", "seconds", "curve", "best")}
        kept |= {"weights": self.system.state_dict(), "optimizer": self.optimizer.state_dict()}
        partial = self.path.with_suffix(".part")
        torch.save(kept, partial)
        partial.replace(self.path)

    def take(self, batch: Batch) -> float:
        """Take a step; return its loss in nats."""
        schedule = ScheduleConfig(kind="cosine", warmup_steps=self.options.warmup, final_ratio=0.05)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.rate * lr_ratio(schedule, self.step, self.options.steps)
        loss = self.system.loss(batch).total
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.system.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    def run(self, prepared: PreparedUtterances, items: Items, held_out: Batch) -> None:
        """Take all steps."""
        made: dict[int, list[Batch]] = {}
        last = min(self.options.until or self.options.steps, self.options.steps)
        while self.step < last:
            begin = time.process_time()
            number = self.step // POOL % self.options.pools
            if number not in made:
                made[number] = pool(prepared, items, number, self.options)
            batches = made[number]
            trained = held_out_bits(self.system, batches[0])
            for batch in batches:
                self.take(batch)
            self.seconds += time.process_time() - begin
            say(
                f"step {self.step} of {self.options.steps}: {trained:.2f} bits a frame, "
                f"{self.seconds:.0f} s of a core"
            )
            if self.step % EVERY == 0 or self.step >= last:
                now = held_out_bits(self.system, held_out)
                self.curve.append([self.step, round(trained, 3), round(now, 3)])
                if now < self.best["bits"]:
                    weights = {name: x.clone() for name, x in self.system.state_dict().items()}
                    self.best = {"bits": now, "step": self.step, "weights": weights}
                say(f"held out {now:.2f}, best {self.best['bits']:.2f} at {self.best['step']}")
            self.save()


def begun(options: argparse.Namespace) -> System:
    """The model before the training."""
    if options.init:
        return load(options.init).system
    return build_system(lslm.small(ARMS[options.arm]), options.seed)


def check_begun(options: argparse.Namespace) -> None:
    """Record what the training begins with; `UserError` if it was begun with something else."""
    file = options.out / "begun.json"
    if (options.out / TRAINING).exists() and not file.exists():
        say(f"{options.out} does not tell with which pack and options it was begun: check them")
    own = {name: value for name, value in vars(options).items() if name not in FREE}
    keep_or_check_begun(file, {**own, "pack": digests_of(options.pack)}, "training")


def results(
    training: Training, prepared: PreparedUtterances, items: Items, options: argparse.Namespace
) -> dict[str, Any]:
    """Bits and word errors of the trained model; ``system`` is the model."""
    system = training.system.eval()
    if options.best:
        system.load_state_dict(training.best["weights"])
    facts: dict[str, Any] = {
        "arm": options.arm,
        "seed": options.seed,
        "rate": options.rate,
        "steps": training.best["step"] if options.best else training.step,
        "scheduled": options.steps,
        "further": bool(options.init),
        "phrases": options.phrases,
        "misread": options.misread,
        "curve": training.curve,
        "core_seconds": round(training.seconds),
    }
    kinds = {"learned by heart" if options.items else "trained phrases in new pairs": items}
    if not options.items and not options.brief:
        kinds["new phrases"] = prepared.items("held_out")
        facts["bits"] = bits(system, prepared, kinds, options.work)
    if options.words and not options.items:
        facts["accuracy"] = accuracy(system, prepared, items)
    if options.words:
        first = 0 if options.items else FIRST
        facts["word_errors"] = words(system, prepared, kinds, options.words, first)
    return facts


def arguments() -> argparse.Namespace:
    """What the user asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--kind", default="command", choices=KINDS)
    parser.add_argument("--arm", default="late", choices=list(ARMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", help="folder of a trained run")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--until", type=int, help="stop after this step of the schedule")
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--pools", type=int, default=1000, help=f"of {POOL} steps, in turn")
    parser.add_argument("--phrases", type=int, help="the first ones of the pack; default: all")
    parser.add_argument("--spliced", type=float, default=0.0)
    parser.add_argument("--misread", type=float, default=0.0, help="share of frames said before")
    parser.add_argument("--items", type=int, default=0, help="learn so many utterances by heart")
    parser.add_argument("--best", action="store_true", help="measure the best weights")
    parser.add_argument("--rows", type=Path, help="folder of trials")
    parser.add_argument("--words", type=int, default=0, help="utterances that are recognised")
    parser.add_argument("--brief", action="store_true", help="measure trained phrases alone")
    parser.add_argument("--work", type=Path, required=True, help="folder of what is unpacked")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    how = Preparation(held_out_only=True)  # phrases are then read when they are needed
    prepared = unpacked(options.pack, options.work, options.kind, how, options.spliced)
    prepared.data = replace(prepared.data, misread=options.misread)
    say(prepared.describe())
    for own in options.rows.glob("*.model") if options.rows else ():
        if own.read_bytes() != prepared.tokenizer_path.read_bytes():
            raise SystemExit(f"{options.rows} must be rows of {options.pack}: they are not.")
    items = prepared.items("train")
    items.phrases = items.phrases[: options.phrases]
    options.phrases = len(items.phrases)
    unseen = prepared.items("held_out")
    some = [content(prepared, unseen, number, silent=True) for number in range(HELD_OUT)]
    held_out = prepared.batch(some)
    check_begun(options)
    training = Training(begun(options), options)
    training.run(prepared, items, held_out)
    facts = results(training, prepared, items, options)
    (options.out / "facts.json").write_text(json.dumps(facts))
    if options.rows:
        options.save = [options.seed]
        measured({**facts, "system": training.system}, options, options.out)
    finish("Does an LSLM say what it reads after whole phrases?", facts, None)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
