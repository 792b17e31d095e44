import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from counterpoint.blocks.low_rank import FrozenType, LowRankConfig, add_low_rank
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.errors import UserError
from counterpoint.formats.moshi.checkpoint import load_moshi, save_moshi
from counterpoint.runtime.export import export_adapters
from counterpoint.systems.moshi import Moshi
from counterpoint.systems.personaplex import personaplex_7b
from counterpoint.systems.single_stream import SingleStream, SingleStreamConfig
from counterpoint.train.checkpoint import checkpoint_paths, load_system, load_weights
from counterpoint.train.config import FineTuneConfig, OptimizerConfig
from counterpoint.train.fine_tuning import (
    begin_from,
    begun_system,
    without,
)
from counterpoint.train.loop import train
from counterpoint.train.optimizer import KindOptimizers, build_optimizer
from tests.systems.tiny_moshi import CONFIGS, build, random_codes
from tests.train.tiny import rows, states_equal
from tests.train.tiny_frames import Frames, adapted, model, plan


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Kyutai publishes it."""
    folder = tmp_path_factory.mktemp("published") / "moshi"
    save_moshi(model(), folder)
    return folder


@pytest.fixture(scope="module")
def run(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of adapters over the published weights."""
    folder = tmp_path_factory.mktemp("run")
    system, config = adapted(published)
    train(system, Frames(), plan(4, fine_tune=config), folder)
    return folder


def scores(system: Moshi) -> dict[str, Tensor]:
    torch.manual_seed(3)
    with torch.no_grad():
        return dict(system(system.lay_out(random_codes(system, 2, 7))))


def assert_close(found: Moshi, expected: Moshi, atol: float = 5e-6) -> None:
    other = scores(expected)
    for name, value in scores(found).items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=atol)


def test_a_run_begins_with_published_weights(published: Path) -> None:
    torch.manual_seed(9)
    system = build("both_speakers")
    assert not states_equal(system.state_dict(), model().state_dict())
    begin_from(system, FineTuneConfig(init_from=str(published)), seed=0)
    assert states_equal(system.state_dict(), model().state_dict())
    assert all(p.requires_grad for p in system.parameters())


def test_a_run_begins_with_one_of_ours(run: Path) -> None:
    """And with its adapters merged, which it then does not have."""
    for path in (run, checkpoint_paths(run)[0]):
        system = Moshi(CONFIGS["both_speakers"])
        begin_from(system, FineTuneConfig(init_from=str(path)), seed=0)
        assert states_equal(system.state_dict(), load_weights(run))


def test_a_model_of_one_speaker_is_extended_to_both(tmp_path: Path) -> None:
    save_moshi(model().trimmed(3), tmp_path / "agent")
    system = Moshi(CONFIGS["both_speakers"])
    begin_from(system, FineTuneConfig(init_from=str(tmp_path / "agent")), seed=0)
    before, after = scores(model()), scores(system)
    for name in ("text", "agent_semantic", "agent_acoustic"):
        torch.testing.assert_close(after[name], before[name])


def test_loss_weights_and_windows_may_differ_and_nothing_else(published: Path) -> None:
    config = CONFIGS["both_speakers"]
    lighter = replace(
        config,
        audio=tuple(replace(stream, loss_weight=2.0) for stream in config.audio),
        text_light_weight=0.3,
        temporal=replace(config.temporal, window=99),
    )
    begin_from(Moshi(lighter), FineTuneConfig(init_from=str(published)), seed=0)
    for other in (
        replace(config, temporal=replace(config.temporal, num_heads=4)),  # of the same shapes
        replace(config, text_delay_ticks=1),
        replace(config, temporal=replace(config.temporal, num_layers=3)),
    ):
        with pytest.raises(ValueError, match="a system like this: .* differs in config"):
            begin_from(Moshi(other), FineTuneConfig(init_from=str(published)), seed=0)


def test_fields_are_left_out_on_all_levels() -> None:
    config = {"a": 1, "cache": 2, "b": [{"cache": 3, "c": {"cache": 4, "d": 5}}]}
    assert without(config, ["cache"]) == {"a": 1, "b": [{"c": {"d": 5}}]}


