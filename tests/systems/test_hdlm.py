"""HdLM: what each exit mode computes, beside plain towers over sequences laid out by hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state

from counterpoint.errors import UserError
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.sessions import Sessions
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems import sketch
from counterpoint.systems.hdlm import HdLM, HdLMConfig, small, tiny
from counterpoint.systems.single_stream import SingleStream, SingleStreamConfig
from counterpoint.tracing import tracing
from tests.systems.contract_models import batch_of, close, random_ticks
from tests.systems.scoring import write_scores
from tests.systems.tiny_models import VOCAB, hdlm, randomised, tower

TWO = ("coarse", "part")
MODES = ("none", "lazy", "masked", "propagate")


def model_of(config: HdLMConfig, seed: int = 0) -> HdLM:
    torch.manual_seed(seed)
    model = randomised(HdLM(config))
    assert isinstance(model, HdLM)
    return model


def like(model: HdLM, **changes: Any) -> HdLM:
    """The same weights in another shape."""
    other = HdLM(replace(model.config, **changes))
    other.load_state_dict(model.state_dict())
    return other.eval()


# ------------------------------------------------------------------------------- references


class Place:
    """An element of a sequence that is laid out by hand."""

    def __init__(self, kind: str, vector: Tensor, tick: int, number: int = 0) -> None:
        self.kind = kind
        self.vector = vector
        self.tick = tick
        self.number = number


def laid_out(model: HdLM, ticks: dict[str, Tensor]) -> list[Place]:
    """The sequence of one row, element by element."""
    coarse = model.coarse
    assert coarse is not None
    places: list[Place] = []
    for tick in range(ticks["part"].shape[1]):
        turn = [int(id_) for id_ in ticks["coarse"][0, tick]]
        for number, id_ in enumerate(turn):
            if id_ > 0:
                table = coarse.embedding.table.weight
                row = table[number * model.config.coarse_vocab_size + id_]
                places.append(Place("coarse", row, tick, number))
        if any(id_ > 0 for id_ in turn):
            places.append(Place("handover", coarse.handover, tick))
        row = model.embedding.table.weight[ticks["part"][0, tick]]
        places.append(Place("part", row, tick))
    return places


def reference(model: HdLM, ticks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scores of what is read from the second tick on, by a plain tower with two heads."""
    places = laid_out(model, ticks)
    k, tower_ = model.config.coarse_layer, model.tower
    x = torch.stack([place.vector for place in places])[None]
    x, _ = model.conv(x)
    starts = torch.zeros(x.shape[:2], dtype=torch.long)
    lower = tower_(x, tower_.reach(starts), layers=range(k))
    goes_on = torch.tensor([place.kind != "coarse" for place in places])
    mode = model.config.exit_mode
    upper = lower
    if mode == "masked":
        upper = torch.zeros_like(lower)
        some = lower[:, goes_on]
        reach = tower_.reach(starts[:, goes_on])
        upper[:, goes_on] = tower_(some, reach, layers=range(k, len(tower_.layers)))
    else:
        for layer in tower_.layers[k:]:
            upper = layer(upper, tower_.reach(starts))
            if mode == "propagate":
                upper = torch.where(goes_on[:, None], upper, lower)
    return heads(model, places, lower[0], upper[0], ticks["part"].shape[1])


def heads(
    model: HdLM, places: list[Place], lower: Tensor, upper: Tensor, num_ticks: int
) -> dict[str, Tensor]:
    coarse = model.coarse
    assert coarse is not None
    parts, turns = [], []
    for tick in range(1, num_ticks):
        inside = [i for i, place in enumerate(places) if place.tick == tick]
        parts.append(model.head(model.norm(upper[inside[-1] - 1])))
        states = []
        for number in range(model.config.coarse_depth):
            earlier = [
                i for i in inside if places[i].kind == "coarse" and places[i].number < number
            ]
            states.append(lower[(earlier or [inside[0] - 1])[-1]])
        turns.append(coarse.scores(torch.stack(states)))
    return {"part": torch.stack(parts)[None], "coarse": torch.stack(turns)[None]}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layer", [1, 3])
def test_each_mode_is_a_plain_tower_over_the_sequence(mode: Any, layer: int) -> None:
    """Layer 3 is the last one: one tower with two heads at its end."""
    config = hdlm(mode, coarse_layer=layer, turn_ticks=2, coarse_norm=False)
    model = model_of(config)
    ticks = random_ticks(model, 1, 11)
    with torch.no_grad():
        found = model(batch_of(model, ticks))
        close({name: x[:, :-1] for name, x in found.items()}, reference(model, ticks))


