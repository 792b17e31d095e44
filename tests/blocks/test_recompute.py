from dataclasses import replace

import pytest
import torch
from torch import Tensor

from counterpoint.systems.moshi import Moshi
from tests.systems.tiny_moshi import CONFIGS, build, random_codes


def with_checkpoints(model: Moshi) -> Moshi:
    config = model.config
    other = Moshi(
        replace(
            config,
            temporal=replace(config.temporal, checkpoint_activations=True),
            depth=replace(config.depth, checkpoint_activations=True),
        )
    )
    other.load_state_dict(model.state_dict())
    return other


def learned(model: Moshi, codes: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients, and bytes that were kept for them."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.loss(model.lay_out(codes)).total
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, sum(kept.values())


@pytest.mark.parametrize("shape", ["both_speakers", "own_delays"])
def test_outputs_and_gradients_are_equal_and_less_is_kept(shape: str) -> None:
    plain = build(shape)
    again = with_checkpoints(plain)
    codes = random_codes(plain, 2, 12)
    loss, gradients, kept = learned(plain, codes)
    other_loss, other_gradients, other_kept = learned(again, codes)
    assert torch.equal(loss, other_loss)
    assert gradients.keys() == other_gradients.keys()
    assert all(torch.equal(gradients[name], value) for name, value in other_gradients.items())
    assert other_kept < kept / 2


def test_without_gradients_nothing_is_computed_twice() -> None:
    model = with_checkpoints(build("both_speakers"))
    codes = random_codes(model, 1, 5)
    calls = list[int]()
    model.temporal.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(model.lay_out(codes))
    assert len(calls) == 1
    model.loss(model.lay_out(codes)).total.backward()
    assert len(calls) == 3


def test_weights_of_a_run_that_kept_all_may_be_begun_with() -> None:
    assert "checkpoint_activations" in Moshi.free_fields
    assert CONFIGS["both_speakers"].temporal.checkpoint_activations is False
