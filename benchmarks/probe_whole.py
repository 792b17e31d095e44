"""Where in a two_stream is the whole of a log? Linear probes of its states for the leading entity.

An arm of `bench_part_whole_small.py` is trained on logs. Ridge regression then reads the most
frequent entity from states at the tick that predicts the answer: the mean of the compressed blocks,
the mean of the whole states, the newest whole state, and the part state before the head. It is
fitted on 1,800 logs and tested on 600 others.

    python benchmarks/probe_whole.py two_stream_before before_no_predict two_stream --seed 100
"""

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from bench_part_whole_small import TASKS, TRAIN, trained
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.data.tasks.items import HELD_OUT_SEED, Item
from counterpoint.data.tasks.source import TaskData, item_rows
from counterpoint.systems.two_stream import TwoStream

NUM_FITTED = 1800
NUM_TESTED = 600
ROWS = 100
RIDGE = 0.01


@torch.no_grad()
def states(model: TwoStream, items: Sequence[Item]) -> dict[str, Float[Tensor, "B D"]]:
    """Return states at the tick that predicts the first answer of each item, by name."""
    num_ticks = TaskData(task=TASKS["logbook"]).num_ticks(model.layout)
    batch = item_rows(items, model.layout, num_ticks)
    row = torch.arange(len(items))
    tick = torch.tensor([item.answers[0].start for item in items])
    lower = model._read_rows(batch)
    compressed = model.compress(lower.cut)
    reading = model.read_whole(batch)
    finished = reading.finished[row, tick]
    real = (torch.arange(compressed.shape[1]) < finished[:, None])[..., None]
    guidance = model._guidance(lower, model.steering.record(reading.whole, lower.cut.end_step))
    return {
        "compressed": (compressed * real).sum(1) / finished[:, None],
        "whole": (reading.whole * real).sum(1) / finished[:, None],
        "newest whole": reading.whole[row, finished - 1],
        "part": model._write_part(lower, guidance)[row, tick],
        "attention to the null key": reading.attention[row, tick, :1],
    }


def right_share(x: Float[Tensor, "N D"], y: Int[Tensor, " N"]) -> float:
    """Return the share of tested items whose class ridge regression reads from their states."""
    fitted = x[:NUM_FITTED]
    x = (x - fitted.mean(0)) / (fitted.std(0) + 1e-5)
    x = F.pad(x, (0, 1), value=1.0).double()
    classes = F.one_hot(y).double()
    seen = x[:NUM_FITTED]
    penalty = RIDGE * NUM_FITTED * torch.eye(x.shape[1]).double()
    weight = torch.linalg.solve(seen.T @ seen + penalty, seen.T @ classes[:NUM_FITTED])
    found = (x[NUM_FITTED:] @ weight).argmax(1)
    return float((found == y[NUM_FITTED:]).double().mean())


def main() -> None:
    """Train and probe each arm, and print one line for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arms", nargs="+")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--num-steps", type=int, default=TRAIN.num_steps, help="steps of training")
    args = parser.parse_args()
    torch.set_num_threads(1)
    task = TASKS["logbook"]
    items = [task.item(HELD_OUT_SEED - 4, number) for number in range(NUM_FITTED + NUM_TESTED)]
    leader = torch.tensor([ord(item.answers[0].text) - ord("A") for item in items])
    for arm in args.arms:
        model, _ = trained("logbook", arm, args.seed, args.learning_rate, args.num_steps)
        model.eval()
        if not isinstance(model, TwoStream):
            raise SystemExit(f"Only a two_stream has a whole to probe: {arm!r} is another system.")
        parts = [states(model, items[i : i + ROWS]) for i in range(0, len(items), ROWS)]
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        null = float(found.pop("attention to the null key").mean())
        shares = ", ".join(f"{name} {right_share(x, leader):.0%}" for name, x in found.items())
        print(f"{arm}: {shares}; attention to the null key {null:.1%}", flush=True)


if __name__ == "__main__":
    main()