def test_weights_that_are_not_there_are_refused(run: Path, tmp_path: Path) -> None:
    tower = TowerConfig(width=16, num_layers=1, num_heads=2, mlp_hidden=16, window=8)
    single = SingleStream(SingleStreamConfig(tower=tower, vocab_size=17))
    with pytest.raises(ValueError, match="weights of SingleStream: .* those of Moshi"):
        begin_from(single, FineTuneConfig(init_from=str(run)), seed=0)
    with pytest.raises(ValueError, match="must be a checkpoint or a run folder"):
        begin_from(single, FineTuneConfig(init_from=str(tmp_path)), seed=0)
    with pytest.raises(ValueError, match="published model of a known format"):
        begin_from(model(), FineTuneConfig(init_from=str(tmp_path)), seed=0)


def test_adapters_are_all_that_a_run_changes(run: Path, published: Path) -> None:
    start, _ = adapted(published)
    end = load_file(checkpoint_paths(run)[0] / "weights.safetensors")
    same = {name for name, value in start.state_dict().items() if torch.equal(value, end[name])}
    assert same == {name for name in end if "lora" not in name}


def test_only_adapters_have_moments(run: Path) -> None:
    state = load_file(checkpoint_paths(run)[0] / "optimizer" / "state.safetensors")
    parameters = {key.partition(".")[2] for key in state}
    assert parameters
    assert all(".lora_" in name for name in parameters)
    # Text alone moves the temporal transformer and the head of the text, not the depth transformer.
    alone = {key.partition(".")[2] for key in state if key.startswith("text/")}
    assert alone == {name for name in parameters if name.startswith(("temporal", "head"))}


def test_adapters_go_on_bit_for_bit(run: Path, published: Path, tmp_path: Path) -> None:
    for num_steps in (2, 4):
        system, config = adapted(published)
        train(system, Frames(), plan(num_steps, fine_tune=config), tmp_path)
    assert rows(tmp_path)[-1] == rows(run)[-1]
    first, second = (checkpoint_paths(folder)[0] for folder in (tmp_path, run))
    for file in ("weights.safetensors", "optimizer/state.safetensors"):
        assert states_equal(load_file(first / file), load_file(second / file))


def test_checkpoint_with_adapters_is_read_as_a_plain_model(run: Path, published: Path) -> None:
    plain = load_system(run, {"Moshi": Moshi})
    system, _ = adapted(published)
    system.load_state_dict(load_file(checkpoint_paths(run)[0] / "weights.safetensors"))
    assert isinstance(plain, Moshi)
    assert not any("lora" in name for name in plain.state_dict())
    assert_close(plain, system)


def test_exported_adapters_belong_beside_the_published_weights(
    run: Path, published: Path, tmp_path: Path
) -> None:
    export_adapters(run, tmp_path / "adapters")
    lora = tmp_path / "adapters" / "lora.safetensors"
    merged = load_moshi(published, dtype=torch.float32, lora_path=lora)
    trained = load_system(run, {"Moshi": Moshi})
    assert isinstance(trained, Moshi)
    assert_close(merged, trained)
    assert not torch.allclose(scores(merged)["text"], scores(model())["text"], atol=1e-3)


@pytest.mark.parametrize("frozen", ["bfloat16", "int8"])
def test_frozen_weights_are_small_in_memory_and_on_disk(
    frozen: FrozenType, published: Path, tmp_path: Path
) -> None:
    config = FineTuneConfig(init_from=str(published), low_rank=LowRankConfig(rank=3, frozen=frozen))
    shape = CONFIGS["both_speakers"]
    for num_steps in (2, 4):  # stopped and resumed
        system = begun_system(shape, config, seed=0)
        train(system, Frames(), plan(num_steps, fine_tune=config), tmp_path / "run")
    kept = load_file(checkpoint_paths(tmp_path / "run")[0] / "weights.safetensors")
    stored = torch.int8 if frozen == "int8" else torch.bfloat16
    types = {name: tensor.dtype for name, tensor in kept.items()}
    ends = ("lora_A.weight", "lora_B.weight", "norm.weight", "scale")
    assert {kind for name, kind in types.items() if name.endswith(ends)} == {torch.float32}
    assert types[f"head.{'codes' if frozen == 'int8' else 'weight'}"] == stored
    assert types["text_embedding.table.weight"] == torch.bfloat16
    plain = load_system(tmp_path / "run", {"Moshi": Moshi})
    assert isinstance(plain, Moshi)
    assert isinstance(system, Moshi)
    trained = scores(system)
    for name, value in scores(plain).items():
        assert (value - trained[name]).norm() < 0.03 * value.norm()
    export_adapters(tmp_path / "run", tmp_path / "adapters")
    lora = tmp_path / "adapters" / "lora.safetensors"
    merged = scores(load_moshi(published, dtype=torch.float32, lora_path=lora))
    for name, value in merged.items():
        assert (value - trained[name]).norm() < 0.03 * value.norm()


