import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from counterpoint.blocks.rope import LinearScaling, Llama3Scaling, RopeConfig, rope_tables

HEAD_WIDTH = 64
CPU = torch.device("cpu")


def theirs(parameters: dict[str, Any]) -> torch.Tensor:
    """Frequencies of `transformers`."""
    config = LlamaConfig(
        hidden_size=4 * HEAD_WIDTH, num_attention_heads=4, rope_parameters=parameters
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, CPU)
    assert factor == 1
    return frequencies


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_linear_scaling_is_that_of_transformers(factor: float) -> None:
    rope = RopeConfig(base=100_000.0, scaling=LinearScaling(factor=factor))
    expected = theirs({"rope_type": "linear", "rope_theta": 100_000.0, "factor": factor})
    torch.testing.assert_close(rope.frequencies(HEAD_WIDTH, CPU).float(), expected)


@pytest.mark.parametrize(
    "scaling",
    [
        Llama3Scaling(),
        Llama3Scaling(factor=32.0, low_frequency_factor=2.0, high_frequency_factor=3.0),
        Llama3Scaling(factor=3.0, original_steps=100),
    ],
)
def test_llama3_scaling_is_that_of_transformers(scaling: Llama3Scaling) -> None:
    rope = RopeConfig(base=500_000.0, scaling=scaling)
    expected = theirs(
        {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_steps,
        }
    )
    ours = rope.frequencies(HEAD_WIDTH, CPU)
    torch.testing.assert_close(ours.float(), expected)
    plain = RopeConfig(base=500_000.0).frequencies(HEAD_WIDTH, CPU)
    assert ours[0] == plain[0]
    assert ours[-1] == pytest.approx(plain[-1] / scaling.factor)


def test_linear_scaling_divides_positions() -> None:
    position = torch.arange(0, 400, 4)[None]
    scaled = rope_tables(position, 6, RopeConfig(scaling=LinearScaling(factor=4.0)))
    for ours, expected in zip(scaled, rope_tables(position // 4, 6), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_base_is_the_longest_wavelength() -> None:
    slowest = RopeConfig(base=5000.0).frequencies(10_000, CPU)[-1]
    assert 2 * math.pi / slowest == pytest.approx(2 * math.pi * 5000, rel=2e-3)


def test_shapes_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`factor` of a scaling must be >= 1: got 0.5"):
        LinearScaling(factor=0.5)
    with pytest.raises(ValueError, match=r"must be >= 1: got 0.5"):
        Llama3Scaling(factor=0.5)
    with pytest.raises(ValueError, match=r"below `high_frequency_factor`: got 4.0 and 4.0"):
        Llama3Scaling(low_frequency_factor=4.0)
    with pytest.raises(ValueError, match="`original_steps` must be >= 1: got 0"):
        Llama3Scaling(original_steps=0)
    with pytest.raises(ValueError, match=r"must be above 1: got 1.0"):
        RopeConfig(base=1.0)
