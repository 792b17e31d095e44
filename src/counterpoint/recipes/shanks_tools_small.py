"""SHANKS on spoken orders: does a model learn to call a tool while somebody still speaks?"""

from dataclasses import replace

from counterpoint.data.tasks.spoken_orders.source import SpokenOrdersData
from counterpoint.recipes.shanks_small import spoken_maths_run
from counterpoint.train.run import Run


def shanks_tools_small() -> Run:
    """Train a SHANKS that calls a tool as soon as all arguments of a spoken order are determined.

    The model is that of `shanks_small`; orders are easier than sums, so it has fewer steps. Three
    of four orders are said as people say them, the others at an even rate in full sentences. With
    ``--data.chunk-s 60`` it hears the whole order before it thinks. ``counterpoint evaluate`` says
    what is in force when the orders are over, and how many calls were made before.

    Source: the tool-call layout of arXiv:2510.06917, section 3.2.
    """
    data = SpokenOrdersData(row_ticks=384, num_rows=1_000_000, freely=0.75)
    run = spoken_maths_run("interleaved")
    return replace(
        run, name="shanks_tools_small", data=data, train=replace(run.train, num_steps=450)
    )
