"""Runs of phases: rates, moments, tokens and the ledger; killed ones end like whole ones."""

import importlib.util
import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from counterpoint.config_json import decode, encode
from counterpoint.data.mixture import Mixture
from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.source import TaskData
from counterpoint.data.text.corpus import DataConfig, Folder, HubDataset, Parquet, Source
from counterpoint.data.token_deal import MemberWeight
from counterpoint.digests import sealed
from counterpoint.errors import UserError
from counterpoint.evaluate.report.run_report import ledger_table, write_run_report
from counterpoint.files import write_json
from counterpoint.recipes.phased import Phase, placed
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems import sketch
from counterpoint.train.checkpoint import MANIFEST, checkpoint_paths, read_manifest
from counterpoint.train.config import PhaseConfig, ScheduleConfig, TrainConfig
from counterpoint.train.ledger import read_ledger
from counterpoint.train.optimizer import lr_ratio
from counterpoint.train.phase_steps import (
    begins_anew,
    phase_name,
    step_lr_ratio,
    with_phase_steps,
)
from counterpoint.train.phases import (
    PhaseData,
    PhasedBatches,
    PhaseSource,
)
from counterpoint.train.run import Run
from tests.train.phased import (
    ledger_of,
    phased,
    phases,
    rewarded_phases,
    sources,
    train_phased,
    train_rewarded,
)
from tests.train.tiny import rows, states_equal

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert train_phased(folder).finished
    return folder


def batches(seed: int = 0, world_size: int = 1, rank: int = 0) -> PhasedBatches:
    run = phased()
    found = run.data.prepare(sketch(run.system)).batches(4, seed, rank, world_size)
    assert isinstance(found, PhasedBatches)
    return found


def test_ledger_is_what_the_batches_hold(whole: Path) -> None:
    """Counted again from the symbols themselves."""
    found = batches()
    config = with_phase_steps(phased().train, found.num_steps)
    counts: Counter[tuple[str, str, str]] = Counter()
    known: set[bytes] = set()
    parts = zip(found.parts, found.num_steps, strict=True)
    turns = [part.deal.turns(s) for part, n in parts if isinstance(part, Mixture) for s in range(n)]
    for step in range(sum(found.num_steps)):
        batch = found.batch(step)
        for ids, targets, starts, turn in zip(
            batch.ticks["part"],
            batch.targets["part"],
            batch.document_start,
            turns[step],
            strict=True,
        ):
            for start in starts.unique().tolist():
                own = starts == start
                if ids[own][0] != 256:
                    continue  # padding
                text = bytes(one for one in ids[own][1:].tolist() if one < 256)
                key = (phase_name(config, step), turn.member)
                counts[*key, "targets"] += int((targets[own] != UNSET_ID).sum())
                counts[*key, "items"] += 1
                counts[*key, "unique_items"] += text not in known
                known.add(text)
    path = checkpoint_paths(whole)[0]
    manifest = read_manifest(path)
    for entry in manifest["ledger"]:
        for name in ("targets", "items", "unique_items"):
            assert counts.pop((entry["phase"], entry["source"], name)) == entry[name], (entry, name)
    assert not +counts
    assert sum(entry["unique_items"] for entry in manifest["ledger"]) == len(known)
    again = manifest["ledger"][-1]
    assert (again["source"], again["unique_items"]) == ("again", 0)  # read by another name
    assert again["items"] > 0
    assert sum(entry["flops"] for entry in manifest["ledger"]) == manifest["counters"]["flops"]
    assert sum(entry["targets"] for entry in manifest["ledger"]) == manifest["counters"]["size"]


def test_phases_have_their_tokens_and_shares(whole: Path) -> None:
    ledger = read_manifest(checkpoint_paths(whole)[0])["ledger"]
    for phase, wanted in (("pre", 0.2), ("longer", 0.5), ("sft", 0.5)):
        own = {e["source"]: e["tokens"] for e in ledger if e["phase"] == phase}
        total = sum(own.values())
        budget = next(one.tokens for one in phases() if one.name == phase)
        assert budget <= total < budget + 4 * 256
        # What is read beyond the budget has the weights of the end of the phase.
        beyond = (total - budget) * (0.5 if phase == "pre" else wanted)
        assert abs(own["reasoning"] - wanted * budget - beyond) <= 256, phase


