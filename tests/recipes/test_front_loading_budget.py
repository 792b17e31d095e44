"""The size of front-loading that fits into some minutes of a CPU."""

import io
from dataclasses import replace
from pathlib import Path

import pytest

from counterpoint.errors import UserError
from counterpoint.progress import Progress
from counterpoint.recipes import front_loading_budget as module
from counterpoint.recipes.front_loading import FrontLoading, front_loading
from counterpoint.recipes.front_loading_budget import fit_front_loading
from counterpoint.recipes.front_loading_small import front_loading_small


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The study takes 100 minutes, and its small size 10."""

    def minutes(study: FrontLoading) -> float:
        return 10.0 if study.name == "front_loading_small" else 100.0

    monkeypatch.setattr(module, "expected_minutes", minutes)


def test_the_largest_size_that_fits_is_taken_and_kept(tmp_path: Path, timed: None) -> None:
    shown = Progress(io.StringIO())
    whole, small = front_loading(), front_loading_small()
    assert fit_front_loading(whole, 100.0, tmp_path / "a", "cpu", shown) == (whole, "")
    found, said = fit_front_loading(whole, 10.0, tmp_path / "b", "cpu", shown)
    assert found == small
    assert said.startswith("Left out for lack of time: front_loading (42 chains x 5 seeds, ")
    assert fit_front_loading(whole, 500.0, tmp_path / "b", "cpu", shown) == (small, said)
    with pytest.raises(UserError, match="must be one of other"):
        fit_front_loading(replace(whole, name="other"), 10.0, tmp_path / "b", "cpu", shown)
    with pytest.raises(UserError, match="front_loading_small takes about 10 minutes; got 9"):
        fit_front_loading(whole, 9.0, tmp_path / "c", "cpu", shown)


def test_without_minutes_the_time_is_told(tmp_path: Path, timed: None) -> None:
    told = io.StringIO()
    study = front_loading()
    assert fit_front_loading(study, None, tmp_path, "cpu", Progress(told)) == (study, "")
    assert "front_loading takes about 100 minutes, front_loading_small takes" in told.getvalue()
    assert fit_front_loading(study, 1.0, tmp_path, "cuda", Progress(told)) == (study, "")
