"""Attention of long rows in linear time: groups of queries, and the few keys that each may read.

Where every query may read at most ``window`` keys, and what they may read moves on from query to
query (see `counterpoint.streams.clock.grouped_keys`), the queries of one group together read few
consecutive keys. Scores and sums are then computed over these alone. With Q queries, M keys, groups
of n queries, K = window + ceil((n - 1) / shortest) keys a group and heads of width E, one head
takes:

    dense      scores q k^T and sums w v: 4 Q M E FLOPs, and Q M weights
    in groups  4 Q K E FLOPs, Q K weights, and 2 (Q / n) K E copied keys and values

K does not depend on the length of the row, so the second line is linear in it and the first is not.
The masks are those of the same spans, so both forms compute the same.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from counterpoint.streams.clock import Span, grouped_keys, grouped_mask, most_keys, span_mask

GROUP_SIZE = 64
"""Most queries of a group. 32 to 128 are about as fast on a CPU; fewer copy more, more read more.

A group has fewer where its queries would otherwise read more than twice the window together.
"""
DENSE_TIMES = 2
"""Rows with at most so many times the keys of a group are read densely, which is then faster."""
FEW_KEYS = 320
"""Rows with at most so many keys are read densely, where nothing else is said.

With a small window groups are faster from fewer keys on. The floor keeps the costs of arms that are
compared at equal FLOPs on short rows as they were counted.
"""


class KeyGroups(NamedTuple):
    """The keys for which each group of queries computes scores.

    Attributes:
        size: Number of queries of a group n; the last group may have fewer.
        key: Number of each key of each group; it is also the key's place in the memory.
    """

    size: int
    key: Int[Tensor, "B G K"]

    def each(self, times: int) -> "KeyGroups":
        """Return the groups over memories in which each key stands for so many keys."""
        if times == 1:
            return self
        key = self.key[..., None] * times + torch.arange(times, device=self.key.device)
        return KeyGroups(self.size, key.flatten(2))

    def behind(self, num_first: int) -> "KeyGroups":
        """Return the groups if so many keys come first in the memory, which all queries read."""
        first = torch.arange(num_first, device=self.key.device)
        first = first.expand(*self.key.shape[:2], -1)
        return KeyGroups(self.size, torch.cat((first, self.key + num_first), 2))

    def mask(self, span: Span) -> Bool[Tensor, "B Q K"]:
        """Return which keys of its group each query may read."""
        return grouped_mask(span, self.key, self.size).flatten(1, 2)[:, : span.stop.shape[1]]

    def chosen(self, index: Int[Tensor, "B Q k"]) -> Int[Tensor, "B Q k"]:
        """Return the numbers of some keys of each query, given their places in its group."""
        groups = self._grouped(index)
        key = self.key.gather(2, groups.flatten(2)).view(groups.shape)
        return key.flatten(1, 2)[:, : index.shape[1]]

    def scores(
        self, q: Float[Tensor, "B H Q E"], k: Float[Tensor, "B H M E"]
    ) -> Float[Tensor, "B H Q K"]:
        """Return the products of every query with the keys of its group."""
        scores = self._grouped(q) @ self._taken(k).transpose(-1, -2)
        return scores.flatten(2, 3)[:, :, : q.shape[2]]

    def sums(
        self, weights: Float[Tensor, "B H Q K"], v: Float[Tensor, "B H M E"]
    ) -> Float[Tensor, "B H Q E"]:
        """Return the sums of the values of every query's group, weighted by its own weights."""
        sums = self._grouped(weights) @ self._taken(v)
        return sums.flatten(2, 3)[:, :, : weights.shape[2]]

    def spread(self, weights: Float[Tensor, "B H Q K"], num_keys: int) -> Float[Tensor, "B H Q M"]:
        """Return the weights of every query over all keys of the memory, zero where it has none."""
        groups = self._grouped(weights)
        key = self.key[:, None, :, None].expand_as(groups)
        everywhere = groups.new_zeros(*groups.shape[:4], num_keys).scatter_add(4, key, groups)
        return everywhere.flatten(2, 3)[:, :, : weights.shape[2]]

    def _grouped(self, x: Shaped[Tensor, "*B Q X"]) -> Shaped[Tensor, "*B G n X"]:
        """Cut queries into groups; zeros fill the last one."""
        padding = -x.shape[-2] % self.size
        if padding:
            x = F.pad(x, (0, 0, 0, padding))
        return x.unflatten(-2, (-1, self.size))

    def _taken(self, memory: Float[Tensor, "B H M E"]) -> Float[Tensor, "B H G K E"]:
        """Return the keys or values of every group."""
        index = self.key.flatten(1)[:, None, :, None]
        index = index.expand(-1, memory.shape[1], -1, memory.shape[3])
        return memory.gather(2, index).unflatten(2, self.key.shape[1:])


