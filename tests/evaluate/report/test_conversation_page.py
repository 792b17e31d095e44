"""Pages of conversations: that they stand alone, and what they tell."""

import re
from functools import partial
from html.parser import HTMLParser

import pytest
import torch

from counterpoint.evaluate.duplex.turns import measure_levels, take_turns
from counterpoint.evaluate.report.conversation_figure import Talk, as_svg, conversation_figure
from counterpoint.evaluate.report.conversation_page import REAL_TIME, conversation_page
from counterpoint.streams.timeline import Timeline
from tests.evaluate.report.test_conversation_figure import RATE, example, word

NUMBERS = {"turns answered": "1 of 2"}


class Reader(HTMLParser):
    """Collects elements and checks that they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def test_page_stands_alone_and_tells_the_turns() -> None:
    hostile = word("</script><script>alert(1)</script>", 4.0)
    words = (word("Sure.", 1.95), hostile, word("Later", 6.5), word("Where?", 3.6, "user"))
    talk = example(words=words)
    source = "data:audio/wav;base64,AAAA"
    page = conversation_page(
        talk, as_svg(partial(conversation_figure, talk)), source, NUMBERS, {"prompt": "</script>"}
    )
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    assert [found for found in reader.sources if not found.startswith("#")] == [source]
    assert "a &lt;b&gt; &amp; c" in page
    assert page.count("</script>") == 1
    assert reader.rows[1:] == [
        ["1", "1.00 s to 2.00 s", "answered", "\N{MINUS SIGN}0.10 s",
         "Sure. </script><script>alert(1)</script>"],
        ["2", "3.50 s to 6.00 s", "Where?", "answered", "0.50 s", "Later"],
        ["3", "9.00 s to 10.00 s", "unanswered"],
    ]  # fmt: skip
    rows = re.search(r"const rows = (\[.*?\]),", page)
    assert rows is not None
    assert '"start_s": 0.0' in rows[1]


def test_page_of_silence_has_no_turns() -> None:
    talk = Talk(
        title="silence",
        levels=measure_levels([torch.zeros(2, RATE)], RATE),
        found=take_turns((), (), 1.0),
        words=Timeline(),
    )
    page = conversation_page(talk, as_svg(partial(conversation_figure, talk)), "a.wav", NUMBERS, {})
    assert "The user does not speak" in page


@pytest.mark.parametrize(("factor", "late"), [("0.980", False), ("1.240", True), ("–", False)])
def test_page_marks_a_model_that_is_slower_than_its_talk(factor: str, late: bool) -> None:
    page = conversation_page(example(), "<svg></svg>", "a.wav", {REAL_TIME: factor}, {})
    assert ('<div class="late">' in page) == late
    assert ("cannot talk live" in page) == late
