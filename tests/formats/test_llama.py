"""Models of the Llama family against `transformers`, tiny ones of every shape."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from counterpoint.errors import UserError
from counterpoint.formats.llama import load_llama, matches, save_llama
from counterpoint.formats.llama_config import to_config, to_keys
from counterpoint.systems.single_stream import SingleStream, SingleStreamConfig
from tests.systems.scoring import extend
from tests.systems.tiny_models import batch_of, randomised, single

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 50,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "attn_implementation": "eager",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 30,
}
KINDS: dict[str, dict[str, Any]] = {
    "shared_heads": {},
    "own_heads": {"num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "base": {"rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 50.0, "factor": 3.0}},
    "llama3": {"rope_parameters": LLAMA3, "tie_word_embeddings": True},
}


def saved(folder: Path, model: Any) -> Any:
    """A model of `transformers` with random weights everywhere, in a folder."""
    randomised(model)
    model.save_pretrained(folder)
    return model


def llama(**changes: Any) -> Any:
    return LlamaForCausalLM(LlamaConfig(**(SHAPE | changes)))


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def streamed(model: SingleStream, ids: Tensor) -> Tensor:
    """Scores of ids that are read one by one."""
    state, scores = model.initial_state(len(ids)), []
    for tick in range(ids.shape[1]):
        logits, state = extend(model, {"part": ids[:, tick : tick + 1]}, state)
        scores.append(logits["part"])
    return torch.cat(scores, 1)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_loaded_model_scores_as_in_transformers(kind: str, tmp_path: Path) -> None:
    theirs = saved(tmp_path, llama(**KINDS[kind]))
    ours, ids = load_llama(tmp_path), torch.randint(0, 97, (2, 60))
    assert matches(tmp_path)
    assert ours.config.tied_head == KINDS[kind].get("tie_word_embeddings", False)
    expected = theirs(ids).logits
    same(ours(batch_of(ids))["part"], expected)
    same(streamed(ours, ids), expected)


@torch.no_grad()
def test_loaded_mistral_has_its_window(tmp_path: Path) -> None:
    config = MistralConfig(**(SHAPE | {"sliding_window": 7, "tie_word_embeddings": False}))
    theirs = saved(tmp_path, MistralForCausalLM(config))
    ours, ids = load_llama(tmp_path), torch.randint(0, 97, (2, 60))
    assert ours.config.tower.window == 7
    same(ours(batch_of(ids))["part"], theirs(ids).logits)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_saved_model_scores_in_transformers_as_here(kind: str, tmp_path: Path) -> None:
    config = to_config(LlamaConfig(**(SHAPE | KINDS[kind])).to_dict())
    ours, ids = SingleStream(config), torch.randint(0, 97, (2, 60))
    randomised(ours)
    save_llama(ours, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    same(ours(batch_of(ids))["part"], theirs(ids).logits)
    again = load_llama(tmp_path / "model")
    assert again.config == config
    for name, weight in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


def test_weights_in_several_files_are_read(tmp_path: Path) -> None:
    theirs = randomised(llama())
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")  # type: ignore[operator]
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours, ids = load_llama(tmp_path, window=20), torch.randint(0, 97, (2, 20))
    assert ours.config.tower.window == 20
    with torch.no_grad():
        same(ours(batch_of(ids))["part"], theirs(ids).logits)


def test_weights_have_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    saved(tmp_path, llama().bfloat16())
    for dtype in (torch.float32, torch.bfloat16):
        ours = load_llama(tmp_path, dtype=dtype)
        assert {weight.dtype for weight in ours.parameters()} == {dtype}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma2"}, "`model_type` 'llama' or 'mistral': got 'gemma2'"),
        ({"hidden_act": "gelu"}, "`hidden_act` 'silu' or 'swish': got 'gelu'"),
        ({"attention_bias": True}, "`attention_bias` False: got True"),
        ({"mlp_bias": True}, "`mlp_bias` False: got True"),
        ({"head_dim": 16}, "make up its width here: got 4 of 16 and 32"),
        ({"hidden_size": None}, "hold `hidden_size`, a whole number: got None"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "or 'llama3': got 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "hold 'factor' if .* by 'linear'"),
        ({"quantization_config": {"quant_method": "awq"}}, "or as GGUF: got 'awq'"),
    ],
)
def test_models_that_would_be_read_wrong_are_refused(changes: dict[str, Any], message: str) -> None:
    keys = LlamaConfig(**SHAPE).to_dict()
    with pytest.raises(UserError, match=message) as error:
        to_config(keys | changes)
    assert "\n" not in str(error.value)


def test_shape_told_in_older_keys_is_read() -> None:
    keys = LlamaConfig(**SHAPE).to_dict()
    expected = to_config(keys | {"rope_parameters": LLAMA3})
    del keys["rope_parameters"], keys["head_dim"]
    old = {
        "rope_theta": 500.0,
        "rope_scaling": {k: v for k, v in LLAMA3.items() if "theta" not in k},
    }
    assert to_config(keys | old) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "must hold model.norm.weight: it is missing"),
        (lambda t: t.update(strange=torch.zeros(1)), "strange is not among them"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(5)}),
            r"norm.weight must be \(32,\), got \(5,\)",
        ),
    ],
)
def test_weights_of_another_model_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved(tmp_path, llama())
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message):
        load_llama(tmp_path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, llama())
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="must be a complete file of plain tensors"):
        load_llama(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json"):
        load_llama(tmp_path)


def test_only_folders_of_the_family_match(tmp_path: Path) -> None:
    assert not matches(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "moshi"}))
    assert not matches(tmp_path)
    assert matches(tmp_path / "any.gguf")


def test_model_with_a_convolution_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="neither a convolution nor pinned steps: got `conv_taps` 4"
    ):
        save_llama(SingleStream(single(7)), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_keys_of_a_shape_give_the_shape() -> None:
    config: SingleStreamConfig = to_config(LlamaConfig(**(SHAPE | KINDS["llama3"])).to_dict())
    assert to_config(to_keys(config)) == config
