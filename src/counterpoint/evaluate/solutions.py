"""Solutions that a model writes to questions, symbol by symbol, and what the true ones cost it."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from counterpoint.data.tasks.prompts import written_text
from counterpoint.data.tasks.reasoning.family import SOLUTION_END
from counterpoint.data.tasks.reasoning.item import ReasoningItem, judge
from counterpoint.data.tasks.source import in_blocks, item_rows
from counterpoint.data.text.tokenizer import ByteTokenizer
from counterpoint.evaluate.score import target_nats
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.sessions import Sessions

BATCH_QUESTIONS = 64


class Solved(NamedTuple):
    """How a model answers a question.

    Attributes:
        text: The likeliest solution, symbol by symbol.
        is_right: Whether its answer is right.
        is_sound: Whether all its steps are valid too.
        bits: Bits of the true solution, each symbol after the true text before it.
        num_symbols: Number of symbols of the true solution.
        num_sampled_right: Number of right answers among sampled solutions.
    """

    text: str
    is_right: bool
    is_sound: bool
    bits: float
    num_symbols: int
    num_sampled_right: int


def solve(
    system: Any, items: Sequence[ReasoningItem], num_samples: int = 0, seed: int = 0
) -> list[Solved]:
    """Let a model answer questions.

    Args:
        system: A model that writes bytes alone, in evaluation mode.
        items: Questions with their true solutions.
        num_samples: Number of solutions of each question that are sampled at temperature 1.
        seed: Seed of the sampled ones.
    """
    found = []
    for first in range(0, len(items), BATCH_QUESTIONS):
        some = items[first : first + BATCH_QUESTIONS]
        texts = written(system, some, [Sampling(temperature=0.0)] * len(some))
        right = [0] * len(some)
        for sample in range(num_samples):
            samplings = [
                Sampling(seed=(seed * 10_000 + sample) * 100_000 + first + place)
                for place in range(len(some))
            ]
            for place, text in enumerate(written(system, some, samplings)):
                right[place] += judge(some[place], text).is_right
        for item, text, bits, count in zip(
            some, texts, true_bits(system, some), right, strict=True
        ):
            verdict = judge(item, text)
            found.append(
                Solved(text, verdict.is_right, verdict.is_sound, bits, len(item.solution), count)
            )
    return found


def written(
    system: Any, items: Sequence[ReasoningItem], samplings: Sequence[Sampling]
) -> list[str]:
    """Return the solution that a model writes to each question, with its end if it has one.

    A solution ends with a line break, or with twice as many symbols as the true one plus 16.
    """
    tokenizer = ByteTokenizer()
    sessions = Sessions(system, len(items), sliding=True)
    for row, (item, sampling) in enumerate(zip(items, samplings, strict=True)):
        most = 2 * len(item.solution) + 16
        sessions.start(row, sampling, end_id=ord(SOLUTION_END), max_sampled=most)
    sessions.feed(
        {row: [tokenizer.start_id, *item.prompt.encode()] for row, item in enumerate(items)}
    )
    while sessions.running:
        sessions.step()
    return [written_text(sessions[row].sampled) for row in range(len(items))]


@torch.no_grad()
def true_bits(system: Any, items: Sequence[ReasoningItem]) -> list[float]:
    """Return the bits of each true solution, each symbol after the true text before it."""
    longest = max(len(item.text) for item in items)
    num_ticks = in_blocks(longest, system.layout.block_ticks)
    batch = item_rows(items, system.layout, num_ticks, "spans").to(system.device)
    part = system.layout.part.name
    nats = target_nats(system(batch)[part], batch.targets[part])
    return [float(row) / math.log(2) for row in nats.sum(1)]
