"""The study of thoughts beside the text, from end to end."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from counterpoint.errors import UserError
from counterpoint.progress import Progress
from counterpoint.recipes import stacks, thought_stream
from counterpoint.recipes.cells import read_records, write_records
from counterpoint.recipes.thought_stream import (
    ThoughtStream,
    declaration,
    report_thought_stream,
    run_thought_stream,
    thinker_run,
    thinkers,
    thought_stream_study,
)
from counterpoint.train.loop import DivergedError
from tests.test_architecture import ROOT

DECLARED = ROOT / "docs" / "results" / "thought_stream_declared.json"


def tiny() -> ThoughtStream:
    full = thought_stream_study()
    (aside, two), (inline, one) = full.systems
    small = replace(one.tower, width=16, num_layers=1, num_heads=2, mlp_hidden=16)  # type: ignore[attr-defined]
    return replace(
        full,
        systems=(
            (aside, replace(two, part=replace(small, num_layers=2), whole=small)),  # type: ignore[call-arg]
            (inline, replace(one, tower=small)),  # type: ignore[call-arg]
        ),
        train=replace(full.train, num_steps=2, batch_rows=4),
        tuning_steps=1,
        num_items=2,
        seeds=(0, 1),
    )


def test_models_differ_in_thoughts_of_pretraining_only() -> None:
    study = thought_stream_study()
    for kind, _ in study.systems:
        every = thinkers(study, kind)
        assert len(every) == 5 * 5
        assert len({one.key for one in every}) == len(every)
        begun, later = (
            thinker_run(study, next(o for o in every if o.times == 1 and o.has_begun == has))
            for has in (True, False)
        )
        assert begun.data == later.data
        assert begun.train == later.train


def test_what_was_declared_is_what_is_run() -> None:
    declared = json.loads(DECLARED.read_text())
    assert declared == json.loads(json.dumps(declaration(thought_stream_study())))


@pytest.mark.slow
def test_a_model_that_diverges_answers_nothing(tmp_path: Path) -> None:
    study = tiny()
    high = replace(study.train, optimizer=replace(study.train.optimizer, lr=1e38))
    diverging = replace(study, train=high, systems=study.systems[1:], seeds=(0,))
    with pytest.raises(DivergedError, match="those of inline-before-x0-seed0 are not"):
        run_thought_stream(diverging, tmp_path, "cpu", progress=Progress(quiet=True))
    assert not (tmp_path / "thought_stream.parquet").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_study_is_run_and_reported(tmp_path: Path) -> None:
    study = tiny()
    run_thought_stream(study, tmp_path, "cpu", progress=Progress(quiet=True))
    records = read_records(tmp_path / "thought_stream.parquet")
    assert len(records) == 2 * 5 * 2
    lines = report_thought_stream(study, tmp_path, records)
    assert len(lines) == 2 + 2 + 2 * 5  # heads, floors, arms
    assert lines[2].startswith("| constant answer | | ")
    assert (tmp_path / "thought_stream.json").is_file()


def test_a_stopped_study_goes_on_and_gives_the_same_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped before each stack and among the answers; nothing is trained or asked twice."""
    study = replace(tiny(), systems=tiny().systems[1:], seeds=(0,))
    trained = list[str]()
    asked = list[str]()
    stops = list[int]()
    train = thought_stream._train

    def here(work: Callable[[Any], Any], items: Sequence[Any], _: int) -> Iterator[Any]:
        return (work(item) for item in items)

    def stopping_train(own: Any, folder: Path, some: Sequence[Any], *more: Any) -> None:
        stop(len(trained))
        train(own, folder, some, *more)
        trained.extend(one.key for one in some)

    def stopping_write(path: Path, records: Sequence[Any]) -> None:
        if path.parent.name == "cells":
            stop(100 + len(asked))
            asked.append(path.stem)
        write_records(path, records)

    def stop(place: int) -> None:
        if place in stops:
            stops.remove(place)
            raise KeyboardInterrupt

    def run(folder: Path) -> list[dict[str, Any]]:
        run_thought_stream(study, folder, "cpu", progress=Progress(quiet=True))
        return read_records(folder / "thought_stream.parquet")

    monkeypatch.setattr(thought_stream, "work_in_processes", here)
    monkeypatch.setattr(stacks, "work_in_processes", here)
    monkeypatch.setattr(thought_stream, "_train", stopping_train)
    monkeypatch.setattr(thought_stream, "write_records", stopping_write)
    expected = run(tmp_path / "at once")
    lanes = [one.key for one in thinkers(study, "inline")]
    assert trained == asked == lanes
    trained.clear()
    asked.clear()
    stops += [0, 2, 4, 100, 103]
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped")
    assert run(tmp_path / "stopped") == expected
    assert trained == asked == lanes
    study = replace(study, tuning_steps=2)
    with pytest.raises(UserError, match="begun with another study.tuning_steps"):
        run(tmp_path / "stopped")
