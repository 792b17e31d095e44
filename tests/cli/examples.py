"""A small corpus and small recipes, as files that a user would write."""

from pathlib import Path

RECIPES = """
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.data.config import DataConfig, Folder
from counterpoint.evaluate.results import EvaluationConfig
from counterpoint.recipes.study import Study
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.systems.two_stream import TwoStreamConfig
from counterpoint.train.config import TrainConfig
from counterpoint.train.run import Run

TOWER = TowerConfig(width=16, num_layers=2, num_heads=2, mlp_hidden=24, window=64)
TWO = TwoStreamConfig(part=TOWER, whole=TOWER, lower_layers=1, block_ticks=4, lag_blocks=1)


def small(name="small", system=TWO):
    return Run(
        name=name,
        system=system,
        data=DataConfig(
            source=Folder(path="texts"), row_ticks=64, held_out=0.4, cache_folder="cache"
        ),
        train=TrainConfig(num_steps=3, batch_rows=2),
    )


def pair():
    return Study(
        name="pair",
        arms=(small("single", SingleStreamConfig(tower=TOWER)), small("two")),
        evaluation=EvaluationConfig(prompt_ticks=24, continuation_ticks=8),
        max_flops_difference=10.0,
    )


def number():
    return 7


def interrupted():
    raise KeyboardInterrupt


def broken():
    raise ValueError("a fault of the recipe's author")
"""


def write(folder: Path) -> None:
    """Write ``small.py`` and ``texts/`` into a folder."""
    (folder / "small.py").write_text(RECIPES)
    texts = folder / "texts"
    texts.mkdir()
    for i in range(5):
        lines = [f"The fox {i} jumps over the dog {j}; so it goes.\n" for j in range(6)]
        (texts / f"story_{i}.txt").write_text("".join(lines))
