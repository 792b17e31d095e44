"""The study of thoughts beside the text, from end to end."""

from dataclasses import replace
from pathlib import Path

import pytest

from counterpoint.progress import Progress
from counterpoint.recipes.cells import read_records
from counterpoint.recipes.thought_stream import (
    ThoughtStream,
    report_thought_stream,
    run_thought_stream,
    thinker_run,
    thinkers,
    thought_stream_study,
)
from counterpoint.train.loop import DivergedError


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
    assert len(lines) == 2 + 2 * 5
    assert (tmp_path / "thought_stream.json").is_file()
