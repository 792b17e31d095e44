"""What every test shares: fixed seeds, one torch thread, and a compiler that can be used."""

import gc
import importlib
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import jaxtyping
import numpy as np
import pytest
import torch

from counterpoint.train import precision
from tests.other_rounding import OtherRounding

hypothesis.settings.register_profile(
    # Derandomised: a red test is red again on the next run. No deadline: shared machines stall.
    "counterpoint",
    derandomize=True,
    deadline=None,
    max_examples=50,
    database=None,
)
hypothesis.settings.load_profile("counterpoint")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--other-rounding",
        action="store_true",
        help="let all products round as on another processor (see tests/other_rounding.py)",
    )


def pytest_configure() -> None:
    # Test models are tiny: a second thread costs more than it gives, and sums stay reproducible.
    torch.set_num_threads(1)
    gc.disable()  # until all tests are collected, which makes nothing but what stays


@hypothesis.given(hypothesis.strategies.none())
def _nothing_is_asked(nothing: None) -> None:
    """Run once, it makes the generator of random numbers that hypothesis keeps."""


def pytest_collection_finish() -> None:
    # Hypothesis (seen in 6.130) asks the collector who holds its generator, warns if nobody does,
    # and the collector leaves out frozen objects: so the generator is made before the freeze.
    _nothing_is_asked()
    # A million objects of modules and tests stay to the end: no collection looks at them again.
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _seeds() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _checked_anew() -> None:
    importlib.import_module("type_checks").begin_test()  # as jaxtyping finds it


@pytest.fixture(scope="session", autouse=True)
def _seeding() -> Iterator[None]:
    """Without a GPU, `torch.manual_seed` would format the deep stack of a test three times."""
    without_stack = SimpleNamespace(format_stack=list)
    with pytest.MonkeyPatch.context() as patch:
        for device in (torch.cuda, torch.mtia, torch.xpu):
            patch.setattr(device, "traceback", without_stack, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _precision() -> Iterator[None]:
    """Runs that leave their type open compute alike on every machine."""
    times = precision.ProductTimes(shape=(1, 1, 1), float32_s=1.0, bfloat16_s=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "time_products", lambda systems, device: times)
        yield


@pytest.fixture(scope="session", autouse=True)
def _rounding(request: pytest.FixtureRequest) -> Iterator[None]:
    with OtherRounding() if request.config.getoption("--other-rounding") else nullcontext():
        yield


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of the data sets that tests marked `data` read, named by the environment."""
    name = os.environ.get("COUNTERPOINT_DATA", "")
    if not Path(name).is_dir() or not name:
        pytest.fail(f"COUNTERPOINT_DATA must name the folder of the data sets: got {name!r}.")
    return Path(name)


@pytest.fixture
def compiler() -> Iterator[None]:
    """For tests that call `torch.compile`: fresh Dynamo, and no jaxtyping checks in its way."""
    was_disabled = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    jaxtyping.config.update("jaxtyping_disable", was_disabled)