def test_modes_agree_where_both_heads_read_the_last_layer() -> None:
    model = model_of(hdlm("none", coarse_layer=3))
    batch = batch_of(model, random_ticks(model, 3, 14))
    for mode in MODES[1:]:
        with torch.no_grad():
            close(like(model, exit_mode=mode)(batch), model(batch))


@pytest.mark.parametrize("coarse_depth", [0, 2])
def test_rows_of_the_part_alone_are_a_single_stream(coarse_depth: int) -> None:
    model = model_of(hdlm("masked", coarse_depth=coarse_depth))
    plain = SingleStream(SingleStreamConfig(tower=model.config.tower, vocab_size=VOCAB)).eval()
    weights = model.state_dict()
    weights["embedding.weight"] = weights.pop("embedding.table.weight")
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    batch = batch_of(plain, random_ticks(plain, 3, 60))
    with torch.no_grad():
        found = model(batch)
        close(found, plain(batch))
    assert set(found) == {"part"}
    assert set(model.losses(batch)) == {"part"}
    flops = model.flops_per_tick(60, predicted={"part"})
    assert flops == pytest.approx(plain.flops_per_tick(60), rel=1e-9)


# ---------------------------------------------------------------------------------- exits


@contextmanager
def counted_steps(model: HdLM, layer: int) -> Iterator[list[int]]:
    """Steps of every call of a layer."""
    calls: list[int] = []
    hook = model.tower.layers[layer].register_forward_hook(
        lambda module, args, output: calls.append(output.shape[1])
    )
    yield calls
    hook.remove()


@pytest.mark.parametrize(
    ("mode", "steps"), [("none", 24), ("lazy", 24), ("masked", 15), ("propagate", 15)]
)
def test_upper_layers_run_only_where_the_mode_lets_them(mode: Any, steps: int) -> None:
    """Twelve ticks with room for three turns of three ids and a handover."""
    model = model_of(hdlm(mode, coarse_depth=3, turn_ticks=6))
    batch = batch_of(model, random_ticks(model, 2, 12))
    with counted_steps(model, 0) as below, counted_steps(model, 2) as above, torch.no_grad():
        model(batch)
    assert below == [24]
    assert above == [steps]


@pytest.mark.parametrize(("mode", "is_read"), [("lazy", True), ("masked", False)])
def test_masked_steps_above_read_no_coarse_step(mode: Any, is_read: bool) -> None:
    model = model_of(hdlm(mode, turn_ticks=4))
    ticks = random_ticks(model, 1, 12)
    states: list[Tensor] = []

    def keep(module: Any, args: Any, output: Tensor) -> None:
        output.retain_grad()
        states.append(output)

    hook = model.tower.layers[0].register_forward_hook(keep)
    model(batch_of(model, ticks))["part"].sum().backward()
    hook.remove()
    places = laid_out(model, ticks)
    is_coarse = torch.tensor([place.kind == "coarse" for place in places])
    gradient = states[0].grad
    assert gradient is not None
    reaches = gradient[0, : len(places)].abs().sum(-1) > 0
    assert bool(reaches[is_coarse].any()) == is_read
    assert reaches[~is_coarse].any()


@pytest.mark.parametrize(
    ("mode", "above"), [("none", [1, 1, 4]), ("lazy", [4]), ("masked", [1]), ("propagate", [1])]
)
def test_coarse_ids_are_written_without_the_upper_layers(mode: Any, above: list[int]) -> None:
    """A turn of three ids: as published every layer runs for each, else the first one alone."""
    model = model_of(hdlm(mode, coarse_depth=3, turn_ticks=4))
    ticks = random_ticks(model, 1, 4)
    frame = {"coarse": torch.tensor([[[3, 1, 2]]]), "part": torch.tensor([[5]])}
    with torch.no_grad():
        hidden, state = model.read(ticks, model.initial_state(1))
        with counted_steps(model, 0) as lower_calls, counted_steps(model, 2) as upper_calls:
            write_scores(model, hidden[:, -1], frame, state)
    assert lower_calls == [1, 1, 4]
    assert upper_calls == above


