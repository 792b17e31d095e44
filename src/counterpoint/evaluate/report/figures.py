"""Figures of a study as PNG bytes; they need matplotlib, but no display."""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from counterpoint.evaluate.report.summary import Arm
from counterpoint.evaluate.report.vector import to_svg
from counterpoint.evaluate.results import Positions
from counterpoint.evaluate.statistics import bootstrap_ratio
from counterpoint.packages import optional_module

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#6b7280", "#c8481f", "#2a6f97", "#5a8f3c", "#8a5a9e", "#b58a00")
"""Colours by arm: the control is grey, ours is red. The whole is drawn in `WHOLE`."""
WHOLE = "#1f5f8b"
INK = "#222222"
FAINT = "#d8d8d8"

STYLE: Mapping[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#ececec",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.dpi": 100,
    "text.parse_math": False,  # a $ in names and passages is an ordinary character
}


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure that needs no display.

    Raises:
        UserError: The package ``matplotlib`` is missing.
    """
    figure: Figure = optional_module("matplotlib.figure").Figure(
        figsize=(width, height), layout="constrained"
    )
    return figure


def to_png(figure: "Figure") -> bytes:
    """Return a figure as the bytes of a PNG file."""
    stream = io.BytesIO()
    with without_glyph_warnings():
        figure.savefig(stream, format="png")
    return stream.getvalue()


@contextmanager
def styled(more: Mapping[str, Any] = MappingProxyType({})) -> Iterator[None]:
    """Draw figures in one style, with more settings of matplotlib.

    Raises:
        UserError: The package ``matplotlib`` is missing.
    """
    rc_context = optional_module("matplotlib").rc_context
    with rc_context({**STYLE, **more}), without_glyph_warnings():
        yield


@contextmanager
def without_glyph_warnings() -> Iterator[None]:
    """Ignore warnings about letters that the font lacks; they are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Glyph.*missing")
        yield


def draw_figures(arms: Sequence[Arm]) -> dict[str, bytes]:
    """Draw all figures of a study, as PNG bytes by file name."""
    with styled():
        figures = {"curves.png": curves_figure(curves_of(arms)), **_others(arms)}
        return {name: to_png(figure) for name, figure in figures.items()}


def draw_panels(arms: Sequence[Arm]) -> dict[str, tuple[str, ...]]:
    """Draw all figures for a page: SVG panels that are narrow enough to be stacked."""
    with styled():
        panels = {name: (to_svg(figure),) for name, figure in _others(arms).items()}
        return {"curves.png": curve_panels(curves_of(arms)), **panels}


def curve_panels(curves: Sequence["Curve"]) -> tuple[str, ...]:
    """Draw a panel of learning curves as SVG for each scale."""
    with styled():
        return tuple(to_svg(curves_figure(curves, [scale])) for scale in SCALES)


