"""SHANKS on spoken maths, with its thoughts beside what it hears instead of between."""

from dataclasses import replace

from counterpoint.recipes.shanks_small import spoken_maths_run
from counterpoint.train.run import Run


def shanks_small_parallel() -> Run:
    """Train a SHANKS on spoken maths that listens and thinks in parallel streams, side by side.

    A tick is 0.1 seconds, so that rows are nearly twice as long as those of `shanks_small`.

    Source: arXiv:2510.06917 has one sequence; the parallel arrangement is this library's own.
    """
    return replace(spoken_maths_run("parallel"), name="shanks_small_parallel")
