"""A ramp: blocks that begin short in a training, and reach their final length before it ends.

Low compression is easier to learn from, so the compression rises while the model learns. Only the
number of steps after which a block is full changes. All weights keep the shape of the final blocks:
a short block fills the newest places of a compressor, as a block that ends early does, and is
followed by the first places of a plan. The length is a function of the step and of the number of
steps, so that a training which is stopped and continued is the same.

Source: raising a low target ratio during training follows ATDC (arXiv:2605.30080), of which only
the abstract was available; the stages are our own.
"""

from dataclasses import dataclass

from counterpoint.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class RampConfig:
    """Lengths of blocks during a training.

    The length doubles from `start_ticks` to the final one. The shorter lengths take equal parts of
    `share`.

    Attributes:
        start_ticks: Number of ticks of the longest block when a training begins: the final number,
            or a half, a quarter and so on of it. ``None``: blocks have their final length
            throughout.
        share: Share of the training after which blocks have their final length; above 0 and below
            1, because the finished model is used with blocks of that length. Without `start_ticks`
            it has no effect.
    """

    start_ticks: int | None = None
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(
                "`share` of a ramp must be above 0 and below 1, so that blocks of the final length "
                f"are learned too: got {self.share:g}. 0.5 is half of the training."
            )

    def check(self, final_ticks: int) -> None:
        """Check that the ramp leads to blocks of a final length.

        Raises:
            UserError: Doubling the first length does not lead to it.
        """
        lengths = [final_ticks]
        while lengths[0] % 2 == 0:
            lengths.insert(0, lengths[0] // 2)
        if self.start_ticks is not None and self.start_ticks not in lengths:
            raise UserError(
                f"`start_ticks` of a ramp must become `block_ticks` = {final_ticks} by doubling: "
                f"got {self.start_ticks}. Choose {' or '.join(map(str, lengths))}."
            )

    def _doublings(self, final_ticks: int) -> int:
        """Return the number of shorter lengths."""
        if self.start_ticks is None:
            return 0
        return (final_ticks // self.start_ticks).bit_length() - 1

    def starts(self, final_ticks: int, num_steps: int) -> tuple[int, ...]:
        """Return the first step of each stage of a training of ``num_steps``, the first of all 0.

        The shorter lengths share the first ``round(share * num_steps)`` steps, but never all, in
        equal parts whose beginnings are rounded up. If there are fewer steps than lengths, some
        have none.
        """
        doublings = self._doublings(final_ticks)
        rising = min(round(self.share * num_steps), num_steps - 1)
        if not doublings or rising < 1:
            return (0,)
        return tuple(dict.fromkeys(-(-k * rising // doublings) for k in range(doublings + 1)))

    def ticks_at(self, final_ticks: int, step: int, num_steps: int) -> int:
        """Return the number of ticks of the longest block in a step, counted from 0."""
        doublings = self._doublings(final_ticks)
        rising = min(round(self.share * num_steps), num_steps - 1)
        done = doublings if step >= rising else step * doublings // rising
        return final_ticks >> (doublings - done)


def mean_of_shorter(mean_ticks: float, final_ticks: int, ticks: int) -> float:
    """Return the mean length that blocks have if they end after fewer steps at the latest.

    Every step is taken to end a block with the same probability. On the King James Bible, whose
    words have 4.6 ticks if they are cut after 8, this is within 2 % of the truth
    (`tests/recipes/test_first_run_blocks.py`).

    Args:
        mean_ticks: Mean length of blocks that end after ``final_ticks`` at the latest.
        final_ticks: Number of steps of the longest block.
        ticks: Smaller number of steps of the longest block.
    """
    if ticks == final_ticks:
        return mean_ticks
    low = 0.0
    high = 1.0
    for _ in range(40):  # the probability that a step does not end its block, to 12 digits
        middle = (low + high) / 2
        if sum(middle**n for n in range(final_ticks)) < mean_ticks:
            low = middle
        else:
            high = middle
    return sum(low**n for n in range(ticks))