def test_a_tick_without_a_turn_runs_no_layer_to_be_written() -> None:
    model = model_of(hdlm("masked"))
    frame = {"coarse": torch.tensor([[[0, UNSET_ID]]]), "part": torch.tensor([[5]])}
    with torch.no_grad():
        hidden, state = model.read(random_ticks(model, 1, 4), model.initial_state(1))
        with counted_steps(model, 0) as calls:
            write_scores(model, hidden[:, -1], frame, state)
    assert calls == []


# ------------------------------------------------------------------------------- training


@pytest.mark.parametrize("mode", MODES)
def test_seeds_can_be_stacked(mode: Any) -> None:
    """Losses of several models at once, each on rows of its own, equal those one by one."""
    models = [model_of(hdlm(mode, turn_ticks=3), seed) for seed in range(3)]
    batches = [batch_of(model, random_ticks(model, 2, 30)) for model in models]
    weights, buffers = stack_module_state(list(models))
    lanes = [
        {name: torch.stack([getattr(batch, kind)[name] for batch in batches]) for name in TWO}
        for kind in ("ticks", "targets")
    ]
    starts = torch.stack([batch.document_start for batch in batches])

    def total(one: Any, ticks: Any, targets: Any, starts: Tensor) -> Tensor:
        batch = Batch(ticks=ticks, targets=targets, document_start=starts, size=60)
        scores = functional_call(models[0], one, (batch,))
        return models[0].combine(models[0].stream_losses(batch, scores)).total

    stacked: Any = torch.vmap(total)
    with tracing():
        found = stacked({**weights, **buffers}, *lanes, starts)
    for model, batch, value in zip(models, batches, found, strict=True):
        torch.testing.assert_close(value, model.loss(batch).total, rtol=1e-5, atol=0)


def test_the_weight_of_the_coarse_loss() -> None:
    model = model_of(hdlm("masked"))
    batch = batch_of(model, random_ticks(model, 2, 12))
    once, thrice = model.loss(batch), like(model, coarse_weight=3.0).loss(batch)
    expected = once.total + 2 * once.terms["coarse"]
    torch.testing.assert_close(thrice.total, expected)


def test_a_turn_may_stand_anywhere_in_a_row_but_not_more_often_than_there_is_room() -> None:
    model = model_of(hdlm("masked", turn_ticks=8))
    ticks = random_ticks(model, 1, 8)
    ticks["coarse"] = torch.full_like(ticks["coarse"], UNSET_ID)
    ticks["coarse"][0, [2, 3]] = 1
    with torch.no_grad():
        found = model(batch_of(model, ticks))
        close({name: x[:, :-1] for name, x in found.items()}, reference(model, ticks))
        ticks["coarse"][0, 1:] = 1
        with pytest.raises(UserError, match="has 29 elements. There is room for one turn in"):
            model(batch_of(model, ticks))


# -------------------------------------------------------------------------------- sessions


def test_a_session_writes_a_turn_behind_every_block() -> None:
    model = model_of(hdlm("masked", turn_ticks=4, coarse_depth=3))
    sessions = Sessions(model, 1)
    prompt = {"part": torch.randint(VOCAB, (1, 6)), "coarse": torch.randint(1, 7, (1, 1, 3))}
    sessions.start(0, Sampling(temperature=1.0, seed=1), prompt=prompt)
    frames = [sessions.step()[0] for _ in range(12)]
    assert all("part" in frame for frame in frames)
    assert ["coarse" in frame for frame in frames].count(True) == 3


# --------------------------------------------------------------------------------- shapes


def test_a_coarse_stream_must_be_read_and_written() -> None:
    model = model_of(hdlm("masked"))
    batch = batch_of(model, random_ticks(model, 1, 8))
    part = {"part": batch.targets["part"]}
    with pytest.raises(UserError, match="both read and written"):
        model(replace(batch, targets=part))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coarse_layer": 0}, "must be 1 to 3"),
        ({"coarse_layer": 4}, "must be 1 to 3"),
        ({"coarse_depth": -1}, ">= 0"),
        ({"turn_ticks": 0}, ">= 1"),
        ({"coarse_vocab_size": 1}, ">= 2"),
        ({"feedback": "embedding"}, "no coarse steps to exit"),
        ({"tower": tower(12, 3, 2, 3)}, "must hold a tick with a turn"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        hdlm("masked", **changes)


@pytest.mark.parametrize(("preset", "millions"), [(tiny, 1.4), (small, 27)])
def test_presets_have_the_size_that_they_claim(preset: Any, millions: float) -> None:
    num = sum(weight.numel() for weight in sketch(preset()).parameters())
    assert num / 1e6 == pytest.approx(millions, rel=0.08)
