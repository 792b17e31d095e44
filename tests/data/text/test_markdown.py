"""Markdown: fences, headings and rules, in time that grows with the text."""

import time

import pytest

from counterpoint.data.text.documents import markdown_document


def headings(text: str) -> list[str]:
    return [section.heading for section in markdown_document(text, "t").sections]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# A\n\none\n\n```\n~~~\n```\n\n# B\n\ntwo\n", ["", "B"]),
        ("~~~\n```\n# code\n~~~\n# B\n", ["", "B"]),
        ("````\n```\n# code\n````\n# B\n", ["", "B"]),
        ("```\n# code\n`````\n# B\n", ["", "B"]),
        ("```py\n# code\n``` not the end\n# code\n```\n# B\n", ["", "B"]),
        ("```a`b\n# A\n", ["", "A"]),
        ("~~~a`b\n# code\n", [""]),
        ("```\n# code, for the fence never ends\n", [""]),
        ("    ```\n# A\n", ["", "A"]),
        ("x\n# C#\n# D ##\n# E \\#\n##\n# #\n#5 no\n####### no\n", ["", "C#", "D", "E \\#", ""]),
    ],
)
def test_fences_and_headings(text: str, expected: list[str]) -> None:
    assert headings(text) == expected


@pytest.mark.parametrize("rule", ["---", "* * *", "  _____", "-\t-\t-  "])
def test_rules_are_dropped_outside_of_fences(rule: str) -> None:
    (section,) = markdown_document(f"a\n\n{rule}\n\nb\n\n```\n{rule}\n```", "t").sections
    assert section.paragraphs == ("a", "b", f"```\n{rule}\n```")


@pytest.mark.parametrize("text", ["--", "-*-", "    ---x", "- a", "--- a"])
def test_what_is_no_rule_stays(text: str) -> None:
    (section,) = markdown_document(text, "t").sections
    assert section.text() == text


@pytest.mark.parametrize(
    "unit",
    ["# a" + " " * 50_000 + "b", "# " + "#" * 50_000, "# " + "# " * 25_000 + "x", "- " * 25_000]
    + ["`" * 50_000, "~~~ " * 12_000, " \n" * 5_000, "\n" + " " * 50_000, "#" * 50_000],
)
def test_time_is_linear(unit: str) -> None:
    begin = time.process_time()
    markdown_document(unit + "\nb\n" + unit, "t")
    assert time.process_time() - begin < 1.0  # it took 49 s for 2,000 blanks