@pytest.mark.parametrize(
    "stops",
    [("end of pre", "in sft"), pytest.param(("in pre", "in longer"), marks=pytest.mark.slow)],
)
def test_killed_run_ends_like_a_whole_one(
    whole: Path, tmp_path: Path, stops: tuple[str, ...]
) -> None:
    """By the kill signal, after some steps; bit for bit."""
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nimport torch\n"
        "torch.set_num_threads(1)\n"
        "from counterpoint.train import record\nfrom tests.train.phased import train_phased\n"
        "stop = int(sys.argv[2])\nold = record.Record.step\n"
        "def step(self, state, numbers):\n"
        "    old(self, state, numbers)\n"
        "    if state.counters.step == stop: os.kill(os.getpid(), signal.SIGKILL)\n"
        "record.Record.step = step\ntrain_phased(Path(sys.argv[1]))\n"
    )
    first, second, third = batches().num_steps
    steps = {
        "in pre": 3,
        "end of pre": first,
        "in longer": first + 1,
        "in sft": first + second + third - 1,
    }
    for stop in (steps[name] for name in stops):
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path, str(stop)], cwd=ROOT, check=False, timeout=60
        )
        assert done.returncode == -9
    result = train_phased(tmp_path)
    assert result.finished
    assert rows(tmp_path) == rows(whole)
    last = checkpoint_paths(whole)[0]
    assert result.checkpoint.name == last.name
    assert ledger_of(result) == read_manifest(last)["ledger"]
    for name in ("weights.safetensors", "optimizer/state.safetensors"):
        assert states_equal(load_file(result.checkpoint / name), load_file(last / name))


def test_every_phase_is_evaluated_and_saved(whole: Path) -> None:
    ends = batches().num_steps
    measured = [row["step"] for row in rows(whole) if "evaluation" in row]
    assert measured == [ends[0], ends[0] + ends[1], sum(ends)]


def test_rates_continue_or_warm_up_anew() -> None:
    first, second = ScheduleConfig(warmup_steps=3), ScheduleConfig(kind="wsd", warmup_steps=2)
    config = TrainConfig(
        num_steps=30,
        batch_rows=1,
        schedule=first,
        phases=(
            PhaseConfig(name="a", num_steps=10),
            PhaseConfig(name="b", num_steps=10, lr_factor=0.5),
            PhaseConfig(name="c", num_steps=10, schedule=second, reset_optimizer=True),
        ),
    )
    found = [step_lr_ratio(config, step) for step in range(30)]
    together = [lr_ratio(first, step, 20) for step in range(20)]
    assert found[:10] == together[:10]
    assert found[10:20] == [0.5 * ratio for ratio in together[10:]]
    assert found[20:] == [lr_ratio(second, step, 10) for step in range(10)]
    assert [step for step in range(30) if begins_anew(config, step)] == [20]
    plain = replace(config, phases=())
    assert [step_lr_ratio(plain, s) for s in range(30)] == [
        lr_ratio(first, s, 30) for s in range(30)
    ]


def test_moments_are_dropped_where_a_phase_asks(whole: Path) -> None:
    """AdamW counts its own steps since it began."""
    moments = load_file(checkpoint_paths(whole)[0] / "optimizer" / "state.safetensors")
    counted = {int(value) for name, value in moments.items() if name.startswith("step.")}
    assert counted == {batches().num_steps[2]}


