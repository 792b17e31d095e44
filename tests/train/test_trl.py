"""GRPO against TRL's `GRPOTrainer`: the same rollouts give the same loss and the same gradients."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from counterpoint.data.tasks.verify import Verified
from counterpoint.formats.llama import load_llama, to_state
from counterpoint.systems.single_stream import SingleStream
from counterpoint.train.reinforce import GroupConfig, GroupObjective, group_advantages, old_name
from counterpoint.train.rollout_source import Rollouts, rollout_batch

trl = pytest.importorskip("trl")
tokenizers = pytest.importorskip("tokenizers")

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the other packages
VOCAB = 23
NUM_PROMPT = 4
LENGTHS = (6, 3, 9, 9, 5, 9, 2, 7)  # of the solutions; those of 9 did not end
MOST = 9
REWARDS = (1.0, 0.0, 0.5, 0.0, 0.0, 0.0, 1.0, 1.0)


def random_llama(seed: int) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=50,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def as_ours(model: Any, folder: Path) -> SingleStream:
    model.save_pretrained(folder)
    return load_llama(folder)


def trainer_of(model: Any, folder: Path, **settings: Any) -> Any:
    words = {f"w{number}": number for number in range(VOCAB)}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=plain, pad_token="w0", eos_token="w1")
    datasets = pytest.importorskip("datasets")
    arguments = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=len(LENGTHS),
        num_generations=4,
        max_completion_length=MOST,
        report_to=[],
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        **settings,
    )
    return trl.GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **rest: [0.0] * len(completions),
        args=arguments,
        train_dataset=datasets.Dataset.from_list([{"prompt": "w2"}] * 8),
        processing_class=tokenizer,
    )


def written() -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(2, VOCAB, (len(LENGTHS), NUM_PROMPT + MOST), generator=generator)


def our_rollouts(ids: Tensor) -> Rollouts:
    chosen = torch.zeros(ids.shape, dtype=torch.bool)
    for row, length in enumerate(LENGTHS):
        chosen[row, NUM_PROMPT : NUM_PROMPT + length] = True
    texts = [
        ids[row, NUM_PROMPT : NUM_PROMPT + length].tolist() for row, length in enumerate(LENGTHS)
    ]
    ended = torch.tensor([length < MOST for length in LENGTHS])
    return Rollouts({"part": ids}, {"part": chosen}, texts, ended)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "row": ({}, {"loss_type": "grpo"}),
    "row with divergence": ({"kl_weight": 0.3}, {"loss_type": "grpo", "beta": 0.3}),
    "divergence as published first": (
        {"kl_weight": 0.3, "corrected_kl": False},
        {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False},
    ),
    "element": ({"mean": "element"}, {"loss_type": "bnpo"}),
    "constant": (
        {"mean": "constant", "scale": "none"},
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
    ),
    "two clips and temperature": (
        {"clip_low": 0.1, "clip_high": 0.4, "temperature": 1.3, "kl_weight": 0.05},
        {
            "loss_type": "grpo",
            "epsilon": 0.1,
            "epsilon_high": 0.4,
            "temperature": 1.3,
            "beta": 0.05,
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("is_old", [False, True], ids=["own", "older"])
def test_loss_and_gradients_are_those_of_trl(case: str, is_old: bool, tmp_path: Path) -> None:
    ours, theirs = CASES[case]
    config = replace(GroupConfig(group_size=4, kl_weight=0.0, most_ticks=MOST), **ours)
    model = random_llama(1)
    system = as_ours(model, tmp_path / "model")
    reference = as_ours(random_llama(2), tmp_path / "reference") if config.kl_weight else None
    objective = GroupObjective(system, config, reference)
    ids = written()
    outcomes = [Verified(reward) for reward in REWARDS]
    batch = rollout_batch(system, our_rollouts(ids), outcomes, config)
    solution = slice(NUM_PROMPT - 1, None)
    if is_old:  # the ratio is not 1, so that the clip matters
        older = as_ours(random_llama(3), tmp_path / "older")
        log = objective.log_probabilities(older, batch)["part"].detach()
        shifted = (objective.log_probabilities(system, batch)["part"].detach() * 3 + log) / 4
        batch = replace(batch, numbers={**batch.numbers, old_name("part"): shifted})
    loss = objective.combine(objective.losses(batch)).total
    loss.backward()

    # It loads its own reference, which is not asked here because the inputs hold its scores.
    model.config._name_or_path = str(tmp_path / "model")
    trainer = trainer_of(model, tmp_path / "out", **({"beta": 0.0} | theirs))
    theirs_mask = our_rollouts(ids).written["part"][:, NUM_PROMPT:]
    theirs_mask = (theirs_mask & our_rollouts(ids).ended[:, None]).long()
    inputs = {
        "prompt_ids": ids[:, :NUM_PROMPT],
        "prompt_mask": torch.ones(len(ids), NUM_PROMPT, dtype=torch.long),
        "completion_ids": ids[:, NUM_PROMPT:],
        "completion_mask": theirs_mask,
        "advantages": batch.numbers["advantages"],
        "num_items_in_batch": theirs_mask.sum(),
    }
    if is_old:
        inputs["old_per_token_logps"] = batch.numbers[old_name("part")][:, solution]
    if reference is not None:
        with torch.no_grad():
            log = objective.log_probabilities(reference, batch)["part"]
        inputs["ref_per_token_logps"] = log[:, solution]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    their_loss = trainer.compute_loss(trainer.model, inputs)
    their_loss.backward()
    torch.testing.assert_close(loss, their_loss, rtol=0, atol=1e-5)
    gradients = {name: p.grad for name, p in trainer.model.named_parameters()}
    expected = to_state(
        {name: grad for name, grad in gradients.items() if grad is not None}, system.config
    )
    found = {name: p.grad for name, p in system.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert max(float(grad.abs().max()) for grad in found.values()) > 1e-3
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], rtol=0, atol=1e-5)


def test_advantages_are_those_of_trl() -> None:
    nanstd = pytest.importorskip("trl.trainer.utils").nanstd
    rewards = torch.tensor(REWARDS).view(-1, 4)
    mean = rewards.mean(1, keepdim=True)
    deviation = nanstd(rewards, dim=1)[:, None]
    torch.testing.assert_close(
        group_advantages(rewards, "group"), (rewards - mean) / (deviation + 1e-4)
    )
    torch.testing.assert_close(
        group_advantages(rewards, "batch"), (rewards - mean) / (nanstd(rewards) + 1e-4)
    )
