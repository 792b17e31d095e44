"""A reinforcement run from end to end: begun from another run, counted, loaded and scored."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from counterpoint.config_json import decode, encode
from counterpoint.data.source import DataSource, attach
from counterpoint.data.tasks.items import HELD_OUT_SEED
from counterpoint.data.tasks.prompts import item_prompt
from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.reasoning.item import judge
from counterpoint.data.tasks.reasoning.plain import PlainText
from counterpoint.data.tasks.source import TaskData
from counterpoint.data.text.tokenizer import ByteTokenizer
from counterpoint.errors import UserError
from counterpoint.evaluate.attempts import Attempts, attempt, solution_scores
from counterpoint.recipes.reinforcement import reinforce_run
from counterpoint.recipes.training import train_run
from counterpoint.runtime.load import load
from counterpoint.systems import build_system
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.train.checkpoint import read_manifest, resolve
from counterpoint.train.config import TrainConfig
from counterpoint.train.distributed import World
from counterpoint.train.reinforce import GroupConfig
from counterpoint.train.rewarded import RewardedData
from counterpoint.train.run import Run
from tests.systems.tiny_models import single

TASK = Reasoning(families=("dyck",), operations=(2, 2), templates=(0,), most_symbols=32)
SYSTEM: SingleStreamConfig = replace(single(32, taps=0), vocab_size=ByteTokenizer().vocab_size)
SHORT = GroupConfig(group_size=2, most_ticks=6)


def test_a_run_begins_with_another_and_can_be_used(tmp_path: Path) -> None:
    settings = TrainConfig(num_steps=1, batch_rows=4, precision="float32")
    begun = Run(name="begun", system=SYSTEM, data=TaskData(task=TASK), train=settings)
    train_run(begun, tmp_path / "begun", World(), measure_end=False, loggers=[])
    data = RewardedData(task=TASK, group=replace(SHORT, kl_weight=0.0), num_held_out=2)
    run = reinforce_run(
        "own", SYSTEM, str(tmp_path / "begun"), data, num_steps=2, questions=2, lr=1e-3
    )
    assert decode(Run, encode(run)) == run
    result = train_run(run, tmp_path / "own", World(), loggers=[])
    assert result.finished
    ledger = read_manifest(resolve(tmp_path / "own"))["ledger"]
    (entry,) = [one for one in ledger if one["source"] == "rollouts"]
    assert entry["rows"] == entry["items"] == 8
    assert entry["tokens"] <= 8 * SHORT.most_ticks
    assert load(tmp_path / "own").system is not None
    again = train_run(run, tmp_path / "own", World(), loggers=[])
    assert again.counters.step == 2


def test_data_fit_and_refuse(tmp_path: Path) -> None:
    data = RewardedData(task=TASK, group=SHORT)
    source: DataSource = data
    model = build_system(SYSTEM, seed=0)
    assert source.fits(model.layout)
    prepared = source.prepare(model)
    assert prepared.held_out_units() is None
    assert prepared.fingerprint != replace(data, reward="process").prepare(model).fingerprint
    assert prepared.fingerprint == replace(data, folder="elsewhere").prepare(model).fingerprint
    with pytest.raises(UserError, match="multiple of 4, .* number of processes: got 6"):
        prepared.batches(6, 0, 0, 2)
    unconnected = prepared.batches(4, 0)
    attach(unconnected, model)
    with pytest.raises(UserError, match="must have `roll_out`"):
        unconnected.batch(0)
    with pytest.raises(UserError, match="num_items"):
        RewardedData(task=TASK, num_items=0)
    with pytest.raises(UserError, match="`num_held_out` must be >= 0: got -1"):
        RewardedData(task=TASK, num_held_out=-1)
    for limit_s in (0.0, math.inf, math.nan):
        with pytest.raises(UserError, match=f"`limit_s` must be a finite .* got {limit_s}"):
            RewardedData(task=TASK, limit_s=limit_s)
    plain = RewardedData(task=PlainText()).prepare(model)
    with pytest.raises(UserError, match="text without questions"):
        plain._ask(0)


def test_scores_are_those_of_what_was_written() -> None:
    items = [TASK.item(HELD_OUT_SEED, number) for number in range(6)]
    model = build_system(SYSTEM, seed=0)
    found = attempt(model, items, 3, most_ticks=8, seed=2, batch_rows=4)
    again = attempt(model, items, 3, most_ticks=8, seed=2, batch_rows=7)
    assert [one.texts for one in found] == [one.texts for one in again]
    assert len({text for one in found for text in one.texts}) > 6
    texts = [["x", "y"], *([item.solution, "#?\n"] for item in items[1:])]
    scores = solution_scores(
        [
            Attempts(item, own, [judge(item, text) for text in own], [[] for _ in own])
            for item, own in zip(items, texts, strict=True)
        ]
    )
    assert scores["right"] == scores["sound"] == scores["right, dyck"] == pytest.approx(5 / 12)
    assert scores["complete"] == scores["complete, dyck"] == scores["right"]
    assert scores["pass@1"] == pytest.approx(5 / 12)
    assert scores["pass@2"] == pytest.approx(5 / 6)
    assert scores["ended"] == pytest.approx(10 / 12)
    with pytest.raises(UserError, match="at least one"):
        solution_scores([])
    with pytest.raises(UserError, match="num_samples"):
        attempt(model, items, 0)


def test_a_prompt_is_the_beginning_of_a_training_row() -> None:
    item = TASK.item(0, 0)
    model = build_system(SYSTEM, seed=0)
    prompt = item_prompt(item, model.layout)
    row = TaskData(task=TASK, trained="all").prepare(model).batch([item])
    length = len(item.prompt) + 1
    assert torch.equal(prompt["part"], row.ticks["part"][:, :length])
