import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from counterpoint.blocks.transformer import TowerConfig
from counterpoint.data.recorded import read_recorded
from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.reasoning.item import ReasoningItem
from counterpoint.data.tasks.source import item_rows
from counterpoint.errors import UserError
from counterpoint.evaluate.attempts import (
    SPARE_SYMBOLS,
    attempt,
    lane_texts,
    lane_true_solutions,
    true_bits,
)
from counterpoint.evaluate.report.front_loading_page import markdown, pair_rows
from counterpoint.files import write_json
from counterpoint.progress import Progress
from counterpoint.recipes.front_loading import (
    CLAIMS,
    METRICS,
    Chain,
    FrontLoading,
    Group,
    chains,
    corpora,
    front_loading,
    front_loading_gpu,
    splits,
)
from counterpoint.recipes.front_loading_lanes import (
    Recorder,
    batches_path,
    chain_run,
    facts_path,
    read_facts,
    segment_config,
    segments,
    stacks,
)
from counterpoint.recipes.front_loading_report import (
    REPORT,
    claim_pairs,
    declared,
    report_front_loading,
)
from counterpoint.recipes.front_loading_run import run_front_loading, scored_items
from counterpoint.recipes.training import train_run
from counterpoint.runtime.lanes import Lanes
from counterpoint.systems import sketch
from counterpoint.systems.single_stream import SingleStream, SingleStreamConfig
from counterpoint.train.checkpoint import load_system, read_manifest, resolve
from counterpoint.train.distributed import World
from counterpoint.train.optimizer import lr_ratio
from counterpoint.train.phase_steps import step_lr_ratio, with_phase_steps

GROUPS: tuple[Group, ...] = get_args(Group)


def tiny() -> FrontLoading:
    tower = TowerConfig(width=16, num_layers=1, num_heads=2, mlp_hidden=24, window=256)
    return replace(
        front_loading(),
        system=SingleStreamConfig(tower=tower),
        pretrain_tokens=16_000,
        tuning_tokens=6000,
        num_unique=200,
        num_items=2,
        num_samples=1,
        groups=("cross", "matched"),
        seeds=(0,),
    )


def models(count: int = 2) -> list[SingleStream]:
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        system = SingleStream(tiny().system)  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in system.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        found.append(system.eval())
    return found


def items(count: int = 5) -> list[ReasoningItem]:
    task = Reasoning(operations=(1, 2), most_symbols=200)
    return [task.item(1_000_000, number) for number in range(count)]


def test_every_claim_names_chains_that_exist_and_every_chain_has_a_claim() -> None:
    known = {chain.name for chain in chains(GROUPS)}
    named = {name for claim in CLAIMS for pair in claim.pairs for name in pair}
    assert named <= known
    assert len(known) == len(chains(GROUPS))
    cross = {(c.backbone.name, c.tuning.name) for c in chains(("cross",))}
    assert len(cross) == 20
    assert len(claim_pairs(replace(tiny(), groups=GROUPS))) == sum(len(c.pairs) for c in CLAIMS)


def test_scored_questions_are_in_no_corpus() -> None:
    study = replace(tiny(), num_items=20)
    scored = {
        task.item(1_000_000, number).prompt
        for tasks in splits(study).values()
        for task in tasks
        for number in range(study.num_items)
    }
    texts: dict[str, set[str]] = {}
    for name, data in corpora(study).items():
        count = min(data.num_items, 300)
        texts[name] = {data.task.item(0, number).text.split("\n")[0] for number in range(count)}
    for name, own in texts.items():
        assert not {prompt.strip() for prompt in scored} & own, name
    assert not texts["small"] & texts["small apart"]
    assert texts["small"] <= texts["both"]


