"""Every test that asks for a `model` runs for every system."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tests.systems.contract_models import ALL_SYSTEMS, CONFIGS, build


@pytest.fixture(
    scope="module",
    params=[(system, name) for system in ALL_SYSTEMS for name in CONFIGS[system]],
    ids=lambda param: "-".join(param),
)
def model(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    """Every system and probe in several shapes, with random non-zero parameters.

    Tests share it: they must not change it.
    """
    torch.manual_seed(1)
    model = build(*request.param)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    yield model
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before), "a test changed the model"
