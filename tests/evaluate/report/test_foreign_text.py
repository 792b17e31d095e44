"""Names, passages and words are shown as they are: nobody parses them."""

import ast
import io
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

import counterpoint
from counterpoint.evaluate.duplex.turns import measure_levels, take_turns
from counterpoint.evaluate.report.conversation_figure import Talk, as_png, conversation_figure
from counterpoint.evaluate.report.figures import STYLE, new_figure, to_png
from counterpoint.streams.timeline import Event, Timeline

matplotlib = pytest.importorskip("matplotlib")
torch = pytest.importorskip("torch")

FOREIGN = (r"cost $\frac{ $.wav", "[/red] [bold]a", ":smile:", "<b>&", "\x07", "$", "%s {0} \\")


@pytest.mark.parametrize("text", FOREIGN)
def test_figures_draw_it(text: str) -> None:
    with matplotlib.rc_context({**STYLE}):
        figure = new_figure(2, 2)
        axis = figure.add_subplot()
        axis.set_title(text)
        axis.set_xlabel(text)
        axis.plot([0, 1], label=text)
        axis.legend()
        axis.annotate(text, (0, 0))
        figure.suptitle(text)
        assert to_png(figure)


@pytest.mark.parametrize("text", FOREIGN)
def test_pictures_of_conversations_draw_it(text: str) -> None:
    levels = measure_levels([0.1 * torch.randn(2, 8000)], 8000)
    word = Event(start_s=0.1, end_s=0.2, stream="agent", kind="word", text=text)
    talk = Talk(
        title=text,
        levels=levels,
        found=take_turns((), (), levels.duration_s),
        words=Timeline(events=(word,)),
    )
    assert as_png(partial(conversation_figure, talk))


def consoles(source: str) -> list[ast.Call]:
    """Calls that make a console."""
    return [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Console")
    ]


def parses_nothing(call: ast.Call) -> bool:
    values = {word.arg: ast.unparse(word.value) for word in call.keywords}
    return values.get("markup") == values.get("emoji") == "False"


def test_no_console_parses_markup_or_emoji() -> None:
    package = Path(counterpoint.__file__).parent
    calls = {path: consoles(path.read_text(encoding="utf-8")) for path in package.rglob("*.py")}
    assert any(calls.values())
    assert [
        f"{path}, line {call.lineno}"
        for path, found in calls.items()
        for call in found
        if not parses_nothing(call)
    ] == []
    assert not parses_nothing(consoles("rich.Console(file=f)")[0])


@pytest.mark.parametrize("text", FOREIGN[:4])
def test_a_console_that_parses_nothing_shows_tables_as_they_are(text: str) -> None:
    stream = io.StringIO()
    table = Table("measure", title=text)
    table.add_row(text)
    Console(file=stream, markup=False, emoji=False, width=80).print(table)
    assert stream.getvalue().count(text) == 2
