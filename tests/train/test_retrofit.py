"""A run with Multi-Token Attention begins with the weights of a run with plain attention."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.low_rank import LowRankConfig
from counterpoint.blocks.multi_token_attention import MultiTokenConfig
from counterpoint.blocks.multi_token_attention_retrofit import added_names, retrofit
from counterpoint.blocks.rope import RopeConfig
from counterpoint.config_json import encode
from counterpoint.errors import UserError
from counterpoint.runtime.save import write_checkpoint
from counterpoint.streams.batch import Batch
from counterpoint.systems import build_system
from counterpoint.systems.contract import System, SystemConfig
from counterpoint.systems.moshi import Moshi
from counterpoint.systems.shanks import ShanksConfig
from counterpoint.train.config import FineTuneConfig
from counterpoint.train.fine_tuning import begun_system, fresh_names
from counterpoint.train.loop import train
from tests.systems.tiny_models import VOCAB, mixed, randomised, two
from tests.systems.tiny_moshi import CONFIGS as MOSHI
from tests.systems.tiny_moshi import random_codes
from tests.train.tiny import rows, settings

MIXER = MultiTokenConfig(num_queries=2, num_keys=3, conv_every=1, head_norm="none")
PLAIN = mixed(40, AttentionConfig())


def fitted(config: Any, tower: str, mixer: MultiTokenConfig = MIXER) -> Any:
    return replace(config, **{tower: replace(getattr(config, tower), mixer=mixer)})


class Case(NamedTuple):
    """A plain system, and the same with Multi-Token Attention in one tower or in all."""

    plain: SystemConfig
    fitted: SystemConfig
    begins: tuple[str, ...]


TWO = two("mean", lag=1)
CASES = {
    "single_stream": Case(PLAIN, fitted(PLAIN, "tower"), ("tower.",)),
    "part": Case(TWO, fitted(TWO, "part"), ("part.",)),
    "whole": Case(TWO, fitted(TWO, "whole"), ("whole.",)),
    "both": Case(TWO, fitted(fitted(TWO, "part"), "whole"), ("part.", "whole.")),
    "moshi": Case(
        MOSHI["both_speakers"], fitted(MOSHI["both_speakers"], "temporal"), ("temporal.",)
    ),
}


def rows_of(system: System, seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    if isinstance(system, Moshi):
        return system.lay_out(random_codes(system, 2, 16))
    return system.lay_out({"part": torch.randint(0, VOCAB, (2, 25))})


def trained(config: SystemConfig, folder: Path) -> System:
    """Random weights of which all matter, as a checkpoint."""
    system = randomised(build_system(config, 0))
    assert isinstance(system, System)
    name = type(system).__name__
    write_checkpoint(folder, name, encode(config), system.state_dict(), None)
    return system


@pytest.mark.parametrize("name", CASES)
def test_a_system_begins_as_the_plain_one_and_its_new_weights_have_gradients(
    name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    plain = trained(case.plain, tmp_path)
    told: list[str] = []
    begin = FineTuneConfig(init_from=str(tmp_path))
    begun = begun_system(case.fitted, begin, seed=1, note=told.append)
    copied = build_system(case.fitted, seed=2)
    retrofit(copied, plain)
    assert isinstance(copied, System)
    batch = rows_of(plain)
    expected = plain.eval().loss(batch).total
    for system in (begun, copied):
        found = system.eval().loss(batch).total
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    found.backward()
    new = added_names(copied)
    assert {one.rpartition(".")[2] for one in new} == {
        f"{what}_{where}" for what in ("conv", "mix") for where in ("before", "after")
    }
    assert all(one.startswith(case.begins) for one in new)
    grads = {one: own.grad for one, own in copied.named_parameters()}
    assert all(grads[one] is not None and grads[one].any() for one in new)  # type: ignore[union-attr]
    assert fresh_names(case.fitted, begin) == new
    (note,) = told
    assert note.startswith(f"the run begins with {tmp_path}; only these weights are new: {new[0]}")
    assert all(f"{one} (" in note for one in new)


class Pieces:
    """Random rows, a pure function of the step."""

    def __init__(self, system: System) -> None:
        self.system = system

    def batch(self, step: int) -> Batch:
        with torch.random.fork_rng():
            return rows_of(self.system, step)


def test_a_run_goes_on_from_the_folder_of_a_plain_run(tmp_path: Path) -> None:
    plain = build_system(PLAIN, 0)
    train(plain, Pieces(plain), settings(6, batch_rows=2), tmp_path / "plain")
    begin = FineTuneConfig(init_from=str(tmp_path / "plain"))
    losses = {}
    for name, config in (("on", PLAIN), ("fitted", CASES["single_stream"].fitted)):
        system = begun_system(config, begin, seed=1)
        before = {key: value.clone() for key, value in system.state_dict().items()}
        train(system, Pieces(system), settings(4, batch_rows=2, fine_tune=begin), tmp_path / name)
        losses[name] = [row["loss"] for row in rows(tmp_path / name) if "loss" in row]
    assert losses["fitted"][0] == pytest.approx(losses["on"][0], abs=1e-5)
    assert losses["fitted"][-1] != pytest.approx(losses["on"][-1], abs=1e-5)
    state = system.state_dict()
    assert all(not torch.equal(state[name], before[name]) for name in added_names(system))


@pytest.mark.parametrize(("old", "new"), [(4, None), (None, 4)])
def test_as_many_shared_heads_as_heads_are_none(
    old: int | None, new: int | None, tmp_path: Path
) -> None:
    plain = trained(mixed(40, AttentionConfig(num_kv_heads=old)), tmp_path)
    begin = FineTuneConfig(init_from=str(tmp_path))
    for mixer in (AttentionConfig(num_kv_heads=new), replace(MIXER, num_kv_heads=new)):
        system = begun_system(mixed(40, mixer), begin, seed=1)
        batch = rows_of(plain)
        torch.testing.assert_close(
            system.eval().loss(batch).total, plain.eval().loss(batch).total, rtol=0, atol=1e-5
        )


def test_new_weights_are_trained_beside_adapters(tmp_path: Path) -> None:
    plain = trained(PLAIN, tmp_path)
    config = CASES["single_stream"].fitted
    begin = FineTuneConfig(init_from=str(tmp_path), low_rank=LowRankConfig(rank=2))
    system = begun_system(config, begin, seed=1)
    moved = {name for name, own in system.named_parameters() if own.requires_grad}
    assert {name for name in moved if "lora" not in name} == set(added_names(system))
    batch = rows_of(plain)
    found, expected = (one.eval().loss(batch).total for one in (system, plain))
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0)  # frozen ones are in bfloat16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 2}, "tower.mixer.num_kv_heads (None, here 2)"),
        ({"rope": RopeConfig(base=50.0)}, "tower.mixer.rope.base"),
        ({"head_norm": "gate"}, "`head_norm` must be 'none', got 'gate'"),
        ({"num_heads": 2}, "tower.num_heads (4, here 2)"),
        ({"width": 32}, "tower.width (24, here 32)"),
        ({"num_layers": 3}, "tower.num_layers (2, here 3)"),
    ],
)
def test_every_other_difference_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    trained(PLAIN, tmp_path)
    mine = {name: value for name, value in changes.items() if hasattr(MIXER, name)}
    rest = {name: value for name, value in changes.items() if name not in mine}
    config = fitted(PLAIN, "tower", replace(MIXER, **mine))
    config = replace(config, tower=replace(config.tower, **rest))
    with pytest.raises(UserError) as raised:
        begun_system(config, FineTuneConfig(init_from=str(tmp_path)), seed=1)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_backbone_of_plain_attention_is_fitted_too(tmp_path: Path) -> None:
    trained(PLAIN, tmp_path)
    tower = CASES["single_stream"].fitted.tower  # type: ignore[attr-defined]
    config = ShanksConfig(tower=tower, vocab_size=VOCAB, conv_taps=PLAIN.conv_taps, new_ids=0)
    begin = FineTuneConfig(init_from=str(tmp_path))
    system = begun_system(config, begin, seed=1)
    new = added_names(system)
    assert len(new) == 8
    assert set(new) <= set(fresh_names(config, begin))
    state = system.state_dict()
    untouched = build_system(config, seed=2).state_dict()
    assert all(torch.equal(state[name], untouched[name]) for name in new)  # identities


def test_other_kernels_of_a_fitted_model_are_refused(tmp_path: Path) -> None:
    trained(CASES["single_stream"].fitted, tmp_path)
    begin = FineTuneConfig(init_from=str(tmp_path))
    assert fresh_names(CASES["single_stream"].fitted, begin) == ()
    for changes in ({"num_queries": 3}, {"conv_after": False}):
        config = fitted(PLAIN, "tower", replace(MIXER, **changes))
        with pytest.raises(
            UserError, match=r"a system like this: .* differs in config.tower.mixer"
        ):
            begun_system(config, begin, seed=1)
    with pytest.raises(UserError, match=r"config.tower.mixer.type \('MultiTokenConfig', here 'Att"):
        begun_system(PLAIN, begin, seed=1)
