"""Can the words of a trained LSLM be understood? Word errors of new and of trained sentences.

    python benchmarks/lslm_words.py runs/lslm_small --count 48 --temperature 0.5 --out RESULT.json

It says texts in silence: two phrases with wordings that were held out, and two trained phrases in
a new pair. Whisper tiny.en writes down what it hears, also of copied codes of the same utterances.
"""

import argparse
from pathlib import Path

import lslm_limits
import torch
from record import finish

from counterpoint.data.making.interrupted import PreparedUtterances
from counterpoint.data.source import Preparation
from counterpoint.runtime.load import load
from counterpoint.runtime.sampler import Sampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load(options.run)
    system = loaded.system.eval()
    data = loaded.trained_by.data
    prepared = data.prepare(system, Preparation(held_out_only=True))
    assert isinstance(prepared, PreparedUtterances)
    kinds = {
        "new wordings": prepared.items("held_out"),
        "trained phrases in new pairs": prepared.items("train"),
    }
    sampling = Sampling(temperature=options.temperature, top_p=0.99)
    found = lslm_limits.words(system, prepared, kinds, options.count, sampling=sampling)
    facts = {"run": options.run.name, "temperature": options.temperature, "count": options.count}
    finish("Can the words of an LSLM be understood?", {**facts, **found}, options.out)


if __name__ == "__main__":
    main()
