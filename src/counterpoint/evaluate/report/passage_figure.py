"""The two streams over one passage: blocks above, bytes below, and what each byte read."""

from typing import TYPE_CHECKING

import numpy as np

from counterpoint.evaluate.passage import Passage
from counterpoint.evaluate.report.figures import FAINT, INK, PALETTE, WHOLE, new_figure
from counterpoint.evaluate.report.summary import Arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WEAKEST = 0.02  # weaker attention is not drawn as a line


def passage_figure(arm: Arm, control: Arm | None = None) -> "Figure":
    """Draw the passage of an arm with a whole; ``control`` adds the bits of another arm."""
    passage = arm.evaluation.passage
    assert passage is not None
    columns = len(passage.symbols)
    figure = new_figure(max(0.118 * columns + 2.2, 8), 6.6)
    parts = figure.subplots(4, 1, sharex=True, height_ratios=(4.6, 1.0, 1.0, 1.9))
    for axis in parts:
        axis.grid(visible=False)
        axis.tick_params(bottom=False, labelbottom=False)
        axis.spines["bottom"].set_visible(False)
    _draw_reading(parts[0], passage)
    _draw_strip(parts[1], passage.null, PALETTE[0], "attention\non null key")
    _draw_strip(parts[2], passage.earlier, WHOLE, "on blocks\nbefore these")
    other = control.evaluation.passage if control is not None else None
    draw_bits(parts[3], passage, other, (arm.name, control.name if control else ""))
    parts[0].set_xlim(-1, columns)
    stop = passage.first_tick + columns
    parts[3].set_xlabel(f"{passage.source}, bytes {passage.first_tick} to {stop - 1} of the text")
    figure.suptitle(
        f"{arm.name}: two streams over one passage", x=0.01, ha="left", fontsize=12, weight="bold"
    )
    return figure


def _draw_reading(axis: "Axes", passage: Passage) -> None:
    """Draw blocks above, symbols below, and a line for every strong enough reading."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb

    weights = np.array(passage.blocks)  # (bytes, blocks)
    edges = np.array(passage.edges)
    centres = (edges[:-1] + edges[1:]) / 2 - 0.5
    # The mean is over bytes after the block was finished, so that old blocks have no advantage.
    readable = (weights > 0).sum(0)
    received = weights.sum(0) / np.maximum(readable, 1)
    shade = received / max(received.max(), 1e-9)
    axis.set_ylim(-0.09, 1.2)
    axis.axis("off")
    readers, blocks = np.nonzero(weights > _WEAKEST)
    strength = weights[readers, blocks]
    feet = np.stack((readers, np.full(len(readers), 0.06)), 1)
    heads = np.stack((centres[blocks], np.full(len(blocks), 0.94)), 1)
    # Strength is relative to the strongest, so that the pattern of weak readings is visible, too.
    strength = strength / max(weights.max(), _WEAKEST)
    colours = [(*to_rgb(WHOLE), 0.06 + 0.94 * float(s) ** 1.5) for s in strength]
    axis.add_collection(
        LineCollection(
            list(np.stack((feet, heads), 1)), colors=colours, linewidths=0.4 + 1.8 * strength
        )
    )
    _draw_blocks(axis, edges, shade)
    for place, symbol in enumerate(passage.symbols):
        axis.text(
            place,
            0.0,
            symbol,
            family="DejaVu Sans Mono",
            fontsize=10,
            ha="center",
            va="center",
            color=INK if symbol not in ("↵", "·") else "#999999",
        )
    for edge in passage.edges:
        axis.plot((edge - 0.5, edge - 0.5), (-0.07, 0.055), color=FAINT, linewidth=0.8)
    axis.text(
        -0.5,
        1.13,
        "whole: blocks (darker: read more). A line joins each byte to the blocks that were read to "
        "predict it.",
        color=WHOLE,
        fontsize=9.5,
        va="bottom",
    )


def _draw_blocks(axis: "Axes", edges: np.ndarray, shade: np.ndarray) -> None:
    """Draw a box for every block, as dark as its shade."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import FancyBboxPatch

    for left, right, dark in zip(edges[:-1], edges[1:], shade, strict=True):
        axis.add_patch(
            FancyBboxPatch(
                (left - 0.5 + 0.12, 0.95),
                right - left - 0.24,
                0.13,
                boxstyle="round,pad=0,rounding_size=0.12",
                mutation_aspect=0.05,
                facecolor=(*to_rgb(WHOLE), 0.12 + 0.83 * float(dark)),
                edgecolor=WHOLE,
                linewidth=0.7,
            )
        )


def _draw_strip(axis: "Axes", values: tuple[float, ...], colour: str, label: str) -> None:
    """Draw one bar a byte between 0 and 1."""
    axis.bar(range(len(values)), values, width=0.85, color=colour, linewidth=0)
    axis.set_ylim(0, 1)
    axis.text(
        len(values) - 0.5,
        1.0,
        f"mean {np.mean(values):.0%}",
        color=colour,
        fontsize=9,
        ha="right",
        va="bottom",
    )
    axis.set_yticks((0, 1))
    axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)


def draw_bits(
    axis: "Axes", passage: Passage, other: Passage | None, names: tuple[str, str]
) -> None:
    """Draw the bits of each byte, together with those of the control.

    Args:
        axis: Axis to draw on.
        passage: The passage, read by the arm.
        other: The same passage, read by the control; ``None`` if there is none.
        names: Names of the arm and the control.
    """
    from matplotlib.patches import Patch

    place = np.arange(len(passage.bits))
    axis.bar(place, passage.bits, width=0.85, color=PALETTE[1], alpha=0.8, linewidth=0)
    legend = [(names[0], PALETTE[1])]
    if other is not None and len(other.bits) >= len(place):
        bits = other.bits[: len(place)]
        edges = np.arange(len(place) + 1) - 0.5
        axis.stairs(bits, edges, color=PALETTE[0], linewidth=1.1)
        legend.append((names[1], PALETTE[0]))
    axis.set_ylabel("bits paid\nfor the byte", rotation=0, ha="right", va="center", fontsize=9)
    # The names stand above the bars, because a bar may be as high as the axis.
    axis.legend(
        handles=[Patch(color=colour, label=name) for name, colour in legend],
        labelcolor=[colour for _, colour in legend],
        prop={"weight": "bold", "size": 9},
        loc="lower right",
        bbox_to_anchor=(1.0, 1.02),
        ncols=len(legend),
        handlelength=0.9,
        handletextpad=0.5,
        borderaxespad=0,
        borderpad=0,
    )
