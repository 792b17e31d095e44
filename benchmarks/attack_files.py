"""Does a flipped bit in any file of a run, a cache or a published model go unnoticed?

Every trial flips one random bit of one file and does what a user would do: go on with the run, load
the weights, open the corpus, load the model. What may happen: one line says what is wrong; an older
checkpoint is taken and the newer one named; or nothing at all, where what was read is equal (a
blank in JSON). A silent change, or any other error, is a fault. The config.json of a published
model has no digest, so a value there may become another one: only errors that are no line count.

    OMP_NUM_THREADS=1 python benchmarks/attack_files.py --trials 100 --seed 1
"""

import argparse
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from record import finish
from torch import Tensor

from counterpoint.data.text.corpus import DataConfig, Folder, prepare
from counterpoint.digests import json_digest
from counterpoint.formats.moshi.checkpoint import load_moshi, save_moshi
from counterpoint.progress import Progress
from counterpoint.recipes.training import train_run
from counterpoint.systems import moshi, single_stream
from counterpoint.train.checkpoint import checkpoint_paths, load_weights
from counterpoint.train.config import TrainConfig
from counterpoint.train.distributed import World
from counterpoint.train.metrics import read_metrics
from counterpoint.train.run import Run

Use = Callable[[Path], Any]
PUBLISHED = "config.json of a published model, load"


def digest(tensors: dict[str, Tensor]) -> str:
    return json_digest({name: tensor.double().tolist() for name, tensor in tensors.items()})


def outcome(use: Use, folder: Path, expected: Any) -> str:
    """What comes of using a folder."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = use(folder)
        except (ValueError, OSError) as error:
            return "crashed" if "\n" in str(error) else "refused in one line"
        except Exception:
            return "crashed"
    if found == expected:
        return "equal"
    return "changed, and told" if told else "silent change"


def attack(
    use: Use, good: Path, names: list[Path], trials: int, draw: random.Random
) -> Counter[str]:
    """Flip bits of some files of a folder, one at a time."""
    work = good.with_name("work")
    shutil.copytree(good, work)
    expected = use(work)
    counts: Counter[str] = Counter()
    for _ in range(trials):
        shutil.rmtree(work)
        shutil.copytree(good, work)
        file = work / draw.choice(names)
        content = bytearray(file.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        counts[outcome(use, work, expected)] += 1
    shutil.rmtree(work)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        results = {
            name: dict(attack(use, good, names, options.trials, draw))
            for name, (use, good, names) in targets(Path(place)).items()
        }
    bad = sum(
        found.get(kind, 0) for found in results.values() for kind in ("crashed", "silent change")
    )
    finish(__doc__.splitlines()[0], {"seed": options.seed, **results, "faults": bad}, options.out)
    sys.exit(bad > 0)


def targets(root: Path) -> dict[str, tuple[Use, Path, list[Path]]]:
    """What is attacked: how it is used, the good folder, its files."""
    texts, run_folder, cache = root / "texts", root / "run", root / "cache"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number}.txt").write_text(f"Document number {number}. " * number + "é.")
    data = DataConfig(source=Folder(path=str(texts)), row_ticks=64, cache_folder=str(cache))
    train = TrainConfig(num_steps=4, batch_rows=2, checkpoint_every=2, evaluate_every=2)
    run = Run(name="attacked", system=single_stream.tiny(), train=train, data=data)
    train_run(run, run_folder, World(), loggers=[], progress=Progress())
    longer = replace(run, train=replace(train, num_steps=6))

    def goes_on(folder: Path) -> Any:
        train_run(longer, folder, World(), loggers=[], progress=Progress())
        rows = read_metrics(folder / "metrics.jsonl")
        losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
        return digest(load_weights(folder)), losses[5], losses[6]

    def weights(folder: Path) -> Any:
        return digest(load_weights(folder))

    def corpus(folder: Path) -> Any:
        found = prepare(replace(data, cache_folder=str(folder)), 1)
        rows = found.train.shards.tokens(torch.arange(found.train.shards.num_tokens).numpy())
        return rows.tolist(), [unit.title for unit in found.held_out]

    model = moshi.Moshi(moshi.tiny())
    save_moshi(model, root / "moshi")

    def published(folder: Path) -> Any:
        return digest(load_moshi(folder, dtype=torch.float32).state_dict())

    newest = checkpoint_paths(run_folder)[0].relative_to(run_folder)
    tensors = [newest / "weights.safetensors", newest / "optimizer" / "state.safetensors"]
    caches = [file.relative_to(cache) for file in cache.rglob("*") if file.is_file()]
    return {
        "manifest, go on": (goes_on, run_folder, [newest / "manifest.json"]),
        "tensors, go on": (goes_on, run_folder, tensors),
        "metrics, go on": (goes_on, run_folder, [Path("metrics.jsonl")]),
        "manifest and weights, load": (weights, run_folder, [newest / "manifest.json", tensors[0]]),
        "corpus, prepare": (corpus, cache, caches),
        PUBLISHED: (published, root / "moshi", [Path("config.json")]),
    }


if __name__ == "__main__":
    main()
