"""Hostile configs and voices: one line, soon, and nothing outside of the folder is read."""

import json
import random
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint.errors import UserError
from counterpoint.formats.moshi.checkpoint import load_moshi, save_moshi
from counterpoint.formats.moshi.voice import read_voice
from counterpoint.systems.moshi import Moshi, tiny


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "good"
    save_moshi(Moshi(tiny()), folder)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, **keys: Any) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | keys))


def refused(folder: Path, words: str = "") -> None:
    begin = time.process_time()
    with pytest.raises(UserError, match=words) as caught:
        load_moshi(folder)
    assert time.process_time() - begin < 2
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_layers", 10**8),
        ("depformer_num_layers", 10**8),
        ("context", 10**8),
        ("dim", 10**12),
        ("hidden_scale", 1e308),
        ("hidden_scale", float("inf")),
        ("hidden_scale", float("nan")),
        ("max_period", float("inf")),
        ("text_card", 10**400),
        ("delays", [10**8] * 17),
        ("delays", [0] * 10**6),
        ("num_heads", 10**6),
        ("n_q", 10**8),
        ("depformer_weights_per_step_schedule", [10**8] * 8),
    ],
)
def test_numbers_out_of_all_range_are_refused(folder: Path, key: str, value: Any) -> None:
    change(folder, **{key: value})
    refused(folder, key)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/../../x", ".."])
@pytest.mark.parametrize("key", ["moshi_name", "lora_name"])
def test_names_stay_in_the_folder(folder: Path, key: str, name: str) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "other.safetensors")
    change(folder, **{key: name, "lora": True})
    refused(folder, "must name files of its own folder")


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"dim": ' + b"9" * 5000 + b"}", b"\xff", b"[]", b""]
)
def test_what_is_no_config_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    refused(folder, r"config\.json")


def test_flipped_bits_of_a_config_never_crash(folder: Path) -> None:
    config = folder / "config.json"
    content, draw = config.read_bytes(), random.Random(0)
    for place in draw.sample(range(len(content)), 100):
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        config.write_bytes(flipped)
        with suppress(UserError):
            load_moshi(folder)


def test_stretched_voice_is_refused(tmp_path: Path) -> None:
    config = tiny()
    row = torch.zeros(1, 1, 1, config.temporal.width)
    held = {"embeddings": row.expand(10_000_000, -1, -1, -1), "cache": torch.zeros(1, 3, 4).long()}
    torch.save(held, tmp_path / "voice.pt")
    begin = time.process_time()
    with pytest.raises(UserError, match="does not have memory of its own"):
        read_voice(tmp_path / "voice.pt", config)
    assert time.process_time() - begin < 2
