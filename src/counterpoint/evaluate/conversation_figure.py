"""A conversation as a picture and as a page: both waveforms, words, overlaps and latencies.

Long recordings go on in the next row, like a score: user above, agent below.
"""

import base64
import html
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from counterpoint.evaluate.conversation import Answer, Levels, Segment, TurnTaking
from counterpoint.evaluate.figures import INK, PALETTE, STYLE, new_figure, to_png
from counterpoint.evaluate.report import STYLE as PAGE_STYLE
from counterpoint.runtime.talk import AGENT, USER
from counterpoint.streams.timeline import Event, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Mapping[str, str] = {USER: PALETTE[2], AGENT: PALETTE[1]}
BOTH, SOFT = PALETTE[5], PALETTE[0]

_ROW_S, _MOST_ROWS, _LONGEST_SPELLED_S = 15.0, 24, 30.0
_DOTS_PER_INCH = 160
# Inches.
_WIDTH, _LEFT, _RIGHT, _HEAD, _FOOT, _GAP = 12.0, 0.75, 0.2, 0.6, 0.42, 0.42
_WAVE, _WORD, _BAND, _WORD_LINES = 0.62, 0.18, 0.34, 3
_FONT = 9.0


class Row(NamedTuple):
    """A stretch of time and where the picture shows it, in shares of its width and height."""

    start_s: float
    stop_s: float
    left: float
    right: float
    top: float
    bottom: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Talk:
    """What a picture of a conversation shows.

    Attributes:
        title: Above it.
        levels: Of the agent and the user, in this order.
        found: Who spoke when.
        words: Events of kind "word" on the streams "agent" and "user".
    """

    title: str
    levels: Levels
    found: TurnTaking
    words: Timeline


def rows_of(duration_s: float, lines: int = 1) -> tuple[Row, ...]:
    """Rows of equal length: of up to 15 s, and longer ones where there would be more than 24.

    Args:
        duration_s: Of the recording.
        lines: Speakers whose words are shown, 0 to 2.
    """
    num_rows = min(max(math.ceil(duration_s / _ROW_S), 1), _MOST_ROWS)
    row_s, row, height = duration_s / num_rows, _row_height(lines), _height(num_rows, lines)
    tops = [_HEAD + number * (row + _GAP) for number in range(num_rows)]
    return tuple(
        Row(
            start_s=number * row_s,
            stop_s=(number + 1) * row_s,
            left=_LEFT / _WIDTH,
            right=1 - _RIGHT / _WIDTH,
            top=top / height,
            bottom=(top + row) / height,
        )
        for number, top in enumerate(tops)
    )


def _row_height(lines: int) -> float:
    return 2 * _WAVE + _BAND + lines * _WORD * _WORD_LINES


def _height(num_rows: int, lines: int) -> float:
    return _HEAD + num_rows * (_row_height(lines) + _GAP) + _FOOT


def shown_rows(talk: Talk) -> tuple[Row, ...]:
    """Where the picture of a conversation shows which time."""
    return rows_of(talk.found.duration_s, len(_speakers_with_words(talk)))


def draw_conversation(talk: Talk) -> bytes:
    """The picture as PNG bytes.

    Raises:
        ValueError: The package ``matplotlib`` is missing.
    """
    new_figure(1, 1)  # says what to install before anything else needs it
    from matplotlib import rc_context

    style = {**STYLE, "savefig.dpi": _DOTS_PER_INCH, "axes.grid": False}
    with rc_context(style), warnings.catch_warnings():
        # Words of scripts that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message=".*Glyph.*missing")
        return to_png(conversation_figure(talk))


