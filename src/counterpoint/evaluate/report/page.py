"""The parts of every page: one self-contained HTML text."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from counterpoint.evaluate.report.vector import colour_style

SOURCES = {
    "Kjv": "the King James Bible",
    "Folder": "the texts in the folder",
    "Jsonl": "the texts in",
    "Parquet": "the texts in",
    "HubDataset": "the Hugging Face data set",
}
"""The kinds of `counterpoint.data.text.corpus.Source` in words; the path or the name follows."""

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #667; --line: #ddd; --paper: #fff;
  --card: #f6f6f4; --accent: #c8481f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #a0a4ad; --line: #3a3d44;
  --paper: #17181b; --card: #212327; --accent: #f08a63; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1180px; margin: 2rem auto 5rem; padding: 0 1rem; overflow-wrap: break-word; }
h1 { margin-bottom: 0; line-height: 1.2; } h2 { margin-top: 2.5rem; }
p.soft, figcaption, small { color: var(--soft); }
p.verdict { border-left: 4px solid var(--accent); padding-left: 1rem; font-size: 1.1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .82rem; }
th, td { padding: .4rem .5rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--paper); }
table.words th, table.words td { text-align: left; white-space: normal; vertical-align: top; }
figure { margin: 1rem 0 0; }
figure .panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr));
  gap: 1rem; }
figure svg { display: block; width: 100%; height: auto; fill: var(--ink); }
figure .panels svg { max-width: 46rem; } figure .wide svg { min-width: 60rem; }
.texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 1rem; }
.texts div, pre { background: var(--card); border-radius: 6px; padding: .8rem 1rem; }
.texts div { white-space: pre-wrap; font-family: Georgia, serif; }
.texts b { display: block; font-family: system-ui, sans-serif; font-size: .85rem; }
pre { overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; }
"""


def page(title: str, body: Iterable[str], style: str = "") -> str:
    """Return a whole page.

    Args:
        title: Title of the page; plain text.
        body: Elements, one after another; empty ones are left out.
        style: Additional CSS.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}{colour_style()}{style}</style>"
        "</head>\n<body>\n" + "\n".join(part for part in body if part) + "\n</body></html>\n"
    )


def table(heads: Sequence[str], cells: Sequence[Sequence[str]], *, words: bool = False) -> str:
    """Return a table of plain texts, which may be wider than the page.

    Args:
        heads: Names of the columns.
        cells: Rows.
        words: Whether cells are words and not numbers: they stand left, and lines may break.
    """
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in cells
    )
    kind = ' class="words"' if words else ""
    content = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="wide"><table{kind}>{content}</table></div>'


def figure(
    title: str, caption: str, panels: Sequence[str], *, wide: bool = False, lead: str = ""
) -> str:
    """Return a figure of panels, side by side if there is room.

    Args:
        title: Heading and name; plain text.
        caption: Text below the figure; plain text.
        panels: SVG elements.
        wide: Whether a narrow page scrolls the figure instead of shrinking it.
        lead: Sentence below the heading; plain text.
    """
    name = html.escape(title, quote=True)
    drawn = f'<div class="wide">{"".join(panels)}</div>' if wide else side_by_side(panels)
    return (
        f"<h2>{name}</h2>{f'<p>{html.escape(lead)}</p>' if lead else ''}"
        f'<figure role="img" aria-label="{name}">{drawn}'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def side_by_side(panels: Sequence[str]) -> str:
    """Return panels without a title, side by side if there is room."""
    return f'<div class="panels">{"".join(panels)}</div>'


def made(parts: Mapping[str, Any]) -> str:
    """Return how the content was made: JSON values in folded elements."""
    folded = "".join(
        f"<details><summary>{html.escape(name)}</summary>"
        f"<pre>{html.escape(json.dumps(value, indent=1, ensure_ascii=False))}</pre></details>"
        for name, value in parts.items()
    )
    return f"<h2>How this was made</h2>{folded}"


def learned_from(data: Mapping[str, Any]) -> str:
    """Return in words what a run learned from, given the JSON form of its data."""
    if "phases" in data:
        phases = ", then ".join(str(phase["name"]) for phase in data["phases"])
        return f"{', '.join(str(one['name']) for one in data['sources'])} in phases: {phases}"
    source = data.get("source", data.get("train"))
    if isinstance(source, Mapping):
        kind, *place = [str(value) for value in source.values() if value is not None]
        return " ".join((SOURCES.get(kind, f"the corpus {kind.lower()}"), *place[:1]))
    return f"the recordings of {source}" if source else "data of its own"
