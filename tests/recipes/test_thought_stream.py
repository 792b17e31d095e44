"""The study of thoughts beside the text, from end to end."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint.data.loader import Loader
from counterpoint.data.tasks.prompts import END_ID, item_prompt, written_text
from counterpoint.data.tasks.reasoning.aside import are_thoughts
from counterpoint.data.tasks.source import label_stream, labels
from counterpoint.data.text.tokenizer import ByteTokenizer
from counterpoint.errors import UserError
from counterpoint.evaluate.attempts import written_labels
from counterpoint.progress import Progress
from counterpoint.recipes import stacks, thought_stream
from counterpoint.recipes.cells import read_records, write_records
from counterpoint.recipes.stacks import recorded_run
from counterpoint.recipes.thought_stream import (
    ThoughtStream,
    declaration,
    questions,
    run_thought_stream,
    scored,
    thinker_run,
    thinkers,
    thought_ledger,
    thought_stream_study,
)
from counterpoint.recipes.thought_stream_report import completeness, report_thought_stream
from counterpoint.runtime.rollouts import roll_out
from counterpoint.systems import build_system, sketch
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
    scores, ledgers = lines[: lines.index("")], lines[lines.index("") + 1 :]
    assert len(scores) == 2 + 2 + 2 * 5  # heads, floors, arms
    assert scores[2].startswith("| constant answer | | ")
    assert len(ledgers) == 2 + 2 * (2 + 3 * 2)  # three of five arms are fine-tuned
    older = [{k: v for k, v in one.items() if k not in ("thoughts", "ledger")} for one in records]
    less = report_thought_stream(study, tmp_path, older)
    assert less[len(scores) :] == lines[len(scores) :]  # a ledger can be counted afterwards
    told = [line.split(" | ")[3] for line in less[4 : len(scores)]]
    assert told == ["-"] * 5 + ["0.0 [0.0, 0.0]"] * 5
    assert (tmp_path / "thought_stream.json").is_file()
    for cell in (tmp_path / "work" / "cells").glob("*seed1.parquet"):
        write_records(cell, older[-1:])
    run_thought_stream(study, tmp_path, "cpu", progress=Progress(quiet=True))
    assert read_records(tmp_path / "thought_stream.parquet") == records


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


def test_ledger_is_what_the_batches_hold(tmp_path: Path) -> None:
    """Counted from the deal, it agrees with the recorded batches, whose padding is no token."""
    study = replace(tiny(), tuning_steps=3)
    for kind, _ in study.systems:
        one = next(one for one in thinkers(study, kind) if one.times == 1)
        seen = set[bytes]()
        for own, entry in zip(
            (replace(one, times=0), one), thought_ledger(study, one), strict=True
        ):
            run = thinker_run(study, own)
            batches = recorded_run(run, tmp_path)
            rows = [row.tobytes() for row in batches.ticks["part"].numpy()]
            assert entry.rows == entry.items == len(rows)
            assert entry.unique_items == len({*rows} - seen)
            seen |= {*rows}
            carries = batches.targets["part"] >= 0
            if kind == "aside":
                carries = carries | (batches.targets["whole_text"] >= 0).any(-1)
            assert entry.targets == int(carries.sum())
            assert entry.phase == ("fine-tuning" if own.times else "pre-training")
            task = run.data.task  # type: ignore[union-attr]
            loader = run.data.prepare(sketch(run.system)).batches(4, own.seed)
            assert isinstance(loader, Loader)
            numbers = loader.at(range(len(rows)))
            assert entry.tokens == sum(len(task.item(0, int(n)).text) for n in numbers)


def test_thoughts_of_the_whole_are_told_from_others() -> None:
    """A model that is given the true thoughts has written them; with another label it has not."""
    study = replace(tiny(), num_items=3)
    system = build_system(dict(study.systems)["aside"], seed=0).eval()
    layout = system.layout
    whole = label_stream(layout)
    assert whole is not None
    for item in scored(study, "aside"):
        ids = [ByteTokenizer().start_id, *item.text.encode()]
        true = torch.from_numpy(labels(item, whole, len(ids)))[None]
        told = {layout.part.name: torch.tensor([ids]), whole.name: true}
        prompt = item_prompt(item, layout)
        found = roll_out(system, [prompt], [0], most_ticks=64, end_id=END_ID, given=[told])
        assert written_text(found.texts[0]) == item.solution
        (written,) = written_labels(found, layout)
        assert are_thoughts(item, written, layout.block_ticks)
        place = written.index(item.whole[-1].text)
        for wrong in (["x"], [], ["x", *written[place:]]):
            other = [*written[:place], *wrong]
            assert not are_thoughts(item, other, layout.block_ticks)


def test_thoughts_in_line_are_judged_step_by_step() -> None:
    study = replace(tiny(), num_items=3)
    items = questions(study)
    texts = [item.solution for item in items]
    record = {"kind": "inline", "right": [True] * len(items)}
    assert completeness(study, {**record, "texts": texts}) == [True] * len(items)
    bare = [text[text.index("#") :] for text in texts]
    assert completeness(study, {**record, "texts": bare}) == [False] * len(items)