def test_a_backbone_is_trained_once_for_all_its_chains() -> None:
    found = segments(replace(tiny(), seeds=(0, 1)))
    assert len({one.key for one in found}) == len(found)
    roots = [one for one in found if not one.phase]
    names = {"base", "small", "large", "both", "base without the share"}
    assert {one.chain.backbone.name for one in roots} == names
    assert len(roots) == 2 * 5
    assert len(found) == 2 * (5 + 4 * 4 + 2)
    keys = [one.key for one in found]
    for one in found:
        assert one.parent is None or one.parent.key in keys[: keys.index(one.key)]


def chain(name: str) -> Chain:
    return next(one for one in chains(GROUPS) if one.name == name)


def test_matched_fine_tuning_reads_the_reasoning_tokens_of_pretraining_first() -> None:
    study = tiny()
    run = chain_run(study, chain("base without the share > both, then small"), 0)
    phases: Any = run.data
    assert [(p.name, p.tokens) for p in phases.phases] == [
        ("pretraining", round((1 - study.share) * study.pretrain_tokens)),
        ("tuning on both", round(study.share * study.pretrain_tokens)),
        ("tuning on small", study.tuning_tokens),
    ]


def test_stacks_have_like_lanes_after_their_parents(tmp_path: Path) -> None:
    study = replace(tiny(), groups=("cross", "catch up", "matched"), seeds=(0, 1))
    own = segments(study)
    facts_path(tmp_path, own[0]).parent.mkdir(parents=True)
    for one in own:
        num_steps = one.chain.tuning.times if one.phase else 100
        write_json(facts_path(tmp_path, one), {"num_steps": num_steps})
    groups = stacks(tmp_path, own, 12)
    assert sorted(one.key for group in groups for one in group) == sorted(one.key for one in own)
    before = set[str]()
    for group in groups:
        assert len(group) <= 12
        assert len({read_facts(tmp_path, one)["num_steps"] for one in group}) == 1
        assert all(one.parent is None or one.parent.key in before for one in group)
        before |= {one.key for one in group}
    assert {one.chain.backbone.name for one in groups[0]} >= {"base", "small", "large", "both"}


def test_sizes_are_checked() -> None:
    with pytest.raises(UserError, match=r"`share` must be above 0 and at most 0.4: got 0.5"):
        replace(tiny(), share=0.5)
    with pytest.raises(UserError, match="`seeds` must be different"):
        replace(tiny(), seeds=(1, 1))
    with pytest.raises(UserError, match="`row_ticks` must be at least 176: got 100"):
        replace(tiny(), row_ticks=100)
    assert front_loading_gpu().groups == GROUPS


def test_lanes_answer_as_each_model_does_by_itself() -> None:
    some = items(3)
    alone = models()
    together = lane_texts(Lanes(alone), some)
    for system, texts in zip(alone, together, strict=True):
        own = attempt(system, some, temperature=0.0)
        for one, (text,) in zip(own, texts, strict=True):
            most = len(one.item.solution) + SPARE_SYMBOLS
            assert text == one.texts[0][:most]
    assert together[0] != together[1]


def test_lanes_sample_other_solutions_with_other_seeds() -> None:
    lanes = Lanes(models(1))
    first, again, other = (
        lane_texts(lanes, items(1), 2, temperature=1.0, seed=s) for s in (0, 0, 1)
    )
    assert first == again != other
    assert len({*first[0][0]}) > 1


def test_true_solutions_cost_what_each_model_pays() -> None:
    some = items()
    alone = models()
    found = lane_true_solutions(Lanes(alone), some)
    for system, bits in zip(alone, found.bits.tolist(), strict=True):
        assert bits == pytest.approx(true_bits(system, some), rel=1e-4)
        for item, own in zip(some, bits, strict=True):
            assert true_bits(system, [item])[0] == pytest.approx(own, rel=1e-4)


