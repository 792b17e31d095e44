"""Columns of sessions: what rests says nothing, and no more than that."""

import torch

from counterpoint.runtime.column_queue import OPEN, ColumnQueue
from counterpoint.streams import schedule
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream


def test_who_begins_by_hearing_says_nothing_in_the_first_tick_and_writes_the_next() -> None:
    # Without an initial frame nothing has been read when tick 0 would have to be written.
    said = [
        Stream(name=name, role=Role.SPOKEN, vocab_size=6, predicted=True, delay_ticks=delay)
        for name, delay in (("now", 0), ("late", 1))
    ]
    heard = Stream(name="heard", role=Role.HEARD, vocab_size=6)
    layout = Layout(streams=(*said, heard))
    num_ticks = schedule.first_said_tick(layout, 0)
    assert num_ticks == 1
    queue = ColumnQueue(layout, 1, torch.device("cpu"))
    first = queue._next - 1  # column 0, for the columns move up by one
    queue.rest(0, num_ticks)
    for stream in said:
        own = queue._ids[0, first + stream.delay_ticks :, queue.places[stream.name]]
        assert own[0].tolist() == [UNSET_ID]
        assert own[1:].unique().tolist() in ([OPEN], [])
