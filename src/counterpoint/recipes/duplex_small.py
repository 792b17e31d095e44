"""A small model that talks: it answers orders, waits through pauses, and can be interrupted."""

from dataclasses import replace

from counterpoint.blocks.depth import DepthConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.data.making.synthesis import SynthesisConfig
from counterpoint.data.making.turn_taking import PLAIN
from counterpoint.data.speech.hearing import Hearing
from counterpoint.data.speech.rows import SpeechData
from counterpoint.recipes.duplex_study import DuplexStudy
from counterpoint.speech.augment import Augmentation
from counterpoint.speech.voices import Voice
from counterpoint.streams.spec import Role
from counterpoint.systems.moshi import AudioStream, MoshiConfig
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.run import Run

_CODEBOOK_SIZES = (512, 512, 16, 64)  # of Codec2 700C
# The agent's sound comes 120 ms after its text. With equal times the first sounds of a word are
# said before the text has decided on the word, and the text then follows the sound.
_SEMANTIC_TICKS = 3
_ACOUSTIC_TICKS = 4  # one later than the semantic codebook, as in Moshi
USER_FORMANTS = (0.88, 1.08, 1.3, 1.45)
USER_PACES = (0.9, 1.0, 1.1)
HELD_OUT_FORMANT = 1.18
"""Formant of the users who are heard only in trials."""


def duplex_small() -> DuplexStudy:
    """Train a Moshi of 8M parameters on Codec2 from dialogues that are synthesised here.

    It needs the extras `speech` and `voices`. Training takes at most an hour and a half: on a slow
    machine every stage runs the same share of its steps.
    """
    return DuplexStudy(
        listening=(
            Run(
                name="listening",
                system=system(),
                data=replace(_data(), hearing=Hearing(after_s=0.16)),
                train=_train(num_steps=2800, lr=2e-3, muon_lr=0.02),
            ),
            Run(
                name="recalling",
                system=system(),
                data=replace(_data(), hearing=Hearing(after_s=0.4, stretch_gap_s=0.25)),
                train=_train(num_steps=3200, lr=1.5e-3, muon_lr=0.012),
            ),
        ),
        run=Run(
            name="duplex_small",
            system=system(),
            data=_data(),
            train=_train(num_steps=4800, lr=1.5e-3, muon_lr=0.012),
        ),
        minutes=150.0,
        synthesis=SynthesisConfig(
            sample_rate=8000,
            agent_voices=(Voice(),),
            user_voices=tuple(
                Voice(formant=formant, pace=pace)
                for formant in USER_FORMANTS
                for pace in USER_PACES
            ),
            pace_spread=0.0,
            embellishment=PLAIN,
        ),
    )


def _data() -> SpeechData:
    return SpeechData(
        train="",  # the study sets its own dialogues
        row_s=30.0,
        augmentation=Augmentation(
            gain_probability=0.5,
            gain_db=(-6.0, 6.0),
            noise_db=(-50.0, -25.0),
            noise_s=(0.5, 8.0),
            echo_probability=0.0,
        ),
        copies=2,
    )


def _train(num_steps: int, lr: float, muon_lr: float) -> TrainConfig:
    return TrainConfig(
        num_steps=num_steps,
        batch_rows=2,
        evaluate_every=200,
        checkpoint_every=200,
        log_every=10,
        optimizer=OptimizerConfig(lr=lr, muon_lr=muon_lr, weight_decay=0.05),
        schedule=ScheduleConfig(kind="wsd", warmup_steps=50, decay_fraction=0.4, final_ratio=0.02),
    )


def _speaker(
    name: str, role: Role, semantic_ticks: int, acoustic_ticks: int
) -> tuple[AudioStream, AudioStream]:
    """Return the two streams of a speaker with the given delays."""
    return (
        AudioStream(
            name=f"{name}_semantic",
            role=role,
            depth=1,
            delay_ticks=semantic_ticks,
            codebook_sizes=_CODEBOOK_SIZES[:1],
        ),
        AudioStream(
            name=f"{name}_acoustic",
            role=role,
            depth=3,
            delay_ticks=acoustic_ticks,
            codebook_sizes=_CODEBOOK_SIZES[1:],
        ),
    )


def system() -> MoshiConfig:
    """Return a model that predicts only the agent, with 6 s of context."""
    return MoshiConfig(
        temporal=TowerConfig(
            width=256, num_layers=6, num_heads=4, mlp_hidden=682, window=150, norm_epsilon=1e-8
        ),
        depth=DepthConfig(width=128, num_layers=2, num_heads=2, mlp_hidden=341, norm_epsilon=1e-8),
        audio=(
            *_speaker("agent", Role.SPOKEN, _SEMANTIC_TICKS, _ACOUSTIC_TICKS),
            *_speaker("user", Role.HEARD, 0, 1),
        ),
        num_predicted=4,
        text_vocab_size=512,
        audio_vocab_size=512,
        text_light_weight=0.02,  # nearly all frames are padding, and few frames hold a word
        tick_hz=25.0,
        heard_dropout=0.1,
    )
