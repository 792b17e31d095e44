"""SHANKS on spoken orders: does a model learn to call a tool while somebody still speaks?"""

from dataclasses import replace

from counterpoint.data.tasks.spoken_orders.source import SpokenOrdersData
from counterpoint.recipes.shanks_small import spoken_maths_run
from counterpoint.train.run import Run


def shanks_tools_small() -> Run:
    """Train a SHANKS that calls a tool as soon as all arguments of a spoken order are determined.

    The model and its training are those of `shanks_small`; only the data differ. No run of it has
    been measured.

    Source: the tool-call layout of arXiv:2510.06917, section 3.2.
    """
    data = SpokenOrdersData(row_ticks=384, num_rows=1_000_000)
    return replace(spoken_maths_run("interleaved"), name="shanks_tools_small", data=data)
