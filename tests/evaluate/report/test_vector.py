"""Figures as SVG elements of a page."""

import re

from matplotlib.figure import Figure

from counterpoint.evaluate.report import figures
from counterpoint.evaluate.report.page import learned_from, made, page, table
from counterpoint.evaluate.report.vector import COLOURS, colour_style, to_svg


def drawing() -> Figure:
    figure = figures.new_figure(3, 2)
    axis = figure.subplots()
    for number, colour in enumerate((*figures.PALETTE, figures.WHOLE, figures.FAINT)):
        axis.plot([0, 1], [number, 1], color=colour, markeredgecolor="white", marker="o")
    axis.text(0, 0, "a <b> & c", color=figures.INK)
    return figure


def test_colours_and_letters_are_those_of_the_page() -> None:
    with_colours = to_svg(drawing())
    assert with_colours.startswith("<svg")
    assert with_colours.endswith("</svg>")
    known = set(re.findall(r"var\((--ink-\w+)\)", with_colours))
    assert {f"--ink-{colour[1:]}" for colour in figures.PALETTE} <= known
    assert not set(COLOURS) & set(re.findall(r"#[0-9a-f]{6}", with_colours))
    for name in known:
        assert colour_style().count(f"{name}:") == 2  # on light paper and on dark
    assert "a &lt;b&gt; &amp; c" in with_colours
    assert "DejaVu" not in with_colours
    assert "http" not in with_colours
    assert not re.match(r"<svg[^>]* (width|height)=", with_colours)


def test_same_figure_gives_the_same_text() -> None:
    assert to_svg(drawing()) == to_svg(drawing())


def test_pages_are_plain_text_where_names_are_not_ours() -> None:
    text = page("<a>", [table(("<b>",), [("<c>",)]), "", made({"<d>": {"e": "</pre>"}})])
    for part in ("<a>", "<b>", "<c>", "<d>"):
        assert part not in text.partition("</head>")[2].replace("<body>", "")
    assert text.count("</pre>") == 1
    assert "<details><summary>&lt;d&gt;" in text
    assert "prefers-color-scheme: dark" in text


def test_what_was_learned_from_is_what_the_run_says() -> None:
    assert (
        learned_from({"source": {"type": "Folder", "path": "mine"}})
        == "the texts in the folder mine"
    )
    assert learned_from({"source": {"type": "Kjv"}}) == "the King James Bible"
    assert learned_from({"train": "calls.jsonl"}) == "the recordings of calls.jsonl"
