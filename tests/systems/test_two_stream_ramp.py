"""Blocks that are short at the beginning of a training, against blocks that end early."""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from counterpoint.blocks.boundaries import BoundariesConfig
from counterpoint.blocks.chunk import ratio_penalty
from counterpoint.blocks.notes import NotesConfig
from counterpoint.blocks.ramp import RampConfig
from counterpoint.blocks.recall import RecallConfig
from counterpoint.config_json import decode, encode
from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.systems.contract import mean_training_flops
from counterpoint.systems.two_stream import TwoStream, TwoStreamConfig
from tests.systems.counted_flops import CountedFlops
from tests.systems.scoring import extend
from tests.systems.tiny_models import VOCAB, batch_of, level, randomised, tower, two

RAMP = RampConfig(start_ticks=1, share=0.5)
STAGES = {0: 1, 5: 2, 10: 4, 19: 4, 20: 4}
"""Longest blocks of four ticks in steps of a training of 20."""
ENDS = 3
"""Ids below this number end a block in the models to which a stage is compared."""
SHAPES: dict[str, dict[str, Any]] = {
    **{kind: {"compressor": kind} for kind in ("mean", "last", "convolution", "attention")},
    "wavelet_lag1": {"lag_blocks": 1},
    "slots_apart": {"slots_apart": True, "compressor": "attention", "whole": tower(20, 2, 2, 6)},
    "recall": {"recall": RecallConfig(num_blocks=2)},
    "two_wholes": {"levels": (level("mean", 0),)},
    "shuffled": {"whole_control": "shuffled"},
}


def build(**changes: Any) -> TwoStream:
    compressor = changes.pop("compressor", "wavelet")
    fields = {"whole_dropout": 0.0, **changes}
    model = randomised(TwoStream(two(compressor, fields.pop("lag_blocks", 0), **fields)))
    assert isinstance(model, TwoStream)
    return model


def ids_with_ends(rows: int, ticks: int, period: int) -> Tensor:
    """Random ids, of which every ``period``-th ends a block in the other model, and no other."""
    ids = torch.randint(ENDS, VOCAB, (rows, ticks))
    ids[:, period - 1 :: period] = torch.randint(0, ENDS, ids[:, period - 1 :: period].shape)
    return ids


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("step", "longest"), STAGES.items())
def test_a_stage_equals_blocks_that_end_early(shape: str, step: int, longest: int) -> None:
    model = build(ramp=RAMP, **SHAPES[shape]).train()
    early = build(boundary_ids=tuple(range(ENDS)), **SHAPES[shape])
    early.load_state_dict(model.state_dict())
    starts = torch.tensor([0] * 16 + [16] * 25).expand(3, -1)
    batch = batch_of(ids_with_ends(3, 41, longest), starts)
    model.at_step(step, 20)
    ours = model.losses(batch)
    theirs = early.train().losses(batch)
    assert ours.keys() == theirs.keys() == {"part", "predict", "reconstruct"}
    for name, sums in ours.items():
        torch.testing.assert_close(sums, theirs[name], rtol=1e-6, atol=1e-5)


@torch.no_grad()
def test_sessions_have_the_final_blocks_at_any_step_and_in_any_mode() -> None:
    model = build(ramp=RAMP)
    ids = torch.randint(0, VOCAB, (2, 30))
    expected = model(batch_of(ids))["part"]
    model.train().at_step(0, 20)
    found, _ = extend(model, {"part": ids}, model.initial_state(2))
    torch.testing.assert_close(found["part"], expected, rtol=0, atol=1e-5)
    assert (model(batch_of(ids))["part"] - expected).abs().max() > 1e-3


@torch.no_grad()
def test_words_are_cut_after_the_ticks_of_the_stage() -> None:
    model = build(ramp=RAMP, boundary_ids=(2, 5, 7)).train()
    ids = torch.randint(0, VOCAB, (2, 40))
    for step, longest in STAGES.items():
        model.at_step(step, 20)
        finished = model._read_rows(batch_of(ids)).cut.grid.finished
        for row in range(2):
            size = 0
            count = 0
            for tick in range(40):
                size += 1
                if size == longest or int(ids[row, tick]) in (2, 5, 7):
                    count += 1
                    size = 0
                assert int(finished[row, tick]) == count


