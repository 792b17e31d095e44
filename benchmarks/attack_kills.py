"""Does a run that is killed, stopped or out of disk lose anything?

Each trial begins a run in a process of its own and ends it at a random moment: by SIGKILL, SIGTERM,
SIGINT, or a limit on the size of files, which stands for a full disk. It does so up to three times
in a row, then lets the run go on to its end. Every trial prepares its own corpus, so that some are
ended while they do. Corpus, weights, moments and metrics must be bit for bit those of a run that
was never stopped, and nothing half written may be left.

    OMP_NUM_THREADS=1 python benchmarks/attack_kills.py --trials 100 --seed 1
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import finish

from counterpoint.data.text.corpus import DataConfig, Folder
from counterpoint.digests import file_digest
from counterpoint.recipes.training import train_run
from counterpoint.systems import single_stream
from counterpoint.train.checkpoint import checkpoint_paths
from counterpoint.train.config import TrainConfig
from counterpoint.train.distributed import World
from counterpoint.train.metrics import read_metrics
from counterpoint.train.run import Run

KINDS = ("SIGKILL", "SIGTERM", "SIGINT", "full disk")
CACHE = "cache"
REFUSED, FAILED = 3, 4  # exit status: an error of one line, any other error


def begin(folder: Path, run: Run) -> None:
    """Train in this process; ends it."""
    try:
        finished = train_run(run, folder, World(), loggers=[]).finished
        os._exit(0 if finished else 1)
    except (ValueError, OSError, KeyboardInterrupt) as error:
        os._exit(FAILED if "\n" in str(error) else REFUSED)
    except BaseException:
        os._exit(FAILED)


def apart(work: Callable[[], None]) -> int:
    """Do something in a process of its own; its number."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        work()
        os._exit(0)
    return child


def end(child: int) -> int:
    """Exit status of a process, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def disturb(kind: str, folder: Path, run: Run, draw: random.Random, seconds: float) -> int:
    """Begin the run and end it at some moment; how it ended."""
    limit = draw.randrange(1, 400_000)

    def work() -> None:
        if kind == "full disk":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        begin(folder, run)

    child = apart(work)
    if kind != "full disk":
        time.sleep(draw.uniform(0, seconds))
        os.kill(child, getattr(signal, kind))
    return end(child)


def content(folder: Path) -> dict[str, Any]:
    """What must be equal: the tensors of the last checkpoint, and the metrics but for times."""
    rows = read_metrics(folder / "metrics.jsonl")
    newest = checkpoint_paths(folder)[0]
    return {
        "files": {
            str(file.relative_to(newest)): file_digest(file)
            for file in sorted(newest.rglob("*.safetensors"))
        },
        "corpus": {
            str(file.relative_to(folder)): file_digest(file)
            for file in sorted((folder / CACHE).rglob("*.bin"))
        },
        "metrics": [{name: v for name, v in row.items() if name != "seconds"} for row in rows],
        "left": sorted(path.name for path in folder.rglob("*.partial")),
    }


def moment(folder: Path) -> str:
    """How far a run had come when it was ended."""
    if not any((folder / CACHE).glob("*/train/manifest.json")):
        return "before the corpus was whole"
    return "while training" if checkpoint_paths(folder) else "before the first checkpoint"


def at(run: Run, folder: Path) -> Run:
    """The run with a cache of its own in its folder."""
    return replace(run, data=replace(run.text_data, cache_folder=str(folder / CACHE)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "texts").mkdir()
        for number in range(300):
            words = " ".join(str(draw.randrange(1000)) for _ in range(80))
            (root / "texts" / f"{number}.txt").write_text(words)
        run = Run(
            name="attacked",
            system=single_stream.tiny(),
            train=TrainConfig(
                num_steps=30,
                batch_rows=2,
                checkpoint_every=4,
                evaluate_every=10,
                precision="float32",
            ),
            data=DataConfig(source=Folder(path=str(root / "texts")), row_ticks=64),
        )
        start = time.perf_counter()
        straight = root / "straight"
        assert end(apart(partial(begin, straight, at(run, straight)))) == 0
        seconds = time.perf_counter() - start
        expected = content(straight)
        counts: Counter[str] = Counter()
        for trial in range(options.trials):
            kind, folder = KINDS[trial % len(KINDS)], root / f"trial{trial}"
            for _ in range(draw.randint(1, 3)):
                status = disturb(kind, folder, at(run, folder), draw, seconds)
                counts[f"{kind}: ended"] += status != 0
                if status != 0:
                    counts[f"ended {moment(folder)}"] += 1
                counts[f"{kind}: with more than a line"] += status == FAILED
            ended = end(apart(partial(begin, folder, at(run, folder))))
            same = ended == 0 and content(folder) == expected
            counts[f"{kind}: trials"] += 1
            counts[f"{kind}: lost or changed"] += not same
            shutil.rmtree(folder)
            sys.stderr.write(f"\r{trial + 1}/{options.trials}")
        finish(__doc__.splitlines()[0], {"seed": options.seed, **dict(counts)}, options.out)
    bad = sum(n for name, n in counts.items() if name.endswith(("changed", "than a line")))
    sys.stderr.write(json.dumps({"faults": bad}) + "\n")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
