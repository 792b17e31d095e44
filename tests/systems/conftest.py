"""Every test that asks for a `model` runs for every system."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from tests.systems.contract_models import ALL_SYSTEMS, CONFIGS, IN_GROUPS, build
from tests.systems.in_groups import tiny_groups


@pytest.fixture(
    scope="module",
    params=[
        *((system, name) for system in ALL_SYSTEMS for name in CONFIGS[system]),
        *((system, name, "in_groups") for system, name in IN_GROUPS),
    ],
    ids=lambda param: "-".join(param),
)
def model(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    """Every system and probe in several shapes, with random non-zero parameters.

    Some shapes come once more with rows that read far keys in groups, as long rows do.

    Tests share it: they must not change it.
    """
    torch.manual_seed(1)
    system, name, *in_groups = request.param
    model = build(system, name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with tiny_groups() if in_groups else nullcontext():
        yield model
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before), "a test changed the model"
