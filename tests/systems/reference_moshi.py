"""The reference implementation of Moshi, built in the shape of one of our models."""

from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.formats.moshi.names import reference_state_dict
from counterpoint.streams.spec import Ticks
from counterpoint.systems.moshi import Moshi, MoshiConfig

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("NO_TORCH_COMPILE", "1")  # read when the package is imported
    reference = pytest.importorskip("moshi.models.lm")


def reference_of(model: Moshi) -> Any:
    """The reference with the same weights."""
    theirs = reference_shape(model.config)
    theirs.load_state_dict(reference_state_dict(model))
    return theirs.eval()


def reference_shape(config: MoshiConfig, device: str = "cpu") -> Any:
    """The reference's model of our configuration; it takes 3/2 of the gated MLPs' hidden size."""
    temporal, depth = config.temporal, config.depth
    audio_delays = [stream.delay_ticks for stream in config.audio for _ in range(stream.depth)]
    return reference.LMModel(
        delays=[config.text_delay_ticks, *audio_delays],
        n_q=config.num_codebooks,
        dep_q=config.num_predicted,
        card=config.audio_vocab_size,
        text_card=config.text_vocab_size,
        dim=temporal.width,
        num_heads=temporal.num_heads,
        num_layers=temporal.num_layers,
        hidden_scale=(1.5 * temporal.mlp_hidden + 0.5) / temporal.width,
        norm="rms_norm_f32",
        positional_embedding="rope",
        max_period=10_000,
        gating="silu",
        context=temporal.window,
        layer_scale=None,
        depformer_dim=depth.width,
        depformer_dim_feedforward=(3 * depth.mlp_hidden + 1) // 2,
        depformer_num_heads=depth.num_heads,
        depformer_num_layers=depth.num_layers,
        depformer_multi_linear=True,
        depformer_weights_per_step=True,
        depformer_weights_per_step_schedule=list(depth.schedule) or None,
        depformer_low_rank_embeddings=depth.embedding_rank,
        depformer_pos_emb="none",
        depformer_gating="silu",
        depformer_layer_scale=None,
        depformer_max_period=10_000,
        device=device,
    )


def reference_codes(codes: Ticks) -> Tensor:
    """Codes of all streams as the reference wants them: (B, 1 + K, T)."""
    audio = [ids.transpose(1, 2) for name, ids in codes.items() if name != "text"]
    return torch.cat([codes["text"][:, None], *audio], 1)


def generator(model: Any, **settings: Any) -> Any:
    """The reference's loop over frames."""
    return reference.LMGen(model, **settings)
