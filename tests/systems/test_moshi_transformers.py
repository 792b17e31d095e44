"""Moshi against a second witness: the port in `transformers` 5.23, with its own random weights.

They agree on weights, delays, hidden states and scores. Not compared, because they differ:

* its pass over a whole sequence ignores `sliding_window` and sees all frames before; only its cache
  has a window, so that beyond it they agree frame by frame;
* its depth decoder with eager attention and no mask sees the steps behind it too: here it gets one;
* it has no unset ids (-1), other delays, shared weight sets or low-rank embeddings, and ends the
  early codebooks with the initial id, where ours are unset;
* its loss has no weights.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.formats.moshi.names import load_reference
from counterpoint.streams import schedule
from counterpoint.streams.spec import Ticks
from counterpoint.systems.moshi import Moshi, two_speakers
from tests.systems.tiny_moshi import AUDIO_VOCAB, TEXT_VOCAB, WINDOW, config, random_codes

transformers = pytest.importorskip("transformers")

NUM_ACOUSTIC, NUM_ROWS = 2, 2
NUM_EACH = 1 + NUM_ACOUSTIC  # codebooks of a speaker


def witness(num_predicted: int) -> Any:
    """Their model, with weights at which every part matters."""
    ours = config(two_speakers(NUM_ACOUSTIC), num_predicted)
    depth = transformers.MoshiDepthConfig(
        vocab_size=TEXT_VOCAB, audio_vocab_size=AUDIO_VOCAB, input_size=ours.temporal.width,
        hidden_size=ours.depth.width, num_hidden_layers=ours.depth.num_layers,
        num_attention_heads=ours.depth.num_heads, ffn_dim=2 * ours.depth.mlp_hidden,
        num_codebooks=num_predicted,
    )  # fmt: skip
    codec = transformers.MimiConfig(
        hidden_size=16, num_filters=2, upsampling_ratios=[2], codebook_size=8, codebook_dim=4,
        vector_quantization_hidden_dimension=4, num_quantizers=NUM_EACH,
        num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=16,
        intermediate_size=8, upsample_groups=16,
    )  # fmt: skip
    shape = transformers.MoshiConfig(
        vocab_size=TEXT_VOCAB, audio_vocab_size=AUDIO_VOCAB, hidden_size=ours.temporal.width,
        num_hidden_layers=ours.temporal.num_layers, num_attention_heads=ours.temporal.num_heads,
        ffn_dim=2 * ours.temporal.mlp_hidden, sliding_window=WINDOW, num_codebooks=NUM_EACH,
        audio_encoder_config=codec, depth_decoder_config=depth, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.MoshiForConditionalGeneration(shape).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.uniform_(0.5, 1.5)
        else:
            weight.normal_(std=1.0 if "embed" in name else weight.shape[-1] ** -0.5)
    return model


def kyutai_weights(theirs: Any) -> dict[str, Tensor]:
    """Their weights by Kyutai's names."""
    state = theirs.state_dict()
    found = {
        "text_emb.weight": state["decoder.model.embed_tokens.weight"],
        "text_linear.weight": state["decoder.lm_head.weight"],
        "out_norm.alpha": state["decoder.model.norm.weight"][None, None],
        "depformer_text_emb.weight": state["depth_decoder.text_embed_tokens.weight"],
    }
    for k in range(len(theirs.embed_tokens)):
        found[f"emb.{k}.weight"] = state[f"embed_tokens.{k}.weight"]
    for k in range(len(theirs.depth_decoder.embed_tokens)):
        found[f"depformer_emb.{k}.weight"] = state[f"depth_decoder.embed_tokens.{k}.weight"]
    for k, weight in enumerate(state["depth_decoder.input_projections.weight"]):
        found[f"depformer_in.{k}.weight"] = weight
    for k, weight in enumerate(state["depth_decoder.lm_heads.weight"]):
        found[f"linears.{k}.weight"] = weight
    for i, layer in enumerate(theirs.decoder.model.layers):
        found |= layer_weights(layer, f"transformer.layers.{i}.", has_steps=False)
    for i, layer in enumerate(theirs.depth_decoder.layers):
        found |= layer_weights(layer, f"depformer.layers.{i}.", has_steps=True)
    return found


