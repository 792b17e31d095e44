"""Scores of ticks that are read call by call."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor


class _Scored(Exception):  # noqa: N818 (no error: it ends the writing of a frame)
    """The first element of a frame has been scored."""


def first_scores(system: Any, hidden: Tensor) -> dict[str, Tensor]:
    """Scores of the first element of the frame behind every tick, by its stream."""
    found: dict[str, Tensor] = {}

    def choose(stream: str, codebook: int, scores: Tensor) -> Tensor:
        found[stream] = scores.unflatten(0, hidden.shape[:2])
        raise _Scored

    with suppress(_Scored):
        system.write(hidden.flatten(0, 1), choose)
    return found


def extend(
    system: Any, ticks: Any, state: Any, lengths: Tensor | None = None
) -> tuple[dict[str, Tensor], Any]:
    """Read some more ticks and score the first element of the frame behind each."""
    hidden, state = system.read(ticks, state, lengths)
    return first_scores(system, hidden), state


def all_scores(system: Any, hidden: Tensor, elements: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scores of every element of the frame behind every tick, each after those in ``elements``."""
    found: dict[str, list[Tensor]] = {}

    def choose(stream: str, codebook: int, scores: Tensor) -> Tensor:
        found.setdefault(stream, []).append(scores)
        ids = elements[stream].flatten(0, 1)
        return ids if ids.ndim == 1 else ids[:, codebook]

    system.write(hidden.flatten(0, 1), choose)
    return {
        name: (scores[0] if elements[name].ndim == 2 else torch.stack(scores, 1)).unflatten(
            0, hidden.shape[:2]
        )
        for name, scores in found.items()
    }


def write_scores(
    system: Any, hidden: Tensor, frame: Mapping[str, Tensor], state: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Scores of every element of one frame of each row, (B, 1, ...), and the frame as written."""
    found: dict[str, list[Tensor]] = {}

    def choose(stream: str, codebook: int, scores: Tensor) -> Tensor:
        found.setdefault(stream, []).append(scores)
        ids = frame[stream][:, 0]
        return ids if ids.ndim == 1 else ids[:, codebook]

    written = system.write(hidden, choose, state if system.writes_with_tower else None)
    scores = {
        name: (own[0] if frame[name].ndim == 2 else torch.stack(own, 1))[:, None]
        for name, own in found.items()
    }
    return scores, {name: ids[:, None] for name, ids in written.items()}