def conversation_figure(talk: Talk) -> "Figure":
    """Draw all rows of a conversation."""
    rows, with_words = shown_rows(talk), _speakers_with_words(talk)
    height = _height(len(rows), len(with_words))
    figure = new_figure(_WIDTH, height)
    figure.set_layout_engine("none")  # a page must know where the rows are
    figure.text(_LEFT / _WIDTH, 1 - 0.14 / height, talk.title, fontsize=12, weight="bold", va="top")
    left_out = 0 if with_words else len(talk.words)
    for row in rows:
        axis = figure.add_axes(
            (row.left, 1 - row.bottom, row.right - row.left, row.bottom - row.top)
        )
        left_out += _draw_row(axis, talk, row, with_words)
    _draw_legend(figure, height, left_out)
    return figure


def _speakers_with_words(talk: Talk) -> tuple[str, ...]:
    """Speakers whose words are known; none where rows are so long that a few words would stay."""
    if talk.found.duration_s > _MOST_ROWS * _LONGEST_SPELLED_S:
        return ()
    return tuple(name for name in (USER, AGENT) if len(talk.words.where(stream=name)))


# ---------------------------------------------------------------------------------------- picture


def _draw_row(axis: "Axes", talk: Talk, row: Row, with_words: Sequence[str]) -> int:
    """One row; gives the number of words for which there was no room."""
    height = _row_height(len(with_words))
    words_height = _WORD * _WORD_LINES
    centre = {USER: height - _WAVE / 2}
    middle = height - _WAVE - (words_height if USER in with_words else 0) - _BAND / 2
    centre[AGENT] = middle - _BAND / 2 - _WAVE / 2
    axis.set_xlim(row.start_s, max(row.stop_s, row.start_s + 1e-3))
    axis.set_ylim(0, height)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.tick_params(length=3, labelsize=8.5)
    _set_ticks(axis, row)
    for overlap in talk.found.overlaps:
        axis.axvspan(overlap.start_s, overlap.end_s, color=BOTH, alpha=0.2, linewidth=0)
    left_out = 0
    for name, segments in ((USER, talk.found.user), (AGENT, talk.found.agent)):
        _draw_wave(axis, talk.levels, (AGENT, USER).index(name), row, centre[name], segments)
        axis.text(
            -0.008,
            centre[name],
            name,
            transform=axis.get_yaxis_transform(),
            color=COLOURS[name],
            weight="bold",
            ha="right",
            va="center",
        )
        if name in with_words:
            events = talk.words.where(stream=name).events
            left_out += _draw_words(axis, events, row, centre[name] - _WAVE / 2, COLOURS[name])
    for answer in talk.found.answers:
        _draw_answer(axis, answer, row, middle, (centre[USER], centre[AGENT]))
    return left_out


def _set_ticks(axis: "Axes", row: Row) -> None:
    length = row.stop_s - row.start_s
    step = next((s for s in (0.1, 0.5, 1, 2, 5, 10, 30, 60) if length / s <= 16), 300)
    first, last = math.ceil(row.start_s / step - 1e-9), math.floor(row.stop_s / step + 1e-9)
    ticks = [number * step for number in range(first, last + 1)]
    axis.set_xticks(ticks, [_moment(tick, int(step < 1)) for tick in ticks])


def _moment(seconds: float, decimals: int) -> str:
    """Seconds; from two minutes on, minutes and seconds."""
    if seconds < 120:
        return f"{seconds:.{decimals}f} s"
    return f"{int(seconds) // 60}:{seconds % 60:0{2 + decimals + (decimals > 0)}.{decimals}f}"


