"""The tiny models that every system is tested with, and batches for them."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.boundaries import BoundariesConfig
from counterpoint.blocks.compress import Kind
from counterpoint.blocks.far_attention import FarAttentionConfig
from counterpoint.blocks.level_config import LevelConfig
from counterpoint.blocks.mixer import MixerConfig
from counterpoint.blocks.multi_token_attention import MultiTokenConfig
from counterpoint.blocks.notes import NotesConfig
from counterpoint.blocks.ramp import RampConfig
from counterpoint.blocks.recall import RecallConfig
from counterpoint.blocks.rope import Llama3Scaling, RopeConfig
from counterpoint.blocks.stage import StageConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.streams.batch import Batch
from counterpoint.systems.hdlm import ExitMode, HdLMConfig
from counterpoint.systems.hnet import HNetConfig
from counterpoint.systems.hrt import HRTConfig
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.systems.two_stream import TwoStreamConfig
from tests.blocks.retention import RetentionConfig

VOCAB = 13
MULTI_TOKEN = MultiTokenConfig(num_queries=2, num_keys=3, conv_every=1, head_norm="depth")
STRETCHED = RopeConfig(base=50.0, scaling=Llama3Scaling(factor=4.0, original_steps=30))


def tower(width: int, layers: int, heads: int, window: int) -> TowerConfig:
    return TowerConfig(
        width=width, num_layers=layers, num_heads=heads, mlp_hidden=2 * width + 1, window=window
    )


def single(window: int, heads: int = 3, taps: int = 4) -> SingleStreamConfig:
    return SingleStreamConfig(
        tower=tower(6 * heads, 2, heads, window), vocab_size=VOCAB, conv_taps=taps
    )


def mixed(window: int, mixer: MixerConfig) -> SingleStreamConfig:
    """Four heads and a mixer."""
    return replace(single(1), tower=replace(tower(24, 2, 4, window), mixer=mixer))


def two(compressor: str, lag: int, **changes: Any) -> TwoStreamConfig:
    """A whole of 3 blocks in its window, and a part window that is no multiple of a block."""
    fields: dict[str, Any] = {
        "part": tower(18, 3, 3, 7),
        "whole": tower(20, 2, 2, 3),
        "lower_layers": 1,
        "block_ticks": 4,
        "lag_blocks": lag,
        "compressor": compressor,
        "num_links": 2,
        "reconstruct_weight": 0.1,
        "vocab_size": VOCAB,
    }
    return TwoStreamConfig(**(fields | changes))


def level(compressor: Kind, lag: int, num_links: int = 1) -> LevelConfig:
    """A whole over pairs of steps of the one below it."""
    return LevelConfig(
        whole=tower(16, 2, 2, 3),
        lower_layers=1,
        block_ticks=2,
        lag_blocks=lag,
        compressor=compressor,
        num_links=num_links,
    )


def hrt(*levels: TowerConfig, **changes: Any) -> HRTConfig:
    fields: dict[str, Any] = {
        "levels": levels,
        "strides": (3, 2),
        "num_keys": 2,
        "compressor": "mean",
        "vocab_size": VOCAB,
    }
    return HRTConfig(**(fields | changes))


def hnet(*stages: StageConfig, **changes: Any) -> HNetConfig:
    fields: dict[str, Any] = {"stages": stages, "main": tower(20, 2, 2, 3), "vocab_size": VOCAB}
    return HNetConfig(**(fields | changes))


def stage(width: int, window: int, share: float = 1.0, ratio: float = 3.0) -> StageConfig:
    encoder = tower(width, 1, 2, window)
    return StageConfig(
        encoder=encoder, decoder=replace(encoder, num_layers=2), ratio=ratio, max_share=share
    )


HRT_LEVELS = (tower(18, 2, 3, 7), tower(16, 2, 2, 3), tower(12, 2, 2, 3))


def hdlm(exit_mode: ExitMode, **changes: Any) -> HdLMConfig:
    """A turn of two ids may come before every tick."""
    fields: dict[str, Any] = {
        "tower": tower(12, 3, 2, 24),
        "coarse_layer": 1,
        "coarse_depth": 2,
        "coarse_vocab_size": 7,
        "turn_ticks": 1,
        "vocab_size": VOCAB,
    }
    return HdLMConfig(exit_mode=exit_mode, **(fields | changes))


CONFIGS: dict[str, dict[str, Any]] = {
    "single_stream": {
        "full": single(200),
        "windowed": single(7),
        "wide_ring": single(45, heads=1, taps=1),  # more than the 64 slots that are looked at first
        "shared_heads": mixed(7, AttentionConfig(num_kv_heads=2, rope=STRETCHED)),
        "one_shared_head": mixed(200, AttentionConfig(num_kv_heads=1)),
        "retention": mixed(7, RetentionConfig()),
        "strided": mixed(7, FarAttentionConfig(block_ticks=4, kept_blocks=3)),
        "strided_wide": mixed(3, FarAttentionConfig(block_ticks=5, kept_blocks=6, rope=STRETCHED)),
        "summaries": mixed(
            7, FarAttentionConfig(block_ticks=4, kept_blocks=3, num_summaries=2, rope=STRETCHED)
        ),
        "one_summary": mixed(5, FarAttentionConfig(block_ticks=5, kept_blocks=40, num_summaries=1)),
        "multi_token": mixed(
            12, MultiTokenConfig(conv_every=2, group_heads=2, num_kv_heads=2, rope=STRETCHED)
        ),
        "tied_without_convolution": replace(single(7, taps=0), tied_head=True),
    },
    "hrt": {
        "wavelet": hrt(*HRT_LEVELS[:2], strides=(4,), compressor="wavelet"),
        "three_levels": hrt(*HRT_LEVELS, conv_taps=0),
        "two_rounds": hrt(*HRT_LEVELS, strides=(2, 4), compressor="wavelet", num_rounds=2),
        "words": hrt(
            *HRT_LEVELS,
            strides=(4, 2),
            boundary_ids=(1, 5),
            num_rounds=2,
            compressor="last",
            reconstruct_weight=0.0,
        ),
        "learned": hrt(
            *HRT_LEVELS,
            strides=(4, 2),
            learned_ends=BoundariesConfig(ratio=3.0),
            num_rounds=2,
            compressor="attention",
        ),
    },
    "hnet": {
        "one_stage": hnet(stage(16, 7)),
        "two_stages": hnet(stage(12, 7), stage(16, 4, ratio=2.0)),
        "two_stages_bounded": hnet(stage(12, 7, 0.6), stage(12, 4, 0.75, 2.0), conv_taps=0),
    },
    "hdlm": {
        "none": hdlm("none", coarse_norm=False),
        "lazy_last_layer": hdlm("lazy", coarse_layer=3, tower=tower(12, 3, 2, 200)),
        "masked": hdlm("masked", coarse_layer=2),
        "masked_slow": hdlm("masked", turn_ticks=4, coarse_depth=3),
        "propagate": hdlm("propagate"),
        "propagate_slow": hdlm(
            "propagate",
            turn_ticks=3,
            tower=replace(tower(24, 2, 4, 9), mixer=AttentionConfig(num_kv_heads=2)),
        ),
        "embedding": hdlm("none", feedback="embedding", coarse_depth=3),
        "embedding_slow": hdlm("none", feedback="embedding", turn_ticks=4, conv_taps=1),
        "part_alone": hdlm("masked", coarse_depth=0, tower=tower(12, 3, 2, 7), conv_taps=0),
    },
    "two_stream": {
        **{
            f"{kind}_lag{lag}": two(kind, lag)
            for kind in ("mean", "last", "convolution", "attention", "wavelet")
            for lag in (0, 1)
        },
        "wavelet_lag2": two("wavelet", 2, num_links=1, reconstruct_weight=0.0, conv_taps=2),
        **{
            f"{kind}_early_lag{lag}": two(kind, lag, boundary_ids=(2, 5, 7))
            for kind, lag in (
                ("mean", 0),
                ("last", 1),
                ("convolution", 0),
                ("attention", 1),
                ("wavelet", 0),
                ("wavelet", 1),
            )
        },
        "two_wholes": two("wavelet", 0, levels=(level("mean", 0),)),
        "two_wholes_early_lag1": two(
            "mean", 1, boundary_ids=(2, 5, 7), num_links=1, levels=(level("attention", 1),)
        ),
        "three_wholes": two("last", 0, levels=(level("wavelet", 1), level("last", 0, num_links=0))),
        "shared_layers": two("wavelet", 0, whole=tower(18, 3, 3, 3), shared_layers=True),
        "two_wholes_shared_early_lag1": two(
            "attention",
            1,
            boundary_ids=(2, 5, 7),
            whole=tower(18, 3, 3, 3),
            levels=(replace(level("mean", 0), whole=tower(18, 3, 3, 4)),),
            shared_layers=True,
        ),
        "frozen": two("wavelet", 0, whole_control="frozen"),
        "frozen_slots_apart": two("convolution", 0, slots_apart=True, whole_control="frozen"),
        "frozen_early_lag1": two("attention", 1, boundary_ids=(2, 5, 7), whole_control="frozen"),
        "shuffled_early_lag1": two(
            "attention", 1, boundary_ids=(2, 5, 7), whole_control="shuffled"
        ),
        "unread_lag1": two("attention", 1, num_links=0, whole_control="unread"),
        "odd_blocks": two("attention", 1, block_ticks=5, num_slots=5, predict_weight=0.0),
        "whole_blocks_of_one": two("last", 1, block_ticks=1, whole=tower(10, 1, 1, 9)),
        "dilated_at_one_rate": two(
            "last",
            1,
            block_ticks=1,
            whole=replace(
                tower(10, 2, 1, 3), mixer=FarAttentionConfig(block_ticks=4, kept_blocks=3)
            ),
        ),
        "recall_lag1_without_links": two(
            "last", 1, num_links=0, recall=RecallConfig(num_blocks=1, kept_blocks=2)
        ),
        "recall_early_lag1": two(
            "wavelet",
            1,
            boundary_ids=(2, 5, 7),
            num_links=1,
            recall=RecallConfig(num_blocks=2, kept_blocks=3),
        ),
        "recall_two_wholes": two(
            "mean",
            0,
            levels=(replace(level("mean", 1), recall=RecallConfig(num_blocks=1)),),
            recall=RecallConfig(num_blocks=3),
        ),
        "slots_apart": two("attention", 0, slots_apart=True, whole=tower(20, 2, 2, 7)),
        "slots_apart_early_lag1": two(
            "convolution",
            1,
            boundary_ids=(2, 5, 7),
            slots_apart=True,
            whole=tower(20, 2, 2, 6),
            recall=RecallConfig(num_blocks=1),
        ),
        "slots_apart_two_wholes": two(
            "attention",
            0,
            slots_apart=True,
            whole=tower(20, 2, 2, 6),
            levels=(replace(level("attention", 1), slots_apart=True, whole=tower(16, 2, 2, 4)),),
        ),
        "codes": two("attention", 0, code_levels=(5, 4, 3), num_links=1),
        "learned": two("mean", 0, learned_ends=BoundariesConfig(ratio=3.0)),
        "learned_lag1": two(
            "attention",
            1,
            block_ticks=6,
            learned_ends=BoundariesConfig(ratio=2.0, max_share=0.5),
            recall=RecallConfig(num_blocks=1),
        ),
        "ramp": two("wavelet", 0, ramp=RampConfig(start_ticks=1)),
        "ramp_early_lag1": two(
            "attention", 1, boundary_ids=(2, 5, 7), ramp=RampConfig(start_ticks=2, share=0.3)
        ),
        "ramp_learned": two(
            "mean", 0, learned_ends=BoundariesConfig(ratio=3.0), ramp=RampConfig(start_ticks=2)
        ),
        "text_lag1": two(
            "mean",
            1,
            text=NotesConfig(depth=2, vocab_size=VOCAB),
            predict_weight=0.0,
            reconstruct_weight=0.0,
        ),
        "text_recall": two(
            "last",
            0,
            num_links=1,
            text=NotesConfig(depth=1, vocab_size=VOCAB, padding_id=3),
            recall=RecallConfig(num_blocks=1),
            predict_weight=0.0,
            reconstruct_weight=0.0,
        ),
        "multi_token_lag1": two(
            "wavelet",
            1,
            part=replace(tower(18, 3, 3, 7), mixer=MULTI_TOKEN),
            whole=replace(tower(20, 2, 2, 3), mixer=MULTI_TOKEN),
            num_links=1,
        ),
        "plan_only": two("convolution", 0, block_ticks=6, num_slots=3, num_links=0, conv_taps=0),
        "wide_ring": two(
            "mean",
            1,
            block_ticks=2,
            part=tower(12, 2, 2, 45),
            num_links=1,
            whole=tower(14, 1, 1, 40),
        ),
    },
}


def randomised(model: nn.Module) -> nn.Module:
    """Weights that start at zero hide leaks: random ones everywhere."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model.eval()


def batch_of(ids: torch.Tensor, starts: torch.Tensor | None = None) -> Batch:
    """Rows as a batch; targets are the next elements of the same document."""
    starts = torch.zeros_like(ids) if starts is None else starts
    targets = torch.full_like(ids, -1)
    targets[:, :-1] = torch.where(starts[:, 1:] == starts[:, :-1], ids[:, 1:], -1)
    return Batch(
        ticks={"part": ids}, targets={"part": targets}, document_start=starts, size=ids.numel()
    )
