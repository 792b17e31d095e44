"""Two systems that no other file knows train by `train_run` and talk in `Sessions`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.config_json import decode, encode
from counterpoint.data.source import ALONE, Fingerprint, Preparation, PreparedSource
from counterpoint.recipes.training import train_run
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.session import Frame
from counterpoint.runtime.sessions import Sessions
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import Layout, Ticks
from counterpoint.systems import SYSTEMS
from counterpoint.systems.contract import System, SystemConfig
from counterpoint.train.config import TrainConfig
from counterpoint.train.distributed import World
from counterpoint.train.run import Run
from tests.systems.contract_models import CONFIGS, PROBES, build, random_ticks

GREEDY = Sampling(temperature=0.0)
MODELS = [(probe, name) for probe in PROBES for name in CONFIGS[probe]]


NUM_TICKS = 14


@pytest.fixture(params=MODELS, ids="-".join)
def model(request: pytest.FixtureRequest) -> System:
    torch.manual_seed(1)
    return build(*request.param)


def heard_ticks(model: System) -> dict[str, Tensor]:
    """What one row hears, in content order."""
    ticks = random_ticks(model, 1, NUM_TICKS)
    return {stream.name: ticks[stream.name][0] for stream in model.layout.heard}


def same(ours: list[Frame], theirs: list[Frame]) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(ids, other[name])
        for one, other in zip(ours, theirs, strict=True)
        for name, ids in one.items()
    )


def at(heard: Ticks, tick: int) -> dict[str, Tensor]:
    return {name: values[tick] for name, values in heard.items()}


def content_of(model: System, said: list[Frame], heard: Ticks, num_ticks: int) -> dict[str, Tensor]:
    """Complete frames and what was heard in them, as one row of content."""
    content = {}
    for stream in model.layout.streams:
        if stream.predicted:
            values = torch.stack([frame[stream.name] for frame in said[:num_ticks]])
            values = values if stream.has_codebooks else values[:, 0]
        else:
            values = heard[stream.name][:num_ticks]
        content[stream.name] = values[None]
    return content


def begin(sessions: Sessions, row: int, prompt: Ticks | None = None) -> list[Frame]:
    """Start a row; the frame that is complete at once, if there is one."""
    session = sessions.start(row, GREEDY, prompt=prompt)
    return [] if session.opening is None else [session.opening]


def talk(model: System, heard: Ticks, prompt: Ticks | None = None, first: int = 0) -> list[Frame]:
    """What one session says, alone, while it hears everything from a tick on."""
    sessions = Sessions(model, 1)
    said = begin(sessions, 0, prompt)
    for tick in range(first, NUM_TICKS):
        said += sessions.step({0: at(heard, tick)}).values()
    return said


def test_a_session_says_what_whole_rows_score_highest(model: System) -> None:
    """Column by column: the schedule of sessions and that of training are one."""
    heard = heard_ticks(model)
    said = talk(model, heard)
    num_ticks = min(len(said), NUM_TICKS)
    assert num_ticks >= NUM_TICKS - 2
    batch = model.lay_out(content_of(model, said, heard, num_ticks))
    with torch.no_grad():
        scores = model(batch)
    for name, logits in scores.items():
        targets = batch.targets[name]
        real = targets >= 0
        assert int(real.sum()) >= num_ticks - 2
        assert torch.equal(logits.argmax(-1)[real], targets[real])


def test_sessions_of_one_batch_do_not_touch(model: System) -> None:
    """Rows start, pause and end on their own."""
    heard = [heard_ticks(model) for _ in range(3)]
    alone = [talk(model, own) for own in heard]
    sessions = Sessions(model, 3)
    said = [begin(sessions, 0), begin(sessions, 1), list[Frame]()]
    done = [0, 0, 0]
    for turn in range(NUM_TICKS):
        if turn == 4:
            said[2] = begin(sessions, 2)
        rows = [row for row in sessions.running if (turn + row) % 3]
        frames = sessions.step({row: at(heard[row], done[row]) for row in rows})
        for row in rows:
            done[row] += 1
        for row, frame in frames.items():
            said[row].append(frame)
    for own, expected in zip(said, alone, strict=True):
        assert len(own) > 3
        assert same(own, expected[: len(own)])


@pytest.mark.parametrize("name", CONFIGS["interleaved"])
def test_a_guided_session_is_the_same_in_whatever_rows(name: str) -> None:
    """Without delay it writes at once, with the tower, and its twin may stand before it."""
    torch.manual_seed(1)
    model = build("interleaved", name)
    streams = tuple(replace(stream, delay_ticks=0) for stream in model.layout.streams)
    model.layout = replace(model.layout, streams=streams)
    prompt = random_ticks(model, 1, 5)
    heard = heard_ticks(model)
    sampling = FrameSampling(text=GREEDY, audio=GREEDY, guidance=2.0)

    def said(row: int, twin: int) -> list[Frame]:
        sessions = Sessions(model, 2)
        opening = sessions.start(row, sampling, prompt=prompt, twin=twin).opening
        assert opening is not None
        return [opening, *(sessions.step({row: at(heard, tick)})[row] for tick in range(4))]

    assert same(said(0, 1), said(1, 0))


def test_a_session_goes_on_with_its_own_past_as_a_prompt(model: System) -> None:
    heard = heard_ticks(model)
    said = talk(model, heard)
    again = talk(model, heard, content_of(model, said, heard, 5), 5)
    assert same(again, said[5:])


@dataclass(frozen=True, kw_only=True)
class Echo:
    """A source of data for any system: all streams tell the same random sign at every tick."""

    def fits(self, layout: Layout) -> bool:
        return bool(layout.heard)

    def num_ticks(self, layout: Layout) -> int:
        return 12

    def prepare(self, system: Any, how: Preparation = ALONE) -> PreparedSource:
        return PreparedEcho(system, self.num_ticks(system.layout))


class PreparedEcho:
    def __init__(self, system: System, num_ticks: int) -> None:
        self.system, self.num_ticks, self.batch_rows = system, num_ticks, 0

    def batches(
        self, batch_rows: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> "PreparedEcho":
        self.batch_rows = batch_rows
        return self

    def batch(self, step: int) -> Batch:
        seeded = torch.Generator().manual_seed(step)
        signs = torch.randint(0, 2, (self.batch_rows, self.num_ticks), generator=seeded)
        content = {}
        for stream in self.system.layout.streams:
            values = signs.view(*signs.shape, *[1] * len(stream.element_shape))
            values = values.expand(*signs.shape, *stream.element_shape)
            content[stream.name] = values + 1 if stream.is_discrete else values * 2.0 - 1
        return self.system.lay_out(content)

    def held_out_units(self) -> None:
        return None

    def describe(self) -> str:
        return "signs without end"

    @property
    def fingerprint(self) -> Fingerprint:
        return {}


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_trains_like_any_system(
    probe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SYSTEMS, probe, PROBES[probe])
    config = CONFIGS[probe]["windowed"]
    run = Run(name=probe, system=config, data=Echo(), train=TrainConfig(num_steps=6, batch_rows=2))
    assert decode(SystemConfig, encode(config)) == config
    result = train_run(run, tmp_path / probe, World(), loggers=())
    assert result.finished
    assert result.counters.step == 6
    assert result.loss > 0
