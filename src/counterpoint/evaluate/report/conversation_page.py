"""A self-contained page of a conversation: its sound, its figure, its turns and its words."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from counterpoint.evaluate.duplex.turns import Answer
from counterpoint.evaluate.report.conversation_figure import Row, Talk, moment, shown_rows
from counterpoint.evaluate.report.page import made, page
from counterpoint.runtime.talk import AGENT, USER
from counterpoint.streams.timeline import Timeline

_PLAYER_STYLE = """
.numbers { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.numbers div { background: var(--card); border-radius: 6px; padding: .55rem 1rem; }
.numbers b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.numbers span { color: var(--soft); font-size: .82rem; }
.player { position: sticky; top: 0; z-index: 2; background: var(--paper); padding: .5rem 0; }
.player audio { width: 100%; }
.score { position: relative; cursor: pointer; line-height: 0; }
.score { min-width: 52rem; }
.numbers .late { outline: 2px solid var(--accent); } .late b, p.late { color: var(--accent); }
figcaption { font-size: .85rem; margin-top: .6rem; }
#head { position: absolute; width: 2px; margin-left: -1px; background: var(--ink); display: none;
  pointer-events: none; box-shadow: 0 0 0 1px var(--paper); }
tr[data-at] { cursor: pointer; } tr[data-at]:hover { background: var(--card); }
td.text, th.text { white-space: normal; text-align: left; min-width: 12rem; }
.agent { color: #c8481f; } .user { color: #2a6f97; }
@media (prefers-color-scheme: dark) { .agent { color: #f08a63; } .user { color: #7fb6d9; } }
.said { background: var(--card); border-radius: 6px; padding: .8rem 1rem; }
.said span { cursor: pointer; border-radius: 3px; } .said span.on { background: #f0b27a88; }
"""

REAL_TIME = "real-time factor"
"""Name of the number that must be at most 1 for a live conversation."""

_LATE = (
    "The real-time factor is above 1: this machine takes longer than the recording lasts, so "
    "the model cannot talk live on it."
)

_PLAYER_SCRIPT = """
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
    "The agent is on the left, the user as the model heard it on the right. The agent sounds at "
    "the time at which a live system without computing time could first play it. Speech is found "
    "by its energy: gaps of up to 0.2 s are bridged, and a turn of the user may pause for 0.6 s. "
    "Latency: from the end of a turn to the agent's first sound, which may begin 0.3 s before that "
    "end. Click the figure, a turn or a word to listen from there."
)


def conversation_page(
    talk: Talk,
    picture: str,
    audio_source: str,
    numbers: Mapping[str, str],
    about: Mapping[str, Any],
) -> str:
    """Return the page of a conversation as HTML text.

    Args:
        talk: The conversation.
        picture: Its figure, from `conversation_figure` and `as_svg`.
        audio_source: Address of the recording: a data URL, or a file next to the page.
        numbers: Measured numbers, by name.
        about: How the conversation was made; JSON values.
    """
    return player_page(
        talk.title,
        (picture, _NOTE),
        shown_rows(talk),
        audio_source,
        numbers,
        [_turns_table(talk), _said(talk)],
        about,
    )


def player_page(
    title: str,
    picture: tuple[str, str],
    rows: Sequence[Row],
    audio_source: str,
    numbers: Mapping[str, str],
    parts: Sequence[str],
    about: Mapping[str, Any],
) -> str:
    """Return a page that plays a recording, with a playhead in its figure.

    Args:
        title: Title of the page.
        picture: The figure as SVG, and a note below it.
        rows: Places of the rows of the figure.
        audio_source: See `conversation_page`.
        numbers: See `conversation_page`; a real-time factor above 1 is marked.
        parts: What follows the figure; elements with the attribute ``data-at`` can be clicked.
        about: See `conversation_page`.
    """
    places = _script_json([row._asdict() for row in rows])
    cards = "".join(_card(name, value) for name, value in numbers.items())
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<div class="numbers">{cards}</div>',
        f'<p class="late">{_LATE}</p>' if is_late(numbers) else "",
        f'<div class="player"><audio controls src="{html.escape(audio_source)}"></audio></div>',
        _score(html.escape(title), *picture),
        *parts,
        made({"Options": about}),
        f"<script>{_PLAYER_SCRIPT.replace('ROWS', places)}</script>",
    ]
    return page(title, body, _PLAYER_STYLE)


def is_late(numbers: Mapping[str, str]) -> bool:
    """Return whether the model takes longer than what it hears and says lasts."""
    try:
        return float(numbers.get(REAL_TIME, "")) > 1
    except ValueError:  # the factor was not measured
        return False


def _card(name: str, value: str) -> str:
    """Return a number and its name as an element; a real-time factor above 1 is marked."""
    kind = ' class="late"' if name == REAL_TIME and is_late({name: value}) else ""
    return f"<div{kind}><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>"


def _score(title: str, picture: str, note: str) -> str:
    """Return a figure with a playhead over it, and a note below it."""
    return (
        f'<figure role="img" aria-label="Waveforms and words: {title}"><div class="wide">'
        f'<div class="score">{picture}<div id="head"></div></div></div>'
        f"<figcaption>{html.escape(note)}</figcaption></figure>"
    )


def _script_json(value: Any) -> str:
    """Return JSON text that cannot end a script element."""
    return json.dumps(value).replace("<", "\\u003c")


def _turns_table(talk: Talk) -> str:
    """Return the table of the user's turns and the agent's reactions."""
    answers = talk.found.answers
    if not answers:
        silent = "<h2>Turns</h2><p>The user does not speak.</p>"
        return "" if talk.found.user else silent  # nobody asked for an answer
    # A user's word belongs to the turn that ends next, an agent's word to the turn before it.
    ends = [answer.turn.end_s for answer in answers]
    asked = _by_turn(talk.words, USER, [0.0, *ends[:-1], math.inf])
    opens = [min(end_s, a.start_s or end_s) for end_s, a in zip(ends, answers, strict=True)]
    replied = _by_turn(talk.words, AGENT, [*opens, math.inf])
    rows = []
    for number, (answer, question, reply) in enumerate(
        zip(answers, asked, replied, strict=True), 1
    ):
        turn = answer.turn
        latency = answer.latency_s
        shown = "" if latency is None else f"{latency:.2f} s".replace("-", "\N{MINUS SIGN}")
        rows.append(
            f'<tr data-at="{turn.start_s:.2f}"><td>{number}</td>'
            f"<td>{moment(turn.start_s, 2)} to {moment(turn.end_s, 2)}</td>"
            f'<td class="text">{html.escape(question)}</td>'
            f"<td>{_outcome(talk, answer)}</td><td>{shown}</td>"
            f'<td class="text">{html.escape(reply)}</td></tr>'
        )
    return (
        '<h2>Turns</h2><div class="wide"><table><thead><tr><th>#</th><th>turn of the user</th>'
        '<th class="text">user</th><th>outcome</th><th>latency</th><th class="text">agent</th>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _outcome(talk: Talk, answer: Answer) -> str:
    pause_s = talk.found.pause_after(answer)
    return answer.outcome if pause_s is None else f"user went on after {pause_s:.2f} s"


def _by_turn(words: Timeline, speaker: str, edges: Sequence[float]) -> list[str]:
    """Return what a speaker begins to say between each edge and the next."""
    events = words.where(stream=speaker)
    return [
        " ".join(event.text for event in events if first <= event.start_s < stop)
        for first, stop in zip(edges, edges[1:], strict=False)
    ]


def _said(talk: Talk) -> str:
    """Return all words of both speakers; each is highlighted while it is spoken."""
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
