"""When is each argument of a recorded order determined, and how early could a tool be called?

Every recording is recognised once, by Whisper tiny.en; Silero's detector says where the voice ends.
The words of its arguments are aligned with what was heard (`counterpoint.data.tasks.order_times`).
The file is small, is kept here, and is read by `cascade_tools.py --order-times`; recordings are
not.

    python benchmarks/order_times.py DATA/speech --words words.json \
        --out benchmarks/results/order_times.json
"""

import argparse
import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import keep, resumed

from counterpoint.data.tasks.order_times import (
    OrderTimes,
    cut_to_voice,
    order_times,
    said_once,
)
from counterpoint.data.tasks.spoken_tools import ToolRequest, recorded_requests
from counterpoint.speech.audio import read_audio
from counterpoint.speech.detector import DETECTOR_BLOCK, DETECTOR_HZ, SpeechDetector
from counterpoint.speech.partials import PartialTranscriber
from counterpoint.speech.transcriber import EMBEDDED, HeardWord

QUESTION = "When is each argument of a recorded order determined?"
VOICED = 0.5
"""Chance of speech from which on a block has a voice."""


def main() -> None:
    """Recognise all recordings, and write the times."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recordings", type=Path, help="folder with orders.jsonl")
    parser.add_argument("--words", type=Path, required=True, help="keeps what was recognised")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    requests = {one.name: one for one in recorded_requests(options.recordings)}
    found = resumed(partial(heard_in, PartialTranscriber()), requests, options.words)
    orders: dict[str, Any] = {}
    heard: dict[str, str] = {}
    for (name, request), words in zip(requests.items(), found, strict=True):
        own = said_once([HeardWord(*word) for word in words])
        times = order_times(request.calls[0].arguments, own)
        orders[name] = times and rounded(times)
        heard[name] = " ".join(word.text for word in own)
    results = {"recogniser": EMBEDDED, "summary": summary(orders), "orders": orders, "heard": heard}
    record = keep(QUESTION, results, None)
    options.out.write_text(written(record))
    print(json.dumps(record["summary"]))


def heard_in(recognise: PartialTranscriber, request: ToolRequest) -> list[HeardWord]:
    """Return the words of a recording, which end with its voice."""
    if request.recording is None:
        raise SystemExit(f"{request.name} must be recorded.")
    audio = read_audio(request.recording, DETECTOR_HZ, 1)[0]
    words = [HeardWord(one.text, one.start_s, one.end_s) for one in recognise(audio)]
    detect = SpeechDetector()
    num_blocks = len(audio) // DETECTOR_BLOCK
    blocks = audio[: num_blocks * DETECTOR_BLOCK].view(num_blocks, DETECTOR_BLOCK)
    voiced = [detect(block) >= VOICED for block in blocks]
    return cut_to_voice(words, voiced, DETECTOR_BLOCK / DETECTOR_HZ)


def rounded(times: OrderTimes) -> dict[str, Any]:
    """Return times as JSON, in hundredths of a second."""
    facts = asdict(times)
    for name in ("said", "known"):
        facts[name] = {slot: round(at_s, 2) for slot, at_s in facts[name].items()}
    return {**facts, "end_s": round(times.end_s, 2)}


def summary(orders: Mapping[str, Any]) -> dict[str, Any]:
    """Return how early arguments are determined, and how many words were not heard."""
    heard = [one for one in orders.values() if one]
    leads = {
        name: [one["end_s"] - at_s for one in heard for at_s in one[name].values()]
        for name in ("said", "known")
    }
    last = {
        name: [one["end_s"] - max(one[name].values()) for one in heard]
        for name in ("said", "known")
    }
    return {
        "orders": len(orders),
        "orders without words": len(orders) - len(heard),
        "words of values that were not heard": sum(len(one["missed"]) for one in heard),
        "orders with such words": sum(bool(one["missed"]) for one in heard),
        "values": len(leads["said"]),
        **{
            f"{what} before the speech ends": sum(lead > 0 for lead in leads[name])
            for name, what in (("said", "values said"), ("known", "values determined"))
        },
        "orders all of whose values are said before it ends": sum(one > 0 for one in last["said"]),
        "orders all of whose values are determined before it ends": sum(
            one > 0 for one in last["known"]
        ),
        "median seconds by which these are": round(
            statistics.median([one for one in last["known"] if one > 0] or [0.0]), 2
        ),
        "median seconds from a determined value to the end": round(
            statistics.median(leads["known"] or [0.0]), 2
        ),
    }


def written(record: Mapping[str, Any]) -> str:
    """Return a record as JSON with a line for each order."""
    lines = []
    for name, value in record.items():
        own = json.dumps(value)
        if name in ("orders", "heard"):
            rows = (f"  {json.dumps(key)}: {json.dumps(one)}" for key, one in value.items())
            own = "{\n" + ",\n".join(rows) + "\n }"
        lines.append(f" {json.dumps(name)}: {own}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    main()