def _draw_wave(
    axis: "Axes",
    levels: Levels,
    channel: int,
    row: Row,
    centre: float,
    segments: Sequence[Segment],
) -> None:
    """Extremes of a channel, strong where it is speech and faint elsewhere."""
    hop_s = 0.01
    first, stop = int(row.start_s / hop_s), math.ceil(row.stop_s / hop_s) + 1
    low, high = levels.low[channel, first:stop], levels.high[channel, first:stop]
    if not len(low):
        return
    largest = max(float(levels.high[channel].max()), -float(levels.low[channel].min()), 0.01)
    scale = 0.46 * _WAVE / largest
    pool = max(1, math.ceil(len(low) / (_WIDTH * _DOTS_PER_INCH)))
    low = -F.max_pool1d(-low[None], pool, ceil_mode=True)[0]
    high = F.max_pool1d(high[None], pool, ceil_mode=True)[0]
    time_s = (first + pool * (np.arange(len(low)) + 0.5)) * hop_s
    colour = COLOURS[(AGENT, USER)[channel]]
    spoken = np.zeros(len(low), dtype=bool)
    for segment in segments:
        spoken |= (time_s >= segment.start_s) & (time_s <= segment.end_s)
    below, above = (centre + scale * torch.stack((low, high))).numpy()
    thin = 0.006  # a line where there is silence
    for shown, alpha in ((np.ones_like(spoken), 0.28), (spoken, 1.0)):
        axis.fill_between(
            time_s, below - thin, above + thin, where=shown.tolist(), color=colour, alpha=alpha,
            linewidth=0, step="mid",
        )  # fmt: skip


def _draw_words(axis: "Axes", events: Sequence[Event], row: Row, top: float, colour: str) -> int:
    """Words under their waveform, each where it begins, in lines so that none covers another."""
    inches = _WIDTH - _LEFT - _RIGHT
    second = inches / (row.stop_s - row.start_s)  # inches of a second
    ends, left_out = [-math.inf] * _WORD_LINES, 0
    for event in events:
        if not row.start_s <= event.start_s < row.stop_s:
            continue
        width = _text_width(event.text)
        x = min((event.start_s - row.start_s) * second, inches + _RIGHT - width)
        line = next((i for i, end in enumerate(ends) if x >= end), None)
        if line is None or x < 0:
            left_out += 1
            continue
        ends[line] = x + width + 0.05
        y = top - (line + 0.5) * _WORD
        axis.plot((event.start_s,) * 2, (top - 0.01, top + 0.05), color=colour, linewidth=0.8)
        axis.text(
            row.start_s + x / second, y, event.text, fontsize=_FONT, color=INK, va="center",
            parse_math=False,
        )  # fmt: skip
    return left_out


def _text_width(text: str) -> float:
    """Inches of a word."""
    from matplotlib.textpath import TextPath

    shown = text.replace("$", r"\$")
    return float(TextPath((0, 0), shown, size=_FONT).get_extents().x1) / 72 if text.strip() else 0.0


def _draw_answer(
    axis: "Axes", answer: Answer, row: Row, y: float, centres: tuple[float, float]
) -> None:
    """An arrow from the end of a turn to its answer, with its seconds; or what else happened."""
    end_s, start_s = answer.turn.end_s, answer.start_s
    user, agent = centres
    here = row.start_s <= end_s <= row.stop_s
    if here and answer.outcome != "backchannel":
        axis.plot((end_s, end_s), (y, user), color=COLOURS[USER], linewidth=1)
    if start_s is None:
        if here and answer.outcome != "backchannel":
            said = "no answer" if answer.outcome == "unanswered" else answer.outcome
            right = end_s > row.stop_s - 0.1 * (row.stop_s - row.start_s)
            axis.annotate(
                said, (end_s, y), xytext=(-4 if right else 4, 0), textcoords="offset points",
                fontsize=8.5, color=SOFT, va="center", ha="right" if right else "left",
                style="italic",
            )  # fmt: skip
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
        rightmost = max(clipped)
        right = rightmost > row.stop_s - 0.06 * (row.stop_s - row.start_s)
        axis.annotate(
            f"{start_s - end_s:.2f} s".replace("-", "\N{MINUS SIGN}"),
            (min(clipped) if right else rightmost, y), xytext=(-5 if right else 5, 0),
            textcoords="offset points", fontsize=9, weight="bold", color=INK, va="center",
            ha="right" if right else "left",
        )  # fmt: skip


