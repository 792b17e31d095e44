import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from counterpoint.blocks.multi_token_attention import MultiTokenConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.systems.single_stream import SingleStream, SingleStreamConfig, base, small, tiny
from tests.systems.tiny_models import VOCAB, batch_of, randomised, single


def llama_of(model: SingleStream) -> LlamaForCausalLM:
    """Hugging Face's model with the same weights."""
    shape = model.config.tower
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=shape.width,
            intermediate_size=shape.mlp_hidden,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            max_position_embeddings=512,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
            attn_implementation="eager",  # type: ignore[call-arg]
        )
    )
    llama.train(False)
    weights = model.state_dict()
    theirs = {
        "model.embed_tokens.weight": weights["embedding.weight"],
        "model.norm.weight": weights["norm.weight"],
        "lm_head.weight": weights["head.weight"],
    }
    for i in range(shape.num_layers):
        ours, layer = f"tower.layers.{i}.", f"model.layers.{i}."
        q, k, v = weights[ours + "attention.qkv.weight"].chunk(3)
        gate, up = weights[ours + "mlp.gate_up.weight"].chunk(2)
        theirs |= {
            layer + "input_layernorm.weight": weights[ours + "attention_norm.weight"],
            layer + "post_attention_layernorm.weight": weights[ours + "mlp_norm.weight"],
            layer + "self_attn.q_proj.weight": q,
            layer + "self_attn.k_proj.weight": k,
            layer + "self_attn.v_proj.weight": v,
            layer + "self_attn.o_proj.weight": weights[ours + "attention.out.weight"],
            layer + "mlp.gate_proj.weight": gate,
            layer + "mlp.up_proj.weight": up,
            layer + "mlp.down_proj.weight": weights[ours + "mlp.down.weight"],
        }
    llama.load_state_dict(theirs)
    return llama


def without_convolution(window: int) -> SingleStream:
    model = randomised(SingleStream(single(window)))
    assert isinstance(model, SingleStream)
    assert model.conv is not None
    torch.nn.init.zeros_(model.conv.weight)
    return model


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def test_single_stream_matches_llama() -> None:
    model = without_convolution(window=100)
    ids = torch.randint(0, VOCAB, (2, 63))
    same(model(batch_of(ids))["part"], llama_of(model)(ids).logits)


@torch.no_grad()
def test_single_stream_matches_llama_on_packed_documents() -> None:
    model = without_convolution(window=100)
    llama = llama_of(model)
    documents = [torch.randint(0, VOCAB, (1, length)) for length in (1, 20, 33)]
    starts = [torch.full_like(ids, at) for ids, at in zip(documents, (0, 1, 21), strict=True)]
    ours = model(batch_of(torch.cat(documents, 1), torch.cat(starts, 1)))["part"]
    same(ours, torch.cat([llama(ids).logits for ids in documents], 1))


@torch.no_grad()
@pytest.mark.parametrize("num_ticks", [9, 63, 100])  # one mask, and groups of windows
def test_single_stream_matches_llama_with_a_window(num_ticks: int) -> None:
    model = without_convolution(window=7)
    ids = torch.randint(0, VOCAB, (2, num_ticks))
    age = torch.arange(num_ticks)[:, None] - torch.arange(num_ticks)
    hidden = torch.zeros(2, 1, num_ticks, num_ticks).masked_fill((age < 0) | (age >= 7), -1e9)
    same(model(batch_of(ids))["part"], llama_of(model)(ids, attention_mask=hidden).logits)


@torch.no_grad()
def test_single_stream_forgets_what_left_the_window() -> None:
    """Two layers with a window of 7 and 4 taps reach 6 + 6 + 3 ticks back, and no further."""
    model = randomised(SingleStream(single(7)))
    ids = torch.randint(0, VOCAB, (1, 40))
    changed = ids.clone()
    changed[:, 10] = (changed[:, 10] + 1) % VOCAB
    moved = (model(batch_of(ids))["part"] != model(batch_of(changed))["part"]).any(-1)[0]
    assert moved.nonzero().flatten().tolist() == list(range(10, 10 + 16))


@pytest.mark.parametrize(("preset", "millions"), [(tiny(), 1.4), (small(), 25.0), (base(), 150.0)])
def test_presets_have_their_size(preset: SingleStreamConfig, millions: float) -> None:
    with torch.device("meta"):
        model = SingleStream(preset)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.15)


@torch.no_grad()
def test_kernels_that_just_fit_their_window_stream_as_whole_rows() -> None:
    """The oldest keys of the earliest row stand one slot behind the newest key."""
    mixer = MultiTokenConfig(num_queries=6, num_keys=5, conv_every=1)
    tower = TowerConfig(width=8, num_layers=1, num_heads=2, mlp_hidden=8, window=8, mixer=mixer)
    model = SingleStream(SingleStreamConfig(tower=tower, vocab_size=VOCAB))
    randomised(model)
    assert model.head is not None
    ids = torch.randint(0, VOCAB, (1, 40), generator=torch.Generator().manual_seed(0))
    state = model.initial_state(1)
    read = []
    for chunk in torch.split(ids, 2, 1):
        hidden, state = model.read({"part": chunk}, state)
        read.append(model.head(hidden))
    whole = model(batch_of(ids))["part"]
    torch.testing.assert_close(torch.cat(read, 1), whole, rtol=0, atol=1e-5)
