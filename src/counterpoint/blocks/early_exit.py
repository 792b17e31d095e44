"""Early exit: some steps of a tower's sequence go through its lower layers only.

After layer k some steps *continue*, and the others leave. The upper layers read nothing of the
steps that left (`ExitOrders.left` is ``None``), or they read keys and values that the projections
of every upper layer compute from the states after layer k, without any other product.
"""

from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.blocks.attention import (
    AttentionConfig,
    SelfAttention,
    filled_slots,
    placed_reach,
    ring_steps,
    write_ring,
)
from counterpoint.blocks.mixer import MixerReach, MixerState
from counterpoint.blocks.rope import rope_tables
from counterpoint.blocks.transformer import Tower
from counterpoint.streams.interleave import Interleaving


class ExitOrders(NamedTuple):
    """The elements that have a step below layer k, and those that have one above it.

    Attributes:
        below: The sequence of the lower layers.
        above: The sequence of the upper layers, with some of the streams below; equal to ``below``
            if no stream leaves.
        left: The elements that leave keys and values to the upper layers; ``None`` for none.
    """

    below: Interleaving
    above: Interleaving
    left: Interleaving | None = None


class TowerPast(NamedTuple):
    """State of a session in a tower with an early exit.

    Attributes:
        below: Number of steps that the lower layers have read.
        above: Number of steps that the upper layers have read.
        caches: States of all layers.
    """

    below: Int[Tensor, " B"]
    above: Int[Tensor, " B"]
    caches: tuple[MixerState, ...]

    def after(self, orders: ExitOrders) -> "TowerPast":
        """Return the state after some more steps."""
        below = self.below + orders.below.lengths
        return TowerPast(below, self.above + orders.above.lengths, self.caches)


class ExitStates(NamedTuple):
    """States of a tower for some elements.

    Attributes:
        orders: Places of the elements.
        lower: States after layer k.
        upper: States after the last layer.
    """

    orders: ExitOrders
    lower: Float[Tensor, "B N D"]
    upper: Float[Tensor, "B M D"]

    def at_ticks(self, newest: Float[Tensor, "B D2"]) -> Float[Tensor, "B T D2"]:
        """Return the newest states at each tick: after layer k and after the last layer, joined.

        Args:
            newest: The newest states before these ticks, joined in the same way.
        """
        lower, upper = newest.chunk(2, -1)
        below = self.orders.below.states_at_ticks(self.lower, lower)
        return torch.cat((below, self.orders.above.states_at_ticks(self.upper, upper)), -1)


def lower_layers(
    tower: Tower,
    first_upper: int,
    x: Float[Tensor, "B N D"],
    orders: ExitOrders,
    past: TowerPast | None,
) -> Float[Tensor, "B N D"]:
    """Run all steps through the layers below ``first_upper``; see `upper_layers` for arguments."""
    reach = _reach(tower, orders.below, None if past is None else past.below)
    caches = None if past is None else past.caches
    return tower(x, reach, caches, layers=range(first_upper))


def upper_layers(
    tower: Tower,
    first_upper: int,
    x: Float[Tensor, "B N D"],
    orders: ExitOrders,
    past: TowerPast | None,
) -> Float[Tensor, "B M D"]:
    """Run the steps that continue through the other layers.

    Args:
        tower: The tower.
        first_upper: Number of the first upper layer (k).
        x: Input of that layer, for all steps.
        orders: The steps that continue.
        past: State of sessions; ``None`` for whole rows.
    """
    layers = range(first_upper, len(tower.layers))
    caches = None if past is None else past.caches
    if orders.above is not orders.below:
        passing = orders.below.places_of(orders.above)
        if orders.left is not None:
            reach, caches = _with_left(tower, layers, x, passing, orders, past)
            return tower(_take(x, passing), reach, caches, layers=layers)
        x = _take(x, passing)
    reach = _reach(tower, orders.above, None if past is None else past.above)
    return tower(x, reach, caches, layers=layers)


def exit_flops(
    tower: Tower, first_upper: int, num_below: int, num_above: int, num_left: int = 0
) -> float:
    """Return the forward FLOPs of a whole row.

    Args:
        tower: The tower.
        first_upper: Number of the first upper layer (k).
        num_below: Number of steps in the lower layers.
        num_above: Number of steps in the upper layers.
        num_left: Number of steps that leave keys and values to the upper layers.
    """
    num_upper = len(tower.layers) - first_upper
    share = first_upper / len(tower.layers)
    total = share * num_below * tower.flops_per_step(num_below)
    total += (1 - share) * num_above * tower.flops_per_step(num_above)
    if not num_left:
        return total
    mixing = tower.config.mixer.flops_per_step(tower.mixer_shape, num_above)
    beside_all = 4 * tower.config.width * (num_above + num_left)
    attention = cast(SelfAttention, tower.layers[0].attention)
    projected = 2 * attention.qkv.weight.numel() * num_left
    return total + num_upper * ((beside_all - mixing) * num_above + projected)


def _reach(tower: Tower, order: Interleaving, num_read: Tensor | None) -> MixerReach:
    """Return what each step of a sequence may read."""
    if num_read is None:
        return tower.reach(order.document_start)
    return tower.streaming_reach(num_read, order.source.shape[1], order.lengths)


def _with_left(
    tower: Tower,
    layers: range,
    x: Float[Tensor, "B N D"],
    passing: Int[Tensor, "B M"],
    orders: ExitOrders,
    past: TowerPast | None,
) -> tuple[MixerReach, tuple[MixerState, ...]]:
    """Return what the steps that continue may read, and caches with the keys of those that left.

    Steps keep the numbers that they have below. In whole rows every step is compared with every
    key, whatever the window is.
    """
    below = orders.below
    left = cast(Interleaving, orders.left)
    shape = tower.mixer_shape
    rope = cast(AttentionConfig, tower.config.mixer).rope
    head_width = shape.width // shape.num_heads
    place = below.places_of(left)
    step = below.position.gather(1, passing)
    left_step = below.position.gather(1, place)
    cos, sin = rope_tables(left_step, head_width, rope)
    states = _take(x, place)
    caches: list[MixerState] = [None] * layers.start
    for number in layers:
        layer = tower.layers[number]
        attention = cast(SelfAttention, layer.attention)
        caches.append(attention.keys_values(layer.attention_norm(states), cos, sin))
    if past is None:
        real = torch.cat((orders.above.real, left.real), 1)
        key_step = torch.where(real, torch.cat((step, left_step), 1), -1)
        first = below.document_start.gather(1, passing)
        reach = placed_reach(step, key_step, head_width, shape.window, first=first, rope=rope)
        return reach, tuple(caches)
    left_slot = torch.where(left.real, left_step % shape.capacity, shape.capacity)
    for number in layers:
        write_ring(past.caches[number], left_slot, caches[number])
    slot = torch.where(orders.above.real, step % shape.capacity, shape.capacity)
    end = past.below + below.lengths
    key_step = ring_steps(end, shape.capacity, filled_slots(end, shape.capacity))
    reach = placed_reach(step, key_step, head_width, shape.window, slot=slot, rope=rope)
    return reach, past.caches


def _take(x: Float[Tensor, "B _N D"], place: Int[Tensor, "B _M"]) -> Float[Tensor, "B _M D"]:
    """Return some of the steps of every row."""
    return x.gather(1, place[..., None].expand(-1, -1, x.shape[2]))
