"""Controls of the first run: what of two_stream makes its advantage on text?"""

from dataclasses import replace

from counterpoint.blocks.far_attention import FarAttentionConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.recipes.first_run import control_system, first_run, two_stream_system
from counterpoint.recipes.study import Study
from counterpoint.systems import hnet
from counterpoint.systems.contract import SystemConfig
from counterpoint.systems.hrt import HRTConfig
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.systems.two_stream import TwoStreamConfig


def two_stream_controls() -> Study:
    """Train the first run's arms and ten rivals on the same rows, over three seeds.

    Each control takes one thing away from two_stream or gives one to a rival. These claims fall:
    that two towers matter, if `shared_levels` is not worse than two_stream and than
    `untied_levels`, which has its shapes and a stack of its own for each level; that two levels
    matter, if `same_rate` is not worse; and that the whole matters, if `shuffled_whole` or
    `frozen_whole` is not; each by an interval that excludes zero. FLOPs of the models are equal
    within 2 %, but for `as_many_parameters`, a single stream that has twice as many. Weights of
    their own also mean more weights, and more products of the optimiser, which are not counted.
    """
    study = first_run()
    like = study.arms[0]
    ours = "two_stream"
    systems = _controls()
    return replace(
        study,
        name="two_stream_controls",
        purpose=(
            "What makes the advantage of two_stream on text at equal training FLOPs: its two "
            "towers, its two levels, its whole, or something that a rival has too?"
        ),
        arms=(
            *study.arms,
            *(replace(like, name=name, system=system) for name, system in systems.items()),
        ),
        seeds=(0, 1, 2),
        minutes=None,
        unmatched=("as_many_parameters",),
        contrasts=(
            *((name, ours) for name in systems),
            ("shared_levels", "untied_levels"),
        ),
    )


def _controls() -> dict[str, SystemConfig]:
    """Return the controls by name; one number of each is chosen so that its FLOPs are equal."""
    ours = two_stream_system()
    return {
        "shared_levels": _shared_levels(ours),
        "untied_levels": replace(_shared_levels(ours), shared_layers=False),
        "same_rate": _same_rate(ours),
        "shuffled_whole": replace(ours, whole_control="shuffled"),
        "frozen_whole": replace(
            ours, part=replace(ours.part, mlp_hidden=400), whole_control="frozen"
        ),
        "rebuild": replace(ours, part=replace(ours.part, mlp_hidden=272), reconstruct_weight=0.1),
        "summary_steps": _summary_steps(),
        "hrt_words": _hrt_words(ours),
        "hnet": hnet.tiny(),
        "as_many_parameters": _single(988),
    }


def _shared_levels(ours: TwoStreamConfig) -> TwoStreamConfig:
    """Return two levels without two towers: one stack of layers serves part and whole.

    The arm `untied_levels` has the same shapes and FLOPs, and a stack of its own for each level.
    """
    layers = replace(ours.part, mlp_hidden=416)
    whole = replace(layers, window=ours.whole.window)
    return replace(ours, part=layers, whole=whole, shared_layers=True)


def _same_rate(ours: TwoStreamConfig) -> TwoStreamConfig:
    """Return two towers without two levels: the whole takes a step at every tick.

    Its attention is dilated: it reads its window and every eighth older step.
    """
    return replace(
        ours,
        part=replace(ours.part, num_layers=3, mlp_hidden=624),
        whole=TowerConfig(
            width=128,
            num_layers=1,
            num_heads=4,
            mlp_hidden=336,
            window=32,
            mixer=FarAttentionConfig(block_ticks=8, kept_blocks=32),
        ),
        lower_layers=1,
        block_ticks=1,
        compressor="last",
        boundary_ids=(),
        usual_block_ticks=None,
    )


def _single(mlp_hidden: int) -> SingleStreamConfig:
    """Return the best single stream with another number of hidden features."""
    single = control_system()
    return replace(single, tower=replace(single.tower, mlp_hidden=mlp_hidden))


def _summary_steps() -> SingleStreamConfig:
    """Return one tower that writes a summary step after eight ticks and reads 64 of them later."""
    single = control_system()
    mixer = FarAttentionConfig(block_ticks=8, kept_blocks=64, num_summaries=1)
    return replace(single, tower=replace(single.tower, num_layers=4, mixer=mixer))


def _hrt_words(ours: TwoStreamConfig) -> HRTConfig:
    """Return HRT with words as its first blocks, four words in the next, and as far a view."""
    coarse = TowerConfig(width=192, num_layers=2, num_heads=4, mlp_hidden=512, window=64)
    return HRTConfig(
        levels=(replace(ours.part, mlp_hidden=352), coarse, coarse),
        strides=(8, 4),
        num_keys=64,
        compressor="mean",
        boundary_ids=ours.boundary_ids,
        usual_block_ticks=ours.usual_block_ticks,
    )
