"""Layouts drawn at random: any delays and periods, ids and floats, with an initial frame or not."""

from hypothesis import strategies as st

from counterpoint.streams.spec import Layout, Role, Stream


@st.composite
def layouts(
    draw: st.DrawFn, *, vocab_size: int, most_written: int = 2, has_ticks: bool = False
) -> Layout:
    """Streams s0, s1, ...: one or more that are written, then up to two that are heard.

    Args:
        draw: From hypothesis.
        vocab_size: Ids of every discrete stream.
        most_written: Streams that are written, at most.
        has_ticks: Steps of the first stream are ticks, so that any number of ticks is content.
    """
    num_written = draw(st.integers(1, most_written))
    num_heard = draw(st.integers(0, 2))
    has_lead = draw(st.booleans())
    streams = []
    for number in range(num_written + num_heard):
        is_heard = number >= num_written
        is_vector = is_heard and draw(st.booleans())
        streams.append(
            Stream(
                name=f"s{number}",
                role=Role.HEARD if is_heard else Role.SPOKEN,
                vocab_size=None if is_vector else vocab_size,
                width=2 if is_vector else None,
                depth=1 if is_vector else draw(st.integers(1, 2)),
                period_ticks=1 if has_ticks and not number else draw(st.integers(1, 4)),
                delay_ticks=draw(st.integers(0, 3)),
                predicted=not is_heard,
                initial_id=vocab_size if has_lead and not is_vector else None,
            )
        )
    return Layout(streams=tuple(streams))
