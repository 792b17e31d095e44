"""May Whisper's encoder read less than 30 s, if an utterance is short?

Beginnings of recorded orders, cut every 0.7 s as a live conversation does, are recognised in the
full window of 30 s and in shorter ones. Counted are word differences from the full window, texts
that are longer than anybody speaks (the model repeats itself), and seconds of the processor.

    python benchmarks/cascade_recognition.py --recordings DATA/speech --items 20 --out results.json
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from counterpoint.evaluate.word_errors import count_word_errors
from counterpoint.speech import partials
from counterpoint.speech.audio import read_audio
from counterpoint.speech.partials import PARTIALS_HZ, PartialTranscriber

WINDOWS = {"30 s": 3000, "15 s": 1500, "8 s": 800, "1 s more than the sound": 0}
FASTEST = 8.0  # tokens a second that a text may have, besides eight


def words(found: list[Any]) -> list[str]:
    """Return letters and digits of words."""
    return ["".join(filter(str.isalnum, word.text.lower())) for word in found]


def main() -> None:
    """Measure, and print and store the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recordings", type=Path, required=True)
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    lines = (options.recordings / "orders.jsonl").read_text().splitlines()
    cuts = []
    for line in lines[:: max(len(lines) // options.items, 1)][: options.items]:
        audio = read_audio(options.recordings / json.loads(line)["path"], PARTIALS_HZ, 1)[0]
        seconds = np.arange(1.0, len(audio) / PARTIALS_HZ, 0.7)
        cuts += [audio[: round(end * PARTIALS_HZ)] for end in seconds]
    recognise = PartialTranscriber()
    expected: list[list[str]] = []
    rows = {}
    for name, frames in WINDOWS.items():
        partials._LEAST_FRAMES = frames
        began = time.process_time()
        found = [words(recognise(cut)) for cut in cuts]
        cpu_s = (time.process_time() - began) / len(cuts)
        expected = expected or found
        wrong = sum(map(count_word_errors, expected, found))
        loops = sum(
            len(one) > FASTEST * len(cut) / PARTIALS_HZ + 8
            for one, cut in zip(found, cuts, strict=True)
        )
        rows[name] = {
            "differences": wrong / sum(map(len, expected)),
            "repeats": loops,
            "cpu_s": cpu_s,
        }
        print(name, rows[name], flush=True)
    found_all = {"utterances": len(cuts), "windows": rows}
    if options.out is not None:
        options.out.write_text(json.dumps(found_all, indent=1) + "\n")


if __name__ == "__main__":
    main()
