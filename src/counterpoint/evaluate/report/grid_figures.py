"""The pictures of a grid as SVG panels: scores, learning curves, quality against cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from counterpoint.evaluate.report.figures import PALETTE, new_figure, smoothed, styled
from counterpoint.evaluate.report.grid_findings import GridFindings
from counterpoint.evaluate.report.grid_rows import ORACLE, by_cell
from counterpoint.evaluate.report.vector import to_svg
from counterpoint.evaluate.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (PALETTE[1], PALETTE[2], PALETTE[3], PALETTE[4], PALETTE[5], PALETTE[0])
_MARKERS = ("o", "s", "^", "D")
_DASHES = ("-", "--", ":", "-.")
_SOFT = "#888888"
_MOST_POINTS = 200
_MOST_LINEAR = 5.0  # ratio of the largest to the smallest cost


class _Look(NamedTuple):
    """Look of an arm: after six colours, other markers and dashes are used."""

    colour: str
    marker: str
    dash: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CostScale:
    """A cost against which quality is drawn.

    Attributes:
        label: Label of the axis.
        of: Function that returns the cost of an arm on some tasks, or ``None`` if it is unknown.
    """

    label: str
    of: Callable[[GridFindings, str, Sequence[str]], float | None]


def _mean_flops(found: GridFindings, arm: str, tasks: Sequence[str]) -> float:
    return float(np.mean([found.about.costs[task][arm].flops for task in tasks]))


def _most_state(found: GridFindings, arm: str, tasks: Sequence[str]) -> float:
    return float(max(found.about.costs[task][arm].state for task in tasks))


def _latency(found: GridFindings, arm: str, tasks: Sequence[str]) -> float | None:
    return found.latency[arm].p50_ms if arm in found.latency else None


SCALES = (
    CostScale(label="training FLOPs a byte", of=_mean_flops),
    CostScale(label="state bytes of a session", of=_most_state),
    CostScale(label="milliseconds a tick (median, one session)", of=_latency),
)


def cost_panels(found: GridFindings, task: str | None = None) -> tuple[str, ...]:
    """Return one panel for each cost, with the scores drawn against it.

    Args:
        found: Findings of a grid.
        task: Task whose scores are drawn; by default their mean over all tasks.
    """
    if task is None:
        scores = dict(found.means)
    else:
        scores = {row.arm: row.score for row in found.arms_of(task)}
    tasks = found.tasks if task is None else [task]
    panels = []
    for scale in SCALES:
        costs = {arm: scale.of(found, arm, tasks) for arm in scores}
        known = {arm: cost for arm, cost in costs.items() if cost}
        if known:
            panels.append(_drawn(partial(_cost, found, scores, known, scale.label)))
    return tuple(panels)


def task_panels(found: GridFindings, task: str) -> tuple[str, ...]:
    """Return the panels of a task: scores with intervals, and learning curves."""
    panels = [_drawn(partial(_scores, found, task))]
    curves = mean_curves(found, task)
    if curves:
        panels.append(_drawn(partial(_learning, found, curves)))
    return tuple(panels)


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanCurve:
    """Learning curve of an arm on a task, averaged over seeds.

    Attributes:
        arm: The arm.
        flops: Training FLOPs at every point.
        values: Mean over seeds: of the score in %, if it was measured during training; otherwise
            of the loss in bits a trained symbol.
        low: Smallest value of a seed.
        high: Largest value of a seed.
        is_score: Whether the values are scores.
    """

    arm: str
    flops: Float[np.ndarray, " N"]
    values: Float[np.ndarray, " N"]
    low: Float[np.ndarray, " N"]
    high: Float[np.ndarray, " N"]
    is_score: bool


def mean_curves(found: GridFindings, task: str) -> list[MeanCurve]:
    """Return the learning curves of a task, one for each arm whose records have them."""
    own = {arm: records for (name, arm), records in by_cell(found.records).items() if name == task}
    points = [point for records in own.values() for r in records for point in r.get("curve") or ()]
    name = "score" if any(point["score"] is not None for point in points) else "loss"
    curves = []
    for arm, records in own.items():
        seeds = [
            {p["step"]: p for p in record.get("curve") or () if p[name] is not None}
            for record in records
        ]
        steps = sorted(set.intersection(*(set(seed) for seed in seeds)))
        if not steps:
            continue
        values = np.array([[seed[step][name] for step in steps] for seed in seeds])
        if name == "loss":  # each value is that of one batch
            values = np.array([smoothed(row, max(len(steps) // 20, 1)) for row in values])
        kept = slice(None, None, -(-len(steps) // _MOST_POINTS))
        scale = 100.0 if name == "score" else 1.0
        curves.append(
            MeanCurve(
                arm=arm,
                flops=np.array([seeds[0][step]["flops"] for step in steps])[kept],
                values=scale * values.mean(0)[kept],
                low=scale * values.min(0)[kept],
                high=scale * values.max(0)[kept],
                is_score=name == "score",
            )
        )
    return curves


def frontier(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names of points (cost, score) that no other point beats in both, by cost."""
    best = -np.inf
    kept = []
    for name, (_, score) in sorted(points.items(), key=lambda one: (one[1][0], -one[1][1])):
        if score > best:
            kept.append(name)
            best = score
    return kept


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return places for labels near values, in their order, from ``low`` to ``high``.

    They are at least ``gap`` apart, or evenly apart if there is no room for that.
    """
    order = np.argsort(values, kind="stable")
    gap = min(gap, (high - low) / max(len(order) - 1, 1))
    placed = np.clip(np.array(values, float)[order], low, high)
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    limit = high
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    found = np.empty(len(placed))
    found[order] = placed
    return [float(value) for value in found]


def _drawn(draw: "Callable[[], Figure]") -> str:
    with styled():
        return to_svg(draw())


def _look(found: GridFindings, arm: str) -> _Look:
    number = found.about.arms.index(arm)
    turn = number // len(_COLOURS)
    return _Look(
        colour=_COLOURS[number % len(_COLOURS)],
        marker=_MARKERS[turn % len(_MARKERS)],
        dash=_DASHES[turn % len(_DASHES)],
    )


def _cost(
    found: GridFindings,
    scores: Mapping[str, Interval],
    costs: Mapping[str, float],
    label: str,
) -> "Figure":
    """Draw quality against a cost; a line joins the arms that no other arm beats in both."""
    figure = new_figure(4.4, 3.6)  # three figures stand in one row
    axis = figure.subplots()
    points = {arm: (cost, 100 * scores[arm].value) for arm, cost in costs.items()}
    best = frontier(points)
    axis.step(
        [points[arm][0] for arm in best],
        [points[arm][1] for arm in best],
        where="post",
        color=_SOFT,
        linewidth=1.0,
        linestyle="--",
    )
    for arm, (cost, score) in points.items():
        look = _look(found, arm)
        ends = 100 * np.array(
            [[scores[arm].value - scores[arm].low], [scores[arm].high - scores[arm].value]]
        )
        axis.errorbar(
            [cost],
            [score],
            yerr=np.maximum(ends, 0),
            color=look.colour,
            marker=look.marker,
            markersize=6,
            markerfacecolor="none" if arm in found.about.unmatched else look.colour,
            linewidth=1.2,
        )
    _scale(axis, list(costs.values()))
    axis.set_xlabel(label)
    axis.set_ylabel("score, %")
    axis.margins(x=0.08, y=0.08)
    _labels(axis, found, points)
    return figure


def _scores(found: GridFindings, task: str) -> "Figure":
    """Draw a line for each arm, with interval, mean and seeds; dashed lines are policies."""
    arms = found.arms_of(task)
    policies = [row for row in found.of_task(task) if row.is_policy and row.arm != ORACLE]
    figure = new_figure(5, 1.3 + 0.3 * len(arms))
    axis = figure.subplots()
    for place, row in enumerate(arms):
        look = _look(found, row.arm)
        axis.plot(
            [100 * row.score.low, 100 * row.score.high], [place] * 2, color=look.colour, lw=2.4
        )
        seeds = [100 * score for score in row.by_seed]
        axis.plot(seeds, [place] * len(seeds), "|", color=look.colour, markersize=9)
        axis.plot([100 * row.score.value], [place], look.marker, color=look.colour, markersize=6)
    for row in policies:
        axis.axvline(100 * row.score.value, color=_SOFT, linewidth=1, linestyle=":")
    if policies:
        highest = max(policies, key=lambda row: row.score.value)
        axis.annotate(
            highest.arm,
            (100 * highest.score.value, 0),
            xycoords=("data", "axes fraction"),
            xytext=(3, 4),
            textcoords="offset points",
            color="#555555",
            fontsize=8,
        )
    axis.set_yticks(range(len(arms)), [row.arm for row in arms])
    axis.set_ylim(len(arms) - 0.3, -0.7)
    axis.set_xlim(-2, 102)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("score, %")
    axis.set_title("Scores")
    return figure


def _learning(found: GridFindings, curves: Sequence[MeanCurve]) -> "Figure":
    """Draw the mean over seeds against training FLOPs; bands reach from worst to best seed."""
    figure = new_figure(5, 4)
    axis = figure.subplots()
    for curve in curves:
        look = _look(found, curve.arm)
        x = curve.flops / 1e12
        axis.fill_between(x, curve.low, curve.high, color=look.colour, alpha=0.1, linewidth=0)
        axis.plot(x, curve.values, look.dash, color=look.colour, linewidth=1.6)
    axis.set_xlabel("training FLOPs (10¹²)")
    axis.set_ylabel("score, %" if curves[0].is_score else "loss, bits a trained symbol")
    axis.set_title("Learning")
    axis.margins(x=0.02)
    axis.set_xlim(left=0)
    _labels(axis, found, {c.arm: (c.flops[-1] / 1e12, c.values[-1]) for c in curves})
    return figure


def _labels(axis: "Axes", found: GridFindings, points: Mapping[str, tuple[float, float]]) -> None:
    """Write names at the right edge, without overlaps, and join them to their points."""
    low, high = axis.get_ylim()
    axis.set_ylim(low, high)
    axis.set_xlim(axis.get_xlim())
    names = list(points)
    places = spread([points[name][1] for name in names], 0.052 * (high - low), low, high)
    for name, place in zip(names, places, strict=True):
        look = _look(found, name)
        axis.annotate(
            name,
            points[name],
            xytext=(1.03, (place - low) / (high - low)),
            textcoords="axes fraction",
            color=look.colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": look.colour, "linewidth": 0.4, "shrinkB": 3},
        )


def _scale(axis: "Axes", costs: Sequence[float]) -> None:
    """Make the axis logarithmic if costs differ by much; numbers are always plain."""
    low = min(costs)
    high = max(costs)
    if high / low < _MOST_LINEAR:
        axis.set_xlim(0, 1.1 * high)
        axis.xaxis.set_major_formatter(lambda value, _: _short(value))
        return
    axis.set_xscale("log")
    axis.set_xlim(low / (high / low) ** 0.08, high * (high / low) ** 0.08)
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    steps = (1, 2, 5) if high / low < 100 else (1,)
    ticks = [step * 10.0**power for power in powers for step in steps]
    ticks = [tick for tick in ticks if axis.get_xlim()[0] <= tick <= axis.get_xlim()[1]]
    axis.set_xticks(ticks, [_short(tick) for tick in ticks])
    axis.minorticks_off()


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"
