"""Controls of two_stream: what is left of it when one of its ideas is taken away."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from counterpoint.errors import UserError
from counterpoint.systems.two_stream import TwoStream
from tests.systems.tiny_models import VOCAB, batch_of, randomised, tower, two


def shared_levels() -> TwoStream:
    config = two("wavelet", 0, whole=tower(18, 3, 3, 3), shared_layers=True)
    model = randomised(TwoStream(config))
    assert isinstance(model, TwoStream)
    return model


@torch.no_grad()
def test_shared_layers_are_one_stack_and_equal_towers_with_the_same_weights() -> None:
    shared = shared_levels()
    apart = TwoStream(replace(shared.config, shared_layers=False)).eval()
    weights = shared.state_dict()
    doubled = {
        key.replace("part.", "whole.", 1): value
        for key, value in weights.items()
        if key.startswith("part.layers.")
    }
    apart.load_state_dict(weights | doubled)
    batch = batch_of(torch.randint(0, VOCAB, (2, 41)))
    torch.testing.assert_close(shared(batch)["part"], apart(batch)["part"], rtol=0, atol=0)
    assert shared.flops_per_tick(41) == apart.flops_per_tick(41)
    sizes = [sum(weight.numel() for weight in model.parameters()) for model in (shared, apart)]
    assert sizes[1] - sizes[0] == sum(weight.numel() for weight in shared.part.parameters())


def test_shared_layers_are_stored_sharded_and_copied_once() -> None:
    shared = shared_levels()
    names = [name for name in shared.state_dict() if ".layers." in name]
    assert names == [name for name in names if name.startswith("part.layers.")]
    assert len(save(shared.state_dict()))  # refuses what stands under two names
    assert shared.shard_units() == list(shared.part.layers)
    other = copy.deepcopy(shared)
    assert list(other.whole.layers) == list(other.part.layers)
    assert other.part.layers[0] is not shared.part.layers[0]


def test_shared_layers_must_have_one_shape() -> None:
    with pytest.raises(UserError, match="must be the part's, but for its window"):
        two("wavelet", 0, shared_layers=True)
