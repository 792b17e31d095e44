"""The study of fusions: its arms differ in nothing but how they hear."""

from dataclasses import replace

from counterpoint.config_json import decode, encode
from counterpoint.data.making.interrupted import InterruptedSpeech
from counterpoint.recipes.lslm_small import lslm_small
from counterpoint.recipes.lslm_study import lslm_study
from counterpoint.recipes.study import Study
from counterpoint.systems.lslm import LSLMConfig


def test_arms_differ_in_how_they_hear_alone() -> None:
    study = lslm_study()
    assert study.seeds == (0, 1, 2)
    first = study.arms[0]
    for arm in study.arms:
        assert isinstance(arm.system, LSLMConfig)
        assert isinstance(first.system, LSLMConfig)
        assert arm.data == first.data
        assert replace(arm.system, fusion="middle") == first.system
    fusions = [arm.name for arm in study.arms]
    assert fusions == ["middle", "early", "late", "cross_attention", "frozen_listener"]
    frozen = study.arms[-1].train.optimizer
    assert frozen.lr_factors == (("listener.", 0.0),)
    assert frozen.lr == first.train.optimizer.lr


def test_training_is_as_published_beyond_its_rate() -> None:
    """AdamW without decay, a warm-up and a cosine; noise and interruptions half of the time."""
    run = lslm_small()
    assert run.train.optimizer.muon_lr is None
    assert run.train.optimizer.weight_decay == 0
    assert run.train.schedule.kind == "cosine"
    assert isinstance(run.data, InterruptedSpeech)
    heard = run.data.heard
    assert (heard.noise, heard.interruption, heard.stop_after_s) == (0.5, 0.5, 0.5)


def test_the_study_survives_json() -> None:
    study = lslm_study()
    assert decode(Study, encode(study)) == study