def learned(**changes: Any) -> TwoStream:
    ends = BoundariesConfig(ratio=3.0, max_share=0.4)
    return build(compressor="mean", learned_ends=ends, **changes)


@torch.no_grad()
def test_learned_ends_have_a_lower_ratio_and_more_room_in_a_stage() -> None:
    """A router that ends a block wherever it can: room for ends falls as the ratio rises."""
    model = learned(ramp=RampConfig(start_ticks=2)).train()
    assert model.boundaries is not None
    model.boundaries.router.query.weight.copy_(-model.boundaries.router.key.weight)
    batch = batch_of(torch.zeros(1, 60, dtype=torch.long))
    for step, share, ratio in ((0, 0.8, 1.5), (9, 0.8, 1.5), (10, 0.4, 3.0)):
        model.at_step(step, 20)
        losses = model.losses(batch)
        ends = model._read_rows(batch).ends
        assert ends is not None
        expected = ratio_penalty(torch.tensor(share), ends.probability.mean(), ratio)
        for name, value in (("share", share), ("ratio", float(expected))):
            found = losses[name].nats / losses[name].weight
            assert float(found) == pytest.approx(value, rel=1e-5)


def batches() -> Iterator[tuple[TwoStream, Batch]]:
    ids = torch.randint(0, VOCAB, (4, 48))
    for model in (build(ramp=RAMP), learned(ramp=RampConfig(start_ticks=2))):
        yield model, batch_of(ids)
    full = torch.full((4, 48), 3)  # no id ends a block: as long as their stage lets them be
    early = replace(two("attention", 1), boundary_ids=(2,), usual_block_ticks=4.0, ramp=RAMP)
    yield TwoStream(early), batch_of(full)


def test_flops_of_each_stage_agree_with_counted_ones() -> None:
    for model, batch in batches():
        counts = []
        for step in model.stages(20):
            model.train().at_step(step, 20)
            with sdpa_kernel(SDPBackend.MATH), CountedFlops() as counted:
                copy.deepcopy(model).loss(batch).total.backward()
            own = model.flops_per_tick(48, training=True)
            assert own * 4 * 48 == pytest.approx(counted.total, rel=0.02)
            counts.append(own)
        assert counts == sorted(counts, reverse=True)
        assert counts[0] > counts[-1]
        final = TwoStream(replace(model.config, ramp=RampConfig()))
        assert model.flops_per_tick(48) == final.flops_per_tick(48)
        assert counts[-1] == final.flops_per_tick(48, training=True)


def test_mean_flops_weigh_the_stages_and_leave_the_finished_model() -> None:
    model = build(ramp=RAMP)
    each = []
    for step in range(20):
        model.at_step(step, 20)
        each.append(model.flops_per_tick(48, training=True))
    assert len(set(each)) == 3
    assert mean_training_flops(model, 48, 20) == pytest.approx(sum(each) / 20, rel=1e-12)
    assert model.flops_per_tick(48, training=True) == each[-1]
    plain = build()
    assert mean_training_flops(plain, 48, 7) == plain.flops_per_tick(48, training=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ramp": RampConfig(start_ticks=3)},
            "`block_ticks` = 4 by doubling: got 3. Choose 1 or 2",
        ),
        ({"ramp": RampConfig(start_ticks=8)}, "by doubling: got 8"),
        ({"levels": (replace(level("mean", 0), ramp=RAMP),)}, "got one in `levels`. Leave it out"),
        ({"ramp": RAMP, "text": NotesConfig(depth=1, vocab_size=VOCAB)}, "leave `text`"),
        ({"ramp": RAMP, "boundary_ids": (1,), "graph_blocks": 9}, "`graph_blocks` out"),
        ({"ramp": RAMP, "learned_ends": BoundariesConfig(ratio=4.0)}, "makes `ratio` 1. Begin"),
    ],
)
def test_ramps_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(**changes)
    assert "\n" not in str(error.value)


def test_a_ramp_survives_json_and_is_read_where_there_was_none() -> None:
    config = two("wavelet", 0, ramp=RAMP)
    data = json.loads(json.dumps(encode(config)))
    assert decode(TwoStreamConfig, data) == config
    del data["ramp"]
    assert decode(TwoStreamConfig, data) == two("wavelet", 0)
