"""SHANKS on spoken maths with SmolLM2-135M as its backbone, all of whose weights are trained."""

from dataclasses import replace

from counterpoint.recipes.shanks_smollm import shanks_smollm
from counterpoint.train.config import FineTuneConfig
from counterpoint.train.run import Run


def shanks_smollm_full() -> Run:
    """Train all weights of SmolLM2-135M to think while it hears spoken maths in words.

    It is `shanks_smollm` without adapters, at a twentieth of their learning rate.
    """
    run = shanks_smollm()
    base = "" if run.train.fine_tune is None else run.train.fine_tune.init_from
    optimizer = replace(run.train.optimizer, lr=1e-4)
    return replace(
        run,
        name="shanks_smollm_full",
        train=replace(run.train, optimizer=optimizer, fine_tune=FineTuneConfig(init_from=base)),
    )
