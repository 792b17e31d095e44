"""The report of a grid."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from counterpoint.data.tasks.items import asked
from counterpoint.data.tasks.part_whole import FORMS
from counterpoint.errors import UserError
from counterpoint.evaluate.report.grid_figures import frontier, mean_curves, spread
from counterpoint.evaluate.report.grid_findings import (
    GridFindings,
    findings,
    is_grid,
    read_findings,
)
from counterpoint.evaluate.report.grid_page import grid_html, write_grid_report
from counterpoint.evaluate.report.grid_rows import DIVERGED
from counterpoint.evaluate.report.grid_table import (
    comparisons,
    costs_table,
    overview,
    running_table,
    task_table,
    verdict,
)
from tests.evaluate.report.grid_example import example, record, write_example


@pytest.fixture(scope="module")
def found() -> GridFindings:
    return example()


def test_tables_tell_scores_floors_costs_and_differences(found: GridFindings) -> None:
    assert [row[0] for row in overview(found).cells] == [
        *("ours", "rival", "full", "best policy that sees a part", "oracle")
    ]
    assert comparisons(found).cells == [
        ("rival", "navon, hierarchy", "–", "–"),
        ("full", "navon, hierarchy", "–", "–"),
    ]
    arms = [row[0] for row in task_table(found, "navon").cells]
    assert arms[:3] == ["ours", "rival", "full"]
    assert "random block" in arms
    assert arms[-1] == "oracle"
    assert costs_table(found).cells[2][-1] == "a ceiling: it attends to everything"
    said = verdict(found)
    assert "Of 4 differences between ours and other arms, 4 are shown in favour of ours" in said
    assert "3 training seeds" in said


def test_null_results_are_printed_like_any_other() -> None:
    alike = example(arms=("full", "rival"), tasks=("navon",))
    records = [record("navon", arm, seed, 0.5) for arm in ("full", "rival") for seed in range(3)]
    found = findings(alike.about, records, {})
    assert comparisons(found).cells == [("rival", "–", "–", "navon")]
    assert "1 is not shown" in verdict(found)
    assert "navon" in grid_html(found)


def test_a_seed_that_diverged_is_told_in_the_row_of_its_arm() -> None:
    alike = example(arms=("full", "rival"), tasks=("navon",))
    records = [record("navon", arm, seed, 0.5) for arm in ("full", "rival") for seed in range(3)]
    nothing = [0.0] * len(records[-1]["numerators"])
    flag = [{"name": DIVERGED, "value": 1.0}]
    records[-1] = {**records[-1], "score": 0.0, "scores": flag, "numerators": nothing}
    rows = task_table(findings(alike.about, records, {}), "navon").cells
    assert rows[1][-2].endswith(", 0, seed 2 diverged")
    assert "diverged" not in rows[0][-2]


def test_page_stands_alone_and_holds_all_of_it(tmp_path: Path, found: GridFindings) -> None:
    write_example(tmp_path, found)
    assert is_grid(tmp_path)
    write_grid_report(tmp_path)
    text = (tmp_path / "report.html").read_text()
    HTMLParser().feed(text)
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert text.count("<svg") == 3 + 2 * (2 + 3)
    for said in ("Left out for lack of time", "counterpoint study example", "Hollow points"):
        assert said in text
    markdown = (tmp_path / "report.md").read_text()
    assert markdown.startswith("# example\n\nWhich arm answers best?\n\nOf 4 differences")
    assert "| rival | navon, hierarchy | – | – |" in markdown
    for task in found.tasks:
        assert f"<h2>{task}</h2><p>{asked(FORMS[task])}</p>" in text
        assert f"## {task}\n\n{asked(FORMS[task])}\n\n" in markdown


def test_every_task_says_in_one_sentence_what_it_asks() -> None:
    for name, task in FORMS.items():
        sentence = asked(task)
        assert sentence.endswith("."), name
        assert sentence.split()[0] in (
            *("Find", "Write", "Recall", "Say", "Judge", "Begin"),  # an order to the model
        ), sentence


def test_a_seed_that_comes_twice_is_refused(found: GridFindings) -> None:
    """Two files that share cells would make intervals too narrow."""
    twice = [*found.records, found.records[0]]
    with pytest.raises(UserError, match=r"'ours' has two for seed 0 of 'navon'"):
        findings(found.about, twice, found.latency)


def test_names_that_are_not_ours_are_plain_text() -> None:
    found = example(arms=("<b>ours</b>", "$x$"), tasks=("hierarchy",), seeds=1)
    text = grid_html(found)
    assert "<b>ours" not in text
    assert "$x$" in text


def test_what_is_no_grid_is_said_in_one_line(tmp_path: Path, found: GridFindings) -> None:
    with pytest.raises(UserError, match="must hold a grid that was run") as caught:
        read_findings(tmp_path)
    assert "\n" not in str(caught.value)
    write_example(tmp_path, found)
    (tmp_path / "about.json").write_text("{")
    with pytest.raises(UserError, match="must hold a grid that was run"):
        read_findings(tmp_path)


def test_records_without_curves_have_no_picture_of_learning(found: GridFindings) -> None:
    for one in found.records:
        assert len(one["curve"]) == 30
    curves = mean_curves(found, "navon")
    assert [curve.arm for curve in curves] == ["ours", "rival", "full"]
    assert not curves[0].is_score
    assert np.all(curves[0].low <= curves[0].values)
    old = [{key: value for key, value in one.items() if key != "curve"} for one in found.records]
    assert mean_curves(replace(found, records=old), "navon") == []


def test_a_frontier_holds_what_no_other_beats_in_both() -> None:
    points = {"a": (1.0, 5.0), "b": (2.0, 4.0), "c": (3.0, 9.0), "d": (1.0, 1.0)}
    assert frontier(points) == ["a", "c"]


def test_labels_are_spread_in_their_order_within_the_limits() -> None:
    placed = spread([5.0, 5.0, 9.9, 0.0], 2.0, 0.0, 10.0)
    assert sorted(placed) == pytest.approx([placed[3], placed[0], placed[1], placed[2]])
    assert np.diff(sorted(placed)).min() >= 2.0 - 1e-9
    assert min(placed) >= 0
    assert max(placed) <= 10
    crowded = spread([1.0] * 20, 5.0, 0.0, 10.0)
    assert max(crowded) <= 10
    assert min(crowded) >= -1e-9


def test_a_running_table_tells_how_many_seeds_there_are() -> None:
    records = [record("navon", "ours", seed, 0.5) for seed in range(2)]
    records.append(record("navon", "rival", 0, 0.5))
    lines = running_table(records, ("ours", "rival"), ("navon",))
    assert lines.splitlines()[1].endswith("(2)")
    assert lines.splitlines()[2].endswith("(1)")
    assert "–" in running_table(records[:2], ("ours", "rival"), ("navon",))
