"""Figures as SVG in the colours of their page, so that they follow its dark mode."""

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from counterpoint.packages import optional_module

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS: Mapping[str, tuple[str, str]] = {
    "#222222": ("#222222", "#e6e6e6"),
    "#555555": ("#555555", "#b4b8c0"),
    "#888888": ("#888888", "#8a8f99"),
    "#999999": ("#999999", "#7d828c"),
    "#d8d8d8": ("#d8d8d8", "#454952"),
    "#ececec": ("#ececec", "#2c2f35"),
    "#ffffff": ("#ffffff", "#17181b"),
    "#6b7280": ("#6b7280", "#a3abba"),
    "#c8481f": ("#c8481f", "#f08a63"),
    "#2a6f97": ("#2a6f97", "#7fb6d9"),
    "#5a8f3c": ("#5a8f3c", "#9ccf7c"),
    "#8a5a9e": ("#8a5a9e", "#cba5dd"),
    "#b58a00": ("#b58a00", "#e3c04e"),
    "#1f5f8b": ("#1f5f8b", "#7fb6e0"),
}
"""Light and dark shade of each colour of a figure."""

_FONTS = {"'DejaVu Sans Mono'": "ui-monospace, monospace", "'DejaVu Sans'": "system-ui, sans-serif"}


def _name(colour: str) -> str:
    return f"--ink-{colour[1:]}"


def colour_style() -> str:
    """Return the CSS that defines the colours of figures."""
    light, dark = (
        " ".join(f"{_name(colour)}: {shades[side]};" for colour, shades in COLOURS.items())
        for side in (0, 1)
    )
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def to_svg(figure: "Figure") -> str:
    """Return a figure as an element of a page.

    The same figure gives the same text. Letters stay letters, in a font of the reader's machine.

    Raises:
        UserError: The package ``matplotlib`` is missing.
    """
    matplotlib = optional_module("matplotlib")
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "counterpoint"}):
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=unsaid)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'<svg ([^>]*?)\s*(?:width|height)="[^"]*"', r"<svg \1", text)
    text = re.sub(r'(<svg [^>]*?)(?:width|height)="[^"]*"', r"\1", text)
    for font, family in _FONTS.items():
        text = text.replace(font, family)
    for colour in COLOURS:
        text = text.replace(colour, f"var({_name(colour)})")
    return text.strip()