def test_a_solution_of_likeliest_symbols_is_what_is_written() -> None:
    """A model that was taught two items writes exactly what each symbol's score says."""
    taught, *others = items(2)
    (system,) = models(1)
    rows = item_rows([taught], system.layout, len(taught.text), "spans")
    optimizer = torch.optim.Adam(system.parameters(), 0.03)
    for _ in range(80):
        optimizer.zero_grad()
        system.combine(system.losses(rows)).total.backward()
        optimizer.step()
    lanes = Lanes([system])
    likeliest = lane_true_solutions(lanes, [taught, *others]).are_likeliest[0].tolist()
    (texts,) = lane_texts(lanes, [taught, *others])
    written = [text for (text,) in texts]
    assert likeliest == [
        w == item.solution for w, item in zip(written, [taught, *others], strict=True)
    ]
    assert likeliest[0]


def made(arm: str, share: float, seeds: int = 4) -> list[dict[str, Any]]:
    """Records of a chain that answers a share of 200 questions."""
    found = []
    for seed in range(seeds):
        rng = random.Random(f"{arm} {seed}")
        right = [rng.random() < share for _ in range(200)]
        about: Mapping[str, Any] = {"arm": arm, "seed": seed, "split": "in range"}
        found.append(
            {
                **about,
                "families": ["dyck"] * 200,
                "right": right,
                "complete": right,
                "bits": [10.0 * (1 - share)] * 200,
                "symbols": [10] * 200,
                "lengths": [9] * 200,
                "sampled_right": [0] * 200,
                "num_samples": 2,
                "base_bits": 2.0,
            }
        )
    return found


def test_claims_hold_fail_or_stay_undecided() -> None:
    records = made("good", 0.6) + made("bad", 0.3) + made("same", 0.6)
    pairs = [("up", "good", "bad"), ("down", "bad", "good"), ("null", "good", "same")]
    rows = pair_rows(records, pairs, [("in range", "answer"), ("in range", "bits")])
    verdicts = {(row.claim, row.metric): row.verdict for row in rows}
    assert verdicts["up", "answer"] == verdicts["up", "bits"] == "holds"
    assert verdicts["down", "answer"] == verdicts["down", "bits"] == "fails"
    assert verdicts["null", "answer"] == "undecided"
    few = made("good", 0.9, 1) + made("bad", 0.1, 4)
    alone = pair_rows(few, pairs[:1], [("in range", "answer")])
    assert [row.num_seeds for row in alone] == [1]
    assert [row.verdict for row in alone] == ["undecided"]  # one seed decides nothing
    other = [
        one | {"split": name} for one in records for name in splits(tiny()) if name != "in range"
    ]
    floors = {"constant": {"in range": {"dyck": 0.15}, "more operations": {"dyck": 0.2}}}
    text = markdown(records + other, rows, floors)
    assert "| good | bad | in range | answer | +0." in text
    assert "| constant | - | 15.0 | 0 | - | 20.0 | - |" in text
    assert "| constant | 15, 0 |" in text
    assert np.isfinite([row.difference.low for row in rows]).all()


def test_declared_comparisons_that_were_not_run_count_in_the_correction() -> None:
    records = made("good", 0.45) + made("bad", 0.3)
    compared = [("in range", "answer")]
    (alone,) = pair_rows(records, [("up", "good", "bad")], compared)
    absent = [("other", "good", f"absent {number}") for number in range(4)]
    (among,) = pair_rows(records, [("up", "good", "bad"), *absent], compared)
    assert among.p_value == pytest.approx(5 * alone.p_value)
    assert among.difference == alone.difference


