"""SHANKS that calls while it listens, and listens again when the speech is over."""

from dataclasses import replace
from typing import cast

from counterpoint.data.tasks.spoken_orders.source import SpokenOrdersData
from counterpoint.recipes.shanks_retold_small import shanks_retold_small
from counterpoint.train.config import FineTuneConfig
from counterpoint.train.run import Run


def shanks_checked_small() -> Run:
    """Go on with `shanks_retold_small`: listen again when an order is over.

    Half of the orders are heard at once, after what another session has called. A model of these
    data listens again wherever it is used; see `counterpoint.runtime.checked`. Begin with
    ``--train.fine-tune.init-from runs/shanks_retold_small``; from scratch 900 steps are too few.
    """
    run = shanks_retold_small()
    data = replace(cast("SpokenOrdersData", run.data), again=0.5)
    optimizer = replace(run.train.optimizer, lr=1e-3)
    train = replace(run.train, num_steps=900, optimizer=optimizer, fine_tune=FineTuneConfig())
    return replace(run, name="shanks_checked_small", data=data, train=train)
