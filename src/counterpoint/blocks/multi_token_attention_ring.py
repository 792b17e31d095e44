"""Rows of scores and of weights that a session of Multi-Token Attention carries.

The row of a step stands in the place (step modulo Q) of its ring, for kernels of Q queries. A row
is cut into blocks of keys, and a block is stored with those of the other rows beside it: (Q, b).
The convolution of a single query is then one matrix product, of every block with the taps that lead
from it to the results around it, and the rows stay where they are. A library that convolves images
would rearrange all rows for the sake of one.

Source: see `multi_token_attention`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from counterpoint.blocks.attention import ring_steps
from counterpoint.blocks.multi_token_attention_convolution import Seen
from counterpoint.tracing import is_traced

LEAST_BLOCK = 16
"""Keys of a block at least: numbers of 32 bits in the longest registers of a CPU."""

PIECE_KEYS = 32768
"""Keys of all heads that are convolved at once: their products stay in the cache of a core."""

Ring = Float[Tensor, "B H N Q b"]
"""Rows over N blocks of b keys."""


class SingleStep(NamedTuple):
    """Where the row of a single step stands, and what is read with it.

    Attributes:
        session: Sessions of the batch.
        place: Where the row of their step stands among those that are kept.
        alone: The same as a number, where there is one session, on a CPU.
        gone_block: Blocks of the keys that no later step reads.
        gone_key: Where these keys stand in their blocks.
        taps: For every session, every key of a block in every row and every result of this block
            or beside it, the tap that leads from one to the other; the number after the last tap if
            there is none.
    """

    session: Int[Tensor, " B"]
    place: Int[Tensor, " B"]
    alone: int | None
    gone_block: Int[Tensor, "B g"]
    gone_key: Int[Tensor, "B g"]
    taps: Int[Tensor, " n"]


class TickReach(NamedTuple):
    """What the steps of a chunk of a session may read.

    Attributes:
        step: The steps.
        end: Number of steps that each row has read after the chunk.
        slot: Slot of the keys of every step.
        limit: Number of slots that are read.
        rows: What the steps may read among these slots.
        kept: What the steps before the chunk could read and still can, the newest last.
        single: Where the row of a single step stands; ``None`` for several steps.
    """

    step: Int[Tensor, "B T"]
    end: Int[Tensor, " B"]
    slot: Int[Tensor, "B T"]
    limit: int
    rows: Seen
    kept: Bool[Tensor, "B 1 h C"]
    single: SingleStep | None


def block_keys(num_keys: int) -> int:
    """Return how many keys a block has: as many as a kernel has beside its own, or more.

    So the taps of a key reach into the next block only.
    """
    return max(LEAST_BLOCK, 1 << (num_keys - 2).bit_length())


def empty_ring(
    like: Tensor, batch_size: int, num_heads: int, kernel: tuple[int, int], capacity: int
) -> Ring:
    """Return a ring without rows.

    Args:
        like: A tensor with the dtype and the device.
        batch_size: Number of sessions.
        num_heads: Number of heads.
        kernel: Queries (0 for no ring) and keys of a kernel.
        capacity: Number of slots; whole blocks.
    """
    num_queries, num_keys = kernel
    block = block_keys(num_keys)
    return like.new_zeros(batch_size, num_heads, capacity // block, num_queries, block)


def single_step(
    position: Int[Tensor, " B"], window: int, capacity: int, kernel: tuple[int, int]
) -> SingleStep:
    """Return where the rows of single steps stand.

    Args:
        position: Number of steps that each session has read before.
        window: Number of most recent steps that a step reads.
        capacity: Number of slots.
        kernel: Queries and keys of a kernel.
    """
    num_queries, num_keys = kernel
    block = block_keys(num_keys)
    device = position.device
    # The step overwrites one key; those before its window are no longer read.
    oldest = position[:, None] - window - torch.arange(num_queries - 1, device=device)
    gone = torch.where(oldest >= 0, oldest, position[:, None])
    gone = torch.cat((position[:, None], gone), 1) % capacity
    place = position % num_queries
    is_alone = len(position) == 1 and position.device.type == "cpu" and not is_traced()
    kept = torch.arange(num_queries, device=device)
    row = num_queries - 1 - (position[:, None] - kept) % num_queries
    key = torch.arange(block, device=device)[:, None]
    tap = key + num_keys - 1 - torch.arange(block + num_keys - 1, device=device)
    taps = torch.where(
        (tap >= 0) & (tap < num_keys), row[..., None, None] * num_keys + tap, num_queries * num_keys
    )
    return SingleStep(
        session=torch.arange(len(position), device=device),
        place=place,
        alone=int(place) if is_alone else None,
        gone_block=gone // block,
        gone_key=gone % block,
        taps=taps.flatten(),
    )


def rows_above(ring: Ring, reach: TickReach, dtype: torch.dtype) -> Float[Tensor, "B H h C"] | None:
    """Return the rows of the steps before a chunk, without what was overwritten since."""
    num_rows = ring.shape[3]
    if not num_rows:
        return None
    before = reach.step[:, :1] - torch.arange(num_rows - 1, 0, -1, device=ring.device)
    every = ring.transpose(2, 3).flatten(3)[..., : reach.limit]
    return _taken(every, before % num_rows).to(dtype) * reach.kept


def write_rows(ring: Ring, rows: Float[Tensor, "B H R C"], reach: TickReach) -> None:
    """Write the newest rows into their places; the first ones of ``rows`` were above the chunk."""
    num_rows = ring.shape[3]
    held = ring_steps(reach.end, num_rows, num_rows)
    first = reach.step[:, :1] - (rows.shape[2] - reach.step.shape[1])
    blocks = _in_blocks(_taken(rows, (held - first).clamp(min=0)), ring.shape[4])
    ring[:, :, : blocks.shape[3]].copy_(blocks.transpose(2, 3))


def _in_blocks(rows: Float[Tensor, "*B C"], block: int) -> Float[Tensor, "*B N b"]:
    missing = -rows.shape[-1] % block
    return (F.pad(rows, (0, missing)) if missing else rows).unflatten(-1, (-1, block))


def _taken(rows: Float[Tensor, "B H R C"], index: Int[Tensor, "B Q"]) -> Float[Tensor, "B H Q C"]:
    index = index[:, None, :, None]
    return rows.gather(2, index.expand(-1, rows.shape[1], -1, rows.shape[3]))


def convolve_tick(
    row: Float[Tensor, "B H 1 C"], kernel: Float[Tensor, "H Q R"], ring: Ring, reach: TickReach
) -> Float[Tensor, "B H 1 C"]:
    """Write the row of a single step into its ring, and convolve it with the rows before it.

    What is written for a step that is not real does no harm: the next real one overwrites it.

    Args:
        row: Scores or weights of the step.
        kernel: The kernels.
        ring: The rows before it; it is changed in place.
        reach: What the step may read.
    """
    block = ring.shape[4]
    single = reach.single
    assert single is not None
    ring[single.session[:, None], :, single.gone_block, :, single.gone_key] = 0.0
    newest = _in_blocks(row[:, :, 0], block)
    # A tap of zero follows the others.
    taps = F.pad(kernel.to(row.dtype).flatten(1), (0, 1)).index_select(1, single.taps)
    taps = taps.view(len(taps), len(ring), -1, block + kernel.shape[2] - 1).transpose(0, 1)
    num_blocks = newest.shape[2]
    size = num_blocks
    if not is_traced() and not torch.is_grad_enabled() and ring.is_cpu:
        size = max(1, PIECE_KEYS // newest[:, :, 0].numel())
    y = torch.empty_like(newest)
    written = 0
    for begin in range(0, num_blocks, size):
        stop = min(begin + size, num_blocks)
        last = min(stop + 1, num_blocks)
        _write_row(ring, newest[:, :, written:last], single, slice(written, last))
        written = last
        _convolve_blocks(ring, taps, y, (begin, stop))
    if reach.rows.is_ring:
        _join_ends(ring, taps, y)
    return y.flatten(2)[:, :, None, : reach.limit]


def _write_row(
    ring: Ring, row: Float[Tensor, "B H n b"], single: SingleStep, blocks: slice
) -> None:
    """Write some blocks of the row of a step."""
    if single.alone is None:
        ring[single.session, :, blocks, single.place] = row.to(ring.dtype)
    else:
        ring[:, :, blocks, single.alone] = row.to(ring.dtype)


def _convolve_blocks(
    ring: Ring,
    taps: Float[Tensor, "B H Qb o"],
    y: Float[Tensor, "B H N b"],
    piece: tuple[int, int],
) -> None:
    """Write the results of some blocks, to which the block before and after them give theirs."""
    begin, stop = piece
    num_blocks, block = y.shape[2:]
    first = max(begin - 1, 0)
    last = min(stop + 1, num_blocks)
    parts = ring[:, :, first:last].to(y.dtype).flatten(3) @ taps
    side = (taps.shape[3] - block) // 2
    own = y[:, :, begin:stop]
    own.copy_(parts[:, :, begin - first : stop - first, side : side + block])
    if side:
        from_before = parts[:, :, : stop - first - 1, side + block :]
        own[:, :, own.shape[2] - from_before.shape[2] :, :side] += from_before
        from_after = parts[:, :, begin - first + 1 :, :side]
        own[:, :, : from_after.shape[2], -side:] += from_after


def _join_ends(ring: Ring, taps: Float[Tensor, "B H Qb o"], y: Float[Tensor, "B H N b"]) -> None:
    """Add what the last block gives to the first one, and the other way round."""
    side = (taps.shape[3] - y.shape[3]) // 2
    if side:
        last, first = (
            ring[:, :, at : at + 1].to(y.dtype).flatten(3) @ taps for at in (y.shape[2] - 1, 0)
        )
        y[:, :, :1, :side] += last[..., -side:]
        y[:, :, -1:, -side:] += first[..., :side]
