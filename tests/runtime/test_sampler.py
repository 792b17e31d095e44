import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from counterpoint.runtime.sampler import (
    NO_ID,
    Sampling,
    row_samplings,
    sample,
    seed_hashes,
    uniform,
)

SETTINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([0.1, 0.6, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 2**63 - 1),
)


def draw(logits: Tensor, *samplings: Sampling, count: int = 0) -> list[int]:
    hashes = seed_hashes([sampling.seed for sampling in samplings], "cpu")
    number = uniform(hashes, torch.full((len(samplings),), count))
    return sample(logits, row_samplings(samplings, "cpu"), number).tolist()


def draws(logits: Tensor, sampling: Sampling, number: int) -> Tensor:
    """Many draws of one session, as rows with growing counts."""
    rows = row_samplings([sampling] * number, "cpu")
    numbers = uniform(seed_hashes([sampling.seed], "cpu"), torch.arange(number))
    return sample(logits.expand(number, -1), rows, numbers)


def naive_probabilities(logits: Tensor, sampling: Sampling) -> list[float]:
    """The definition, id by id: filter, renormalise, filter."""
    scores: list[float] = logits.tolist()
    if sampling.temperature == 0:
        best = scores.index(max(scores))
        return [float(i == best) for i in range(len(scores))]
    weights = [math.exp((s - max(scores)) / sampling.temperature) for s in scores]
    ranked = sorted(range(len(scores)), key=lambda i: -scores[i])
    if sampling.top_k:
        ranked = ranked[: sampling.top_k]
    total = sum(weights[i] for i in ranked)
    nucleus, mass = list[int](), 0.0
    for i in ranked:
        if mass / total < sampling.top_p or not nucleus:
            nucleus.append(i)
        mass += weights[i]
    top = weights[ranked[0]]
    kept = {i for i in nucleus if weights[i] >= sampling.min_p * top}
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(scores))]


@given(sampling=SETTINGS, seed=st.integers(0, 1000))
def test_sample_draws_from_the_filtered_distribution(sampling: Sampling, seed: int) -> None:
    logits = torch.randn(9, generator=torch.Generator().manual_seed(seed)) * 2
    number = 4000
    found = torch.bincount(draws(logits, sampling, number), minlength=9).double() / number
    expected = torch.tensor(naive_probabilities(logits, sampling), dtype=torch.float64)
    assert found[expected == 0].sum() == 0
    assert (found - expected).abs().max() < 5 * 0.5 / math.sqrt(number)


def test_sample_filters_like_transformers() -> None:
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(50)
    scores: Any = logits[None].double()
    ids: Any = torch.zeros(1, 1, dtype=torch.long)
    for warper in (TopKLogitsWarper(20), TopPLogitsWarper(0.8), MinPLogitsWarper(0.02)):
        scores = warper(ids, scores)
    kept = set(scores[0].isfinite().nonzero().flatten().tolist())
    sampling = Sampling(top_k=20, top_p=0.8, min_p=0.02)
    assert set(draws(logits, sampling, 20_000).tolist()) == kept
    assert 1 < len(kept) < 20


@given(st.lists(SETTINGS, min_size=1, max_size=6), st.integers(0, 5), st.integers(0, 1000))
def test_sample_row_depends_on_itself_alone(
    settings: list[Sampling], count: int, seed: int
) -> None:
    logits = torch.randn(len(settings), 31, generator=torch.Generator().manual_seed(seed))
    alone = [draw(row[None], s, count=count)[0] for row, s in zip(logits, settings, strict=True)]
    assert draw(logits, *settings, count=count) == alone


def test_temperature_zero_takes_the_first_of_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, -1.0]])
    assert draw(logits, Sampling(temperature=0)) == [1]


def test_tiny_temperature_is_greedy_and_finite() -> None:
    assert draw(torch.tensor([[1.0, 500.0, 2.0]]), Sampling(temperature=1e-300)) == [1]


def test_impossible_ids_are_never_drawn() -> None:
    logits = torch.tensor([0.0, -math.inf, 0.0, -math.inf])
    assert set(draws(logits, Sampling(), 500).tolist()) == {0, 2}


@pytest.mark.parametrize("best", [-math.inf, math.inf, math.nan])
@given(settings=SETTINGS)
def test_scores_that_allow_no_id_give_none_and_touch_no_other_row(
    best: float, settings: Sampling
) -> None:
    """speechturn#14: all scores minus infinity gave an id without a word."""
    logits = torch.full((3, 9), -math.inf)
    logits[0, 4] = 0.0
    logits[1, 4] = best
    logits[2] = torch.linspace(0, 3, 9)
    alone = draw(logits[2:], settings)
    assert draw(logits, settings, settings, settings) == [4, NO_ID, *alone]


def test_uniform_is_even_and_uncorrelated_between_counts_and_seeds() -> None:
    numbers = uniform(seed_hashes(range(300), "cpu")[:, None], torch.arange(300))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers.float(), 20, 0, 1)
    expected = numbers.numel() / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi square, 19 degrees, p = 0.001
    centred = numbers - 0.5
    for neighbours in (centred[:, 1:] * centred[:, :-1], centred[1:] * centred[:-1]):
        correlation = neighbours.mean() * 12
        assert correlation.abs() < 5 / math.sqrt(numbers.numel())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 2.0),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_sampling_refuses_what_it_cannot_do(field: str, value: float) -> None:
    settings: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=f"`{field}` must be .*: got") as caught:
        Sampling(**settings)
    assert "\n" not in str(caught.value)
