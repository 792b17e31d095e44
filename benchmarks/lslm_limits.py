"""What limits the words of a trained LSLM, and what stops it beside the word it was taught?

    python benchmarks/lslm_limits.py RUN --pack PACK --work FOLDER --words 24 --out RESULT.json

RUN is a folder of `lslm_stacks.py --save`, and PACK is that of `lslm_rows.py pack`. Texts are
phrases that were never trained, pairs of trained phrases, and trained takes of words in an order
that was never trained. The model reads them as given speech (bits a frame) and says them (words
heard by Whisper tiny.en). It also says held-out texts while other words are heard than the keyword,
and the first words of texts in silence.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lslm_rows import SILENCE, row_tensors, unpack, unpacked
from lslm_scores import FRAME_S, Recogniser, interval
from lslm_stacks import COOL, held_out_bits, speak
from record import finish
from torch import Tensor

from counterpoint.data.making.interrupted import Items, PreparedUtterances
from counterpoint.data.making.sounds import RATE, SoundsConfig, load_sounds
from counterpoint.data.source import Preparation
from counterpoint.evaluate.duplex.speaking import Spoke
from counterpoint.evaluate.statistics import bootstrap_ratio
from counterpoint.runtime.load import load
from counterpoint.runtime.sampler import Sampling
from counterpoint.systems.contract import System

FIRST = 1_000_000  # numbers of items that no training reached
NUM_ROWS = 256
NUM_SOUNDS = 60
ONSET_S = 0.8
LATEST_S = 1.0
VOICE_DB = -26.0  # the middle of the trained range
THRESHOLD = 0.5  # the default of `counterpoint talk`
FIRST_WORDS = (1, 2, 3, 5, 8, 99)


def kinds_of_items(prepared: PreparedUtterances) -> dict[str, Items]:
    """Items of unlike distance from the training."""

    def own(share: float) -> Items:
        data = replace(prepared.data, spliced=share)
        return Items(data, "train", prepared.codec, prepared.speaker)

    return {
        "new phrases": prepared.items("held_out"),
        "trained phrases in new pairs": own(0.0),
        "trained takes of words in a new order": own(1.0),
    }


def bits(
    system: System, prepared: PreparedUtterances, kinds: dict[str, Items], work: Path
) -> dict[str, Any]:
    """Bits a frame with the own text and with shuffled words."""
    found = {}
    for kind, items in kinds.items():
        first = 0 if items.split == "held_out" else FIRST
        numbers = range(first, first + NUM_ROWS)
        torch.save(row_tensors(prepared, items, numbers), work / "held_out.pt")
        found[kind] = {
            "own text": held_out_bits(system, work, silent=False),
            "shuffled text": held_out_bits(system, work, silent=False, shuffled=True),
        }
        print(kind, found[kind], flush=True)
    return found


def trial(prepared: PreparedUtterances, text: str, heard: Tensor, seed: int) -> dict[str, Any]:
    """A text that is said while a sound is heard."""
    return {
        "text": prepared.prompt(text)["text"][0],
        "heard": prepared.mels.encode(heard[None].clamp(-1, 1))[0],
        "seed": seed,
    }


def words(
    system: System,
    prepared: PreparedUtterances,
    kinds: dict[str, Items],
    count: int,
    trained_from: int = FIRST,
    sampling: Sampling = COOL,
) -> dict[str, Any]:
    """Word error rates of what is said in silence, and of the codes that were to be said.

    Items of the training split are numbered from ``trained_from`` on.
    """
    recogniser = Recogniser()
    found = {}
    for kind, items in kinds.items():
        first = 0 if items.split == "held_out" else trained_from
        some = [items.utterance(number) for number in range(first, first + count)]
        silence = SILENCE.heard(RATE)
        trials = [trial(prepared, one.text, silence, n) for n, one in enumerate(some)]
        spoke = speak(system, trials, silent=True, sampling=sampling)
        said = [
            recogniser.count(one.text, own.codes.tolist())
            for one, own in zip(some, spoke, strict=True)
        ]
        copied = [recogniser.count(one.text, one.codes.tolist()) for one in some]
        found[kind] = {
            "said": rate([one[:2] for one in said]),
            "copied codes": rate([one[:2] for one in copied]),
            "examples": [[one.text, heard] for one, (_, _, heard) in zip(some, said, strict=True)][
                :6
            ],
        }
        print(kind, found[kind], flush=True)
    return found


def rate(counted: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Ratio of two sums."""
    wrong, of = torch.tensor(counted, dtype=torch.float64).unbind(1)
    return interval(bootstrap_ratio(wrong[None].numpy(), of[None].numpy()))


