"""Arms of `part_whole` that have equal parameters as well as equal training FLOPs."""

from dataclasses import replace

from counterpoint.recipes.grid import Grid, GridArm, Limits
from counterpoint.recipes.part_whole import WINDOW, tower
from counterpoint.recipes.part_whole_small import part_whole_small
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.systems.two_stream import TwoStreamConfig

MORE_FLOPS = "as many parameters, which cost a single stack 1.7 times the FLOPs"


def part_whole_equal() -> Grid:
    """Return a grid of two_stream with a late read, and rivals with as many parameters.

    A step of a coarse tower is paid for once in many ticks, so two arms with levels can have equal
    parameters and equal FLOPs: `deep` gets a wider whole and a narrower part until it has those of
    `hrt_words`. A single stack cannot, so the others have equal parameters and more FLOPs.
    """
    grid = part_whole_small()
    found = {arm.name: arm.system for arm in grid.arms}
    deep = found["deep"]
    shared = found["shared_deep"]
    if not isinstance(deep, TwoStreamConfig) or not isinstance(shared, TwoStreamConfig):
        raise TypeError("`deep` and `shared_deep` must be arms of two_stream.")
    layers = tower(72, 4, WINDOW, 240)
    return replace(
        grid,
        name="part_whole_equal",
        purpose=(
            "Is two_stream with a late read ahead of HRT with as many parameters and FLOPs, and of "
            "single stacks with as many parameters?"
        ),
        arms=(
            GridArm(
                name="deep_as_large",
                system=replace(
                    deep, part=tower(64, 4, WINDOW, 96), whole=tower(80, 2, deep.whole.window)
                ),
            ),
            GridArm(name="hrt_words", system=found["hrt_words"]),
            GridArm(
                name="shared_as_large",
                system=replace(
                    shared, part=layers, whole=replace(layers, window=shared.whole.window)
                ),
                unmatched=MORE_FLOPS,
            ),
            GridArm(
                name="full_as_large",
                system=SingleStreamConfig(tower=tower(72, 5, 512, 276)),
                unmatched=MORE_FLOPS,
            ),
        ),
        tasks=("sections_small", "acrostic_small"),
        limits=Limits(parameters=0.02, flops=0.05),
        smaller="",
    )
