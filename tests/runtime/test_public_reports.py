"""Public bug reports on sampling and generation: docs/reports.md says what became of each."""

import pytest
import torch

from counterpoint.runtime.generate import generate
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.sessions import Sessions
from counterpoint.systems.contract import System
from tests.runtime import tiny

PROMPTS = [[7, 8], [3, 1, 4, 1, 5, 9, 2, 6, 5], [n % tiny.VOCAB for n in range(31)]]


def drawn(sampling: Sampling, number: int) -> list[int]:
    return list(generate(tiny.single_stream(), PROMPTS[1], sampling, number, sliding=True))


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-4])
def test_a_tiny_temperature_is_the_likeliest_id(temperature: float) -> None:
    """nanoGPT#756, aici#19: scores divided by it are infinite, and the id is any."""
    assert drawn(Sampling(temperature=temperature), 20) == drawn(Sampling(temperature=0), 20)


def counts(system: System, temperature: float) -> torch.Tensor:
    """How often 100 sessions draw each id, in 23 steps."""
    sessions = Sessions(system, 100, sliding=True)
    for row in range(100):
        sessions.start(row, Sampling(temperature=temperature, seed=row))
    sessions.feed({row: [1] for row in range(100)})
    for _ in range(23):
        sessions.step()
    ids = [found for row in range(100) for found in sessions[row].sampled]
    return torch.bincount(torch.tensor(ids), minlength=tiny.VOCAB)


def test_a_huge_temperature_draws_all_ids_alike() -> None:
    """llama.cpp#9842: always the same id. 100 draws of an id are expected, give or take 10."""
    assert (counts(tiny.single_stream(), 1e15) - 100).abs().max() < 50


def test_equal_scores_are_drawn_evenly() -> None:
    """speechturn#14: always the first one."""
    system = tiny.single_stream()
    assert system.head is not None
    torch.nn.init.zeros_(system.head.weight)
    assert (counts(system, 1.0) - 100).abs().max() < 50


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_prompts_of_unlike_lengths_in_one_batch_go_on_as_alone(temperature: float) -> None:
    """unsloth#3699, transformers#29936: padding changes what short prompts give."""
    system = tiny.single_stream(window=64)
    sessions = Sessions(system, 3)
    for row in range(3):
        sessions.start(row, Sampling(temperature=temperature, seed=row))
    sessions.feed(dict(enumerate(PROMPTS)))
    for _ in range(12):
        sessions.step()
    for row, prompt in enumerate(PROMPTS):
        sampling = Sampling(temperature=temperature, seed=row)
        assert sessions[row].sampled == list(generate(system, prompt, sampling, 12))
