"""Tiny LSLM models: one of each fusion, with one codebook or several."""

from typing import Any

from counterpoint.blocks.depth import DepthConfig
from counterpoint.blocks.listening import ListenerConfig
from counterpoint.systems.lslm import Fusion, LSLMConfig
from tests.systems.tiny_models import tower

DEPTH = DepthConfig(width=8, num_layers=1, num_heads=2, mlp_hidden=12)


def config(fusion: Fusion, sizes: tuple[int, ...] = (5, 7, 4), **changes: Any) -> LSLMConfig:
    fields: dict[str, Any] = {
        "tower": tower(12, 2, 2, 9),
        "listener": ListenerConfig(heard_width=3, width=8, num_layers=2, mlp_hidden=9, taps=3),
        "fusion": fusion,
        "codebook_sizes": sizes,
        "depth": DEPTH if len(sizes) > 1 else None,
        "text_vocab_size": 6,
        "hearing_window": 5,
        "tick_hz": 25.0,
    }
    return LSLMConfig(**(fields | changes))


CONFIGS: dict[str, LSLMConfig] = {
    "early": config("early", (11,)),
    "middle": config("middle"),
    "late": config("late"),
    "cross_attention": config("cross_attention"),
}