def _draw_legend(figure: "Figure", height: float, left_out: int) -> None:
    """What the marks mean, below everything."""
    from matplotlib.patches import Rectangle

    y, x = 0.2 / height, _LEFT / _WIDTH
    figure.add_artist(
        Rectangle((x, y - 0.06 / height), 0.02, 0.12 / height, color=BOTH, alpha=0.3, linewidth=0)
    )
    text = (
        "both speak        \N{RIGHTWARDS ARROW}  latency: from the end of the user's turn to the "
        "agent's first sound        faint: no speech"
    )
    if left_out:
        text += f"        words left out for want of room: {left_out}"
    figure.text(x + 0.026, y, text, fontsize=8.5, color="#555555", va="center")


# ------------------------------------------------------------------------------------------- page

_PAGE_STYLE = """
.numbers { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.numbers div { background: var(--card); border-radius: 6px; padding: .55rem 1rem; }
.numbers b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.numbers span { color: var(--soft); font-size: .82rem; }
.player { position: sticky; top: 0; z-index: 2; background: var(--paper); padding: .5rem 0; }
.player audio { width: 100%; }
.score { position: relative; cursor: pointer; line-height: 0; }
.score img { width: 100%; }
figcaption { font-size: .85rem; margin-top: .6rem; }
#head { position: absolute; width: 2px; margin-left: -1px; background: #111; display: none;
  pointer-events: none; box-shadow: 0 0 0 1px #ffffffb0; }
tr[data-at] { cursor: pointer; } tr[data-at]:hover { background: var(--card); }
td.text, th.text { white-space: normal; text-align: left; min-width: 12rem; }
.agent { color: #c8481f; } .user { color: #2a6f97; }
@media (prefers-color-scheme: dark) { .agent { color: #f08a63; } .user { color: #7fb6d9; } }
.said { background: var(--card); border-radius: 6px; padding: .8rem 1rem; }
.said span { cursor: pointer; border-radius: 3px; } .said span.on { background: #f0b27a88; }
"""

_SCRIPT = """
const rows = ROWS, audio = document.querySelector("audio"), head = document.getElementById("head");
const score = document.querySelector(".score");
const words = [...document.querySelectorAll(".said span")];
function seek(time) { audio.currentTime = time; show(); }
function show() {
  const time = audio.currentTime;
  const row = rows.find(row => time < row.stop_s) || rows[rows.length - 1];
  const share = Math.min((time - row.start_s) / (row.stop_s - row.start_s), 1);
  head.style.left = 100 * (row.left + share * (row.right - row.left)) + "%";
  head.style.top = 100 * row.top + "%";
  head.style.height = 100 * (row.bottom - row.top) + "%";
  head.style.display = "block";
  for (const word of words)
    word.classList.toggle("on", word.dataset.at <= time && time < word.dataset.end);
}
function play() { show(); if (!audio.paused) requestAnimationFrame(play); }
audio.addEventListener("play", play);
audio.addEventListener("seeked", show);
score.addEventListener("click", event => {
  const box = score.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
  const row = rows.find(row => y <= row.bottom) || rows[rows.length - 1];
  const share = Math.min(Math.max((x - row.left) / (row.right - row.left), 0), 1);
  seek(row.start_s + share * (row.stop_s - row.start_s));
});
for (const one of document.querySelectorAll("[data-at]"))
  one.addEventListener("click", () => seek(+one.dataset.at));
show();
"""

_NOTE = (
    "Left the agent, right the user as the model heard it. The agent sounds when a live system "
    "without computing time could first play it. Speech is found by its energy: gaps of up to "
    "0.2 s are bridged, a turn of the user may pause for 0.6 s. Latency: from the end of a turn to "
    "the agent's first sound from 0.3 s before that end on. Click the picture, a turn or a word to "
    "listen from there."
)


