"""Small corpora and small recipes, as files that a user would write."""

import json
from pathlib import Path

import torch

from counterpoint.speech.audio import write_audio

RECIPES = """
from counterpoint.blocks.depth import DepthConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.data.text.corpus import DataConfig, Folder
from counterpoint.data.speech.rows import SpeechData
from counterpoint.evaluate.results import EvaluationConfig
from counterpoint.recipes.study import Study
from counterpoint.streams.spec import Role
from counterpoint.systems.moshi import AudioStream, MoshiConfig
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


def speaking():
    return Run(
        name="speaking",
        system=MoshiConfig(
            temporal=TOWER,
            depth=DepthConfig(width=12, num_layers=1, num_heads=2, mlp_hidden=16),
            audio=tuple(
                AudioStream(name=f"{who}_{kind}", role=role, depth=len(sizes), delay_ticks=late,
                            codebook_sizes=sizes)
                for who, role in (("agent", Role.SPOKEN), ("user", Role.HEARD))
                for kind, sizes, late in (("semantic", (512,), 0), ("acoustic", (512, 16, 64), 1))
            ),
            num_predicted=8,
            text_vocab_size=256,
            audio_vocab_size=512,
            tick_hz=25.0,
        ),
        data=SpeechData(
            train="spoken/train.jsonl", held_out="spoken/held_out.jsonl", row_s=2.0,
            cache_folder="cache",
        ),
        train=TrainConfig(num_steps=3, batch_rows=2, accumulation=2, checkpoint_every=2),
    )


def mismatched():
    return Run(name="mismatched", system=speaking().system, train=small().train)


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


def write_speech(folder: Path) -> None:
    """Write ``spoken/``: four recordings of two humming speakers, one of them held out."""
    spoken = folder / "spoken"
    spoken.mkdir()
    lines = []
    for i, seconds in enumerate((1.6, 0.7, 1.1, 1.3)):
        times = torch.arange(int(seconds * 8000)) / 8000
        sides = [0.3 * (6.28 * pitch * times).sin() for pitch in (140 + 30 * i, 210 + 20 * i)]
        write_audio(spoken / f"{i}.wav", torch.stack(sides), 8000)
        words = [["hum", [0.2, 0.5], "SPEAKER_MAIN"], ["hm", [0.1, 0.4], "SPEAKER_00"]]
        (spoken / f"{i}.json").write_text(json.dumps({"alignments": words}))
        lines.append(json.dumps({"path": f"{i}.wav", "duration": seconds}) + "\n")
    (spoken / "train.jsonl").write_text("".join(lines[:3]))
    (spoken / "held_out.jsonl").write_text(lines[3])


def without_loading(told: str) -> str:
    """What a command said, without the lines of a machine that is slow to load the library."""
    lines = told.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("loading the library"))
