"""compression: which compressor, at which rate, gives the whole what questions about it need?

Every cell is a small two_stream that differs from the others only in how blocks end and become
coarse steps. All cells have the training FLOPs of the first one, up to 5 %: what a compressor or a
rate costs is taken from the MLPs of the part tower.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, get_args

from counterpoint.blocks.boundaries import BoundariesConfig
from counterpoint.blocks.compress import Kind
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.systems import sketch
from counterpoint.systems.two_stream import WORDS, TwoStreamConfig

BlockEnds = Literal["fixed", "words", "learned"]
RATES = (4, 8, 16, 32)
ROW_TICKS = 96
"""Ticks of a row in all cells: whole blocks of the highest rate."""
USUAL_WORD = 4.5
"""Mean ticks of a word over the two tasks (3 in a log, 9 in navon), for counting FLOPs."""
CODE_LEVELS = (8, 8, 8, 5)
"""Levels of a code of 2,560 values, about 11 bits a slot."""
WITH_SLOTS: tuple[Kind, ...] = ("convolution", "attention")
"""Compressors whose number of slots is free."""
MAIN: tuple[tuple[Kind, int, bool], ...] = (
    ("mean", 1, False),
    ("attention", 2, False),
    ("wavelet", 1, False),
    ("attention", 2, True),
)
"""Compressors that every rate and kind of block has: kind, slots, and whether slots are codes."""
SMALLEST_MLP = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressionArm:
    """A cell of the grid, without task and seed.

    Attributes:
        ends: Where blocks end.
        rate: Ticks of a block; of a longest word, or of a mean learned block.
        compressor: How a block becomes slots.
        num_slots: Slots of a block, where the number is free.
        coded: Whether slots are finite-scalar codes.
    """

    ends: BlockEnds
    rate: int
    compressor: Kind
    num_slots: int = 1
    coded: bool = False

    @property
    def name(self) -> str:
        """Name in tables."""
        slots = f" {self.num_slots}" if self.compressor in WITH_SLOTS else ""
        return f"{self.ends} {self.rate} {self.compressor}{slots}{' coded' if self.coded else ''}"


def compression_arms() -> list[CompressionArm]:
    """Return all arms in the order in which they are run, should time not suffice for all.

    First come the four main compressors at rate 8, then words and learned ends, the main
    compressors at the other rates, the other compressors at rate 8, and the rest.
    """
    found = [_arm("fixed", 8, main) for main in MAIN]
    found += [_arm("words", 16, MAIN[0]), _arm("learned", 4, MAIN[0])]
    found += [_arm("fixed", rate, main) for rate, main in product((16, 4, 32), MAIN)]
    found.append(_arm("words", 16, MAIN[1]))
    found += [arm for arm in _fixed() if arm.rate == 8]
    ends: tuple[tuple[BlockEnds, int], ...] = (("words", 16), ("learned", 4), ("learned", 8))
    found += [_arm(*end, main) for end, main in product(ends, MAIN)]
    found += _fixed()
    return list(dict.fromkeys(found))


def _arm(ends: BlockEnds, rate: int, main: tuple[Kind, int, bool]) -> CompressionArm:
    kind, num_slots, coded = main
    return CompressionArm(ends=ends, rate=rate, compressor=kind, num_slots=num_slots, coded=coded)


def _fixed() -> list[CompressionArm]:
    """Return the arms with blocks of a fixed length: every compressor, rate and number of slots."""
    found = []
    for rate, kind in product(RATES, get_args(Kind)):
        for slots in (1, 2) if kind in WITH_SLOTS else (1,):
            for coded in (False, True) if kind == "attention" else (False,):
                found.append(_arm("fixed", rate, (kind, slots, coded)))
    return found


def compression_system(arm: CompressionArm) -> TwoStreamConfig:
    """Return the system of an arm, with the training FLOPs of the plainest arm."""
    target = _flops(_unfitted(CompressionArm(ends="fixed", rate=8, compressor="mean")))
    config = _unfitted(arm)
    before = config.part.mlp_hidden
    smaller = replace(config, part=replace(config.part, mlp_hidden=before - 4))
    slope = (_flops(config) - _flops(smaller)) / 4
    hidden = before + round((target - _flops(config)) / slope / 4) * 4
    return replace(config, part=replace(config.part, mlp_hidden=max(hidden, SMALLEST_MLP)))


def _unfitted(arm: CompressionArm) -> TwoStreamConfig:
    """Return the system of an arm whatever it costs."""
    learned = None
    block_ticks = arm.rate
    if arm.ends == "learned":
        # Twice the mean length is the longest block.
        block_ticks = 2 * arm.rate
        learned = BoundariesConfig(ratio=float(arm.rate), max_share=1.5 / arm.rate)
    return TwoStreamConfig(
        part=_tower(3, 200, window=8),
        whole=_tower(1, 172, window=96),
        lower_layers=1,
        block_ticks=block_ticks,
        boundary_ids=WORDS if arm.ends == "words" else (),
        learned_ends=learned,
        usual_block_ticks=USUAL_WORD if arm.ends == "words" else None,
        compressor=arm.compressor,
        num_slots=arm.num_slots,
        code_levels=CODE_LEVELS if arm.coded else (),
        num_links=2,
        whole_dropout=0.0,
        predict_weight=0.0,
    )


def _tower(num_layers: int, mlp_hidden: int, window: int) -> TowerConfig:
    return TowerConfig(
        width=64, num_layers=num_layers, num_heads=4, mlp_hidden=mlp_hidden, window=window
    )


def _flops(config: TwoStreamConfig) -> float:
    return sketch(config).flops_per_tick(ROW_TICKS, training=True)
