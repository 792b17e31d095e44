"""The coarse past of a session can be exchanged in every system that keeps one apart."""

from typing import Any

import pytest
import torch

from counterpoint.blocks.far_attention import FarAttentionConfig
from counterpoint.errors import UserError
from counterpoint.systems.contract import map_state
from counterpoint.systems.hnet import HNet
from counterpoint.systems.hrt import HRT
from counterpoint.systems.single_stream import SingleStream
from counterpoint.systems.two_stream import TwoStream
from tests.systems.contract_models import close, equal, piece, random_ticks
from tests.systems.test_streaming_contract import stream

BEFORE = 33
AFTER = 4


def keeps_a_coarse_past(model: Any) -> bool:
    """Whether the system has a past that can be exchanged."""
    if isinstance(model, SingleStream):
        return isinstance(model.config.tower.mixer, FarAttentionConfig)
    return isinstance(model, TwoStream | HNet | HRT)


def copied(state: Any) -> Any:
    return map_state(torch.Tensor.clone, state)


@torch.no_grad()
def read(model: Any, ticks: Any) -> Any:
    """The state of sessions after some ticks."""
    return model.read(ticks, model.initial_state(1))[1]


@torch.no_grad()
def test_a_foreign_whole_is_read_and_the_own_changes_nothing(model: Any) -> None:
    if not keeps_a_coarse_past(model):
        with pytest.raises(UserError, match="kept apart"):
            model.swap(model.initial_state(1), model.initial_state(1))
        return
    ticks = [random_ticks(model, 1, BEFORE + AFTER) for _ in range(2)]
    mine, donor = (read(model, piece(one, 0, BEFORE)) for one in ticks)
    if isinstance(model, TwoStream) and model.config.ends_early and model.config.recall:
        donor = mine  # another text has another number of blocks: see the tests of `two_stream`
    following = piece(ticks[0], BEFORE, BEFORE + AFTER)
    before = copied(donor)
    swapped = model.swap(copied(mine), donor)
    own = stream(model, following, [1, AFTER - 1], copied(mine))
    same = stream(model, following, [1, AFTER - 1], model.swap(copied(mine), copied(mine)))
    close(same, own)
    foreign = stream(model, following, [1, AFTER - 1], swapped)
    control = getattr(model.config, "whole_control", "none")
    reads = control not in ("shuffled", "unread")  # if it is shuffled, a row alone reads zeros
    if donor is not mine and reads:
        assert any((foreign[name] - own[name]).abs().max() > 1e-4 for name in own)
    # What the session writes does not reach the donor.
    left = stream(model, following, [AFTER], before)
    assert equal(left, stream(model, following, [AFTER], donor))


@torch.no_grad()
def test_a_donor_that_is_behind_is_refused(model: Any) -> None:
    if not keeps_a_coarse_past(model):
        return
    ahead = read(model, random_ticks(model, 1, BEFORE))
    with pytest.raises(UserError, match=r"(?i)donor"):
        model.swap(ahead, model.initial_state(1))
