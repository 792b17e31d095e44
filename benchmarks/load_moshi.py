"""Do sixteen live sessions run for ten minutes undisturbed, in real time, in flat memory?

The tiny model with random weights and 12.5 frames a second. The sessions pause now and then; on two
rows beside them others come, with prompts, and go; frames that do not fit and sessions for which
there is no room are refused all the while. Afterwards every session runs again, all its frames,
alone in an engine of the same size (bar: the same ids, bit for bit) and alone in an engine of one
row (bar: the same ids of greedy sessions; those of sampled ones are reported). Bar: memory grows by
less than 1 % behind the first minute.

One row and many round differently (F.linear does), and a greedy session differs for good where the
two best scores of an id are nearer than that. "margin" is their least distance, in one row, in the
two steps that choose the ids of the frame that differs first (late streams in the second). In
float64 no margin comes near the rounding: what differs there is an error.

What was said live is kept in a folder, and so is every comparison that is done: whoever is stopped
goes on there. Other code than the live run's is refused, for it may round otherwise. Behind the ten
minutes it needs half an hour of a free core, or less with more workers.

Ticks are late where their step ends behind the next frame. "late_on_a_free_core" counts those that
would be late if the process had not waited for a processor: each tick takes its own CPU time then.

    OMP_NUM_THREADS=1 python benchmarks/load_moshi.py runs/load --workers 2 --out load_moshi.json
    OMP_NUM_THREADS=1 python benchmarks/load_moshi.py runs/load64 --dtype float64 --workers 2 \\
        --out load_moshi_float64.json
"""

import argparse
import hashlib
import json
import random
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from record import finish, quantile
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import counterpoint
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.engine import Engine, FullHouseError
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.session import Frame
from counterpoint.streams.spec import Ticks
from counterpoint.systems.moshi import Moshi, tiny

NUM_SESSIONS, NUM_GUESTS = 16, 2
MOST_GROWTH = 0.01
COMPARED = "compared.jsonl"
GREEDY = Sampling(temperature=0)