def test_runs_without_adapters_have_none_to_export(tmp_path: Path) -> None:
    train(model(), Frames(), plan(1), tmp_path / "run")
    with pytest.raises(ValueError, match="must hold a Moshi with adapters: it has a Moshi without"):
        export_adapters(tmp_path / "run", tmp_path / "adapters")


def test_adapters_are_not_exported_without_what_was_trained_beside_them(tmp_path: Path) -> None:
    low_rank = LowRankConfig(rank=3)
    system = model()
    add_low_rank(system, low_rank, 0, ["head.weight"])
    begun = FineTuneConfig(init_from="base", low_rank=low_rank)
    train(system, Frames(), plan(1, fine_tune=begun), tmp_path / "run")
    with pytest.raises(UserError, match=r"has also trained head.weight as a whole.*`--merge`"):
        export_adapters(tmp_path / "run", tmp_path / "adapters")


def test_a_run_that_asks_for_adapters_must_have_them(published: Path, tmp_path: Path) -> None:
    system, config = adapted(published)
    with pytest.raises(ValueError, match="it does not ask for them and the system has some"):
        train(system, Frames(), plan(1), tmp_path)
    with pytest.raises(ValueError, match="it asks for them and the system has none. Call `begin_"):
        train(model(), Frames(), plan(1, fine_tune=config), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_adapters_are_trained_alike_when_compiled(published: Path, tmp_path: Path) -> None:
    """In a process of its own: the compiler cannot look through run-time type checks."""
    system, config = adapted(published)
    train(system, Frames(), plan(3, fine_tune=config), tmp_path / "plain")
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.tiny_frames", published, tmp_path / "compiled"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    plain, compiled = (
        [row["loss"] for row in rows(tmp_path / name)] for name in ("plain", "compiled")
    )
    assert compiled == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("has_adapters", [False, True])
def test_depth_and_temporal_transformers_have_the_rates_of_personaplex(
    published: Path, has_adapters: bool
) -> None:
    system = adapted(published)[0] if has_adapters else model()
    optimizer = build_optimizer(
        system, OptimizerConfig(lr=2e-6, muon_lr=None, lr_factors=(("depth", 2.0),))
    )
    optimizer.set_lr(1.0)
    names = {id(p): name for name, p in system.named_parameters() if p.requires_grad}
    rates = {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates.keys() == set(names.values())
    assert {rate for name, rate in rates.items() if name.startswith("depth.")} == {4e-6}
    assert {rate for name, rate in rates.items() if not name.startswith("depth.")} == {2e-6}
    assert any("lora" in name for name in rates) == has_adapters


def test_muon_alone_takes_adapters(published: Path) -> None:
    """Nothing is left to AdamW: all that is trained are linear maps in towers."""
    system, _ = adapted(published)
    for name, parameter in system.named_parameters():
        parameter.requires_grad_("temporal" in name and "lora" in name)
    optimizers = KindOptimizers(system, OptimizerConfig(muon_lr=0.01))
    assert [type(part).__name__ for part in optimizers.for_kind("").parts] == ["Muon"]


def test_both_speakers_and_padding_weigh_as_in_personaplex() -> None:
    config = personaplex_7b()
    weights = [s.loss_weight for s in config.audio for _ in range(s.depth)]
    assert weights == [50.0, *[1.0] * 7] * 2  # acoustic codebooks: 0.02 of semantic ones
    assert (config.text_light_ids, config.text_light_weight) == ((3,), 0.3)
