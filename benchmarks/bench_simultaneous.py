"""Does the time to the next part token depend on the size of the coarse tower?

One session reads the book of Genesis, tick by tick, in models whose coarse tower has 1, 4 and 16
times the layers. Everything that a tick writes counts: the part token, and before it the text of
the whole or the turn of coarse ids where one is due. What grows in each system:

    two_stream      the whole tower, which has a lag of one block (of a word)
    text_whole      the same with blocks of eight ticks; after each the whole writes four ids
    shared_levels   the one stack of layers that serves part and whole: the part grows with it
    hrt             the towers of all levels above the bytes
    hnet            the tower of the chunks
    hdlm            the layers below the coarse head (k); those above it stay as many. They are the
                    coarse part, for they alone write the coarse ids, and every part token passes
                    through them too. Its exit mode is that of the presets, `masked`, and a turn of
                    ids follows every sixteen ticks.
    single_stream   all layers: the anchor, in which everything lies in the path of a token

The whole of `two_stream` runs in line (between two ticks), or beside the part tower: in a thread,
in a process, or on a GPU in a thread with a CUDA stream of its own. The other systems can only run
in line. Every tick may begin a fixed time after the one before it, as in speech: a tower beside the
other has that time too. Without it ticks follow each other at once, and a tower that takes longer
than the ticks of its block must come late.
Seconds are those of the wall; each model has one thread, so two cores must be free: the load of
the machine at the start is kept, and more than 0.5 gives a warning. Variants take turns in rounds,
and all rounds count together.

    python benchmarks/bench_simultaneous.py --out benchmarks/results/simultaneous.json
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle, islice
from typing import Any, Literal

import torch
from bench_decode import TEXT
from record import finish, quantile
from torch import Tensor

from counterpoint.blocks.notes import NotesConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.runtime.simultaneous import Simultaneous
from counterpoint.streams.schedule import may_stand
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems import hdlm, hnet, hrt, single_stream, two_stream
from counterpoint.systems.contract import System
from counterpoint.systems.hdlm import HdLM
from counterpoint.systems.hnet import HNet
from counterpoint.systems.hrt import HRT
from counterpoint.systems.single_stream import SingleStream
from counterpoint.systems.two_stream import TwoStream, TwoStreamConfig

TIMES = (1, 4, 16)
AIM_RATIO = 1.10
IDLE_LOAD = 0.5
TURN_TICKS = 16
NOTES = NotesConfig(depth=4, vocab_size=128, padding_id=0)
SAID_ID = 1
"""The id that is written wherever text of the whole or a coarse id is due."""


class Reader:
    """One session of a model, which reads and writes tick by tick."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.state = model.initial_state(1)
        self.seconds = list[float]()
        self.column = 0
        self.slow = [stream for stream in model.layout.predicted if stream.name != "part"]
        self.ticks = {
            stream.name: torch.full((1, 1, *stream.element_shape), UNSET_ID) for stream in self.slow
        }

    def read(self, count: int, period_s: float) -> None:
        """Read ticks, each at its time if there is a period, and keep how long each one took."""
        due = time.perf_counter()
        for byte in islice(cycle(TEXT), self.column, self.column + count):
            self.column += 1
            column = torch.tensor(self.column)
            said = {
                stream.name: SAID_ID if may_stand(self.model.layout, stream, column) else UNSET_ID
                for stream in self.slow
            }
            due = max(due + period_s, time.perf_counter())
            while time.perf_counter() < due:
                time.sleep(max(due - time.perf_counter(), 0))
            begin = time.perf_counter()
            self._tick(byte, said)
            self.seconds.append(time.perf_counter() - begin)

    def _tick(self, byte: int, said: dict[str, int]) -> None:
        """Read a byte with what was written before it, and write the next tick."""

        def choose(stream: str, codebook: int, scores: Tensor) -> Tensor:
            return torch.tensor([said.get(stream, 0)])

        ticks = {"part": torch.tensor([[byte]]), **self.ticks}
        hidden, self.state = self.model.read(ticks, self.state)
        written = self.model.write(hidden[:, -1], choose, self.state)
        self.ticks = {name: written[name][:, None] for name in said}
        if hidden.is_cuda:  # the token must be there before its time is taken
            torch.cuda.current_stream(hidden.device).synchronize()


