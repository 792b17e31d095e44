"""The figure of a conversation: both waveforms, words, overlaps and latencies.

Long recordings continue in further rows, like a musical score: user above, agent below.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from counterpoint.evaluate.duplex.turns import Answer, Levels, Segment, TurnTaking
from counterpoint.evaluate.report.figures import (
    INK,
    PALETTE,
    STYLE,
    new_figure,
    to_png,
    without_glyph_warnings,
)
from counterpoint.evaluate.report.vector import to_svg
from counterpoint.runtime.talk import AGENT, USER
from counterpoint.streams.timeline import Event, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Mapping[str, str] = {USER: PALETTE[2], AGENT: PALETTE[1]}
BOTH = PALETTE[5]
SOFT = PALETTE[0]

_MOST_ROWS = 24
_LONGEST_SPELLED_S = 30.0
_DOTS_PER_INCH = 160
# Inches.
WIDTH = 12.0
LEFT = 0.75
RIGHT = 0.2
HEAD = 0.6
GAP = 0.42
WAVE = 0.62
WORD = 0.18
_BAND = 0.34
WORD_LINES = 3
_FONT = 9.0


class Row(NamedTuple):
    """A stretch of time, and its place in the figure.

    Attributes:
        start_s: First second.
        stop_s: Last second.
        left: Left edge, as a share of the width of the figure.
        right: Right edge.
        top: Upper edge, as a share of the height of the figure.
        bottom: Lower edge.
    """

    start_s: float
    stop_s: float
    left: float
    right: float
    top: float
    bottom: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Talk:
    """The content of the figure of a conversation.

    Attributes:
        title: Title of the figure.
        levels: Levels of the agent and the user, in this order.
        found: Turn-taking of the two.
        words: Events of kind "word" on the streams "agent" and "user", and "interruption" where
            the agent stops.
    """

    title: str
    levels: Levels
    found: TurnTaking
    words: Timeline


class Sheet(NamedTuple):
    """The form of a figure that goes on row below row, in inches and seconds.

    Attributes:
        row_s: Longest row; rows are longer if there would be too many.
        most_rows: Largest number of rows.
        row_height: Height of a row.
        foot: Height below the last row and its gap.
    """

    row_s: float
    most_rows: int
    row_height: float
    foot: float

    def height(self, num_rows: int) -> float:
        """Return the height of the figure."""
        return HEAD + num_rows * (self.row_height + GAP) + self.foot

    def rows(self, duration_s: float) -> tuple[Row, ...]:
        """Return rows of equal length for a recording."""
        num_rows = min(max(math.ceil(duration_s / self.row_s), 1), self.most_rows)
        row_s = duration_s / num_rows
        height = self.height(num_rows)
        tops = [HEAD + number * (self.row_height + GAP) for number in range(num_rows)]
        return tuple(
            Row(
                start_s=number * row_s,
                stop_s=(number + 1) * row_s,
                left=LEFT / WIDTH,
                right=1 - RIGHT / WIDTH,
                top=top / height,
                bottom=(top + self.row_height) / height,
            )
            for number, top in enumerate(tops)
        )

    def draw(
        self, title: str, rows: Sequence[Row], draw_row: Callable[["Axes", Row], int]
    ) -> tuple["Figure", int]:
        """Draw a figure.

        Args:
            title: Its title.
            rows: See `rows`.
            draw_row: Draws a row and returns how many labels did not fit.

        Returns:
            The figure, and the number of labels that did not fit.
        """
        height = self.height(len(rows))
        figure = new_figure(WIDTH, height)
        figure.set_layout_engine("none")  # a page must know the places of the rows
        figure.text(LEFT / WIDTH, 1 - 0.14 / height, title, fontsize=12, weight="bold", va="top")
        left_out = 0
        for row in rows:
            place = (row.left, 1 - row.bottom, row.right - row.left, row.bottom - row.top)
            axis = figure.add_axes(place)
            axis.set_xlim(row.start_s, max(row.stop_s, row.start_s + 1e-3))
            axis.set_ylim(0, self.row_height)
            axis.set_yticks([])
            axis.spines["left"].set_visible(False)
            axis.tick_params(length=3, labelsize=8.5)
            _set_ticks(axis, row)
            left_out += draw_row(axis, row)
        return figure, left_out


def talk_sheet(lines: int = 1) -> Sheet:
    """Return the form of the figure of a conversation.

    Args:
        lines: Number of speakers whose words are shown, 0 to 2.
    """
    return Sheet(15.0, _MOST_ROWS, 2 * WAVE + _BAND + lines * WORD * WORD_LINES, 0.42)


def shown_rows(talk: Talk) -> tuple[Row, ...]:
    """Return the rows of the figure of a conversation."""
    return talk_sheet(len(_speakers_with_words(talk))).rows(talk.found.duration_s)


def as_png(draw: Callable[[], "Figure"]) -> bytes:
    """Draw a figure of a conversation as PNG bytes.

    Raises:
        UserError: The package ``matplotlib`` is missing.
    """
    with _styled():
        return to_png(draw())


def as_svg(draw: Callable[[], "Figure"]) -> str:
    """Draw a figure of a conversation as SVG for a page, in the colours of the page.

    Raises:
        UserError: The package ``matplotlib`` is missing.
    """
    with _styled():
        return to_svg(draw())


@contextmanager
def _styled() -> Iterator[None]:
    """Draw in the style of all figures of conversations."""
    new_figure(1, 1)  # raises the error about a missing package first
    from matplotlib import rc_context

    style = {**STYLE, "savefig.dpi": _DOTS_PER_INCH, "axes.grid": False}
    with rc_context(style), without_glyph_warnings():  # scripts that the font lacks
        yield


def conversation_figure(talk: Talk) -> "Figure":
    """Draw all rows of a conversation."""
    with_words = _speakers_with_words(talk)
    sheet = talk_sheet(len(with_words))
    rows = sheet.rows(talk.found.duration_s)

    def draw_row(axis: "Axes", row: Row) -> int:
        return _draw_row(axis, talk, row, with_words)

    figure, left_out = sheet.draw(talk.title, rows, draw_row)
    stops = len(talk.words.where(kind="interruption"))
    left_out += 0 if with_words else len(talk.words) - stops
    _draw_legend(figure, sheet.height(len(rows)), left_out, interrupted=stops > 0)
    return figure


def _speakers_with_words(talk: Talk) -> tuple[str, ...]:
    """Return the speakers whose words are known; none if rows are too long to show words."""
    if talk.found.duration_s > _MOST_ROWS * _LONGEST_SPELLED_S:
        return ()
    return tuple(name for name in (USER, AGENT) if len(talk.words.where(stream=name)))


def _draw_row(axis: "Axes", talk: Talk, row: Row, with_words: Sequence[str]) -> int:
    """Draw one row, and return the number of words that did not fit."""
    height = talk_sheet(len(with_words)).row_height
    words_height = WORD * WORD_LINES
    centre = {USER: height - WAVE / 2}
    middle = height - WAVE - (words_height if USER in with_words else 0) - _BAND / 2
    centre[AGENT] = middle - _BAND / 2 - WAVE / 2
    for overlap in talk.found.overlaps:
        axis.axvspan(overlap.start_s, overlap.end_s, color=BOTH, alpha=0.2, linewidth=0)
    for event in talk.words.where(kind="interruption"):
        if row.start_s <= event.end_s < row.stop_s:
            axis.axvline(event.end_s, color=PALETTE[1], linestyle=":", linewidth=1.4)
    left_out = 0
    for name, segments in ((USER, talk.found.user), (AGENT, talk.found.agent)):
        draw_wave(axis, talk.levels, (AGENT, USER).index(name), row, centre[name], segments)
        axis.text(
            -0.008, centre[name], name, transform=axis.get_yaxis_transform(),
            color=COLOURS[name], weight="bold", ha="right", va="center",
        )  # fmt: skip
        if name in with_words:
            events = talk.words.where(stream=name).events
            left_out += draw_words(axis, events, row, centre[name] - WAVE / 2, COLOURS[name])
    taken = list[tuple[float, float]]()  # places of labels
    for answer in talk.found.answers:
        pause_s = talk.found.pause_after(answer)
        missing = "no answer" if pause_s is None else f"silent for {pause_s:.2f} s"
        _draw_answer(axis, answer, missing, row, middle, (centre[USER], centre[AGENT]), taken)
    return left_out


def _set_ticks(axis: "Axes", row: Row) -> None:
    """Set the ticks of the time axis of a row."""
    length = row.stop_s - row.start_s
    step = next((s for s in (0.1, 0.5, 1, 2, 5, 10, 30, 60) if length / s <= 16), 300)
    first = math.ceil(row.start_s / step - 1e-9)
    last = math.floor(row.stop_s / step + 1e-9)
    ticks = [number * step for number in range(first, last + 1)]
    axis.set_xticks(ticks, [moment(tick, int(step < 1)) for tick in ticks])


def moment(seconds: float, decimals: int) -> str:
    """Return seconds as text; from two minutes on, minutes and seconds."""
    if seconds < 120:
        return f"{seconds:.{decimals}f} s"
    return f"{int(seconds) // 60}:{seconds % 60:0{2 + decimals + (decimals > 0)}.{decimals}f}"


def draw_wave(
    axis: "Axes",
    levels: Levels,
    channel: int,
    row: Row,
    centre: float,
    segments: Sequence[Segment],
) -> None:
    """Draw the extremes of a channel, strong in speech and faint elsewhere.

    Args:
        axis: Axis of the row, in seconds and inches.
        levels: Extremes of both channels.
        channel: 0 for the agent, 1 for the user.
        row: Stretch of time to draw.
        centre: Height at which silence is drawn.
        segments: Where the channel has speech.
    """
    hop_s = 0.01
    first = int(row.start_s / hop_s)
    stop = math.ceil(row.stop_s / hop_s) + 1
    low = levels.low[channel, first:stop]
    high = levels.high[channel, first:stop]
    if not len(low):
        return
    largest = max(float(levels.high[channel].max()), -float(levels.low[channel].min()), 0.01)
    scale = 0.46 * WAVE / largest
    pool = max(1, math.ceil(len(low) / (WIDTH * _DOTS_PER_INCH)))
    low = -F.max_pool1d(-low[None], pool, ceil_mode=True)[0]
    high = F.max_pool1d(high[None], pool, ceil_mode=True)[0]
    time_s = (first + pool * (np.arange(len(low)) + 0.5)) * hop_s
    colour = COLOURS[(AGENT, USER)[channel]]
    spoken = np.zeros(len(low), dtype=bool)
    for segment in segments:
        spoken |= (time_s >= segment.start_s) & (time_s <= segment.end_s)
    below, above = (centre + scale * torch.stack((low, high))).numpy()
    thin = 0.006  # silence is drawn as a line
    for shown, alpha in ((np.ones_like(spoken), 0.28), (spoken, 1.0)):
        axis.fill_between(
            time_s, below - thin, above + thin, where=shown.tolist(), color=colour, alpha=alpha,
            linewidth=0, step="mid",
        )  # fmt: skip


def draw_words(axis: "Axes", events: Sequence[Event], row: Row, top: float, colour: str) -> int:
    """Draw words below their waveform, each where it begins, on several lines without overlaps.

    Args:
        axis: Axis of the row, in seconds and inches.
        events: Words with their times.
        row: Stretch of time to draw.
        top: Height below which the lines stand.
        colour: Colour of the marks at the beginnings.
    """
    inches = WIDTH - LEFT - RIGHT
    second = inches / (row.stop_s - row.start_s)  # inches of a second
    ends = [-math.inf] * WORD_LINES
    left_out = 0
    for event in events:
        if not row.start_s <= event.start_s < row.stop_s:
            continue
        width = _text_width(event.text)
        x = min((event.start_s - row.start_s) * second, inches + RIGHT - width)
        line = next((i for i, end in enumerate(ends) if x >= end), None)
        if line is None or x < 0:
            left_out += 1
            continue
        ends[line] = x + width + 0.05
        y = top - (line + 0.5) * WORD
        axis.plot((event.start_s,) * 2, (top - 0.01, top + 0.05), color=colour, linewidth=0.8)
        axis.text(
            row.start_s + x / second, y, event.text, fontsize=_FONT, color=INK, va="center",
        )  # fmt: skip
    return left_out


def _text_width(text: str) -> float:
    """Return the width of a word in inches."""
    from matplotlib.textpath import TextPath

    shown = text.replace("$", r"\$")
    return float(TextPath((0, 0), shown, size=_FONT).get_extents().x1) / 72 if text.strip() else 0.0


def _draw_answer(
    axis: "Axes",
    answer: Answer,
    missing: str,
    row: Row,
    y: float,
    centres: tuple[float, float],
    taken: list[tuple[float, float]],
) -> None:
    """Draw an arrow with its seconds from a turn's end to its answer, or write why there is none.

    Args:
        axis: Where to draw.
        answer: The turn and its answer.
        missing: What is written if the turn is not answered.
        row: Part of the recording that the axis shows.
        y: Height of the arrow.
        centres: Heights of the user's and the agent's waves.
        taken: Places of labels, to which this adds its own.
    """
    end_s = answer.turn.end_s
    start_s = answer.start_s
    user, agent = centres
    if answer.outcome == "backchannel":
        return
    here = row.start_s <= end_s <= row.stop_s
    if here:
        axis.plot((end_s, end_s), (y, user), color=COLOURS[USER], linewidth=1)
    if start_s is None:
        if here:
            told = missing if answer.outcome == "unanswered" else answer.outcome
            _label(axis, told, row, (end_s, end_s), y, taken, color=SOFT, style="italic")
        return
    if min(end_s, start_s) > row.stop_s or max(end_s, start_s) < row.start_s:
        return
    clipped = [min(max(time_s, row.start_s), row.stop_s) for time_s in (end_s, start_s)]
    arrives = row.start_s <= start_s <= row.stop_s
    axis.annotate(
        "", (clipped[1], y), xytext=(clipped[0], y),
        arrowprops={
            "arrowstyle": "-|>" if arrives else "-", "color": INK, "linewidth": 1.1,
            "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9,
        },
    )  # fmt: skip
    if arrives:
        axis.plot((start_s, start_s), (y, agent), color=COLOURS[AGENT], linewidth=1)
        said = f"{start_s - end_s:.2f} s".replace("-", "\N{MINUS SIGN}")
        _label(axis, said, row, (min(clipped), max(clipped)), y, taken, color=INK, weight="bold")


def _label(
    axis: "Axes",
    text: str,
    row: Row,
    edges: tuple[float, float],
    y: float,
    taken: list[tuple[float, float]],
    **style: Any,
) -> None:
    """Write a label after two times, or before them at the end of a row, not over another label."""
    second = (WIDTH - LEFT - RIGHT) / (row.stop_s - row.start_s)  # inches of a second
    width = (1.15 * _text_width(text) + 0.1) / second  # bold letters are wider
    right = edges[1] + width > row.stop_s + RIGHT / second
    start_s = edges[0] - width if right else edges[1]
    if any(start_s < stop and start_s + width > start for start, stop in taken):
        return
    taken.append((start_s, start_s + width))
    axis.annotate(
        text, (edges[0] if right else edges[1], y), xytext=(-5 if right else 5, 0),
        textcoords="offset points", fontsize=9, va="center", ha="right" if right else "left",
        **style,
    )  # fmt: skip


def _draw_legend(figure: "Figure", height: float, left_out: int, *, interrupted: bool) -> None:
    """Draw the legend below everything."""
    from matplotlib.patches import Rectangle

    y = 0.2 / height
    x = LEFT / WIDTH
    figure.add_artist(
        Rectangle((x, y - 0.06 / height), 0.02, 0.12 / height, color=BOTH, alpha=0.3, linewidth=0)
    )
    text = (
        "both speak;   \N{RIGHTWARDS ARROW} latency, from the end of the user's turn to the "
        "agent's first sound;   faint: no speech"
    )
    if interrupted:
        text += ";   dotted line: the agent stops because it is interrupted"
    if left_out:
        text += f";   words left out for want of room: {left_out}"
    figure.text(x + 0.026, y, text, fontsize=8.5, color="#555555", va="center")