def random_model(dtype: str) -> Moshi:
    """The agent of the tiny model, with heads that prefer some ids."""
    torch.manual_seed(0)
    model = Moshi(tiny()).eval()
    with torch.no_grad():
        for head in (model.head, model.depth.head):
            head.weight.normal_(std=2.0 * head.weight.shape[1] ** -0.5)
    return model.trimmed(model.config.num_predicted // 2).to(getattr(torch, dtype))


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
        model = model_of(self.engine)
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


class Clock:
    """What each tick took: by the wall, and of the processor for its parts."""

    def __init__(self, period_s: float, num_ticks: int) -> None:
        self.period_s, self.began = period_s, time.perf_counter()
        parts = ("guests", "refused", "step")
        # All memory is taken now: what grows afterwards is the engine's.
        self._cpu_s = {part: torch.zeros(num_ticks, dtype=torch.float64) for part in parts}
        self._step_s, self._ended_s = torch.zeros(2, num_ticks, dtype=torch.float64)
        self._tick, self._cpu, self._wall = 0, 0.0, 0.0

    def wait(self, tick: int) -> None:
        """Until the frame of a tick has come."""
        ahead = self.began + tick * self.period_s - time.perf_counter()
        if ahead > 0:
            time.sleep(ahead)

    def begin(self, tick: int) -> None:
        """The first part of a tick begins."""
        self._tick, self._cpu, self._wall = tick, time.process_time(), time.perf_counter()

    def end(self, part: str) -> None:
        """It is over, and the next one begins."""
        tick, now = self._tick, time.perf_counter()
        self._cpu_s[part][tick] = time.process_time() - self._cpu
        if part == "step":
            self._step_s[tick], self._ended_s[tick] = now - self._wall, now - self.began
        self.begin(tick)

    def report(self) -> dict[str, Any]:
        """Late ticks so far, and what the parts of a tick took."""
        until = slice(self._tick + 1)
        parts_s = {part: times[until].tolist() for part, times in self._cpu_s.items()}
        parts_s["tick"] = [sum(parts) for parts in zip(*parts_s.values(), strict=True)]
        step_s, ended_s = self._step_s[until].tolist(), self._ended_s[until].tolist()
        free_s, late_free = 0.0, 0
        for tick, cpu_s in enumerate(parts_s["tick"]):
            free_s = max(free_s, tick * self.period_s) + cpu_s
            late_free += free_s > (tick + 1) * self.period_s
        return {
            "late_ticks": sum(s > (t + 1) * self.period_s for t, s in enumerate(ended_s)),
            "late_on_a_free_core": late_free,
            **{f"step_p{p}_ms": _ms(step_s, p) for p in (50, 95, 99)},
            "cpu_ms": {
                part: {f"p{p}": _ms(values, p) for p in (50, 99, 100)}
                for part, values in parts_s.items()
            },
        }


def _ms(values: list[float], percent: int) -> float:
    return round(quantile(values, percent / 100) * 1e3, 2)


def model_of(engine: Engine) -> Moshi:
    assert isinstance(engine.system, Moshi)
    return engine.system


def live(engine: Engine, seconds: float, real_time: bool) -> tuple[Tensor, dict[str, Any]]:
    """The load: what each of the sessions said, and what was measured."""
    model, numbers = model_of(engine), random.Random(1)
    num_ticks = int(seconds * model.config.tick_hz)
    heard = [heard_by(model, session, num_ticks) for session in range(NUM_SESSIONS)]
    sessions = [engine.admit(sampling_of(session)) for session in range(NUM_SESSIONS)]
    depth = 1 + sum(stream.depth for stream in model.predicted)
    said = torch.full((NUM_SESSIONS, num_ticks, depth), -1, dtype=torch.int16)
    guests, memory, refused = Guests(engine, numbers), [], 0
    clock = Clock(1 / model.config.tick_hz, num_ticks)
    for tick in range(num_ticks):
        if real_time:
            clock.wait(tick)
        clock.begin(tick)
        given = guests.at(tick)
        for session in sessions:
            if numbers.random() > 0.02:
                frame = engine[session].num_ticks
                given[session] = frame_of(model, heard[session][frame])
        clock.end("guests")
        if tick % 12 == 0:
            try:
                engine.step(given | {sessions[tick % NUM_SESSIONS]: {"user_semantic": [10_000]}})
            except ValueError:
                refused += 1
        clock.end("refused")
        frames = engine.step(given)
        clock.end("step")
        for session in sessions:
            if session in frames:
                said[session, engine[session].num_ticks - 1] = joined(frames[session])
        if tick % 125 == 0:
            memory.append(round(resident_bytes() / 2**20, 2))
            _tell(f"live: {tick} of {num_ticks} ticks, {clock.report()['late_ticks']} late")
    return said, {
        "seconds": round(time.perf_counter() - clock.began, 1),
        "num_ticks": num_ticks,
        "real_time": real_time,
        "frames_heard": [engine[session].num_ticks for session in sessions],
        **clock.report(),
        "refused_frames": refused,
        "guests_admitted": guests.num_admitted,
        "guests_refused": guests.num_refused,
        "memory_mib_every_10_s": memory,
    }


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def joined(frame: Frame) -> Tensor:
    """Ids of all streams of a frame."""
    return torch.cat(list(frame.values())).to(torch.int16)


def again(model: Moshi, num_rows: int, session: int, heard: Tensor) -> Iterator[Tensor]:
    """What a session says that is alone in an engine."""
    engine = Engine(model, num_rows)
    alone = engine.admit(sampling_of(session))
    for codes in heard:
        frame = engine.step({alone: frame_of(model, codes)}).get(alone)
        yield torch.full((1,), -1, dtype=torch.int16) if frame is None else joined(frame)


class Margins:
    """Distances of the two best scores of all ids of the newest two steps, in one row."""

    def __init__(self, model: Moshi) -> None:
        self.steps: deque[list[float]] = deque([[]], maxlen=2)
        for head in (model.head, model.depth.head):
            head.register_forward_hook(self._add)

    def _add(self, _module: nn.Module, _given: object, scores: Tensor) -> None:
        best = scores.flatten(0, -2).topk(2).values
        self.steps[-1].extend((best[:, 0] - best[:, 1]).tolist())

    def least(self) -> float:
        """The least of them."""
        return min(distance for step in self.steps for distance in step)


def compare(folder: Path, dtype: str, session: int, num_rows: int) -> dict[str, Any]:
    """A session against its run alone: frames compared, and the first that differs."""
    torch.set_num_threads(1)
    model, ids = random_model(dtype), load_file(folder / "live.safetensors")["said"][session]
    is_greedy = session % 2 == 0
    margins = Margins(model) if num_rows == 1 and is_greedy else None
    num_frames = int((ids[:, 0] >= 0).nonzero().max()) + 1
    heard = heard_by(model, session, len(ids))[:num_frames]
    pairs = zip(ids, again(model, num_rows, session, heard), strict=False)
    first_difference = None
    for frame, (a, b) in enumerate(pairs):
        if not bool((a == b).all()):
            first_difference = frame
            break
        if margins is not None:
            margins.steps.append([])
    return {
        "session": session,
        "rows": num_rows,
        "greedy": is_greedy,
        "frames": num_frames,
        "distinct_frames": len(ids[:num_frames].unique(dim=0)),
        "first_difference": first_difference,
        "margin": None if margins is None or first_difference is None else margins.least(),
    }


def compare_all(folder: Path, dtype: str, num_workers: int) -> list[dict[str, Any]]:
    """Every session against its runs alone; those that a file has are not done again."""
    file = folder / COMPARED
    text = file.read_text() if file.exists() else ""
    whole = text[: text.rfind("\n") + 1]  # the last line may be half written
    if whole != text:
        file.write_text(whole)
    rows = [json.loads(line) for line in whole.splitlines()]
    done = {(row["session"], row["rows"]) for row in rows}
    # What the bars ask for comes first.
    greedy_first = sorted(range(NUM_SESSIONS), key=lambda session: session % 2)
    runs = [(s, n) for n in (NUM_SESSIONS + NUM_GUESTS, 1) for s in greedy_first]
    to_do = [run for run in runs if run not in done]
    began = time.perf_counter()
    with ProcessPoolExecutor(num_workers, get_context("spawn")) as pool:
        running = [pool.submit(compare, folder, dtype, *run) for run in to_do]
        for number, future in enumerate(as_completed(running), 1):
            rows.append(future.result())
            with file.open("a") as stream:
                stream.write(json.dumps(rows[-1]) + "\n")
            left_s = (time.perf_counter() - began) / number * (len(to_do) - number)
            _tell(f"{rows[-1]}; {len(rows)} of {len(runs)}, about {left_s / 60:.0f} min left")
    return rows


def live_digest(args: argparse.Namespace) -> str:
    """Of the settings of the live run, and of all code that the sessions run on."""
    files = sorted(Path(counterpoint.__path__[0]).rglob("*.py"))
    settings = f"{torch.__version__} {args.seconds} {args.no_wait} {args.dtype}".encode()
    content = [settings, *(file.read_bytes() for file in files)]
    return hashlib.sha256(b"\0".join(content)).hexdigest()


def live_or_kept(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What was measured in the live run that a folder has, or in a new one."""
    file, digest = folder / "live.json", live_digest(args)
    if file.exists():
        kept: dict[str, Any] = json.loads(file.read_text())
        if kept.pop("digest", None) != digest:
            raise SystemExit(
                f"{folder} must be of this code, torch and settings: it is not. Delete it."
            )
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    (folder / COMPARED).unlink(missing_ok=True)
    engine = Engine(random_model(args.dtype), NUM_SESSIONS + NUM_GUESTS)
    said, results = live(engine, args.seconds, not args.no_wait)
    save_file({"said": said}, folder / "live.safetensors")
    partial = file.with_name(".live.json.partial")
    partial.write_text(json.dumps({**results, "digest": digest}))
    partial.replace(file)
    return results


def main() -> None:
    """Run the load, compare, and end with one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="what was said live, and what is compared")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--no-wait", action="store_true", help="live, but as fast as it goes")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--workers", type=int, default=1, help="processes that compare")
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = live_or_kept(args.folder, args)
    print(results, flush=True)
    rows = compare_all(args.folder, args.dtype, args.workers)
    memory = results["memory_mib_every_10_s"]
    later = memory[min(6, len(memory) - 1) :]
    growth = max(later) / later[0] - 1
    same = [row for row in rows if row["first_difference"] is None]
    full = [row for row in same if row["rows"] > 1]
    greedy = [row for row in same if row["rows"] == 1 and row["greedy"]]
    results |= {
        "dtype": args.dtype,
        "sessions": NUM_SESSIONS,
        "rows": NUM_SESSIONS + NUM_GUESTS,
        "memory_growth_behind_first_minute": round(growth, 5),
        "undisturbed": len(full),
        "greedy_as_in_one_row": len(greedy),
        "sampled_as_in_one_row": len(same) - len(full) - len(greedy),
        "bars_met": growth < MOST_GROWTH
        and len(full) == NUM_SESSIONS
        and 2 * len(greedy) == NUM_SESSIONS,
        "compared": rows,
    }
    finish("load_moshi", results, args.out)


if __name__ == "__main__":
    main()
