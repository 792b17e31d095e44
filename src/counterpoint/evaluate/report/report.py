"""The report of a study: one self-contained HTML file, and the numbers as JSON.

A study folder has

- ``study.json``: names of the arms, command, versions, machine, durations,
- a run folder for each arm: ``metrics.jsonl``, ``checkpoints/``, ``evaluation.json``,
- ``report.html``, ``summary.json`` and the figures, all made from the files above.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from counterpoint.errors import UserError
from counterpoint.evaluate.report.figures import draw_figures, draw_panels
from counterpoint.evaluate.report.page import figure, learned_from, made, page, table
from counterpoint.evaluate.report.summary import Arm, Summary, columns, spell, summarize
from counterpoint.evaluate.results import Evaluation, load_evaluation
from counterpoint.files import json_value, read_json, write_bytes, write_json, write_text
from counterpoint.streams.batch import ContentUnit
from counterpoint.train.checkpoint import read_manifest, resolve
from counterpoint.train.metrics import read_metrics

STUDY = "study.json"

TITLES: Mapping[str, str] = {
    "curves.png": "Learning",
    "streams.png": "The two streams over one passage",
    "positions.png": "What the past is worth",
}
CAPTIONS: Mapping[str, str] = {
    "curves.png": "Training loss of every step (faint) and its running mean, against training "
    "FLOPs and against seconds. The dots are the final results on held-out data.",
    "streams.png": "Below are the bytes of a held-out passage; above, the blocks of the whole that "
    "were finished while it was read. Lines show which blocks were read to predict each byte (mean "
    "over links and heads; weights below 2 % are left out). Each byte is also written under the "
    "plan of the newest finished block, which is not drawn. Bars show the attention on the null "
    "key, which means on nothing, the attention on older blocks, and the bits of each byte.",
    "positions.png": "Held-out bits a byte by the number of bytes since the start of the text. The "
    "curve of a model that uses a longer past keeps falling to the right.",
}
_ABOUT_TIMES = "Seconds are those of training steps."
NOTES: Mapping[ContentUnit, str] = {
    "byte": "Each byte is scored from its true past. Brackets: 95 % bootstrap interval over units; "
    "differences are paired. Swap-Δ: bits a byte lost when the whole is replaced by that of a "
    f"text of another document. {_ABOUT_TIMES}",
    "frame": "Each frame is scored from its true past; bits a frame are those of all predicted "
    "streams, without weights. Brackets: 95 % bootstrap interval over rows; differences "
    f"are paired. {_ABOUT_TIMES}",
}


def load_arm(name: str, folders: Sequence[Path]) -> Arm:
    """Load a trained and evaluated arm.

    Args:
        name: The arm's name.
        folders: Folders of its runs, one a training seed.

    Raises:
        UserError: A folder has no evaluation or no checkpoint.
    """
    folder = folders[0]
    evaluation, *others = (_evaluation_of(one) for one in folders)
    manifest = read_manifest(resolve(folder))
    return Arm(
        name=name,
        run=manifest.get("run") or {},
        metrics=read_metrics(folder / "metrics.jsonl"),
        counters=manifest["counters"],
        evaluation=evaluation,
        others=tuple(others),
    )


def _evaluation_of(folder: Path) -> Evaluation:
    found = load_evaluation(folder)
    if found is None:
        raise UserError(
            f"{folder} must hold an evaluation: it has none. Run `counterpoint train` on its "
            "recipe again, which continues from where it stopped."
        )
    return found


def write_report(folder: Path) -> Summary:
    """Make the report, the figures and ``summary.json`` from the files of a study folder.

    Returns:
        The summary of the study.

    Raises:
        UserError: The folder holds no study, or an arm is not finished.
    """
    try:
        about = read_json(folder / STUDY)
        names = about["arms"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder} must hold a study: its {STUDY} is missing or damaged. "
            "Name a folder that `counterpoint train` wrote for a study, such as runs/first_run."
        ) from None
    folders = about.get("folders") or {name: [name] for name in names}  # older studies had one seed
    arms = [load_arm(name, [folder / one for one in folders[name]]) for name in names]
    summary = summarize(about["name"], arms, about)
    for name, content in draw_figures(arms).items():
        write_bytes(folder / name, content)
    write_text(folder / "report.html", report_html(summary, arms, draw_panels(arms)))
    write_json(folder / "summary.json", json_value(asdict(summary)))
    return summary


def report_html(summary: Summary, arms: Sequence[Arm], panels: Mapping[str, Sequence[str]]) -> str:
    """Return the report as self-contained HTML text.

    Args:
        summary: The table and the verdict.
        arms: The arms, in the order of the table.
        panels: Figures as SVG by file name, from `draw_panels`.
    """
    heads, cells = columns(summary)
    about = summary.about
    data = learned_from(arms[0].run.get("data", {}))
    purpose = f"{about.get('purpose', '')} Learned from: {data}.".strip()
    body = [
        f"<h1>{html.escape(summary.name)}</h1>",
        f'<p class="soft">{html.escape(purpose)}</p>',
        f'<p class="verdict">{html.escape(summary.verdict)}</p>',
        table(heads, cells),
        f"<p><small>Held out: {html.escape(summary.held_out)}. {NOTES[summary.unit]}</small></p>",
        *(
            figure(TITLES[name], CAPTIONS[name], panels[name], wide=name == "streams.png")
            for name in TITLES
            if name in panels
        ),
        _contrasts(summary),
        _by_stream(summary),
        _use_of_whole(summary, arms),
        _continuations(arms),
        made(
            {
                "Command, versions and machine": about,
                "Full configs": {arm.name: arm.run for arm in arms},
            }
        ),
    ]
    return page(summary.name, body)


def _contrasts(summary: Summary) -> str:
    """Return the table of declared pairs of arms, if there are any."""
    cells = [
        (pair.arm, pair.other, spell(pair.difference_percent, "{:+.1f}", " %"))
        for pair in summary.contrasts
    ]
    if not cells:
        return ""
    heads = ("arm", "compared with", f"difference in bits/{summary.unit}")
    return "<h2>Declared contrasts</h2>" + table(heads, cells)


def _by_stream(summary: Summary) -> str:
    """Return the costs of every predicted stream, if several are predicted."""
    names = dict.fromkeys(name for row in summary.rows for name in row.streams)
    if not names:
        return ""
    cells = [
        (row.name, *(spell(row.streams.get(name), "{:.3f}") for name in names))
        for row in summary.rows
    ]
    return f"<h2>Nats a {summary.unit} by stream</h2>" + table(("arm", *names), cells)


def _use_of_whole(summary: Summary, arms: Sequence[Arm]) -> str:
    """Return the numbers that show whether the whole is used or has collapsed."""
    cells = []
    for row, arm in zip(summary.rows, arms, strict=True):
        use = arm.evaluation.whole
        if use is None or row.null_share is None or row.effective_rank is None:
            continue
        own = sum(use.own_bits) / sum(use.num_bytes)
        cells.append(
            (
                row.name,
                f"{own:.3f}",
                spell(row.swap_delta, "{:+.3f}"),
                spell(row.none_delta, "{:+.3f}"),
                f"{row.null_share:.0%}",
                f"{row.effective_rank:.0f} of {use.width}",
            )
        )
    if not cells:
        return ""
    config = arms[0].evaluation.config
    heads = (
        "arm",
        "own whole",
        "another's (swap-Δ)",
        "none",
        "attention on null key",
        "rank of whole",
    )
    return (
        "<h2>Is the whole used?</h2>"
        + table(heads, cells)
        + "<p><small>Bits a byte, and bits a byte lost, on the first "
        f"{config.whole_ticks:,} bytes of {config.whole_units} held-out units at most, "
        "each paired with the unit of nearest length of another document. Rank: exponential of the "
        "entropy of the normalised singular values of the whole states; 1 means that all are alike."
        "</small></p>"
    )


def _continuations(arms: Sequence[Arm]) -> str:
    """Return the same prompts, continued by every arm and under every whole."""
    found = [(arm.name, one) for arm in arms for one in arm.evaluation.continuations]
    if not found:
        return ""
    body = ["<h2>Continuations</h2><p><small>Same prompt and same random numbers.</small></p>"]
    order = list(dict.fromkeys(one.source for _, one in found))
    found.sort(key=lambda pair: order.index(pair[1].source))
    for source, group in groupby(found, key=lambda pair: pair[1].source):
        members = list(group)
        prompt = members[0][1].prompt
        body.append(f"<h3>{html.escape(source)}</h3><p>… {html.escape(prompt[-160:].strip())}</p>")
        body.append('<div class="texts">')
        for name, one in members:
            whole = f", whole of {one.whole_of}" if one.whole_of else ""
            title = html.escape(name + whole)
            body.append(f"<div><b>{title}</b>{html.escape(one.text.strip())}</div>")
        body.append("</div>")
    return "".join(body)