def test_run_is_stored_and_read(whole: Path) -> None:
    run = phased()
    assert decode(Run, json.loads(json.dumps(encode(run)))) == run


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tokens": math.nan}, "must have data: `tokens` is nan"),
        ({"tokens": math.inf}, "must have data: `tokens` is inf"),
        ({"row_ticks": 0}, "`row_ticks` of phase 'a' must be >= 1 or None: got 0"),
        ({"weights": (MemberWeight(member="r", weight=1e308),) * 2}, "must have a finite sum"),
    ],
)
def test_numbers_without_meaning_are_refused(wrong: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {"name": "a", "tokens": 9}
    right["weights"] = (MemberWeight(member="r", weight=1.0),)
    with pytest.raises(UserError, match=message) as problem:
        PhaseData(**right | wrong)
    assert "\n" not in str(problem.value)
    for number in (math.nan, math.inf):
        with pytest.raises(UserError, match=f"`weight` of 'r' must be finite .* got {number}"):
            MemberWeight(member="r", weight=number)
        with pytest.raises(UserError, match=f"`most_passes` of 'r' must be finite .* got {number}"):
            PhaseSource(name="r", data=TaskData(task=Reasoning()), most_passes=number)
    with pytest.raises(UserError, match="`num_held_out` must be >= 0: got -1"):
        TaskData(task=Reasoning(), num_held_out=-1)


def test_phases_without_data_are_refused() -> None:
    train_on = (MemberWeight(member="plain", weight=1.0),)
    with pytest.raises(UserError, match="Phase 'sft' must have data: `tokens` is 0"):
        phased(phases=[Phase(name="sft", tokens=0, weights=train_on)])
    with pytest.raises(UserError, match=r"'sft' must not sum to zero: .* from 0% to 100%"):
        phased(phases=[Phase(name="sft", tokens=9, weights=())])
    only = MemberWeight(member="plain", weight=1.0, end=0.4)
    with pytest.raises(UserError, match=r"no source has one from 40% to 100% of its tokens"):
        phased(phases=[Phase(name="sft", tokens=9, weights=(only,))])
    with pytest.raises(UserError, match="source 'web': there are plain, reasoning, again"):
        phased(phases=[Phase(name="a", tokens=9, weights=placed("web", {}))])
    with pytest.raises(UserError, match=r"`minutes` must be left out for a run with phases: got 2"):
        replace(phased(), minutes=2.0)
    with pytest.raises(UserError, match="The shares must fit into 40% of the phase"):
        placed("plain", {"reasoning": 0.5}, "first")


def test_exhausted_source_is_told_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"'reasoning' must last to the last batch of phase 'longer'"
    ):
        train_phased(tmp_path, sources=sources(most_passes=2.0))
    assert not checkpoint_paths(tmp_path)
    result = train_phased(
        tmp_path, sources=sources(most_passes=1.0, when_exhausted="others"), phases=phases()[:2]
    )
    read = [entry for entry in ledger_of(result) if entry["source"] == "reasoning"]
    assert (
        sum(entry["items"] for entry in read) == sum(entry["unique_items"] for entry in read) == 9
    )


@pytest.mark.parametrize("row_ticks", [128, 64, 192])
def test_passes_are_limited_whatever_the_rows(row_ticks: int) -> None:
    """The second phase reads what the first one has left of the pass."""
    task = Reasoning(families=("arithmetic",), operations=(2, 3), most_symbols=64)
    data = TaskData(task=task, num_items=120, num_held_out=0)
    weights = (MemberWeight(member="items", weight=1.0),)
    run = phased(
        sources=[PhaseSource(name="items", data=data, most_passes=1.0)],
        phases=[
            Phase(name="first", tokens=1800, weights=weights, row_ticks=128),
            Phase(name="second", tokens=1800, weights=weights, row_ticks=row_ticks),
        ],
    )
    found = run.data.prepare(sketch(run.system)).batches(4, 0)
    assert isinstance(found, PhasedBatches)
    amounts = [found.batch(step).amounts["items"] for step in range(sum(found.num_steps))]
    assert sum(one.tokens for one in amounts) >= 3600
    assert sum(one.items for one in amounts) == sum(one.unique_items for one in amounts)


def test_ledger_of_an_older_version_is_shown_and_not_continued(tmp_path: Path) -> None:
    """It counted items that were new to a source, which is another number."""
    entry = {"phase": "pre", "source": "plain", "rows": 2, "tokens": 50, "items": 9, "new_items": 7}
    (old,) = read_ledger([entry])
    assert (old.items, old.unique_items, old.repetitions) == (9, None, None)
    assert "<td>9</td><td>-</td>" in ledger_table(read_ledger([entry]))
    result = train_phased(tmp_path, phases=phases()[:1])
    manifest = read_manifest(result.checkpoint)
    write_json(result.checkpoint / MANIFEST, sealed(manifest | {"ledger": [entry]}))
    with pytest.raises(UserError, match="A ledger must count items by their content: .* by source"):
        train_phased(tmp_path, phases=phases()[:1])


def test_other_data_is_refused_on_the_way(whole: Path, tmp_path: Path) -> None:
    train_phased(tmp_path, phases=phases()[:1])
    with pytest.raises(UserError, match="must continue with the data it began with"):
        train_phased(tmp_path, phases=[replace(phases()[0], tokens=3000)])


