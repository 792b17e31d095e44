"""Do sixteen live sessions run for ten minutes undisturbed, in real time, in flat memory?

The tiny model with random weights and 12.5 frames a second. The sessions pause now and then; on two
rows beside them others come, with prompts, and go; frames that do not fit and sessions for which
there is no room are refused all the while. Afterwards sessions run again, alone in an engine of the
same size (bars: the same ids, bit for bit) and alone in an engine of one row (bar: the same ids of
greedy sessions; those of sampled ones are reported). Bar: memory grows by less than 1 % behind the
first minute.

    OMP_NUM_THREADS=1 python benchmarks/load_moshi.py --out benchmarks/results/load_moshi.json
"""

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from record import finish, quantile
from torch import Tensor

from counterpoint.runtime.engine import Engine, FullHouseError
from counterpoint.runtime.frames import Frame, FrameSampling
from counterpoint.runtime.sampler import Sampling
from counterpoint.streams.spec import Ticks
from counterpoint.systems.moshi import Moshi, tiny

NUM_SESSIONS, NUM_GUESTS = 16, 2
MOST_GROWTH = 0.01
GREEDY = Sampling(temperature=0)


def random_model() -> Moshi:
    """The agent of the tiny model, with heads that prefer some ids."""
    torch.manual_seed(0)
    model = Moshi(tiny()).eval()
    with torch.no_grad():
        for head in (model.head, model.depth.head):
            head.weight.normal_(std=2.0 * head.weight.shape[1] ** -0.5)
    return model.trimmed(model.config.num_predicted // 2)


def sampling_of(session: int) -> FrameSampling:
    """Every other session is greedy."""
    if session % 2 == 0:
        return FrameSampling(text=GREEDY, audio=GREEDY)
    return FrameSampling(text=Sampling(seed=session), audio=Sampling(seed=session, top_k=20))


def heard_by(model: Moshi, session: int, num_frames: int) -> Tensor:
    """Ids of the user of one session: (T, K)."""
    numbers = torch.Generator().manual_seed(session)
    depth = sum(s.depth for s in model.audio if s not in model.predicted)
    return torch.randint(0, model.config.audio_vocab_size, (num_frames, depth), generator=numbers)


def frame_of(model: Moshi, codes: Tensor) -> dict[str, Tensor]:
    """One frame by stream."""
    streams = [stream for stream in model.audio if stream not in model.predicted]
    pieces = codes.split([stream.depth for stream in streams])
    return {stream.name: piece for stream, piece in zip(streams, pieces, strict=True)}


def random_prompt(model: Moshi, num_frames: int) -> Ticks:
    """Ids of all streams, one row in content order."""
    prompt = {
        stream.name: torch.randint(0, stream.vocab_size or 0, (1, num_frames, stream.depth))
        for stream in model.layout.streams
    }
    return prompt | {"text": prompt["text"][..., 0]}


def resident_bytes() -> int:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


class Guests:
    """Two rows of sessions that come, with prompts, and go."""

    def __init__(self, engine: Engine, numbers: random.Random) -> None:
        self.engine, self.numbers = engine, numbers
        self.leaves_at: dict[int, int] = {}
        self.num_admitted = self.num_refused = 0

    def at(self, tick: int) -> dict[int, dict[str, Tensor]]:
        """Who is there at a tick, and what they hear."""
        model = self.engine.system
        for session in [s for s, end in self.leaves_at.items() if end <= tick]:
            self.engine.end(session)
            del self.leaves_at[session]
        if self.numbers.random() < 0.2:
            prompt = random_prompt(model, self.numbers.randrange(40))
            try:
                session = self.engine.admit(FrameSampling(), prompt=prompt)
                self.leaves_at[session] = tick + self.numbers.randrange(10, 120)
                self.num_admitted += 1
            except FullHouseError:
                self.num_refused += 1
        heard = heard_by(model, tick, 1)[0]
        return {session: frame_of(model, heard) for session in self.leaves_at}


def live(engine: Engine, args: argparse.Namespace) -> tuple[list[Tensor], dict[str, Any]]:
    """The load: what each of the sessions said, and what was measured."""
    model, numbers = engine.system, random.Random(1)
    num_ticks = int(args.seconds * model.config.tick_hz)
    heard = [heard_by(model, session, num_ticks) for session in range(NUM_SESSIONS)]
    sessions = [engine.admit(sampling_of(session)) for session in range(NUM_SESSIONS)]
    depth = 1 + sum(stream.depth for stream in model.predicted)
    said = [torch.full((num_ticks, depth), -1, dtype=torch.int16) for _ in sessions]
    guests = Guests(engine, numbers)
    step_s, memory, late, refused = [], [], 0, 0
    began = time.perf_counter()
    for tick in range(num_ticks):
        due = began + tick / model.config.tick_hz
        if (ahead := due - time.perf_counter()) > 0 and not args.no_wait:
            time.sleep(ahead)
        given = guests.at(tick)
        for session in sessions:
            if numbers.random() > 0.02:
                frame = engine[session].num_heard
                given[session] = frame_of(model, heard[session][frame])
        if tick % 12 == 0:
            try:
                engine.step(given | {sessions[tick % NUM_SESSIONS]: {"user_semantic": [10_000]}})
            except ValueError:
                refused += 1
        begin = time.perf_counter()
        frames = engine.step(given)
        step_s.append(time.perf_counter() - begin)
        late += time.perf_counter() > due + 1 / model.config.tick_hz
        for session in sessions:
            if session in frames:
                said[session][engine[session].num_heard - 1] = joined(frames[session])
        if tick % 125 == 0:
            memory.append(round(resident_bytes() / 2**20, 2))
    return said, {
        "seconds": round(time.perf_counter() - began, 1),
        "num_ticks": num_ticks,
        "frames_heard": [engine[session].num_heard for session in sessions],
        "late_ticks": late,
        **{f"step_p{p}_ms": round(quantile(step_s, p / 100) * 1e3, 2) for p in (50, 95, 99)},
        "refused_frames": refused,
        "guests_admitted": guests.num_admitted,
        "guests_refused": guests.num_refused,
        "memory_mib_every_10_s": memory,
    }


def joined(frame: Frame) -> Tensor:
    """Ids of all streams of a frame."""
    return torch.cat(list(frame.values())).to(torch.int16)


def again(model: Moshi, num_rows: int, session: int, num_frames: int) -> Iterator[Tensor]:
    """What a session says that is alone in an engine."""
    engine = Engine(model, num_rows)
    alone = engine.admit(sampling_of(session))
    for codes in heard_by(model, session, num_frames):
        frame = engine.step({alone: frame_of(model, codes)}).get(alone)
        yield torch.full((1,), -1, dtype=torch.int16) if frame is None else joined(frame)


def compared(model: Moshi, said: list[Tensor], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Each session against its runs alone: frames compared, and the first that differs."""
    rows = []
    for session, ids in enumerate(said):
        heard = int((ids[:, 0] >= 0).nonzero().max()) + 1
        count = heard if session < args.whole else min(heard, args.first)
        row: dict[str, Any] = {"session": session, "greedy": session % 2 == 0, "frames": count}
        row["distinct_frames"] = len(ids[:count].unique(dim=0))
        for name, num_rows in (("same_size", NUM_SESSIONS + NUM_GUESTS), ("one_row", 1)):
            alone = again(model, num_rows, session, count)
            pairs = zip(ids, alone, strict=False)
            apart = (i for i, (a, b) in enumerate(pairs) if not bool((a == b).all()))
            row[f"first_difference_{name}"] = next(apart, None)
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Run the load, compare, and end with one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--whole", type=int, default=4, help="sessions compared to their end")
    parser.add_argument("--first", type=int, default=1000, help="frames compared of the others")
    parser.add_argument("--no-wait", action="store_true", help="as fast as it goes")
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = random_model()
    engine = Engine(model, NUM_SESSIONS + NUM_GUESTS)
    said, results = live(engine, args)
    print(results, flush=True)
    rows = compared(model, said, args)
    memory = results["memory_mib_every_10_s"]
    later = memory[min(6, len(memory) - 1) :]
    growth = max(later) / later[0] - 1
    results |= {
        "sessions": NUM_SESSIONS,
        "rows": NUM_SESSIONS + NUM_GUESTS,
        "memory_growth_behind_first_minute": round(growth, 5),
        "undisturbed": sum(row["first_difference_same_size"] is None for row in rows),
        "greedy_as_in_one_row": sum(
            row["first_difference_one_row"] is None for row in rows if row["greedy"]
        ),
        "sampled_as_in_one_row": sum(
            row["first_difference_one_row"] is None for row in rows if not row["greedy"]
        ),
        "bars_met": growth < MOST_GROWTH
        and all(row["first_difference_same_size"] is None for row in rows)
        and all(row["first_difference_one_row"] is None for row in rows if row["greedy"]),
        "compared": rows,
    }
    finish("load_moshi", results, args.out)


if __name__ == "__main__":
    main()
