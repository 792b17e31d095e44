"""Tiny Moshi models, codes for them, and ways to run them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from counterpoint.blocks.depth import DepthConfig
from counterpoint.blocks.multi_token_attention import MultiTokenConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.streams.spec import Role, Ticks
from counterpoint.systems.moshi import AudioStream, Moshi, MoshiConfig, two_speakers
from tests.systems.tiny_models import randomised

TEXT_VOCAB, AUDIO_VOCAB, WINDOW = 11, 7, 6


def config(audio: tuple[AudioStream, ...], num_predicted: int, **changes: Any) -> MoshiConfig:
    temporal = TowerConfig(
        width=16, num_layers=2, num_heads=2, mlp_hidden=21, window=WINDOW, norm_epsilon=1e-8
    )
    if "mixer" in changes:
        temporal = replace(temporal, mixer=changes.pop("mixer"))
    depth = {"schedule": changes.pop("schedule", ()), "embedding_rank": changes.pop("rank", None)}
    fields: dict[str, Any] = {
        "temporal": temporal,
        "depth": DepthConfig(
            width=12, num_layers=2, num_heads=3, mlp_hidden=10, norm_epsilon=1e-8, **depth
        ),
        "audio": audio,
        "num_predicted": num_predicted,
        "text_vocab_size": TEXT_VOCAB,
        "audio_vocab_size": AUDIO_VOCAB,
    }
    return MoshiConfig(**(fields | changes))


def codebooks(delays: Sequence[int]) -> tuple[AudioStream, ...]:
    """One stream for every codebook of an agent."""
    return tuple(
        AudioStream(name=f"codebook_{i}", role=Role.SPOKEN, depth=1, delay_ticks=ticks)
        for i, ticks in enumerate(delays)
    )


CONFIGS: dict[str, MoshiConfig] = {
    "both_speakers": config(two_speakers(2), 6),
    "agent_only": config(two_speakers(2), 3),
    "own_delays": config(codebooks((1, 2, 4)), 3, schedule=(0, 1, 1), rank=8),
    "late_text": config(two_speakers(1), 2, text_delay_ticks=2),
    "one_codebook": config(codebooks((0,)), 1, rank=5),
    "unlike_codebooks": config(
        tuple(
            replace(stream, codebook_sizes=(4,) if stream.depth == 1 else (AUDIO_VOCAB, 2))
            for stream in two_speakers(2)
        ),
        3,
    ),
}

MULTI_TOKEN = config(
    two_speakers(1),
    2,
    mixer=MultiTokenConfig(num_queries=3, num_keys=5, conv_every=1, head_norm="none"),
)
"""A model that has no place in the files of the Moshi family."""


def build(shape: str | MoshiConfig) -> Moshi:
    """A model with random weights everywhere, also in its heads."""
    model = randomised(Moshi(CONFIGS[shape] if isinstance(shape, str) else shape))
    assert isinstance(model, Moshi)
    with torch.no_grad():
        for head in (model.head, model.depth.head):
            head.weight.normal_(std=0.3)
    return model


def sizes(model: Moshi) -> dict[str, Tensor]:
    """Ids of the text, and of every codebook of each audio stream."""
    depths = [stream.depth for stream in model.config.audio]
    audio = torch.tensor(model.config.codebook_sizes).split(depths)
    names = [stream.name for stream in model.config.audio]
    text = torch.tensor(model.config.text_vocab_size)
    return {"text": text, **dict(zip(names, audio, strict=True))}


def random_codes(model: Moshi, rows: int, ticks: int) -> dict[str, Tensor]:
    """Codes of all streams in content order."""
    return {
        name: (torch.rand(rows, ticks, *size.shape) * size).long()
        for name, size in sizes(model).items()
    }


def frames_of(model: Moshi, rows: int, ticks: int) -> Ticks:
    """Frames in order of arrival, the initial one first."""
    return model.lay_out(random_codes(model, rows, ticks)).ticks


def write_logits(model: Moshi, z: Tensor, targets: Ticks) -> dict[str, Tensor]:
    """What `forward` gives, written element by element at every tick of ``z``."""
    pieces: dict[str, list[Tensor]] = {name: [] for name in targets}
    for tick in range(z.shape[1]):
        scores: dict[str, list[Tensor]] = {name: [] for name in targets}

        def choose(stream: str, codebook: int, logits: Tensor, tick: int = tick) -> Tensor:
            scores[stream].append(logits)  # noqa: B023 (called in this round)
            ids = targets[stream][:, tick]
            return ids if stream == "text" else ids[:, codebook]

        frame = model.write(z[:, tick], choose)
        for name, found in scores.items():
            assert torch.equal(frame[name], targets[name][:, tick])
            pieces[name].append(found[0] if name == "text" else torch.stack(found, 1))
    return {name: torch.stack(found, 1) for name, found in pieces.items()}
