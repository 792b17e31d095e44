"""The picture of the streams over one passage."""

import numpy as np

from counterpoint.evaluate.passage import Passage
from counterpoint.evaluate.report.figures import new_figure, styled
from counterpoint.evaluate.report.passage_figure import draw_bits


def test_names_of_the_arms_do_not_lie_over_the_bars() -> None:
    """A bar at the end was as high as the axis, and the name of the control lay over it."""
    bits = (1.0, 2.0, 3.0) * 20 + (7.0, 7.0)
    passage = Passage(source="a text", first_tick=0, symbols=("x",) * len(bits), bits=bits)
    with styled():
        figure = new_figure(9.0, 2.0)
        axis = figure.subplots()
        draw_bits(axis, passage, passage, ("two_stream", "single_stream"))
        figure.draw_without_rendering()
    legend = axis.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["two_stream", "single_stream"]
    bottom = min(text.get_window_extent().y0 for text in legend.get_texts())
    highest = axis.transData.transform((0.0, float(np.max(bits))))[1]
    assert highest < bottom < figure.bbox.y1
