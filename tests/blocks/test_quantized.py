from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from counterpoint.blocks.depth import StepLinear
from counterpoint.blocks.quantized import (
    KERNEL_WIDTH,
    MOST_ROWS,
    Int8Linear,
    Int8StepLinear,
    int8_linear,
    store_int8,
    to_int8,
)
from counterpoint.runtime.sessions import Sessions
from counterpoint.systems import single_stream, two_stream
from counterpoint.systems.single_stream import SingleStream
from counterpoint.systems.two_stream import TwoStream
from tests.systems.scoring import extend
from tests.systems.tiny_moshi import build, frames_of, random_codes


def closeness(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def test_weights_are_within_half_a_step() -> None:
    weight = torch.randn(7, 12) * torch.logspace(-3, 3, 7)[:, None]
    weight[3] = 0
    codes, scale = to_int8(weight)
    assert codes.dtype == torch.int8
    assert codes.abs().amax(1).tolist() == [127, 127, 127, 0, 127, 127, 127]
    off = (codes * scale[:, None] - weight).abs()
    assert (off <= scale[:, None] * 0.5001).all()


@pytest.mark.parametrize("num_rows", [1, MOST_ROWS, MOST_ROWS + 1, 33])
@pytest.mark.parametrize("width", [3, 16, 40, 63, 100, 176])
def test_product_is_that_of_the_stored_weights(num_rows: int, width: int) -> None:
    """Few vectors go through a kernel in bfloat16 where it can; the others are exact."""
    codes, scale = to_int8(torch.randn(10, width))
    x = torch.randn(num_rows, width)
    ours = int8_linear(x, codes, scale)
    assert ours.dtype == x.dtype
    limit = 1e-2 if num_rows <= MOST_ROWS and width % KERNEL_WIDTH == 0 else 1e-6
    assert closeness(ours, x @ (codes * scale[:, None]).T) < limit


@pytest.mark.parametrize("schedule", [(0, 1, 2, 3), (0, 1, 1, 0)])
def test_steps_have_their_own_weights(schedule: tuple[int, ...]) -> None:
    linear = StepLinear(12, 5, schedule)
    ours = Int8StepLinear(linear)
    with torch.no_grad():
        for first, count in ((0, 4), (1, 2), (3, 1)):
            x = torch.randn(9, count, 12)
            assert closeness(ours(x, first), linear(x, first)) < 1e-2
            vector = torch.randn(9, 12)
            spread = linear(vector, first, count)
            assert ours(vector, first, count).shape == spread.shape
            assert closeness(ours(vector, first, count), spread) < 1e-2
    assert ours.flops() == linear.flops()


def test_weights_of_8_bits_are_stored_as_they_are() -> None:
    """What was expanded from whole numbers and scales gives them again, and nothing is added."""
    codes, scale = to_int8(torch.randn(50, 64) * torch.logspace(-3, 3, 50)[:, None])
    linear = nn.Linear(64, 50, bias=False)
    with torch.no_grad():
        linear.weight.copy_(codes * scale[:, None])
    stored = Int8Linear(linear)
    assert torch.equal(stored.codes, codes)
    torch.testing.assert_close(stored.scale, scale, rtol=2e-7, atol=0)
    for num_rows, limit in ((MOST_ROWS, 1e-2), (MOST_ROWS + 1, 1e-6)):
        x = torch.randn(num_rows, 64)
        with torch.no_grad():
            assert closeness(stored(x), linear(x)) < limit


def test_map_with_a_bias_stays() -> None:
    model = nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 16, bias=False))
    store_int8(model)
    assert [type(part) for part in model] == [nn.Linear, Int8Linear]


@pytest.mark.parametrize("name", ["single_stream", "two_stream"])
def test_text_model_of_8_bits_scores_nearly_as_before(name: str) -> None:
    """And a session of it scores what whole rows do, to the float tolerance of the kernel."""
    model, ids = tiny_system(name), torch.randint(0, 256, (1, 40))
    with torch.no_grad():
        before, _ = extend(model, {"part": ids}, model.initial_state(1))
        store_int8(model)
        after, _ = extend(model, {"part": ids}, model.initial_state(1))
        state, ticks = model.initial_state(1), []
        for i in range(ids.shape[1]):
            logits, state = extend(model, {"part": ids[:, i : i + 1]}, state)
            ticks.append(logits["part"])
    assert 0 < closeness(after["part"], before["part"]) < 0.05
    assert closeness(torch.cat(ticks, 1), after["part"]) < 0.05