def test_ranks_read_the_rows_of_one_process() -> None:
    alone = batches()
    parts = [batches(world_size=2, rank=rank) for rank in (0, 1)]
    assert {part.num_steps for part in parts} == {alone.num_steps}
    for step in range(sum(alone.num_steps)):
        together = torch.cat([part.batch(step).ticks["part"] for part in parts])
        assert torch.equal(together, alone.batch(step).ticks["part"])


def test_report_shows_the_ledger(whole: Path) -> None:
    page = write_run_report(whole).read_text()
    assert "plain, reasoning, again in phases: pre, then longer, then sft" in page
    for entry in read_manifest(checkpoint_paths(whole)[0])["ledger"]:
        cells = (entry["phase"], entry["source"], entry["rows"], f"{entry['tokens']:,}")
        assert "".join(f"<td>{cell}</td>" for cell in cells) in page


def test_folders_and_parquet_files_are_sources_by_name(tmp_path: Path) -> None:
    texts = {"notes": "A note of some words. " * 40, "rows": "A row of a table, and more. " * 40}
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.md").write_text(texts["notes"])
    table = pyarrow.table({"text": [texts["rows"], texts["rows"] + "End."]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    shared: dict[str, Any] = {
        "held_out": (),
        "cache_folder": str(tmp_path / "cache"),
        "unit": "document",
    }
    read: dict[str, Source] = {
        "notes": Folder(path=str(folder)),
        "rows": Parquet(path=str(tmp_path / "rows.parquet")),
    }
    if importlib.util.find_spec("datasets") is not None:
        (tmp_path / "hub").mkdir()
        pyarrow.parquet.write_table(table, tmp_path / "hub" / "train.parquet")
        read["hub"] = HubDataset(name=str(tmp_path / "hub"))
    found = [
        PhaseSource(name=name, data=DataConfig(source=source, **shared))
        for name, source in read.items()
    ]
    weights = tuple(MemberWeight(member=name, weight=1 + (name == "rows")) for name in read)
    phase = Phase(name="pre", tokens=6000, weights=weights, row_ticks=64)
    ledger = ledger_of(train_phased(tmp_path / "run", sources=found, phases=[phase]))
    tokens = {entry["source"]: entry["tokens"] for entry in ledger}
    assert set(tokens) == set(read)
    total = sum(tokens.values())
    for one in weights:
        share = one.weight / sum(other.weight for other in weights)
        assert abs(tokens[one.member] - share * total) <= 64
    other = DataConfig(source=read["notes"], tokenizer="other.json", **shared)
    with pytest.raises(UserError, match=r"one tokenizer: got \['bytes', 'other.json'\]"):
        phased(sources=[*found, PhaseSource(name="other", data=other)], phases=[phase])


def test_reinforcement_is_a_phase_that_resumes(tmp_path: Path) -> None:
    """Stopped in the middle of it: the model before it, beside which it is held, is kept."""
    whole = train_rewarded(tmp_path / "whole")
    stop = whole.counters.step - 1
    with pytest.raises(KeyboardInterrupt):
        train_rewarded(tmp_path / "stopped", stop=stop)
    result = train_rewarded(tmp_path / "stopped")
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    assert ledger_of(result) == ledger_of(whole)
    weights = [load_file(r.checkpoint / "weights.safetensors") for r in (result, whole)]
    assert states_equal(*weights)
    kl = [row["terms"]["kl"] for row in rows(tmp_path / "whole") if "kl" in row.get("terms", {})]
    assert len(kl) == 4
    assert kl[0] == pytest.approx(0, abs=1e-6)  # the reference is the model before the phase
    assert max(kl[1:]) > 0  # a step whose answers are worth the same moves nothing
    entry = ledger_of(whole)[-1]
    assert (entry["phase"], entry["source"], entry["rows"]) == ("rl", "rollouts", 16)
    assert entry["targets"] > 0


def test_rewarded_phases_read_nothing() -> None:
    good = rewarded_phases()[1]
    with pytest.raises(UserError, match="must have `num_steps` if, and only if, it is rewarded"):
        phased(phases=[replace(good, num_steps=0)])
    with pytest.raises(UserError, match="must read nothing, because it is rewarded: got 5 tokens"):
        phased(phases=[replace(good, tokens=5)])
