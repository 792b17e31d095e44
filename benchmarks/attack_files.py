"""Does damage to any file of a run, a cache, a published model or a data set go unnoticed?

Every trial flips one random bit of one file, or cuts the file at a random place, and does what a
user would do: go on with the run, load the weights, open the corpus, read the file. What may
happen: one line says what is wrong; an older checkpoint is taken and the newer one named; or
nothing at all, where what was read is equal (a blank in JSON). Any other error, a process that dies
or does not end, and a silent change are faults. Some files have no digest, such as sound or the
config.json of a published model: a flipped bit there may change a value, and only errors that are
no line count. `attack_targets.py` says which files those are.

    OMP_NUM_THREADS=1 python benchmarks/attack_files.py --trials 200 --seed 1
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import torch
from attack_targets import Target, targets
from record import finish

from counterpoint.digests import json_digest

LONGEST_S = 60
CUTS = 4  # a file is cut once for so many flipped bits


def outcome(target: Target, folder: Path) -> tuple[str, str]:
    """What comes of using a folder, in a process of its own, and the digest of what it gives."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(LONGEST_S)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.write(writing, json.dumps(used(target, folder)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    if not told:
        return "crashed: the process died or did not end", ""
    kind, digest = json.loads(told)
    return kind, digest


def used(target: Target, folder: Path) -> tuple[str, str]:
    """What comes of using a folder here."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = target.use(folder)
        except (ValueError, OSError) as error:
            line = str(error)
            return (
                f"crashed: {type(error).__name__}" if "\n" in line else "refused in one line"
            ), ""
        except BaseException as error:
            return f"crashed: {type(error).__name__}", ""
    return ("told" if told else "read"), json_digest(found)


def attack(target: Target, trials: int, draw: random.Random) -> Counter[str]:
    """Damage the files of a target, one at a time."""
    work = target.good.with_name("work")
    shutil.copytree(target.good, work)
    kind, expected = outcome(target, work)
    assert kind == "read", kind
    counts: Counter[str] = Counter()
    for number in range(trials + trials // CUTS):
        shutil.rmtree(work)
        shutil.copytree(target.good, work)
        file = work / draw.choice(target.files)
        content = bytearray(file.read_bytes())
        place = draw.randrange(len(content))
        is_cut = number >= trials
        if is_cut:
            del content[place:]
        else:
            content[place] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        kind, found = outcome(target, work)
        if kind in ("read", "told"):
            shows = target.cuts_show if is_cut else target.flips_show
            if found == expected:
                kind = "equal"
            elif kind == "told":
                kind = "changed, and told"
            else:
                kind = "silent change" if shows else "another value (no digest)"
        counts[f"{'cut' if is_cut else 'flipped'}: {kind}"] += 1
        sys.stderr.write(f"\r{target.name}: {number + 1}  ")
    sys.stderr.write(f"\r{target.name}: {json.dumps(counts)}\n")
    shutil.rmtree(work)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100, help="flipped bits a target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets whose name this pattern finds")
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        results = {
            target.name: dict(
                attack(target, options.trials, random.Random(f"{options.seed} {target.name}"))
            )
            for target in targets(Path(place))
            if re.search(options.only, target.name)
        }
    bad = sum(
        number
        for found in results.values()
        for kind, number in found.items()
        if "crashed" in kind or "silent change" in kind
    )
    finish(__doc__.splitlines()[0], {"seed": options.seed, **results, "faults": bad}, options.out)
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
