"""Solutions that systems write by themselves, and what the true ones cost them."""

import math
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from counterpoint.data.tasks.prompts import END_ID, item_prompt, written_text
from counterpoint.data.tasks.reasoning.family import Verdict
from counterpoint.data.tasks.reasoning.gym_verifier import gym_reward
from counterpoint.data.tasks.reasoning.item import ReasoningItem, judge
from counterpoint.data.tasks.source import item_batch, label_stream
from counterpoint.data.tasks.verify import TimedVerifier, pass_at_k, pass_counts
from counterpoint.data.text.tokenizer import ByteTokenizer
from counterpoint.errors import UserError
from counterpoint.evaluate.score import target_nats
from counterpoint.runtime.lanes import Lanes
from counterpoint.runtime.rollouts import roll_out
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID, Layout
from counterpoint.systems.contract import System
from counterpoint.train.rollout_source import Rollouts

SPARE_SYMBOLS = 16
"""Number of symbols that `lane_texts` allows beyond those of the true solution."""


class Attempts(NamedTuple):
    """Solutions of one item.

    Attributes:
        item: The item.
        texts: What was written, with its end if it has one.
        verdicts: How good each is.
        labels: What each has in the second written stream, a text for every step after the prompt;
            no steps if there is none.
    """

    item: ReasoningItem
    texts: list[str]
    verdicts: list[Verdict]
    labels: list[list[str]]


def attempt(
    system: nn.Module,
    items: Sequence[ReasoningItem],
    num_samples: int = 1,
    *,
    temperature: float = 1.0,
    most_ticks: int = 256,
    seed: int = 0,
    batch_rows: int = 64,
) -> list[Attempts]:
    """Let a system write solutions to the questions of items, in all streams that it writes.

    The solutions depend on the seed, not on the number of rows of a batch.

    Args:
        system: System that reads and writes bytes.
        items: Items of the families of `counterpoint.data.tasks.reasoning`, or of reasoning-gym.
        num_samples: Number of solutions of each item.
        temperature: Divisor of the scores; 0 always takes the likeliest id.
        most_ticks: Largest number of ticks of a solution.
        seed: Seed of the solutions.
        batch_rows: Number of solutions that are written at once.

    Raises:
        UserError: ``num_samples`` is below 1.
    """
    if num_samples < 1:
        raise UserError(f"`num_samples` must be >= 1: got {num_samples}.")
    model = cast("System", system)
    prompts = [item_prompt(item, model.layout) for item in items]
    asked = [number for number in range(len(items)) for _ in range(num_samples)]
    words = np.random.SeedSequence(seed).generate_state(len(asked), np.uint64)
    seeds = [int(word >> np.uint64(1)) for word in words]
    found = [Attempts(item, [], [], []) for item in items]
    training = model.training
    model.eval()
    with closing(TimedVerifier(gym_reward)) as gym:
        for first in range(0, len(asked), batch_rows):
            rows = asked[first : first + batch_rows]
            rollouts = roll_out(
                model,
                [prompts[number] for number in rows],
                seeds[first : first + batch_rows],
                temperature=temperature,
                most_ticks=most_ticks,
                end_id=END_ID,
            )
            labels = written_labels(rollouts, model.layout)
            for number, ids, beside in zip(rows, rollouts.texts, labels, strict=True):
                text = written_text(ids)
                verdict = judge(items[number], text, lambda *both: gym(*both).reward)
                found[number].texts.append(text)
                found[number].verdicts.append(verdict)
                found[number].labels.append(beside)
    model.train(training)
    return found


def written_labels(rollouts: Rollouts, layout: Layout) -> list[list[str]]:
    """Return the text of each step that each row has written in the second stream, in order.

    Padding is left out, so a step may be empty. A system of one written stream writes no step.
    """
    whole = label_stream(layout)
    if whole is None:
        return [[] for _ in rollouts.texts]
    padding = (UNSET_ID, whole.padding_id)
    ids = rollouts.content[whole.name]
    every = ids if ids.ndim == 3 else ids[..., None]
    return [
        [written_text([one for one in step if one not in padding]) for step in own[chosen].tolist()]
        for own, chosen in zip(every, rollouts.written[whole.name], strict=True)
    ]


