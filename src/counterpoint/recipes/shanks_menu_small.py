"""SHANKS on all that recorded people order: ten drinks, with milk and sugar."""

from dataclasses import replace

from counterpoint.data.tasks.spoken_orders.source import SpokenOrdersData
from counterpoint.recipes.shanks_tools_small import shanks_tools_small
from counterpoint.systems import shanks
from counterpoint.train.run import Run


def shanks_menu_small() -> Run:
    """Train a SHANKS that takes spoken orders of a whole menu, and calls a tool.

    It is `shanks_tools_small` with more drinks and more words, so calls are longer and it has more
    steps. An order may go on after its drink ("with soy milk and a bit of sugar"), so the call is
    made later.
    """
    data = SpokenOrdersData(row_ticks=576, num_rows=1_000_000, freely=0.75, whole_menu=True)
    run = shanks_tools_small()
    return replace(
        run,
        name="shanks_menu_small",
        system=replace(shanks.small(), vocab_size=len(data.words)),
        data=data,
        train=replace(run.train, num_steps=1000),
    )