def layer_weights(layer: Any, name: str, *, has_steps: bool) -> dict[str, Tensor]:
    """Weights of a layer; in depth each step has its own."""
    attention = layer.self_attn
    parts = [attention.q_proj.linear.weight, attention.k_proj.linear.weight]
    if not has_steps:  # they rotate features i and i + E/2 of a head, Kyutai 2i and 2i + 1
        heads = attention.num_heads
        parts = [w.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2) for w in parts]
    stacked = {
        "self_attn.in_projs": torch.cat([*parts, attention.v_proj.linear.weight], -2),
        "self_attn.out_projs": attention.o_proj.linear.weight,
    }
    mlp = {"linear_in": layer.mlp.fc1.weight, "linear_out": layer.mlp.fc2.weight}
    found = {
        f"{name}norm1.alpha": layer.input_layernorm.weight[None, None],
        f"{name}norm2.alpha": layer.post_attention_layernorm.weight[None, None],
    }
    for part, weight in stacked.items():
        steps = weight if has_steps else weight[None]
        found |= {f"{name}{part}.{k}.weight": w for k, w in enumerate(steps)}
    for part, weight in mlp.items():
        if has_steps:
            found |= {f"{name}gating.{k}.{part}.weight": w for k, w in enumerate(weight)}
        else:
            found[f"{name}gating.{part}.weight"] = weight
    return found


def both(num_predicted: int) -> tuple[Moshi, Any]:
    theirs = witness(num_predicted)
    ours = Moshi(config(two_speakers(NUM_ACOUSTIC), num_predicted)).eval()
    load_reference(ours, kyutai_weights(theirs))
    return ours, theirs


def as_arguments(frames: Ticks) -> dict[str, Tensor]:
    """Frames as their model takes them."""
    codes = {
        who: torch.cat([frames[f"{who}_semantic"], frames[f"{who}_acoustic"]], 2).transpose(1, 2)
        for who in ("agent", "user")
    }
    return {
        "input_ids": frames["text"],
        "moshi_audio_codes": codes["agent"],
        "user_audio_codes": codes["user"],
    }


def agree(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    scale = float(expected.abs().max())
    assert scale > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)


@torch.no_grad()
@pytest.mark.parametrize("num_predicted", [NUM_EACH, 2 * NUM_EACH])
def test_hidden_states_and_scores_are_those_of_transformers(num_predicted: int) -> None:
    """Within the window."""
    ours, theirs = both(num_predicted)
    batch = ours.lay_out(random_codes(ours, NUM_ROWS, WINDOW))
    scores, out = ours(batch), theirs(**as_arguments(batch.ticks))
    reach = ours.temporal.reach(batch.document_start)
    agree(ours.norm(ours.temporal(ours.embed(batch.ticks), reach)), out.last_hidden_state)
    agree(scores["text"], out.logits)

    elements = batch.elements or batch.targets
    said = [elements[stream.name] for stream in ours.predicted]
    previous = torch.cat([elements["text"][..., None], *said], 2)[..., :-1].flatten(0, 1)
    hidden = out.last_hidden_state.flatten(0, 1)[:, None]
    audio = theirs.depth_decoder(
        input_ids=previous,
        last_hidden_state=hidden,
        attention_mask=torch.ones_like(previous),
        use_cache=False,
    ).logits
    found = torch.cat([scores[stream.name] for stream in ours.predicted], 2)
    agree(found.flatten(0, 1), audio)


@torch.no_grad()
def test_frames_with_a_cache_are_those_of_transformers_beyond_the_window() -> None:
    ours, theirs = both(NUM_EACH)
    batch = ours.lay_out(random_codes(ours, NUM_ROWS, 3 * WINDOW + 1))
    pieces, cache = [], None
    for tick in range(3 * WINDOW + 1):
        frame = {name: ids[:, tick : tick + 1] for name, ids in batch.ticks.items()}
        out = theirs(**as_arguments(frame), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        pieces.append(out.logits)
    agree(ours(batch)["text"], torch.cat(pieces, 1))


def test_codebooks_are_delayed_as_in_transformers() -> None:
    ours, theirs = both(NUM_EACH)
    codes, num_ticks = random_codes(ours, NUM_ROWS, 9), 9
    frames = {name: ids[:, 1:] for name, ids in schedule.columns(ours.layout, codes).items()}
    for who in ("moshi_audio_codes", "user_audio_codes"):
        _, expected = theirs.build_delay_pattern_mask(
            as_arguments(codes)[who], AUDIO_VOCAB, AUDIO_VOCAB, num_ticks + 1
        )
        found = as_arguments(frames)[who]
        assert torch.equal(found[:, :, :num_ticks], expected[:, :, :num_ticks])
        assert torch.equal(found[:, 1:, num_ticks], expected[:, 1:, num_ticks])
