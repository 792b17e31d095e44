import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint.blocks.quantized import store_int8
from counterpoint.formats.moshi.checkpoint import (
    load_moshi,
    moshi_config,
    reference_config,
    save_moshi,
)
from counterpoint.formats.moshi.config import MOSHI_7B, ReferenceConfig
from counterpoint.formats.moshi.parity import personaplex_window
from counterpoint.recipes import duplex_small
from counterpoint.streams.spec import Role
from counterpoint.systems import moshi
from counterpoint.systems.moshi import Moshi, MoshiConfig, two_speakers
from counterpoint.systems.personaplex import personaplex_7b
from tests.systems.tiny_models import randomised
from tests.systems.tiny_moshi import CONFIGS, MULTI_TOKEN, build, config, random_codes
from tests.systems.tiny_moshi_weights import fused, quantised, random_state, save, tiny_keys

os.environ.setdefault("NO_TORCH_COMPILE", "1")


def calm_state(config: ReferenceConfig) -> dict[str, torch.Tensor]:
    """Random weights under which scores stay near 1."""
    return {name: w * w.shape[-1] ** -0.5 for name, w in random_state(config).items()}


def codes(config: MoshiConfig) -> dict[str, torch.Tensor]:
    streams = {
        s.name: torch.randint(0, config.audio_vocab_size, (2, 7, s.depth)) for s in config.audio
    }
    return {"text": torch.randint(0, config.text_vocab_size, (2, 7)), **streams}


def scores(model: Moshi) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    with torch.no_grad():
        return dict(model(model.lay_out(codes(model.config))))


@pytest.mark.parametrize("dep_q", [8, 16])
def test_published_configurations_are_our_presets(dep_q: int) -> None:
    published = ReferenceConfig.from_json({**MOSHI_7B, "dep_q": dep_q})
    assert moshi_config(published) == moshi.moshi_7b(dep_q)
    assert reference_config(moshi.moshi_7b(dep_q)) == published


def test_written_models_are_read_back_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomised(Moshi(moshi.tiny()))
    assert isinstance(model, Moshi)
    save_moshi(model, tmp_path / "written")
    again = load_moshi(tmp_path / "written", dtype=torch.float32)
    assert again.config == model.config
    for name, expected in scores(model).items():
        assert torch.equal(scores(again)[name], expected)


# The recipe but for one feature: the reference has no MLP of 341 at the width 128.
DUPLEX = duplex_small.system()
DUPLEX = replace(DUPLEX, depth=replace(DUPLEX.depth, mlp_hidden=342))
OTHERS = replace(
    config(two_speakers(2), 6),
    temporal=replace(CONFIGS["both_speakers"].temporal, pinned_steps=2, norm_epsilon=1e-6),
    text_role=Role.THOUGHT,
    text_light_ids=(3, 5),
)
SAVED = CONFIGS | {
    "tiny": moshi.tiny(),
    "duplex_small": DUPLEX,
    "personaplex": replace(
        moshi.tiny(), audio=two_speakers(3, semantic_weight=50.0), text_light_weight=0.3
    ),
    "others": OTHERS,
}


@pytest.mark.parametrize("name", list(SAVED))
def test_a_saved_model_has_its_config_again(tmp_path: Path, name: str) -> None:
    """Clock, codebook sizes and the others, which published files have no keys for."""
    model = Moshi(SAVED[name])
    save_moshi(model, tmp_path / "written")
    again = load_moshi(tmp_path / "written", dtype=torch.float32)
    assert again.config == model.config
    assert type(again.config.text_role) is Role
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


def test_a_model_that_the_reference_cannot_build_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="plain attention only: this model has a MultiTokenConfig"):
        save_moshi(Moshi(MULTI_TOKEN), tmp_path / "mixed")
    with pytest.raises(ValueError, match="cannot express `mlp_hidden` = 341 at `width` = 128"):
        save_moshi(Moshi(duplex_small.system()), tmp_path / "written")
    assert not list(tmp_path.iterdir())


def test_a_model_stored_in_8_bits_is_not_written(tmp_path: Path) -> None:
    model = build("agent_only")
    store_int8(model)
    with pytest.raises(ValueError, match="must be saved with weights in floats: save before"):
        save_moshi(model, tmp_path / "int8")
    assert not (tmp_path / "int8").exists()


