"""Every system on a GPU: offline, live and in training, beside the same on the CPU."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from counterpoint.blocks.transformer import TowerConfig
from counterpoint.runtime.engine import Engine
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.sessions import Sessions
from counterpoint.runtime.simultaneous import Simultaneous
from counterpoint.systems.contract import System, state_tensors
from counterpoint.systems.two_stream import TwoStream, TwoStreamConfig
from tests.systems.contract_models import CONFIGS, batch_of, build, random_ticks
from tests.systems.scoring import extend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MODELS = [(system, name) for system, configs in CONFIGS.items() for name in configs]


@pytest.fixture(params=MODELS, ids=lambda pair: "-".join(pair))
def model(request: pytest.FixtureRequest) -> System:
    torch.manual_seed(0)
    return build(*request.param)


@torch.no_grad()
def test_scores_are_those_of_the_cpu(model: System) -> None:
    batch = batch_of(model, random_ticks(model, 2, 40))
    expected = model(batch)
    found = model.cuda()(batch.to("cuda"))
    for name, scores in expected.items():
        torch.testing.assert_close(found[name].cpu(), scores, rtol=1e-3, atol=2e-3)


@torch.no_grad()
def test_streaming_is_offline(model: System) -> None:
    ticks = {name: ids.cuda() for name, ids in random_ticks(model, 2, 30).items()}
    model = model.cuda()
    expected = model(batch_of(model, {name: ids.cpu() for name, ids in ticks.items()}).to("cuda"))
    state = model.initial_state(2)
    assert all(tensor.is_cuda for tensor in state_tensors(state))
    pieces = []
    for first in range(0, 30, 3):
        piece = {name: ids[:, first : first + 3] for name, ids in ticks.items()}
        scores, state = extend(model, piece, state)
        pieces.append(scores)
    for name in pieces[0]:
        found = torch.cat([piece[name] for piece in pieces], 1)
        whole = expected[name]
        first_element = whole[:, :, 0] if whole.ndim > found.ndim else whole
        torch.testing.assert_close(found, first_element, rtol=1e-3, atol=2e-3)


def test_a_step_of_training_is_that_of_the_cpu(model: System) -> None:
    batch = batch_of(model, random_ticks(model, 2, 32))
    twin = copy.deepcopy(model).cuda()
    model.eval(), twin.eval()
    model.loss(batch).total.backward()
    twin.loss(batch.to("cuda")).total.backward()
    for (name, weight), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        if weight.grad is not None:
            assert other.grad is not None, name
            torch.testing.assert_close(other.grad.cpu(), weight.grad, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("system", ["single_stream", "two_stream"])
def test_text_sessions_choose_as_on_the_cpu(system: str) -> None:
    name = next(iter(CONFIGS[system]))
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        sessions = Sessions(build(system, name).to(device), 2, sliding=True)
        for row in (0, 1):
            sessions.start(row, Sampling(temperature=0.0))
        sessions.feed({0: [1, 2, 3], 1: [4]})
        for _ in range(12):
            sessions.step()
        found.append([sessions[row].sampled for row in (0, 1)])
    assert found[0] == found[1]


def test_an_engine_holds_sessions_on_a_gpu() -> None:
    torch.manual_seed(0)
    model = build("moshi", "agent_only").cuda()
    engine = Engine(model, 3)
    first, second = engine.admit(), engine.admit()
    heard = {stream.name: [0] * stream.depth for stream in model.layout.heard}
    for _ in range(10):
        said = engine.step({first: heard, second: heard})
    assert all(ids.is_cuda for ids in said[first].values())
    engine.end(second)
    assert engine.num_free == 2


def test_a_run_learns_in_bfloat16_and_goes_on(tmp_path: Path) -> None:
    from counterpoint.systems import single_stream
    from counterpoint.systems.single_stream import SingleStream
    from counterpoint.train.config import TrainConfig
    from counterpoint.train.loop import train
    from tests.train.tiny import Letters

    torch.manual_seed(0)
    losses = []
    for steps in (6, 12):
        system = SingleStream(single_stream.tiny()).cuda()
        config = TrainConfig(num_steps=steps, batch_rows=4, precision="bfloat16")
        losses.append(train(system, Letters(), config, tmp_path).loss)
    assert losses[1] < losses[0]


@pytest.mark.parametrize("worker", ["thread", "stream"])
@torch.no_grad()
def test_a_whole_in_a_stream_of_its_own_gives_the_same(worker: Literal["thread", "stream"]) -> None:
    """Large towers, so that kernels of both are in flight at once."""
    tower = TowerConfig(width=512, num_layers=8, num_heads=8, mlp_hidden=2048, window=64)
    torch.manual_seed(0)
    system = TwoStream(
        TwoStreamConfig(
            part=replace(tower, num_layers=4),
            whole=tower,
            lower_layers=1,
            lag_blocks=1,
            block_ticks=4,
        )
    )
    system = system.cuda().eval()
    ids = torch.randint(256, (4, 400), device="cuda")
    expected_state = system.initial_state(4)
    with Simultaneous(system, worker=worker) as simultaneous:
        state = simultaneous.initial_state(4)
        for tick in range(400):
            piece = {"part": ids[:, tick : tick + 1]}
            found, state = simultaneous.read(piece, state)
            expected, expected_state = system.read(piece, expected_state)
            assert torch.equal(found, expected), tick
        assert simultaneous.num_jobs == 100