@pytest.mark.parametrize("name", ["moshi", "single_stream", "two_stream"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_keep_the_dtype_of_the_model(name: str, dtype: torch.dtype) -> None:
    model = (build("agent_only") if name == "moshi" else tiny_system(name)).to(dtype)
    before = [(leaf.shape, leaf.dtype) for leaf in tree_leaves(model.initial_state(2))]
    store_int8(model)
    state = model.initial_state(2)
    assert [(leaf.shape, leaf.dtype) for leaf in tree_leaves(state)] == before
    ticks = frames_of(model, 2, 5) if name == "moshi" else {"part": torch.ones(2, 5).long()}
    with torch.no_grad():
        logits, _ = extend(model, ticks, state)
    assert {scores.dtype for scores in logits.values()} == {dtype}


def test_weights_have_the_dtype_that_they_had() -> None:
    for linear in (nn.Linear(16, 5, bias=False), StepLinear(16, 5, (0, 1))):
        model = nn.Sequential(linear.bfloat16())
        store_int8(model)
        stored: Any = model[0]
        assert stored.weight.dtype == torch.bfloat16
        assert closeness(stored.weight.float(), linear.weight.detach().float()) < 1e-2
        assert list(model.state_dict()) == ["0.codes", "0.scale"]


def test_sessions_begin_without_expanding_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("agent_only")
    flops = model.flops_per_tick(5) - model.temporal.flops_per_step(5)
    flops -= model.depth.flops_per_frame()
    assert flops == 2 * model.head.weight.numel()
    store_int8(model)

    def expanded(_: Any) -> Tensor:
        raise AssertionError("a weight was expanded")

    for kind in (Int8Linear, Int8StepLinear):
        monkeypatch.setattr(kind, "weight", property(expanded))
    model.initial_state(1)
    model.flops_per_tick(5)


@pytest.mark.parametrize("name", ["moshi", "single_stream", "two_stream"])
def test_a_tick_costs_as_many_flops_in_8_bits(name: str) -> None:
    model = build("agent_only") if name == "moshi" else tiny_system(name)
    before = model.flops_per_tick(5)
    store_int8(model)
    assert model.flops_per_tick(5) == before


def tiny_system(name: str) -> Any:
    two = name == "two_stream"
    model: Any = TwoStream(two_stream.tiny()) if two else SingleStream(single_stream.tiny())
    nn.init.normal_(model.head.weight, std=0.1)  # it starts at zero
    return model.eval()


def test_biases_are_refused() -> None:
    with pytest.raises(ValueError, match="without bias can be stored in 8 bits"):
        Int8Linear(nn.Linear(3, 4))


def test_model_of_8_bits_scores_nearly_as_before_and_holds_sessions() -> None:
    model = build("agent_only")
    batch = model.lay_out(random_codes(model, 3, 20))
    num_bytes = sum(t.nbytes for t in model.state_dict().values())
    with torch.no_grad():
        before = model(batch)
        store_int8(model)
        after = model(batch)
    for name, logits in before.items():
        assert 0 < closeness(after[name], logits) < 0.05
    assert not any(isinstance(part, nn.Linear | StepLinear) for part in model.modules())
    assert sum(t.nbytes for t in model.state_dict().values()) < 0.6 * num_bytes
    sessions = Sessions(model, 2)
    assert all(cache.is_floating_point() for cache in sessions.state.caches)
    sessions.start(0, prompt=random_codes(model, 1, 5))
    heard = {name: ids[0, 0] for name, ids in random_codes(model, 1, 1).items() if "user" in name}
    assert set(sessions.step({0: heard})[0]) == {"text", "agent_semantic", "agent_acoustic"}
