"""Which compressor does two_stream need on text? The arms of the first run with other blocks."""

from dataclasses import replace

from counterpoint.blocks.compress import Kind
from counterpoint.recipes.first_run import first_run, two_stream_system
from counterpoint.recipes.study import Study
from counterpoint.systems.two_stream import TwoStreamConfig


def text_compressors() -> Study:
    """Train the first run's two_stream with words as means, attention slots or wavelets.

    Questions about a text are answered better with means and attention slots
    (docs/results/control.md). All arms read the same rows, and the training FLOPs that a wavelet
    costs more are given to the MLP of the part.
    """
    study = first_run()
    ours = next(arm for arm in study.arms if arm.name == "two_stream")
    arms = {
        "attention_blocks": _compressed("attention"),
        "mean_blocks": _compressed("mean"),
    }
    return replace(
        study,
        name="text_compressors",
        purpose="Does two_stream need its wavelet on text, or is a simpler compressor as good?",
        arms=(ours, *(replace(ours, name=name, system=own) for name, own in arms.items())),
        seeds=(0, 1, 2),
        minutes=None,
    )


def _compressed(compressor: Kind) -> TwoStreamConfig:
    """Return two_stream with another compressor, at equal training FLOPs within 1 %."""
    ours = two_stream_system()
    return replace(ours, compressor=compressor, part=replace(ours.part, mlp_hidden=344))