def test_only_what_differs_is_kept_beside_the_published_keys() -> None:
    def kept(config: MoshiConfig) -> Any:
        keys = json.loads(json.dumps(reference_config(config).to_json()))
        assert moshi_config(ReferenceConfig.from_json(keys)) == config
        return keys.get("model_id")

    assert kept(moshi.tiny()) is None
    own = kept(personaplex_7b())["counterpoint"]
    assert own.keys() == {"audio", "text_light_weight"}
    assert kept(OTHERS)["counterpoint"]["temporal"] == {"norm_epsilon": 1e-6, "pinned_steps": 2}


def test_fields_of_ours_follow_when_codebooks_are_cut(tmp_path: Path) -> None:
    shape = replace(SAVED["personaplex"], tick_hz=25.0)
    save_moshi(Moshi(shape), tmp_path / "both")
    agent = load_moshi(tmp_path / "both", num_predicted=4).config
    assert agent == replace(shape, num_predicted=4)


def test_the_reference_loads_a_model_with_fields_of_ours(tmp_path: Path) -> None:
    loaders = pytest.importorskip("moshi.models.loaders")
    torch.manual_seed(0)
    model, folder = build(DUPLEX), tmp_path / "written"
    save_moshi(model, folder)
    info = loaders.CheckpointInfo.from_hf_repo(
        "no/repository",
        moshi_weights=folder / "model.safetensors",
        mimi_weights=folder / "absent",
        tokenizer=folder / "absent",
        config_path=folder / "config.json",
    )
    assert info.raw_config["model_id"]["counterpoint"]["tick_hz"] == 25.0
    given = random_codes(model, 2, 9)
    rows = torch.cat([given["text"][:, None], *(given[s.name].mT for s in model.audio)], 1)
    with torch.no_grad():
        expected = info.get_moshi(dtype=torch.float32)(rows)
        ours = dict(model(model.lay_out(given)))
    text = expected.text_logits[:, 0]
    # Theirs stand at the content's time.
    semantic = expected.logits[:, :1, : 9 - 3].transpose(1, 2)
    for found, wanted in ((ours["text"], text), (ours["agent_semantic"][:, 3:], semantic)):
        assert (found - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            {"tick_herz": 25.0},
            "must hold fields of a MoshiConfig, .*: .*'tick_herz'",
        ),
        (
            {"tick_hz": "fast"},
            "must hold fields of a MoshiConfig, .*: .*'fast'",
        ),
        ([25.0], "must hold fields of a MoshiConfig, .*: "),
        (
            {"heard_dropout": 1.0},
            "must hold fields of a MoshiConfig, .*: `heard_dropout` must be",
        ),
        ({"text_delay_ticks": 1}, r"streams with the `delays` \[0, 0, .*\]: got \[1, 0, .*\]"),
    ],
)
def test_fields_of_ours_that_do_not_fit_are_refused(own: object, message: str) -> None:
    keys = tiny_keys(model_id={"sig": "a1b2", "counterpoint": own})
    with pytest.raises(ValueError, match=message) as problem:
        moshi_config(ReferenceConfig.from_json(keys))
    assert "\n" not in str(problem.value)


def test_an_origin_of_the_reference_is_no_field_of_ours() -> None:
    plain = moshi_config(ReferenceConfig.from_json(tiny_keys()))
    for origin in ({"sig": "a1b2", "epoch": 3}, "a1b2", None):
        assert moshi_config(ReferenceConfig.from_json(tiny_keys(model_id=origin))) == plain


@pytest.mark.parametrize(("dtype", "most_apart"), [(torch.float32, 0), (torch.bfloat16, 1)])
def test_int8_of_a_published_file_can_stay_int8(
    tmp_path: Path, dtype: torch.dtype, most_apart: int
) -> None:
    """Read and stored in 8 bits again, weights are the whole numbers of the file."""
    torch.manual_seed(0)
    config = ReferenceConfig.from_json(tiny_keys())
    file: dict[str, torch.Tensor] = {}
    for name, weight in fused(calm_state(config)).items():
        file[name] = weight
        if weight.ndim == 2 and "emb" not in name:
            file[name], file[name + "_scb"] = quantised(weight)
    save(tmp_path / "q8", file, tiny_keys() | {"quantize": True})
    model = load_moshi(tmp_path / "q8", dtype=dtype)
    store_int8(model)
    ours = torch.cat([codes.flatten() for name, codes in model.named_buffers() if "codes" in name])
    theirs = torch.cat([w.flatten() for w in file.values() if w.dtype == torch.int8])
    apart = ours.sort().values.int() - theirs.sort().values.int()
    assert int(apart.abs().max()) <= most_apart
    head = model.get_buffer("head.codes").int() - file["text_linear.weight"].int()
    assert int(head.abs().max()) <= most_apart
    scale, largest = model.get_buffer("head.scale") * 127, file["text_linear.weight_scb"]
    rounding = 2**-23 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(scale, largest, rtol=rounding, atol=0)


