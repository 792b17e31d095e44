"""The recipe that trains a language model to think while it hears, with a tiny one in its place."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.low_rank import FrozenType, LowRankConfig
from counterpoint.data.tasks.spoken_maths.problems import SpokenMaths
from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData
from counterpoint.evaluate.duplex.spoken_maths import listen
from counterpoint.progress import Progress
from counterpoint.recipes.shanks_smollm import shanks_smollm
from counterpoint.recipes.shanks_smollm_full import shanks_smollm_full
from counterpoint.recipes.training import train_run
from counterpoint.runtime.compact import export_checkpoint
from counterpoint.runtime.load import load, load_run
from counterpoint.runtime.save import save
from counterpoint.systems.shanks import ShanksConfig, smollm_words
from counterpoint.train.checkpoint import checkpoint_paths, load_system
from counterpoint.train.config import FineTuneConfig
from counterpoint.train.distributed import World
from counterpoint.train.fine_tuning import begun_system
from counterpoint.train.memory import training_memory
from counterpoint.train.run import Run
from tests.formats.test_llama import llama, saved
from tests.train.tiny import states_equal

NUM_BYTES = 258


def tiny_run(base: Path, num_steps: int, low_rank: LowRankConfig | None) -> Run:
    """The recipe on a tiny Llama of bytes, whose rows are short."""
    run = shanks_smollm()
    config = smollm_words()
    mixer = config.tower.mixer
    assert isinstance(mixer, AttentionConfig)
    assert isinstance(run.data, SpokenMathsData)
    tower = replace(
        config.tower,
        width=32,
        num_layers=2,
        num_heads=4,
        mlp_hidden=50,
        mixer=replace(mixer, num_kv_heads=2),
    )
    return replace(
        run,
        system=replace(config, tower=tower, vocab_size=NUM_BYTES + config.new_ids),
        data=replace(run.data, task=SpokenMaths(tokenizer="bytes"), row_ticks=1024, num_held_out=1),
        train=replace(
            run.train,
            num_steps=num_steps,
            batch_rows=2,
            accumulation=2,
            precision="float32",
            checkpoint_every=2,
            fine_tune=FineTuneConfig(init_from=str(base), low_rank=low_rank),
        ),
    )


def _tokenizer_of_bytes() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = Tokenizer(models.BPE({sign: number for number, sign in enumerate(alphabet)}, []))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    return own


@pytest.fixture
def base(tmp_path: Path) -> Path:
    rope = {"rope_type": "default", "rope_theta": 100_000.0}
    model = llama(
        vocab_size=NUM_BYTES,
        num_hidden_layers=2,
        rope_parameters=rope,
        tie_word_embeddings=True,
    )
    saved(tmp_path / "llama", model)
    return tmp_path / "llama"


def test_the_recipe_fits_together() -> None:
    run = shanks_smollm()
    assert isinstance(run.system, ShanksConfig)
    assert isinstance(run.data, SpokenMathsData)
    assert run.train.fine_tune is not None
    assert run.train.fine_tune.init_from == run.data.task.tokenizer
    assert run.train.fine_tune.low_rank is not None
    full = shanks_smollm_full()
    assert full.train.fine_tune == replace(run.train.fine_tune, low_rank=None)
    assert (full.system, full.data) == (run.system, run.data)


@pytest.mark.parametrize("frozen", ["float32", "int8"])
def test_the_plan_of_memory_counts_what_begins_anew_as_trained(
    base: Path, frozen: FrozenType
) -> None:
    run = tiny_run(base, 1, LowRankConfig(rank=2, frozen=frozen))
    system = begun_system(run.system, run.train.fine_tune, run.train.seed)
    trained = {name: own for name, own in system.named_parameters() if own.requires_grad}
    assert {"heard_mark", "new_embedding.weight"} < trained.keys()
    found = training_memory(run)
    assert found.gradients == sum(own.nbytes for own in trained.values())
    assert found.optimizer == 2 * found.gradients
    assert found.weights == sum(own.nbytes for own in (*system.parameters(), *system.buffers()))


@pytest.mark.parametrize("low_rank", [LowRankConfig(rank=2), None])
def test_a_stopped_run_ends_like_a_whole_one(
    base: Path, low_rank: LowRankConfig | None, tmp_path: Path
) -> None:
    quiet = Progress(quiet=True)
    whole = tmp_path / "whole"
    train_run(tiny_run(base, 4, low_rank), whole, World(), progress=quiet)
    for num_steps in (2, 4):
        run = tiny_run(base, num_steps, low_rank)
        train_run(run, tmp_path / "parts", World(), progress=quiet)
    names = ("weights.safetensors", "optimizer/state.safetensors")
    first, second = (checkpoint_paths(folder)[0] for folder in (whole, tmp_path / "parts"))
    assert all(states_equal(load_file(first / name), load_file(second / name)) for name in names)
    model = load_system(second)
    data = load_run(second).data
    assert isinstance(data, SpokenMathsData)
    with torch.no_grad():
        attempt = listen(model.eval(), data, data.heard(0, held_out=True))
    assert attempt.timeline.where(kind="thought").events


def test_an_exported_run_needs_its_base_no_more(tmp_path: Path) -> None:
    """It has the tokeniser of the base, and not its weights."""
    base = tmp_path / "llama"
    saved(
        base,
        llama(
            vocab_size=NUM_BYTES,
            num_hidden_layers=2,
            rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
            tie_word_embeddings=True,
            bos_token_id=256,
            eos_token_id=257,
        ),
    )
    _tokenizer_of_bytes().save(str(base / "tokenizer.json"))
    run = tiny_run(base, 2, LowRankConfig(rank=2))
    assert isinstance(run.data, SpokenMathsData)
    own = replace(run.data, task=SpokenMaths(tokenizer=str(base)))
    run = replace(run, data=own)
    train_run(run, tmp_path / "run", World(), progress=Progress(quiet=True), measure_end=False)
    exported = tmp_path / "exported"
    export_checkpoint(tmp_path / "run", exported)
    before = load(tmp_path / "run")
    save(before, tmp_path / "saved", form="counterpoint")
    shutil.rmtree(base)
    for folder in (exported, tmp_path / "saved"):
        names = {"manifest.json", "weights.safetensors", "llama.tokenizer"}
        assert {file.name for file in folder.iterdir()} == names
        loaded = load(folder)
        data = loaded.trained_by.data
        assert isinstance(data, SpokenMathsData)
        assert data.task.tokenizer == str(folder / "llama.tokenizer")
        assert data.words.identity == own.words.identity
        assert len(data.words) == len(own.words)
        attempt = listen(loaded.system, data, data.heard(0, held_out=True))
        assert attempt.timeline.where(kind="thought").events