def conversation_page(
    talk: Talk,
    png: bytes,
    audio_source: str,
    numbers: Mapping[str, str],
    about: Mapping[str, Any],
) -> str:
    """The page of a conversation as HTML text.

    Args:
        talk: The conversation.
        png: Its picture, of `draw_conversation`.
        audio_source: Address of the recording: a data URL, or a file beside the page.
        numbers: What was measured, by its name.
        about: How it was made; JSON values.
    """
    title, picture = html.escape(talk.title), base64.b64encode(png).decode()
    rows = _script_json([row._asdict() for row in shown_rows(talk)])
    cards = "".join(
        f"<div><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>"
        for name, value in numbers.items()
    )
    details = html.escape(json.dumps(about, indent=1, ensure_ascii=False))
    body = [
        f"<h1>{title}</h1>",
        f'<div class="numbers">{cards}</div>',
        f'<div class="player"><audio controls src="{html.escape(audio_source)}"></audio></div>',
        _score(title, picture),
        _turns_table(talk),
        _said(talk),
        f"<h2>How this was made</h2><pre>{details}</pre>",
        f"<script>{_SCRIPT.replace('ROWS', rows)}</script>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{PAGE_STYLE}{_PAGE_STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _score(title: str, picture: str) -> str:
    """The picture, with a playhead over it."""
    return (
        f'<figure><div class="score"><img alt="Waveforms and words: {title}" '
        f'src="data:image/png;base64,{picture}"><div id="head"></div></div>'
        f"<figcaption>{html.escape(_NOTE)}</figcaption></figure>"
    )


def _script_json(value: Any) -> str:
    """JSON that cannot end a script element."""
    return json.dumps(value).replace("<", "\\u003c")


def _turns_table(talk: Talk) -> str:
    """The user's turns, and what the agent made of each."""
    answers = talk.found.answers
    if not answers:
        return "<h2>Turns</h2><p>The user does not speak.</p>"
    # A word of the user belongs to the turn that ends next; one of the agent to the turn before.
    ends = [answer.turn.end_s for answer in answers]
    asked = _by_turn(talk.words, USER, [0.0, *ends[:-1], math.inf])
    opens = [min(end_s, a.start_s or end_s) for end_s, a in zip(ends, answers, strict=True)]
    replied = _by_turn(talk.words, AGENT, [*opens, math.inf])
    rows = []
    for number, (answer, question, reply) in enumerate(
        zip(answers, asked, replied, strict=True), 1
    ):
        turn, latency = answer.turn, answer.latency_s
        shown = "" if latency is None else f"{latency:.2f} s".replace("-", "\N{MINUS SIGN}")
        rows.append(
            f'<tr data-at="{turn.start_s:.2f}"><td>{number}</td>'
            f"<td>{_moment(turn.start_s, 2)} to {_moment(turn.end_s, 2)}</td>"
            f'<td class="text">{html.escape(question)}</td>'
            f"<td>{answer.outcome}</td><td>{shown}</td>"
            f'<td class="text">{html.escape(reply)}</td></tr>'
        )
    return (
        '<h2>Turns</h2><div class="wide"><table><thead><tr><th>#</th><th>turn of the user</th>'
        '<th class="text">user</th><th>outcome</th><th>latency</th><th class="text">agent</th>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _by_turn(words: Timeline, speaker: str, edges: Sequence[float]) -> list[str]:
    """What a speaker begins to say between each edge and the next."""
    events = words.where(stream=speaker)
    return [
        " ".join(event.text for event in events if first <= event.start_s < stop)
        for first, stop in zip(edges, edges[1:], strict=False)
    ]


def _said(talk: Talk) -> str:
    """All words of both, which light up as they are spoken."""
    parts = []
    for speaker in (USER, AGENT):
        events = talk.words.where(stream=speaker)
        if not len(events):
            continue
        spans = " ".join(
            f'<span data-at="{event.start_s:.3f}" data-end="{event.end_s:.3f}">'
            f"{html.escape(event.text)}</span>"
            for event in events
        )
        parts.append(f'<p class="said"><b class="{speaker}">{speaker}</b> {spans}</p>')
    return f"<h2>Words</h2>{''.join(parts)}" if parts else ""