def deeper(tower: TowerConfig, times: int) -> TowerConfig:
    """The tower with so many times its layers."""
    return replace(tower, num_layers=times * tower.num_layers)


def make_two_stream(size: str, times: int) -> System:
    """Only the whole grows."""
    ours: TwoStreamConfig = getattr(two_stream, size)()
    return TwoStream(replace(ours, whole=deeper(ours.whole, times), lag_blocks=1))


def make_text_whole(size: str, times: int) -> System:
    """Only the whole grows; its text stands at fixed ticks."""
    ours: TwoStreamConfig = getattr(two_stream, size)()
    fixed = replace(ours, boundary_ids=(), usual_block_ticks=None, text=NOTES)
    return TwoStream(replace(fixed, whole=deeper(ours.whole, times), lag_blocks=1))


def make_shared_levels(size: str, times: int) -> System:
    """The stack of the part serves the whole too."""
    ours: TwoStreamConfig = getattr(two_stream, size)()
    layers = deeper(ours.part, times)
    whole = replace(layers, window=ours.whole.window)
    return TwoStream(replace(ours, part=layers, whole=whole, shared_layers=True, lag_blocks=1))


def make_hrt(size: str, times: int) -> System:
    """All levels but the bytes grow."""
    config = getattr(hrt, size)()
    coarse = (deeper(level, times) for level in config.levels[1:])
    return HRT(replace(config, levels=(config.levels[0], *coarse)))


def make_hnet(size: str, times: int) -> System:
    """The tower of the chunks grows."""
    config = getattr(hnet, size)()
    return HNet(replace(config, main=deeper(config.main, times)))


def make_hdlm(size: str, times: int) -> System:
    """The layers below the coarse head grow."""
    config = getattr(hdlm, size)()
    below = times * config.coarse_layer
    above = config.tower.num_layers - config.coarse_layer
    tower = replace(config.tower, num_layers=below + above)
    return HdLM(replace(config, tower=tower, coarse_layer=below, turn_ticks=TURN_TICKS))


def make_single_stream(size: str, times: int) -> System:
    """All layers."""
    config = getattr(single_stream, size)()
    return SingleStream(replace(config, tower=deeper(config.tower, times)))


Place = Literal["process", "thread", "stream", "in line"]
SYSTEMS: dict[str, tuple[Callable[[str, int], System], tuple[Place, ...]]] = {
    "two_stream": (make_two_stream, ("process", "thread", "stream", "in line")),
    "text_whole": (make_text_whole, ("process", "in line")),
    "shared_levels": (make_shared_levels, ("process", "in line")),
    "hrt": (make_hrt, ("in line",)),
    "hnet": (make_hnet, ("in line",)),
    "hdlm": (make_hdlm, ("in line",)),
    "single_stream": (make_single_stream, ("in line",)),
}
ELSEWHERE: dict[str, Place] = {"cpu": "stream", "cuda": "process"}
"""The place that a device does not have."""
VARIANTS = [f"{name}, {place}" for name, (_, places) in SYSTEMS.items() for place in places]


def models(size: str, times: int, wanted: list[str], stack: ExitStack) -> dict[str, Any]:
    """The variants whose coarse tower has so many times its layers; places share weights."""
    found: dict[str, Any] = {}
    for name, (make, places) in SYSTEMS.items():
        ours = [place for place in places if f"{name}, {place}" in wanted]
        system: Any = make(size, times).eval() if ours else None
        for place in ours:
            model = system
            if place != "in line":
                model = stack.enter_context(Simultaneous(system, worker=place))
            found[f"{name}, {place}"] = model
    return found


