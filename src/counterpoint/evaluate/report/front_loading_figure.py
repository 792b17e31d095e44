"""The picture of the study of front-loading: right answers of its chains."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from counterpoint.evaluate.report.figures import INK, PALETTE, new_figure
from counterpoint.evaluate.report.front_loading_page import of_chain, score
from counterpoint.evaluate.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (PALETTE[0], PALETTE[3], PALETTE[2], PALETTE[1])
_MARKERS = ("o", "s", "^", "D")
_WIDTH = 0.6
"""Share of the width of a column over which the points of the backbones are spread."""

Series = Mapping[str, Mapping[Any, str]]
"""For each label the names of chains, by place on the horizontal axis."""


def answers_figure(
    records: Sequence[Mapping[str, Any]],
    cross: Series,
    curves: Series,
    levels: Mapping[str, str],
    floor: float,
) -> "Figure | None":
    """Return a picture of right answers in range, in %; ``None`` if no chain of it has records.

    The left panel shows every backbone with every fine-tuning, the right one what more fine-tuning
    gives. Bars are intervals of 95 %.

    Args:
        records: Judged records.
        cross: For each backbone the chain by fine-tuning.
        curves: For each curve the chain by number of times of fine-tuning.
        levels: Chains with one length of fine-tuning, drawn as bands beside the curves, by label.
            A label that begins with that of a backbone has its colour.
        floor: Share of right answers of a constant answer, drawn as a line.
    """
    columns = [*dict.fromkeys(name for by_tuning in cross.values() for name in by_tuning)]
    known_cross = {label: _scores(records, by_tuning) for label, by_tuning in cross.items()}
    known_curves = {label: _scores(records, by_times) for label, by_times in curves.items()}
    has_cross = any(known_cross.values())
    has_curves = any(len(own) > 1 for own in known_curves.values())
    num_panels = has_cross + has_curves
    if not num_panels:
        return None
    figure = new_figure(4.8 * num_panels, 4.2)
    panels = figure.subplots(1, num_panels, sharey=True, squeeze=False)[0]
    if has_cross:
        _draw_cross(panels[0], known_cross, columns)
    if has_curves:
        _draw_curves(panels[-1], known_curves)
        _draw_levels(panels[-1], _scores(records, levels), [*cross])
    for axes in panels:
        axes.axhline(
            100 * floor, color=INK, linestyle=":", linewidth=1.2, label="a constant answer"
        )
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)
    panels[0].set_ylabel("right answers in range, %")
    return figure


def _scores(records: Sequence[Mapping[str, Any]], chains: Mapping[Any, str]) -> dict[Any, Interval]:
    """Return the right answers of the chains that have records, in %."""
    known = {place: of_chain(records, arm, "in range") for place, arm in chains.items()}
    return {place: score(own, "answer").map(100) for place, own in known.items() if own}


def _draw_cross(
    axes: "Axes", known: Mapping[str, Mapping[Any, Interval]], columns: Sequence[str]
) -> None:
    gap = _WIDTH / max(len(known) - 1, 1)
    for number, (label, scores) in enumerate(known.items()):
        places = [columns.index(name) - _WIDTH / 2 + gap * number for name in scores]
        _draw_points(axes, places, [*scores.values()], label, number)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_xlabel("fine-tuned on")


def _draw_curves(axes: "Axes", known: Mapping[str, Mapping[Any, Interval]]) -> None:
    for number, (label, scores) in enumerate(known.items()):
        shift = 1 + 0.06 * (number - 0.5)  # so that bars of two curves do not cover each other
        places = [times * shift for times in scores]
        _draw_points(axes, places, [*scores.values()], label, 0, line="--" if number else "-")
    every = sorted({times for scores in known.values() for times in scores})
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [str(times) for times in every])
    axes.set_xlabel("times as much fine-tuning")


def _draw_levels(axes: "Axes", levels: Mapping[str, Interval], backbones: Sequence[str]) -> None:
    for label, level in levels.items():
        own = (number for number, name in enumerate(backbones) if label.startswith(name))
        colour = _COLOURS[next(own, 0) % len(_COLOURS)]
        axes.axhline(level.value, color=colour, label=label)
        axes.axhspan(max(level.low, 0), level.high, color=colour, alpha=0.12, linewidth=0)


def _draw_points(
    axes: "Axes",
    places: Sequence[float],
    scores: Sequence[Interval],
    label: str,
    number: int,
    line: str = "",
) -> None:
    """Draw points with their intervals; a share is not below 0."""
    below = [one.value - max(one.low, 0) for one in scores]
    above = [one.high - one.value for one in scores]
    axes.errorbar(
        places,
        [one.value for one in scores],
        (below, above),
        label=label,
        color=_COLOURS[number % len(_COLOURS)],
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=5,
        linestyle=line,
        clip_on=False,
        capsize=2,
    )