def _others(arms: Sequence[Arm]) -> dict[str, "Figure"]:
    from counterpoint.evaluate.report.passage_figure import passage_figure

    figures = {}
    if all(arm.evaluation.positions for arm in arms):
        figures["positions.png"] = positions_figure(arms)
    read = [arm for arm in arms if arm.evaluation.passage and arm.evaluation.passage.blocks]
    if read:
        control = next((arm for arm in arms if arm is not read[0]), None)
        figures["streams.png"] = passage_figure(read[0], control)
    return figures


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The learning curve of a run.

    Attributes:
        name: Name of the run.
        unit: Unit of the bits: "byte" or "frame".
        metrics: Lines of its ``metrics.jsonl``.
        colour: Its colour.
        final: Held-out bits a unit at its end; ``None`` if not known.
    """

    name: str
    unit: str
    metrics: Sequence[Mapping[str, Any]]
    colour: str
    final: float | None = None


class Scale(NamedTuple):
    """A horizontal axis of learning curves.

    Attributes:
        key: Name of the number in the metrics of a step.
        label: Label of the axis.
        size: Unit of the axis: numbers are divided by it.
        title: Title of the panel.
    """

    key: str
    label: str
    size: float
    title: str


SCALES = (
    Scale("flops", "training FLOPs (10¹²)", 1e12, "Loss against compute"),
    Scale("seconds", "training seconds", 1.0, "Loss against time"),
)


def curves_of(arms: Sequence[Arm]) -> list[Curve]:
    """Return the learning curves of the arms of a study."""
    return [
        Curve(
            name=arm.name,
            unit=arm.evaluation.unit,
            metrics=arm.metrics,
            colour=colour,
            final=sum(arm.evaluation.bits) / sum(arm.evaluation.sizes),
        )
        for colour, arm in zip(_colours(arms), arms, strict=True)
    ]


def curves_figure(curves: Sequence[Curve], scales: Sequence[Scale] = SCALES) -> "Figure":
    """Draw the training loss against FLOPs and seconds, with the held-out result at the end."""
    figure = new_figure(5 * len(scales), 4)
    axes = figure.subplots(1, len(scales), sharey=True, squeeze=False)[0]
    finals = [curve.final for curve in curves if curve.final is not None]
    ends = list[float]()
    for axis, scale in zip(axes, scales, strict=True):
        for curve in curves:
            ends += _draw_curve(axis, curve, scale, finals, labelled=scale is scales[0])
        axis.set_xlabel(scale.label)
        axis.margins(x=0.02)
        axis.set_xlim(left=0, right=axis.get_xlim()[1] * (1.32 if scale is scales[0] else 1.03))
        axis.set_title(scale.title)
    axes[0].set_ylabel(f"bits/{curves[0].unit}")
    lowest = min(ends)
    height = max(ends) - lowest + 0.02  # leaves room for a name below the lowest end
    axes[0].set_ylim(lowest - 0.25 * height, max(ends) + 0.1 * height)
    return figure


def _draw_curve(
    axis: "Axes", curve: Curve, scale: Scale, finals: Sequence[float], labelled: bool
) -> list[float]:
    """Draw one curve with its end, and return the values that must be visible."""
    rows = [row for row in curve.metrics if "loss" in row]
    x = np.array([row[scale.key] for row in rows]) / scale.size
    y = np.array([row["loss"] for row in rows], float)  # None gives nan: a gap
    smooth = smoothed(y, max(len(y) // 40, 1))
    axis.plot(x, y, color=curve.colour, alpha=0.15, linewidth=0.6)
    axis.plot(x, smooth, color=curve.colour, linewidth=1.8)
    seen = [float(np.nanmin(smooth)), float(np.nanmax(smooth[len(smooth) // 10 :]))]
    end = float(smooth[-1]) if curve.final is None else curve.final
    text = curve.name
    if curve.final is not None:
        axis.plot(x[-1], end, "o", color=curve.colour, markersize=7, markeredgecolor="white")
        text += f"\nheld-out {end:.3f}"
    if labelled:  # in the other panels colours are enough
        _label(axis, x[-1], end, text, curve.colour, end >= max(finals, default=end))
    return [*seen, end]


def positions_figure(arms: Sequence[Arm]) -> "Figure":
    """Draw bits a byte by position since the start of a unit, with 95 % intervals over units."""
    figure = new_figure(7, 4.2)
    axis = figure.subplots()
    found = [arm.evaluation.positions for arm in arms if arm.evaluation.positions]
    curves = [position_curve(positions) for positions in found]
    ends = [values[0][-1] for _, values in curves]
    for colour, arm, (centres, values) in zip(_colours(arms), arms, curves, strict=True):
        axis.fill_between(centres, values[1], values[2], color=colour, alpha=0.16, linewidth=0)
        axis.plot(centres, values[0], "o-", color=colour, linewidth=1.8, markersize=4.5)
        axis.annotate(
            arm.name,
            (centres[-1], values[0][-1]),
            xytext=(8, 6 if values[0][-1] >= max(ends) else -6),
            textcoords="offset points",
            color=colour,
            va="center",
            weight="bold",
        )
    edges = found[0].edges
    axis.set_xscale("log", base=2)
    ticks = [edge for edge in edges[1:] if edge <= edges[-1]]
    axis.set_xticks(ticks, [f"{edge:,}" for edge in ticks])
    axis.minorticks_off()
    axis.set_xlim(right=axis.get_xlim()[1] * 1.9)
    axis.set_xlabel("bytes since the start of the text")
    axis.set_ylabel("held-out bits/byte")
    axis.set_title("Use of the past (bands: 95 % over texts)")
    return figure


def position_curve(
    positions: Positions,
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, "3 K"]]:
    """Return the centres of the bins that hold text, and value, low and high end of each."""
    bits = np.array(positions.bits)
    num_bytes = np.array(positions.num_bytes, float)
    edges = np.array(positions.edges, float)
    # An interval over units means nothing in bins that few units reach.
    kept = np.flatnonzero((num_bytes > 0).sum(0) >= min(5, len(bits)))
    centres = np.sqrt(np.maximum(edges[kept], edges[1] / 2) * edges[kept + 1])
    intervals = [bootstrap_ratio(bits[:, k], num_bytes[:, k]) for k in kept]
    return centres, np.array([(i.value, i.low, i.high) for i in intervals]).reshape(-1, 3).T


def _colours(arms: Sequence[Arm]) -> list[str]:
    if len(arms) == 1:
        return [PALETTE[1]]
    return [PALETTE[i % len(PALETTE)] for i in range(len(arms))]


def smoothed(values: Float[np.ndarray, " N"], width: int) -> Float[np.ndarray, " N"]:
    """Return the mean of the last ``width`` values, or of all if there are fewer."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(stop - width, 0)
    smooth: Float[np.ndarray, " N"] = (sums[stop] - sums[start]) / (stop - start)
    return smooth


def _label(axis: "Axes", x: float, y: float, text: str, colour: str, above: bool) -> None:
    """Write a name next to the end of a curve, so that no legend is needed."""
    axis.annotate(
        text,
        (x, y),
        xytext=(8, 9 if above else -9),
        textcoords="offset points",
        color=colour,
        weight="bold",
        va="bottom" if above else "top",
        fontsize=9,
    )
