"""Which fusion lets an LSLM stop when it is interrupted without speaking worse?"""

from dataclasses import replace

from counterpoint.evaluate.results import EvaluationConfig
from counterpoint.recipes.lslm_small import lslm_small
from counterpoint.recipes.study import Study
from counterpoint.systems import lslm
from counterpoint.systems.lslm import Fusion
from counterpoint.train.run import Run

_LISTENER = "listener."
_FUSIONS: tuple[Fusion, ...] = ("middle", "early", "late", "cross_attention")


def lslm_study() -> Study:
    """Compare the four fusions of LSLM on the same utterances and sounds, over three seeds.

    A fifth arm has middle fusion and a listening network whose random weights are frozen, the
    cheapest row of the published ablation. It takes at most four hours. Hits, delays and word
    errors of each arm are measured by ``benchmarks/bench_interruptions.py``.
    """
    arms = [_arm(fusion, fusion) for fusion in _FUSIONS]
    frozen = _arm("middle", "frozen_listener")
    optimizer = replace(frozen.train.optimizer, lr_factors=((_LISTENER, 0.0),))
    arms.append(replace(frozen, train=replace(frozen.train, optimizer=optimizer)))
    return Study(
        name="lslm_study",
        purpose=(
            "Models that speak a given text hear noise, interruptions, backchannels and themselves "
            "in four ways. How well do they predict their own codes and the moment to stop?"
        ),
        arms=tuple(arms),
        evaluation=EvaluationConfig(max_units=64),
        seeds=(0, 1, 2),
        minutes=240.0,
        max_flops_difference=0.3,  # late fusion and cross-attention have maps of their own
    )


def _arm(fusion: Fusion, name: str) -> Run:
    run = lslm_small()
    return replace(run, name=name, system=lslm.small(fusion), minutes=None)
