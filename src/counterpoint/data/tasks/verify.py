"""Verifiers: how good what a model wrote is, within a time limit; and pass@k."""

import contextlib
import math
import signal
import threading
import weakref
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from typing import Any, Literal, NamedTuple

from counterpoint.data.tasks.items import Item
from counterpoint.errors import UserError
from counterpoint.processes import end_with_parent

Verifier = Callable[[Any, str], float]
"""A pure function of an item and of what was written after its prompt: higher is better, and 1 or
more is a success. What is compared are the solutions of one item."""

SUCCESS = 1.0
"""Reward from which a solution counts as right."""

Failure = Literal["", "raised", "timed out"]

_START_S = 120.0


class Verified(NamedTuple):
    """The result of a verification.

    Attributes:
        reward: The verifier's number; 0 if it failed.
        failure: Why there is no number: the verifier raised an error, or gave something else than a
            finite number, or needed too long.
    """

    reward: float
    failure: Failure = ""


class TimedVerifier:
    """Calls a verifier in a process of its own, which is killed if a call takes too long.

    A verifier may be given anything that a model writes. No call can stop or delay training: one
    that fails or hangs has the reward 0, and the next call is answered by a new process.

    Args:
        verify: The verifier, which must be picklable: a function of a module, or a frozen object.
        limit_s: Seconds that one call may take.
    """

    def __init__(self, verify: Verifier, limit_s: float = 1.0) -> None:
        check_limit(limit_s)
        self.verify = verify
        self.limit_s = limit_s
        self._process: Any = None
        self._pipe: Any = None

    def __call__(self, item: Item, text: str) -> Verified:
        """Return the outcome for a text written after an item's prompt."""
        if self._process is None:
            self._start()
        try:
            self._pipe.send((item, text))
            if not self._pipe.poll(self.limit_s):
                self.close()
                return Verified(0.0, "timed out")
            value = self._pipe.recv()
        except (EOFError, OSError):  # the verifier has ended its process
            self.close()
            return Verified(0.0, "raised")
        return Verified(0.0, "raised") if value is None else Verified(value)

    def close(self) -> None:
        """End the process; the next call starts a new one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = None
        self._pipe = None

    def _start(self) -> None:
        context = get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(self.verify, other_end), daemon=True)
        self._process.start()
        # Whoever drops the verifier without closing it leaves no process behind.
        weakref.finalize(self, self._process.kill)
        other_end.close()
        # Imports do not count as time of a call.
        try:
            if self._pipe.poll(_START_S):
                self._pipe.recv()
                return
        except EOFError:  # it has ended; the reason stands on stderr
            pass
        self.close()
        raise OSError(
            f"The process of a verifier must start within {_START_S:.0f} s: it has not. The "
            "verifier must be a function that a new process can import."
        )


def check_limit(limit_s: float) -> None:
    """Check the time that a verification may take.

    Raises:
        UserError: It is no time at all, or not finite.
    """
    if not 0 < limit_s < math.inf:
        raise UserError(f"`limit_s` must be a finite number of seconds above 0: got {limit_s}.")


def _serve(verify: Verifier, pipe: Any) -> None:
    """Answer calls until this process is killed or its parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    pipe.send("ready")
    while True:
        try:
            item, text = pipe.recv()
        except (EOFError, OSError):
            return
        value = None
        with contextlib.suppress(Exception):
            given: object = verify(item, text)
            # A whole number may be too large for a float, which raises an error as well.
            if isinstance(given, int | float) and math.isfinite(given):
                value = float(given)
        pipe.send(value)


def pass_counts(num_samples: int) -> list[int]:
    """Return the numbers k for which pass@k is told: 1, 2, 4 and so on, up to all samples."""
    return [1 << power for power in range(num_samples.bit_length())]


def pass_at_k(num_right: Sequence[int], num_samples: int, k: int) -> float:
    """Return the probability that at least one of k samples is right, averaged over questions.

    The estimate is unbiased: the share of the sets of k samples that contain a right one.

    Args:
        num_right: Number of right samples of each question.
        num_samples: Number of samples of each question.
        k: Number of samples of which one must be right.

    Raises:
        UserError: ``k`` is not 1 to ``num_samples``, a number is outside 0 to ``num_samples``, or
            there are no questions.

    Source: Chen et al., Evaluating large language models trained on code (arXiv:2107.03374), eq. 1.
    """
    if not 1 <= k <= num_samples:
        raise UserError(f"`k` must be 1 to {num_samples}, the number of samples: got {k}.")
    if not num_right or not all(0 <= right <= num_samples for right in num_right):
        raise UserError(
            f"`num_right` must be one number from 0 to {num_samples} for each question: got "
            f"{list(num_right)[:10]}."
        )
    none_right = [math.comb(num_samples - right, k) for right in num_right]
    return 1 - sum(none_right) / (math.comb(num_samples, k) * len(num_right))
