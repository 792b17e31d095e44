"""SHANKS that is told all words again every second, and takes back what it has called too soon."""

from dataclasses import replace

from counterpoint.data.tasks.spoken_orders.source import SpokenOrdersData
from counterpoint.recipes.shanks_menu_small import shanks_menu_small
from counterpoint.systems import shanks
from counterpoint.train.run import Run


def shanks_retold_small() -> Run:
    """Train a SHANKS that orders at once, and anew when what it hears changes.

    It is `shanks_menu_small` with shorter chunks, each of which tells all words of the order as
    they are recognised by then. A recogniser that hears a word in halves corrects itself that way,
    and nothing need wait until it is certain. An order takes 191 places on average and up to 689
    (of 2,000), where it takes 113 and up to 215 there, so there are fewer in a step and more steps.
    """
    data = SpokenOrdersData(
        chunk_s=1.0,
        row_ticks=1024,
        num_rows=1_000_000,
        freely=0.75,
        whole_menu=True,
        retold=True,
        wide_tokens=True,
    )
    system = replace(shanks.small(), vocab_size=len(data.words))
    run = shanks_menu_small()
    return replace(
        run,
        name="shanks_retold_small",
        system=system,
        data=data,
        train=replace(run.train, num_steps=2800, batch_rows=3),
    )