def stopped(spoke: Spoke) -> float | None:
    """Time of the stop at the default threshold."""
    return spoke.stops.stop_s(THRESHOLD, FRAME_S * len(spoke.codes))


def other_sounds(
    system: System, prepared: PreparedUtterances, pack: Path, work: Path
) -> dict[str, Any]:
    """Share of sounds at which the model stops within a second, and of stops before them."""
    unpack(pack, work / "voice", "voice")
    others = SoundsConfig(folder=str(work / "voice"))
    held_out = prepared.items("held_out").sounds
    kinds = {
        "the keyword, held-out recordings": held_out.interruptions,
        '"mhm", held-out voices': held_out.backchannels,
        "digits": load_sounds(others, "held_out", prepared.speaker).interruptions,
        "jarvis, snowboy and digits": load_sounds(others, "tuning", prepared.speaker).interruptions,
        "the training's keyword": prepared.items("train").sounds.interruptions,
    }
    found = {}
    items = prepared.items("held_out")
    for kind, sounds in kinds.items():
        some = [one * 10 ** (VOICE_DB / 20) for one in sounds[:: -(-len(sounds) // NUM_SOUNDS)]]
        onset = torch.zeros(round(ONSET_S * RATE))
        trials = [
            trial(prepared, items.utterance(n).text, torch.cat((onset, one, onset)), n)
            for n, one in enumerate(some)
        ]
        times = [stopped(one) for one in speak(system, trials, silent=False)]
        early = [time is not None and time < ONSET_S for time in times]
        hit = [time is not None and 0 <= time - ONSET_S <= LATEST_S for time in times]
        found[kind] = {
            "stops within 1 s": rate([(float(one), 1.0) for one in hit]),
            "stops before": rate([(float(one), 1.0) for one in early]),
            "sounds": len(some),
        }
        print(kind, found[kind], flush=True)
    return found


def short_texts(system: System, prepared: PreparedUtterances) -> dict[str, Any]:
    """Share of texts in silence at which the model stops as if it were interrupted."""
    items = prepared.items("held_out")
    found = {}
    for size in FIRST_WORDS:
        texts = [" ".join(items.utterance(n).text.split()[:size]) for n in range(NUM_SOUNDS)]
        trials = [trial(prepared, text, torch.zeros(RATE), n) for n, text in enumerate(texts)]
        times = [stopped(one) for one in speak(system, trials, silent=True)]
        found[str(size)] = rate([(float(time is not None), 1.0) for time in times])
        print(size, "words", found[str(size)], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of what is unpacked")
    parser.add_argument("--words", type=int, default=0, help="utterances that are heard")
    parser.add_argument("--no-bits", action="store_true", help="read no given speech")
    parser.add_argument("--out")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    system = load(options.run).system.eval()
    how = Preparation(held_out_only=True)  # phrases are then read when they are needed
    prepared = unpacked(options.pack, options.work, "command", how)
    kinds = kinds_of_items(prepared)
    found: dict[str, Any] = {"run": options.run.name}
    if not options.no_bits:
        found["bits"] = bits(system, prepared, kinds, options.work)
    found["sounds"] = other_sounds(system, prepared, options.pack, options.work)
    found["first words in silence"] = short_texts(system, prepared)
    if options.words:
        found["word_errors"] = words(system, prepared, kinds, options.words)
    finish("What limits the words of an LSLM, and what else stops it?", found, options.out)


if __name__ == "__main__":
    main()