def test_segments_read_and_count_what_the_run_of_phases_does(tmp_path: Path) -> None:
    """Batches, ledger and learning rates, also of chains that share a deal of pre-training."""
    study = replace(tiny(), groups=("cross", "matched"), num_unique=60)
    wanted = ("both > both", "base without the share > both, then small", "both > small")
    own = [
        one
        for one in segments(study)
        if one.chain.name in wanted or (not one.phase and one.chain.backbone.name == "both")
    ]
    Recorder(study, tmp_path)(own)
    for name in wanted:
        parts = [one for one in own if one.chain.name == name or not one.phase]
        parts = [one for one in parts if one.chain.backbone == chain(name).backbone]
        run = chain_run(study, chain(name), 0)
        data: Any = run.data
        batches = data.prepare(sketch(run.system)).batches(run.train.batch_rows, 0)
        facts = [read_facts(tmp_path, one) for one in parts]
        assert tuple(one["num_steps"] for one in facts) == batches.num_steps
        whole = with_phase_steps(run.train, batches.num_steps)
        step = 0
        for one, fact in zip(parts, facts, strict=True):
            recorded = read_recorded(batches_path(tmp_path, one))
            config = segment_config(study, tmp_path, one)
            factor = config.optimizer.lr / study.train.optimizer.lr
            new: dict[str, int] = {}
            for place in range(config.num_steps):
                batch = batches.batch(step)
                assert torch.equal(recorded.batch(place).targets["part"], batch.targets["part"])
                for source, amount in batch.amounts.items():
                    new[source] = new.get(source, 0) + amount.unique_items
                rate = factor * lr_ratio(config.schedule, place, config.num_steps)
                assert rate == pytest.approx(step_lr_ratio(whole, step))
                step += 1
            counted = {entry["source"]: entry["unique_items"] for entry in fact["ledger"]}
            assert counted == {source: count for source, count in new.items() if source in counted}
    both = next(one for one in own if one.chain.name == "both > both" and one.phase)
    (entry,) = read_facts(tmp_path, both)["ledger"]
    assert entry["unique_items"] < entry["items"]  # pre-training has read some of them


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_lanes_learn_what_the_run_of_a_chain_learns(tmp_path: Path) -> None:
    """The losses are those of one run through all phases, and the ledger is equal."""
    study = replace(tiny(), groups=("matched",))
    records = run_front_loading(study, tmp_path / "lanes")
    for name in ("base without the share > both, then small", "both > small"):
        run = chain_run(study, chain(name), 0)
        result = train_run(run, tmp_path / run.name, World(), progress=Progress(quiet=True))
        assert result.finished
        record = next(one for one in records if one["arm"] == name)
        checkpoint = resolve(tmp_path / run.name)
        assert json.loads(record["ledger"]) == read_manifest(checkpoint)["ledger"]
        system: Any = load_system(checkpoint)
        bits = true_bits(system.eval(), scored_items(study, "in range"))
        assert record["bits"] == pytest.approx(bits, rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_study_that_was_stopped_ends_with_the_same_records(tmp_path: Path) -> None:
    study = replace(tiny(), groups=("matched", "objective"))
    whole = run_front_loading(study, tmp_path / "whole")
    assert len(whole) == 5 * 3
    assert {record["split"] for record in whole} == set(splits(study))
    assert run_front_loading(study, tmp_path / "stopped", stop_at=0.0) == []
    part = run_front_loading(replace(study, groups=("matched",)), tmp_path / "stopped")
    assert len(part) == 2 * 3
    assert {one["arm"] for one in part} == {one.name for one in chains(("matched",))}
    rest = run_front_loading(study, tmp_path / "stopped")

    def facts(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in one.items() if k != "training_seconds"} for one in records]

    assert facts(rest) == facts(whole)
    assert set(METRICS) <= set(declared(study)["metrics"])
    report_front_loading(study, tmp_path / "whole")
    assert "base without the share" in (tmp_path / "whole" / REPORT).read_text()
    with pytest.raises(UserError, match="must belong to this study: it was begun with another"):
        run_front_loading(replace(study, share=0.2), tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fine_tuning_is_followed_by_reinforcement(tmp_path: Path) -> None:
    study = replace(tiny(), groups=("reinforcement",))
    records = run_front_loading(study, tmp_path)
    assert [entry["phase"] for entry in json.loads(records[0]["ledger"])] == [
        "pretraining",
        "tuning on small",
        "reinforcement",
    ]
    assert {one["arm"] for one in records} == {
        f"{name} > small, reinforced" for name in ("base", "small", "large", "both")
    }
