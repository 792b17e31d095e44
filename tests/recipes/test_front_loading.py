import itertools
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
from counterpoint.data.tasks.prompts import written_text
from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.reasoning.item import ReasoningItem, judge
from counterpoint.data.text.tokenizer import ByteTokenizer
from counterpoint.errors import UserError
from counterpoint.evaluate.report.front_loading_page import markdown, pair_rows
from counterpoint.evaluate.solutions import solve, true_bits, written
from counterpoint.recipes.cells import read_records
from counterpoint.recipes.front_loading import (
    CLAIMS,
    METRICS,
    FrontLoading,
    Group,
    chains,
    corpora,
    front_loading_gpu,
    front_loading_study,
    splits,
)
from counterpoint.recipes.front_loading_run import (
    chain_groups,
    claim_pairs,
    declared,
    report_front_loading,
    run_front_loading,
    run_group,
    tuning_run,
)
from counterpoint.runtime.generate import generate
from counterpoint.runtime.sampler import Sampling
from counterpoint.systems.single_stream import SingleStream, SingleStreamConfig

GROUPS: tuple[Group, ...] = get_args(Group)


def tiny() -> FrontLoading:
    tower = TowerConfig(width=16, num_layers=1, num_heads=2, mlp_hidden=24, window=384)
    return replace(
        front_loading_study(),
        system=SingleStreamConfig(tower=tower),
        pretrain_tokens=8000,
        tuning_tokens=2600,
        num_unique=100,
        num_items=2,
        num_samples=1,
        groups=("cross", "matched"),
        seeds=(0,),
    )


@pytest.fixture(scope="module")
def model() -> SingleStream:
    torch.manual_seed(0)
    system = SingleStream(tiny().system)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return system.eval()


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
        count = min(data.num_items, 200)
        texts[name] = {data.task.item(0, number).text.split("\n")[0] for number in range(count)}
    for name, own in texts.items():
        assert not {prompt.strip() for prompt in scored} & own, name
    assert not texts["small"] & texts["small apart"]
    assert texts["small"] <= texts["both"]


def test_a_backbone_is_trained_once_for_all_its_chains() -> None:
    groups = list(chain_groups(replace(tiny(), seeds=(0, 1))))
    names = ("base", "small", "large", "both", "base without the share")
    assert [(group.seed, group.backbone.name) for group in groups] == [
        *itertools.product((0, 1), names)
    ]
    assert sum(len(group.chains) for group in groups) == 2 * 21


def test_matched_fine_tuning_reads_the_reasoning_tokens_of_pretraining_first() -> None:
    study = tiny()
    group = next(g for g in chain_groups(study) if g.backbone.without_share)
    run = tuning_run(study, group, group.chains[0], Path("backbone"))
    phases: Any = run.data
    assert [(p.name, p.tokens) for p in phases.phases] == [
        ("tuning on both", round(study.share * study.pretrain_tokens)),
        ("tuning on small", study.tuning_tokens),
    ]


def test_sizes_are_checked() -> None:
    with pytest.raises(UserError, match=r"`share` must be above 0 and at most 0.4: got 0.5"):
        replace(tiny(), share=0.5)
    with pytest.raises(UserError, match="`seeds` must be different"):
        replace(tiny(), seeds=(1, 1))
    with pytest.raises(UserError, match="`row_ticks` must be at least 140: got 100"):
        replace(tiny(), row_ticks=100)
    assert front_loading_gpu().groups == GROUPS


def test_questions_are_answered_as_single_sessions_answer_them(model: SingleStream) -> None:
    """All rows together give what each gives alone, likeliest and sampled."""
    some = items()
    for temperature in (0.0, 1.0):
        samplings = [Sampling(temperature=temperature, seed=seed) for seed in range(len(some))]
        together = written(model, some, samplings)
        for item, sampling, text in zip(some, samplings, together, strict=True):
            prompt = [ByteTokenizer().start_id, *item.prompt.encode()]
            most = 2 * len(item.solution) + 16
            alone = generate(model, prompt, sampling, most, end_id=10)
            assert written_text(list(alone)) == text


def test_true_solutions_cost_what_the_model_pays(model: SingleStream) -> None:
    some = items()
    together = true_bits(model, some)
    for item, bits in zip(some, together, strict=True):
        assert true_bits(model, [item])[0] == pytest.approx(bits, rel=1e-4)
    solved = solve(model, some, num_samples=2)
    assert [one.is_right for one in solved] == [
        judge(i, s.text).is_right for i, s in zip(some, solved, strict=True)
    ]
    assert all(
        one.num_symbols == len(item.solution) for one, item in zip(solved, some, strict=True)
    )


def made(arm: str, share: float, seeds: int = 4) -> list[dict[str, Any]]:
    """Records of a chain that answers a share of 200 questions."""
    found = []
    for seed in range(seeds):
        rng = random.Random(f"{arm} {seed}")
        right = [rng.random() < share for _ in range(200)]
        about: Mapping[str, Any] = {"arm": arm, "seed": seed, "split": "in range", "ledger": "[]"}
        found.append(
            {
                **about,
                "families": ["dyck"] * 200,
                "right": right,
                "sound": right,
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
    rows = pair_rows(records, pairs, ["answer", "bits"], ["in range"])
    verdicts = {(row.claim, row.metric): row.verdict for row in rows}
    assert verdicts["up", "answer"] == verdicts["up", "bits"] == "holds"
    assert verdicts["down", "answer"] == verdicts["down", "bits"] == "fails"
    assert verdicts["null", "answer"] == "undecided"
    alone = pair_rows(
        made("good", 0.9, 1) + made("bad", 0.1, 1), pairs[:1], ["answer"], ["in range"]
    )
    assert [row.verdict for row in alone] == ["undecided"]  # one seed decides nothing
    text = markdown(records, rows, ["in range"])
    assert "| good | bad | in range | answer | +0." in text
    assert np.isfinite([row.difference.low for row in rows]).all()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_study_that_was_stopped_ends_with_the_same_records(tmp_path: Path) -> None:
    study = replace(tiny(), groups=("matched", "objective"))
    whole = run_front_loading(study, tmp_path / "whole")
    assert len(whole) == 5 * 3
    assert {record["split"] for record in whole} == set(splits(study))
    part = run_front_loading(replace(study, groups=("matched",)), tmp_path / "stopped")
    assert len(part) == 2 * 3
    rest = run_front_loading(study, tmp_path / "stopped", workers=2)

    def facts(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in record.items() if k != "seconds"} for record in records]

    assert facts(rest) == facts(whole)
    assert set(METRICS) <= set(declared(study)["metrics"])
    assert "base without the share" in report_front_loading(study, tmp_path / "whole").read_text()
    with pytest.raises(UserError, match="must belong to this study: it was begun with another"):
        run_front_loading(replace(study, share=0.2), tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fine_tuning_is_followed_by_reinforcement(tmp_path: Path) -> None:
    study = replace(tiny(), groups=("reinforcement",))
    group = next(chain_groups(study))
    run_group(study, tmp_path, group)
    (first, *_) = read_records(group.path(tmp_path, group.chains[0]))
    assert [entry["phase"] for entry in json.loads(first["ledger"])] == [
        "tuning on small",
        "reinforcement",
    ]
    assert first["arm"] == "base > small, reinforced"
