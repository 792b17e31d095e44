"""Every test that asks for a `model` runs for every system."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from counterpoint.systems import SYSTEMS
from tests.systems.contract_models import CONFIGS, build


@pytest.fixture(
    scope="module",
    params=[(system, name) for system in SYSTEMS for name in CONFIGS[system]],
    ids=lambda param: "-".join(param),
)
def model(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    """Every system in several shapes, with random non-zero parameters. Shared: do not change it."""
    torch.manual_seed(1)
    model = build(*request.param)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    yield model
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before), "a test changed the model"
