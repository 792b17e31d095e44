"""Voices: read without running anything, kept as safetensors."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from counterpoint.formats.moshi.checkpoint import moshi_config
from counterpoint.formats.moshi.config import ReferenceConfig
from counterpoint.formats.moshi.voice import VoicePrompt, read_voice, write_voice
from tests.systems.tiny_moshi_weights import tiny_keys

CONFIG = moshi_config(ReferenceConfig.from_json(tiny_keys(16)))


def tensors(frames: int = 5) -> dict[str, Tensor]:
    """What NVIDIA's loader saves: bfloat16 embeddings, and a ring with unwritten entries."""
    cache = torch.randint(-2, 13, (1, 17, 4))
    cache[0, 0, 0], cache[0, 1:, 0], cache[0, :, 3] = 20, 12, -2
    return {"embeddings": torch.randn(frames, 1, 1, 16).bfloat16(), "cache": cache}


def same(voice: VoicePrompt, expected: dict[str, Tensor]) -> bool:
    return (
        torch.equal(voice.embeddings, expected["embeddings"])
        and torch.equal(voice.cache, expected["cache"])
        and voice.embeddings.dtype == expected["embeddings"].dtype
    )


@pytest.mark.parametrize("new_format", [True, False])
def test_upstream_voices_are_read_and_kept_as_safetensors(tmp_path: Path, new_format: bool) -> None:
    expected = tensors()
    torch.save(expected, tmp_path / "v.pt", _use_new_zipfile_serialization=new_format)
    voice = read_voice(tmp_path / "v.pt", CONFIG)
    assert same(voice, expected)
    write_voice(voice, CONFIG, tmp_path / "v.safetensors")
    assert same(read_voice(tmp_path / "v.safetensors", CONFIG), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.pt", "v.safetensors"]


def test_voices_are_written_as_the_published_loader_reads_them(tmp_path: Path) -> None:
    """It says `torch.load(path)`, takes two names, and feeds row after row to a bfloat16 model."""
    expected = tensors()
    expected["embeddings"] = expected["embeddings"].float()
    write_voice(VoicePrompt(**expected), CONFIG, tmp_path / "v.pt")
    held = torch.load(tmp_path / "v.pt", weights_only=True)
    assert [*held] == ["embeddings", "cache"]
    assert held["embeddings"].dtype == torch.bfloat16
    assert all(row.shape == (1, 1, CONFIG.temporal.width) for row in held["embeddings"])
    ring = torch.empty_like(expected["cache"])
    assert torch.equal(ring.copy_(held["cache"]), expected["cache"])
    assert held["cache"].dtype == torch.int64
    torch.testing.assert_close(
        held["embeddings"].float(), expected["embeddings"], rtol=0.01, atol=0
    )
    again = read_voice(tmp_path / "v.pt", CONFIG)
    assert torch.equal(again.cache, expected["cache"])
    assert [path.name for path in tmp_path.iterdir()] == ["v.pt"]


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_format: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    held = {**tensors(), "code": Hostile()}
    torch.save(held, tmp_path / "v.pt", _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match="must be a complete file of plain tensors") as problem:
        read_voice(tmp_path / "v.pt", CONFIG)
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02N.", None])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes | None, suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    if content is None:
        torch.save(tensors(), path) if suffix == ".pt" else save_file(tensors(), path)
        content = path.read_bytes()[:-40]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="plain tensors|'embeddings' and 'cache'") as problem:
        read_voice(path, CONFIG)
    assert "\n" not in str(problem.value)
    with pytest.raises(ValueError, match="must be readable"):
        read_voice(tmp_path / f"absent{suffix}", CONFIG)


def with_id(row: int, value: int) -> Tensor:
    cache = tensors()["cache"]
    cache[0, row, 2] = value
    return cache


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": torch.zeros(5, 1, 1, 15)}, r"must have the shapes .*\(5, 1, 1, 16\)"),
        ({"embeddings": torch.zeros(5, 16)}, "must have the shapes"),
        ({"embeddings": torch.zeros(0, 1, 1, 16)}, "must have the shapes"),
        ({"embeddings": torch.full((5, 1, 1, 16), torch.nan)}, "must be finite floats"),
        ({"embeddings": torch.zeros(5, 1, 1, 16, dtype=torch.int64)}, "must be finite floats"),
        (
            {"embeddings": torch.zeros(5, 1, 1, 16).to_sparse()},
            "must hold plain tensors: .embeddings. is not dense",
        ),
        ({"embeddings": "text"}, "must hold plain tensors: .embeddings. is a str"),
        ({"cache": torch.zeros(1, 9, 4, dtype=torch.int64)}, r"must have the shapes"),
        ({"cache": torch.zeros(1, 17, 3, dtype=torch.int64)}, r"must have the shapes"),
        ({"cache": torch.zeros(1, 17, 4)}, "must hold int64 ids"),
        ({"cache": with_id(0, 21)}, "must hold int64 ids"),
        ({"cache": with_id(16, 13)}, "must hold int64 ids"),
        ({"cache": with_id(3, -3)}, "must hold int64 ids"),
        ({"spare": torch.zeros(1)}, "must hold 'embeddings' and 'cache': got"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch 2.11
def test_a_voice_of_another_model_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    torch.save(tensors() | change, tmp_path / "v.pt")
    with pytest.raises(ValueError, match=message) as problem:
        read_voice(tmp_path / "v.pt", CONFIG)
    assert "\n" not in str(problem.value)


def test_only_fitting_voices_are_written(tmp_path: Path) -> None:
    voice = VoicePrompt(embeddings=torch.zeros(5, 1, 1, 8), cache=tensors()["cache"])
    with pytest.raises(ValueError, match="the voice must have the shapes"):
        write_voice(voice, CONFIG, tmp_path / "v.safetensors")
    with pytest.raises(ValueError, match="must be writable"):
        write_voice(VoicePrompt(**tensors()), CONFIG, tmp_path / "absent" / "v.safetensors")
    assert not list(tmp_path.iterdir())