def group_keys(
    span: Span, num_keys: int, window: int, shortest: int, few_keys: int | None = None
) -> KeyGroups | None:
    """Return the keys of each group of queries of whole rows; ``None`` if they should read all.

    Args:
        span: Keys that each query may read.
        num_keys: Number of keys of a row.
        window: Largest number of keys of a span.
        shortest: Smallest number of queries from one to the next that may read a further key.
        few_keys: Number of keys up to which there are no groups; ``None`` means `FEW_KEYS`.
    """
    wanted = _keys_of_group(num_keys, window, shortest, few_keys)
    if wanted is None:
        return None
    size = _group_size(window, shortest)
    return KeyGroups(size, grouped_keys(span, size, wanted))


def read_mask(
    span: Span, key_step: Int[Tensor, "#B M"], groups: KeyGroups | None
) -> Bool[Tensor, "B Q K"]:
    """Return which keys each query may read: of its group, or of all if there are no groups.

    Args:
        span: Keys that each query may read.
        key_step: Number of the key in each place of the memory.
        groups: From `group_keys`.
    """
    return span_mask(span, key_step) if groups is None else groups.mask(span)


def read_scores(
    q: Float[Tensor, "B H Q E"], k: Float[Tensor, "B H M E"], groups: KeyGroups | None
) -> Float[Tensor, "B H Q K"]:
    """Return the products of every query with the keys of its group, or with all keys."""
    return q @ k.transpose(-1, -2) if groups is None else groups.scores(q, k)


def read_sums(
    weights: Float[Tensor, "B H Q K"], v: Float[Tensor, "B H M E"], groups: KeyGroups | None
) -> Float[Tensor, "B H Q E"]:
    """Return the weighted sums of the values of every query's group, or of all values."""
    return weights @ v if groups is None else groups.sums(weights, v)


def keys_run(
    num_queries: int, num_keys: int, window: int, shortest: int, few_keys: int | None = None
) -> float:
    """Return for how many keys a query computes scores, masked ones and padding included.

    Args:
        num_queries: Number of queries of a row.
        num_keys: Number of keys of a row.
        window: See `group_keys`.
        shortest: See `group_keys`.
        few_keys: See `group_keys`.
    """
    wanted = _keys_of_group(num_keys, window, shortest, few_keys)
    if wanted is None:
        return num_keys
    size = _group_size(window, shortest)
    return wanted * (-(-num_queries // size) * size) / num_queries


def _group_size(window: int, shortest: int) -> int:
    """Return the number of queries of a group."""
    return min(GROUP_SIZE, window * shortest)


def _keys_of_group(num_keys: int, window: int, shortest: int, few_keys: int | None) -> int | None:
    """Return the number of keys K of a group; ``None`` if reading all keys is cheaper."""
    wanted = most_keys(window, _group_size(window, shortest), shortest)
    few = max(DENSE_TIMES * wanted, FEW_KEYS if few_keys is None else few_keys)
    return wanted if num_keys > few else None
