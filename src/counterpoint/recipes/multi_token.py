"""multi_token: which part of Multi-Token Attention pays in language modelling?"""

from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.mixer import MixerConfig
from counterpoint.blocks.multi_token_attention import MultiTokenConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.data.text.corpus import DataConfig, Folder
from counterpoint.recipes.study import Study
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from counterpoint.train.run import Run


def multi_token() -> Study:
    """Train plain attention and three parts of Multi-Token Attention on ``books/``.

    Training FLOPs a tick are equal within 2 %, by the width of the MLPs. The metric is bits a byte
    of held-out text, over three seeds; every arm is compared with plain attention.
    """
    mixing = MultiTokenConfig(conv_before=False, conv_after=False)
    convolution = MultiTokenConfig(mix_before=False, mix_after=False, head_norm="none")
    return Study(
        name="multi_token",
        purpose="Which part of Multi-Token Attention pays in language modelling, at equal FLOPs?",
        arms=(
            _arm("plain", AttentionConfig(), 688),
            _arm("mixing", mixing, 796),
            _arm("convolution", convolution, 756),
            _arm("all", MultiTokenConfig(), 708),
        ),
        seeds=(0, 1, 2),
        contrasts=(("all", "mixing"), ("all", "convolution")),
    )


def _arm(name: str, mixer: MixerConfig, mlp_hidden: int) -> Run:
    tower = TowerConfig(
        width=256, num_layers=8, num_heads=8, mlp_hidden=mlp_hidden, window=512, mixer=mixer
    )
    return Run(
        name=name,
        system=SingleStreamConfig(tower=tower),
        data=DataConfig(source=Folder(path="books"), row_ticks=512),
        train=TrainConfig(
            num_steps=10_000,
            batch_rows=32,
            checkpoint_every=1000,
            optimizer=OptimizerConfig(lr=1e-3),
            schedule=ScheduleConfig(warmup_steps=200),
        ),
    )
