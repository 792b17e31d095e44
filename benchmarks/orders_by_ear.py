"""Spoken orders by ear: what is left of calls while listening when a recogniser hears the orders?

Protocols: docs/results/spoken_orders_ear_declared.json; for models that hear a chunk every second
spoken_orders_sooner_declared.json, for the whole menu spoken_orders_menu_declared.json, for words
that are told again spoken_orders_retold_declared.json and spoken_orders_wide_declared.json, and for
models that listen again spoken_orders_checked_declared.json. Every model hears the same orders
through Whisper tiny.en, which was told nothing or what orders are like. What is recognised and what
a folder gave are kept beside ``--out``; take another name after a new training. Models are runs of
`shanks_tools_small`, with ``--whole-menu`` of `shanks_menu_small`; those that call after listening
are the same recipe with `--data.chunk-s 60`, and those that call sooner with 1. Models that are
told all words again are runs of `shanks_retold_small`, and those that listen again when the speech
is over of `shanks_checked_small`.

    python benchmarks/orders_by_ear.py --listening runs/tools-0 runs/tools-1 \
        --after runs/after-0 runs/after-1 --freely-listening runs/free-0 runs/free-1 \
        --freely-after runs/free-after-0 runs/free-after-1 --data ../data/speech --out out.json
    python benchmarks/orders_by_ear.py --first 300 --ears example --freely-sooner runs/sooner-0 \
        --freely-listening runs/free-0 --data ../data/speech --out out.json
    python benchmarks/orders_by_ear.py --whole-menu --first 300 --ears example --beam 5 \
        --retold-wide runs/retold-0 --freely-listening runs/menu-0 --data ../data/speech \
        --out out.json
    python benchmarks/orders_by_ear.py --whole-menu --first 400 --orders 200 --ears example \
        --beam 5 --checked runs/checked-0 --checked-once runs/checked-0 \
        --checked-after runs/checked-0 --retold-wide runs/retold-0 --freely-after runs/menu-after \
        --data ../data/speech --out out.json
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from bench_spoken_orders import counted, difference, opened, summarised
from record import finish, resumed
from torch import Tensor

from counterpoint.data.tasks.spoken_orders.menu import DRINK, determined
from counterpoint.data.tasks.spoken_orders.rounds import written_call
from counterpoint.data.tasks.spoken_orders.source import SpokenOrdersData
from counterpoint.data.tasks.spoken_tools import (
    ToolRequest,
    recorded_requests,
    score_requests,
    tool_policies,
)
from counterpoint.evaluate.duplex.spoken_orders import serve_parts
from counterpoint.progress import Progress
from counterpoint.runtime.cascade.ear import EAR_HZ
from counterpoint.runtime.clocked import Part, Proposal, Thinker
from counterpoint.runtime.heard_words import ChunkedWords, recognised_by
from counterpoint.runtime.listening import thinker_of
from counterpoint.speech.audio import read_audio
from counterpoint.speech.ears import HeardChunk, HeardWords
from counterpoint.speech.partials import PartialTranscriber
from counterpoint.speech.voices import Synthesizer, Voice
from counterpoint.streams.rounds import CANCEL

QUESTION = "What is left of calls while listening when a recogniser hears the orders?"
NOISE_DB = 10.0


class Told(NamedTuple):
    """How words are told to models."""

    chunk_s: float
    retold: bool = False

    def __str__(self) -> str:
        return f"{self.chunk_s:g} s" + ", retold" * self.retold


class Arm(NamedTuple):
    """Models of one kind, and how they hear.

    Attributes:
        told: How words are told to them.
        is_wide: Whether what all of their calls have in common is few tokens.
        tokens_per_s: Tokens a second that they write, if not those of training.
        hears: Whether they hear "as trained", "once" although they could listen "again", or only
            the last telling, "after" listening.
    """

    told: Told
    is_wide: bool = False
    tokens_per_s: float | None = None
    hears: str = "as trained"


RETOLD = Told(1.0, retold=True)
FAST = 80.0
"""Tokens a second of models that write fast, as retold ones without wide tokens do."""
ARMS = {
    "listening": Arm(Told(2.0)),
    "after": Arm(Told(60.0)),
    "freely, listening": Arm(Told(2.0)),
    "freely, listening, fast": Arm(Told(2.0), tokens_per_s=FAST),
    "freely, after": Arm(Told(60.0)),
    "freely, sooner": Arm(Told(1.0)),
    "retold": Arm(RETOLD),
    "retold, wide": Arm(RETOLD, is_wide=True),
    "checked": Arm(RETOLD, is_wide=True),
    "checked, once": Arm(RETOLD, is_wide=True, hears="once"),
    "checked, after": Arm(RETOLD, is_wide=True, hears="after"),
}
EARS = ("plain", "example")
SEEN = 8  # recordings of people that were looked at before
SMALL = SpokenOrdersData()


class Order(NamedTuple):
    """An order, with the end of its recording, and the recording."""

    request: ToolRequest
    audio: Tensor


def read_options(argv: Sequence[str] | None) -> dict[str, Any]:
    """Return the options of the command line, by their names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for arm in ARMS:
        option = f"--{arm.replace(', ', '-')}"
        parser.add_argument(option, nargs="*", type=Path, default=[], dest=arm)
    parser.add_argument("--first", type=int, default=200, help="number of the first order")
    parser.add_argument("--orders", type=int, default=100)
    parser.add_argument("--ears", nargs="*", choices=EARS, default=EARS)
    parser.add_argument("--beam", type=int, default=1, help="texts that the recogniser follows")
    parser.add_argument("--data", type=Path, default=None, help="folder of real recordings")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--whole-menu", action="store_true", help="for runs of shanks_menu_small")
    return vars(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> None:
    """Let all models hear the orders, and write what came of them."""
    options = read_options(argv)
    data = replace(SMALL, whole_menu=options["whole_menu"])
    torch.set_num_threads(1)
    first = options["first"]
    beam = options["beam"]
    ways = sorted({how.told for arm, how in ARMS.items() if options[arm]})
    check(options, data)
    sounds = sounding(range(first, first + options["orders"]), data, options["data"])
    kept = options["out"].with_suffix(".heard.json")
    found: dict[str, Any] = {}
    found_by_rules: dict[str, float] = {}
    for sound, orders in sounds.items():
        for ear in options["ears"]:
            menu = "whole menu" if data.whole_menu else "small menu"
            name = f"{len(orders)} of {sound} from {first}, {menu}, {ear}"
            name += f", beam {beam}" if beam > 1 else ""
            items = {f"{name}, {how}": how for how in ways}
            recognise = partial(recognised, orders, told_by(ear, data), beam=beam)
            told = resumed(recognise, items, kept)
            chunks = dict(zip(items.values(), told, strict=True))
            found_by_rules |= {
                key: rules(orders, parts, replace(data, retold=how.retold))
                for (key, how), parts in zip(items.items(), told, strict=True)
            }
            for arm, kind in ARMS.items():
                work = partial(heard, orders=orders, chunks=chunks, arm=kind)
                mark = ", fast" if kind.tokens_per_s else ""
                mark += "" if kind.hears == "as trained" else f", {kind.hears}"
                items = {f"{folder}, {name}{mark}": folder for folder in options[arm]}
                rows = resumed(work, items, options["out"].with_suffix(".rows.json"))
                if rows:
                    found[f"{sound}, {ear}, {arm}"] = {k: [row[k] for row in rows] for k in rows[0]}
            if RETOLD in chunks:
                row = heard_by_rules(orders, chunks[RETOLD], data)
                found[f"{sound}, {ear}, rules, retold"] = {k: [row[k]] for k in row}
    result = {
        "summary": {name: summarised(rows) for name, rows in found.items()},
        "pairs": pairs(found),
        "voices": {name: beside_voice(sounds[name.split(",")[0]], found[name]) for name in found},
        "rules": found_by_rules,
        "floors": {name: floors(orders) for name, orders in sounds.items()},
        "beam": beam,
        "numbers": {name: len(orders) for name, orders in sounds.items()},
    }
    finish(QUESTION, result, str(options["out"]))


def check(options: Mapping[str, Any], data: SpokenOrdersData) -> None:
    """Refuse models that are given for an arm of others."""
    for arm, kind in ARMS.items():
        for folder in options[arm]:
            own = opened(folder)[1]
            can_check = arm.startswith("checked")
            if (own.whole_menu, own.wide_tokens, own.again > 0, own.chunk_s, own.retold) != (
                data.whole_menu,
                kind.is_wide,
                can_check,
                *kind.told,
            ):
                raise SystemExit(
                    f"{folder} must have the menu, the chunks and the tokens of its option, and "
                    "listen again exactly for the options with `checked`."
                )


def sounding(
    numbers: Sequence[int], data: SpokenOrdersData, folder: Path | None
) -> dict[str, list[Order]]:
    """Return the orders of every sound; without recordings only those of a voice."""
    sounds = {"piper": spoken(numbers, data)}
    if folder:
        noises = [read_audio(path, EAR_HZ, 1)[0] for path in every(folder, "noise")]
        pairs_of = zip(sounds["piper"], cycle(noises), strict=False)
        sounds["noise"] = [noisy(order, noise) for order, noise in pairs_of]
        sounds["people"] = people(folder, data)
    return sounds


def beside_voice(orders: Sequence[Order], rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return when right calls succeed beside the end of the voice, for each model.

    A recording goes on in silence. The voice ends with the last 10 ms that are louder than a
    twentieth of the loudest, and than three times the quietest tenth.
    """
    ends_s = np.array([voice_end_s(order.audio) for order in orders])
    stops_s = np.array([order.request.stop_s for order in orders])
    found = []
    for success, lead_s in zip(rows["success"], rows["lead_s"], strict=True):
        right = np.array(success) > 0
        after_s = (stops_s - np.array(lead_s) - ends_s)[right]
        found.append([round(float(np.median(after_s)), 3), round(float((after_s < 0).sum()), 1)])
    silence_s = round(float(np.median(stops_s - ends_s)), 3)
    return {"median seconds after, and number of calls before": found, "silence_s": silence_s}


def voice_end_s(audio: Tensor) -> float:
    """Return when a voice has ended."""
    block = EAR_HZ // 100
    whole = audio[: len(audio) // block * block].reshape(-1, block)
    level = whole.square().mean(1).sqrt().numpy()
    voiced = level > max(level.max() / 20, 3 * float(np.percentile(level, 10)))
    return float(np.nonzero(voiced)[0][-1] + 1) / 100 if voiced.any() else 0.0


def every(folder: Path, kind: str) -> list[Path]:
    """Return the recordings of a kind, in one order for all."""
    return sorted((folder / kind).rglob("*.opus"))


def spoken(numbers: Sequence[int], data: SpokenOrdersData) -> list[Order]:
    """Return held-out orders as Piper says them."""
    voice = Synthesizer()
    requests = [data.request(number, held_out=True) for number in numbers]
    sounds = [voice.speak(one.text, Voice(formant=1.0), EAR_HZ).audio for one in requests]
    return [ended(one, audio) for one, audio in zip(requests, sounds, strict=True)]


def ended(request: ToolRequest, audio: Tensor) -> Order:
    """Return an order whose speech is over when its recording ends."""
    return Order(replace(request, stop_s=len(audio) / EAR_HZ), audio)


def noisy(order: Order, noise: Tensor) -> Order:
    """Return an order with noise, `NOISE_DB` weaker than all of the speech."""
    audio = order.audio
    repeated = noise.repeat(-(-len(audio) // len(noise)))[: len(audio)]
    loud = audio.square().mean() / repeated.square().mean().clamp_min(1e-12)
    return Order(order.request, audio + repeated * (loud * 10 ** (-NOISE_DB / 10)).sqrt())


def people(folder: Path, data: SpokenOrdersData) -> list[Order]:
    """Return the recorded orders with slots and drinks of the menu, but those that were seen."""
    seen = {request.name for request in on_menu(folder, SMALL)[:SEEN]}
    unseen = [request for request in on_menu(folder, data) if request.name not in seen]
    return [ended(one, read_audio(str(one.recording), EAR_HZ, 1)[0]) for one in unseen]


def on_menu(folder: Path, data: SpokenOrdersData) -> list[ToolRequest]:
    """Return the recorded orders that have only slots and drinks of the data."""
    drinks = {data.request(n).calls[0].arguments[DRINK] for n in range(200)}
    return [
        request
        for request in recorded_requests(folder)
        for slots in [request.calls[0].arguments]
        if set(slots) <= set(data.menu.slots) and slots.get(DRINK) in drinks
    ]


def heard(
    folder: Path,
    orders: Sequence[Order],
    chunks: Mapping[Told, Sequence[Sequence[Sequence[Any]]]],
    arm: Arm,
) -> dict[str, list[float]]:
    """Return what came of every order, as numbers."""
    system, data = opened(folder)
    own = replace(data, tokens_per_s=arm.tokens_per_s or data.tokens_per_s)
    told = chunks[arm.told]
    if arm.hears == "once":
        own = replace(own, again=0.0)
    elif arm.hears == "after":
        told = [at_the_end(one) for one in told]
    return served_by(lambda: thinker_of(system, own), orders, told, own)


def at_the_end(told: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Return the last telling of an order as its only chunk."""
    chunks = [HeardChunk(*one) for one in told]
    texts = [one.content for one in chunks if one.content]
    return [[0.0, chunks[-1].end_s, texts[-1] if texts else "", ""]]


def heard_by_rules(
    orders: Sequence[Order], told: Sequence[Sequence[Sequence[Any]]], data: SpokenOrdersData
) -> dict[str, list[float]]:
    """Return what comes of orders if rules call at once and take back what has changed."""
    own = replace(data, chunk_s=RETOLD.chunk_s, retold=True, wide_tokens=True)
    return served_by(lambda: RetoldRules(own), orders, told, own)


def served_by(
    thinker: Callable[[], Thinker],
    orders: Sequence[Order],
    chunks: Sequence[Sequence[Sequence[Any]]],
    data: SpokenOrdersData,
) -> dict[str, list[float]]:
    """Return what comes of orders that a new thinker hears each, as numbers."""
    served = []
    for order, own in zip(orders, chunks, strict=True):
        told = [HeardChunk(*one) for one in own]
        parts = [Part(one.content, one.start_s, one.end_s, one.text) for one in told]
        served.append(serve_parts(thinker(), data, order.request, parts))
    return counted(served)


class RetoldRules:
    """Calls what the rules of the data find in the newest telling, and takes back what changes."""

    def __init__(self, data: SpokenOrdersData) -> None:
        self._data = data
        self._words: list[str] = []
        self._called: dict[str, str] = {}
        self._ahead: list[str] = []

    def hear(self, content: Any) -> None:
        """Plan the thought about a telling; see `Thinker.hear`."""
        marks = self._data.marks
        self._words = content.split() or self._words
        found = determined(self._words, self._data.menu, is_over=True).values
        text = marks.close
        if DRINK in found and found != self._called:
            text = (CANCEL if self._called else "") + written_call(found, marks) + text
        words = self._data.words
        self._ahead = [words.decode(np.array([one])) for one in words.encode(text)]

    def read(self, text: str) -> None:
        """Go on after its own piece, and know what it has called; see `Thinker.read`."""
        marks = self._data.marks
        if self._ahead and text == self._ahead[0]:
            self._ahead.pop(0)
            if text == marks.call_end:
                self._called = determined(self._words, self._data.menu, is_over=True).values
        elif text == marks.close:  # its time is over
            self._ahead = []

    def propose(self) -> Proposal:
        """Return the next piece of the thought; it answers nothing; see `Thinker.propose`."""
        return Proposal(self._ahead[0] if self._ahead else self._data.marks.stop)


def recognised(
    orders: Sequence[Order], words: HeardWords, told: Told, beam: int = 1
) -> list[list[HeardChunk]]:
    """Return the chunks of all orders, as the ear of a model tells them."""
    how = words._replace(chunk_s=told.chunk_s, is_retold=told.retold)
    recognise = PartialTranscriber(how.example, beam=beam)
    found = []
    for order in Progress().over(f"recognising, {told}", orders, len(orders)):
        ear = recognised_by(lambda _: recognise)(how)
        assert isinstance(ear, ChunkedWords)
        found.append([*ear.push(order.audio), ear.finish()])
    return found


def told_by(ear: str, data: SpokenOrdersData) -> HeardWords:
    """Return how words are told by an ear."""
    how = data.heard_words()
    return how if ear == "example" else how._replace(example="")


def floors(orders: Sequence[Order]) -> dict[str, float]:
    """Return the share of right orders of policies that learn nothing, and of perfect ones."""
    requests = [order.request for order in orders]
    return {
        name: score_requests(requests, [act(request) for request in requests])["success"]
        for name, act in tool_policies(requests).items()
    }


def rules(
    orders: Sequence[Order], chunks: Sequence[Sequence[Sequence[Any]]], data: SpokenOrdersData
) -> float:
    """Return the share of orders whose values are what rules find in all words."""
    right = 0
    for order, parts in zip(orders, chunks, strict=True):
        texts = [str(HeardChunk(*part).content) for part in parts]
        if data.retold:
            texts = [text for text in texts if text][-1:]
        words = [word for text in texts for word in text.split()]
        found = determined(words, data.menu, is_over=True).values
        right += found == dict(order.request.calls[0].arguments)
    return right / len(orders)


def pairs(found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the declared differences of orders, and the same of the other sounds."""
    wanted = [
        (f"example, {training}listening", f"plain, {training}listening")
        for training in ("", "freely, ")
    ]
    for ear in EARS:
        wanted += [
            (f"{ear}, {retold}", f"{ear}, freely, {other}")
            for retold in ("retold", "retold, wide")
            for other in ("listening, fast", "listening", "after")
        ]
        wanted.append((f"{ear}, retold, wide", f"{ear}, retold"))
        wanted += [
            (f"{ear}, checked", f"{ear}, {other}")
            for other in ("checked, after", "checked, once", "retold, wide", "freely, after")
        ]
        wanted.append((f"{ear}, freely, listening", f"{ear}, listening"))
        wanted.append((f"{ear}, freely, sooner", f"{ear}, freely, listening"))
        wanted.append((f"{ear}, freely, sooner", f"{ear}, freely, after"))
        wanted += [
            (f"{ear}, {training}listening", f"{ear}, {training}after")
            for training in ("", "freely, ")
        ]
    return {
        f"{sound}: {one} less {other}": difference(
            found[f"{sound}, {one}"], found[f"{sound}, {other}"]
        )
        for sound in ("piper", "noise", "people")
        for one, other in wanted
        if f"{sound}, {one}" in found and f"{sound}, {other}" in found
    }


if __name__ == "__main__":
    main()