@torch.inference_mode()
def measure(
    size: str, ticks: int, rounds: int, period_s: float, wanted: list[str]
) -> dict[str, Any]:
    """Percentiles of the ticks of every variant, in milliseconds, and their growth."""
    with ExitStack() as stack:
        readers = {
            (name, times): Reader(model)
            for times in TIMES
            for name, model in models(size, times, wanted, stack).items()
        }
        for reader in readers.values():
            reader.read(max(ticks // 4, 8), 0.0)
            reader.seconds.clear()
        for number in range(rounds):
            for reader in readers.values():
                reader.read(ticks, period_s)
            print(f"{size}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        results: dict[str, Any] = {}
        for (name, times), reader in readers.items():
            row = results.setdefault(name, {})
            for share in (0.5, 0.95):
                found = 1e3 * quantile(reader.seconds, share)
                row[f"p{share * 100:.0f}_ms_{times}"] = round(found, 3)
            if isinstance(reader.model, Simultaneous):
                row[f"late_{times}"] = round(reader.model.num_misses / reader.model.num_jobs, 3)
        for row in results.values():
            for name in ("p50", "p95"):
                row |= {
                    f"{name}_growth_{times}": round(
                        row[f"{name}_ms_{times}"] / row[f"{name}_ms_1"], 3
                    )
                    for times in TIMES[1:]
                }
        return results


def table(title: str, results: dict[str, Any]) -> str:
    """Milliseconds, growth, and the share of blocks that came late, a line for each variant."""
    sizes = ", ".join(f"x{times}" for times in TIMES)
    lines = [
        f"{title} (ms; {sizes} layers of the coarse tower)",
        f"{'':24}{'p50':>26}{'p95':>28}{'growth p50, p95':>18}{'late':>20}",
    ]
    for name, row in results.items():
        line = f"{name:24}"
        for share in ("p50", "p95"):
            line += "  " + "".join(f"{row[f'{share}_ms_{times}']:>8.2f} " for times in TIMES)
        line += "".join(f"{row[f'{share}_growth_{TIMES[-1]}']:>9.2f}" for share in ("p50", "p95"))
        late = [f"{row[f'late_{times}']:>6.2f}" for times in TIMES if f"late_{times}" in row]
        lines.append(line + "  " + " ".join(late))
    return "\n".join(lines)


def load_at_start() -> float:
    """The load of the machine over the last minute; a warning if it is not idle."""
    load = os.getloadavg()[0]
    if load > IDLE_LOAD:
        print(
            f"The machine must be idle: its load is {load:.2f}, more than {IDLE_LOAD}. These times "
            "show how busy it is; measure again when nothing else runs.",
            file=sys.stderr,
            flush=True,
        )
    return round(load, 2)


def parsed() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cases",
        nargs="+",
        default=["tiny:0:75", "tiny:25:75", "small:80:30"],
        help="size:ms:ticks, the milliseconds between ticks and the ticks of a model in a round",
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--device", default="cpu", choices=ELSEWHERE)
    parser.add_argument("--out")
    args = parser.parse_args()
    absent = f", {ELSEWHERE[args.device]}"
    args.variants = [name for name in args.variants if not name.endswith(absent)]
    return args


def main() -> None:
    """Measure, print a table for each case, and end with one JSON object."""
    args = parsed()
    load = load_at_start()
    torch.set_num_threads(1)
    torch.set_default_device(args.device)
    results: dict[str, Any] = {}
    ticks: dict[str, int] = {}
    for case in args.cases:
        if case.count(":") != 2:
            raise SystemExit(
                f"A case must be SIZE:MILLISECONDS:TICKS, as tiny:25:75: got {case!r}."
            )
        size, period_ms, a_round = case.split(":")
        title = f"{size}, a tick every {float(period_ms):g} ms"
        ticks[title] = int(a_round) * args.rounds
        period_s = float(period_ms) / 1e3
        results[title] = measure(size, int(a_round), args.rounds, period_s, args.variants)
        print(table(title, results[title]), flush=True)
    record = {"aim_p50_ratio": AIM_RATIO, "load_at_start": load, "ticks": ticks}
    finish("simultaneous", {**record, "results": results}, args.out)


if __name__ == "__main__":
    main()