def solution_scores(attempts: Sequence[Attempts]) -> dict[str, float]:
    """Return scores of solutions by name.

    "right" is the share of right answers, "complete" of right answers after all steps that are
    needed, each valid (process accuracy), "sound" of right answers after valid steps of which some
    may be left out, "ended" of solutions that end, "valid steps" of the written steps that are
    valid, "symbols" the mean length, and "pass@k" for k = 1, 2, 4 and so on. "right", "sound" and
    "complete" are also given by family, such as "right, sorting".

    Args:
        attempts: Solutions, equally many of each item.

    Raises:
        UserError: There are no solutions.
    """
    if not attempts:
        raise UserError("Scores must be of at least one item: got none.")
    verdicts = [verdict for one in attempts for verdict in one.verdicts]
    num_samples = len(attempts[0].verdicts)
    right = [sum(verdict.is_right for verdict in one.verdicts) for one in attempts]
    steps = sum(verdict.num_steps for verdict in verdicts)
    scores = {
        "right": sum(right) / len(verdicts),
        "sound": sum(verdict.is_sound for verdict in verdicts) / len(verdicts),
        "complete": sum(verdict.is_complete for verdict in verdicts) / len(verdicts),
        "ended": sum(verdict.is_ended for verdict in verdicts) / len(verdicts),
        "valid steps": sum(verdict.num_valid for verdict in verdicts) / max(steps, 1),
        "symbols": sum(len(text) for one in attempts for text in one.texts) / len(verdicts),
    }
    scores |= {f"pass@{k}": pass_at_k(right, num_samples, k) for k in pass_counts(num_samples)}
    for family in sorted({one.item.family for one in attempts}):
        own = [verdict for one in attempts if one.item.family == family for verdict in one.verdicts]
        scores[f"right, {family}"] = sum(verdict.is_right for verdict in own) / len(own)
        scores[f"sound, {family}"] = sum(verdict.is_sound for verdict in own) / len(own)
        scores[f"complete, {family}"] = sum(verdict.is_complete for verdict in own) / len(own)
    return scores


def lane_texts(
    lanes: Lanes,
    items: Sequence[ReasoningItem],
    num_samples: int = 1,
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[list[str]]]:
    """Let lanes write solutions to the same questions.

    A solution ends with a line break, or with `SPARE_SYMBOLS` more symbols than the true one.

    Args:
        lanes: Models that write bytes.
        items: Questions with their true solutions.
        num_samples: Number of solutions of each question.
        temperature: Divisor of the scores; 0 always takes the likeliest symbol.
        seed: Seed of what is sampled.

    Returns:
        For each lane and question the solutions, each with its end if it has one.
    """
    asked = [item for item in items for _ in range(num_samples)]
    found = lanes.write(
        [[ByteTokenizer().start_id, *item.prompt.encode()] for item in asked],
        [len(item.solution) + SPARE_SYMBOLS for item in asked],
        END_ID,
        temperature=temperature,
        seed=seed,
    )
    return [
        [
            [written_text(ids) for ids in rows[first : first + num_samples]]
            for first in range(0, len(asked), num_samples)
        ]
        for rows in found
    ]


@torch.no_grad()
def true_bits(system: System, items: Sequence[ReasoningItem]) -> list[float]:
    """Return the bits of each true solution, each symbol after the true text before it."""
    batch = item_batch(items, system.layout, "spans").to(system.device)
    part = system.layout.part.name
    nats = target_nats(system(batch)[part], batch.targets[part])
    return [float(row) / math.log(2) for row in nats.sum(1)]


class TrueSolutions(NamedTuple):
    """What the true solutions of some questions are to lanes, each symbol after the true text.

    Attributes:
        bits: Their bits.
        are_likeliest: Whether each of their symbols is the likeliest one, so that the lane writes
            exactly this solution if it always takes the likeliest symbol.
    """

    bits: Float[Tensor, "S N"]
    are_likeliest: Bool[Tensor, "S N"]


def lane_true_solutions(lanes: Lanes, items: Sequence[ReasoningItem]) -> TrueSolutions:
    """Score the true solutions of questions with every lane."""
    return lane_targets(lanes, item_batch(items, lanes.layout, "spans"))


def lane_targets(lanes: Lanes, batch: Batch) -> TrueSolutions:
    """Score the targets of the same rows with every lane."""
    batch = batch.to(lanes.device)
    targets = batch.targets[lanes.layout.part.name]
    scores = lanes.scores(batch)
    nats = target_nats(scores.flatten(0, 1), targets.repeat(len(scores), 1)).sum(1)
    agrees = (scores.argmax(-1) == targets) | (targets == UNSET_ID)
    return TrueSolutions(nats.view(len(scores), -1) / math.log(2), agrees.all(-1))