@pytest.mark.parametrize("hidden", [172, 171, 336, 337])
def test_any_mlp_survives_the_way_to_the_reference_and_back(hidden: int) -> None:
    config = moshi.tiny()
    config = replace(
        config,
        temporal=replace(config.temporal, mlp_hidden=hidden),
        depth=replace(config.depth, mlp_hidden=hidden),
    )
    assert moshi_config(reference_config(config)) == config


def test_logits_of_a_published_layout_equal_the_reference(tmp_path: Path) -> None:
    reference = pytest.importorskip("moshi.models.loaders")
    torch.manual_seed(0)
    config = ReferenceConfig.from_json(tiny_keys(16))
    state = calm_state(config)
    folder = save(tmp_path / "published", fused(state), tiny_keys(16))
    keys = {key: value for key, value in config.to_json().items() if key not in config.other}
    theirs = reference.get_moshi_lm(None, keys, device="cpu", dtype=torch.float32)
    theirs.load_state_dict(state)
    model = load_moshi(folder, dtype=torch.float32)
    given = codes(model.config)
    rows = torch.cat([given["text"][:, None], *(given[s.name].mT for s in model.audio)], 1)
    with torch.no_grad():
        expected, ours = theirs(rows), dict(model(model.lay_out(given)))
    text = expected.text_logits[:, 0]
    torch.testing.assert_close(ours["text"], text, rtol=1e-5, atol=1e-5)
    # Theirs stand at the content's time: the acoustic ones a frame before they come.
    audio = torch.cat([ours[s.name] for s in model.predicted if s.delay_ticks == 0], 2)
    semantic = expected.logits[:, [0, 8]].transpose(1, 2)
    torch.testing.assert_close(audio, semantic, rtol=1e-5, atol=1e-5)


def test_fewer_codebooks_are_exact_and_more_are_copies(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = calm_state(ReferenceConfig.from_json(tiny_keys(16)))
    folder = save(tmp_path / "both", fused(state), tiny_keys(16))
    both = load_moshi(folder, dtype=torch.float32)
    agent = load_moshi(folder, dtype=torch.float32, num_predicted=8)
    assert [s.name for s in agent.predicted] == ["agent_semantic", "agent_acoustic"]
    found, expected = scores(agent), scores(both)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)
    save_moshi(agent, tmp_path / "agent")
    assert load_moshi(tmp_path / "agent", num_predicted=16).config.num_predicted == 16


def test_a_config_can_be_adapted_to_another_program(tmp_path: Path) -> None:
    state = calm_state(ReferenceConfig.from_json(tiny_keys(16)))
    folder = save(tmp_path / "both", fused(state), tiny_keys(16))
    plain = load_moshi(folder, dtype=torch.float32)
    adapted = load_moshi(folder, dtype=torch.float32, adapt=personaplex_window)
    assert adapted.config == personaplex_window(plain.config)
    assert adapted.config.temporal.window == plain.config.temporal.window - 1
    for name, weight in plain.state_dict().items():
        assert torch.equal(adapted.state_dict()[name], weight)


def test_other_delays_become_other_streams() -> None:
    keys = tiny_keys(8, delays=[0, 0, 1, 1, 2, 2, 2, 2, 2, *[0] * 8])
    streams = moshi_config(ReferenceConfig.from_json(keys)).audio
    assert [(s.name, s.depth, s.delay_ticks) for s in streams] == [
        ("agent_semantic", 1, 0),
        ("agent_acoustic_1", 2, 1),
        ("agent_acoustic_2", 5, 2),
        ("user_semantic", 1, 0),
        ("user_acoustic", 7, 0),
    ]


@pytest.mark.parametrize(
    ("key", "value"), [("norm", "layer_norm"), ("kv_repeat", 2), ("bias_proj", True)]
)
def test_other_models_of_the_family_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"needs `{key}` = .*got {value!r}"):
        ReferenceConfig.from_json(tiny_keys(8, **{key: value}))
