"""Checkpoints that talk: one of ours with Codec2, and a folder like those that were published."""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import MimiConfig, MimiModel

from counterpoint.config_json import encode
from counterpoint.data.speech.rows import SpeechData
from counterpoint.digests import sealed
from counterpoint.formats.moshi.checkpoint import save_moshi
from counterpoint.formats.moshi.published import MIMI_FILE, TEXT_FILE
from counterpoint.speech.codec2 import Codec2
from counterpoint.streams.spec import Role
from counterpoint.systems.moshi import AudioStream, MoshiConfig, two_speakers
from counterpoint.train.checkpoint import Counters, save_checkpoint
from counterpoint.train.config import OptimizerConfig, TrainConfig
from counterpoint.train.distributed import World
from counterpoint.train.optimizer import KindOptimizers
from counterpoint.train.run import Run
from tests.systems.tiny_moshi import build, config

MIMI_IDS = 32


def codec2_config(window: int = 300) -> MoshiConfig:
    sizes = Codec2.codebook_sizes
    streams = tuple(
        AudioStream(name=f"{who}_{kind}", role=role, depth=len(own), delay_ticks=late,
                    codebook_sizes=own)
        for who, role in (("agent", Role.SPOKEN), ("user", Role.HEARD))
        for kind, own, late in (("semantic", sizes[:1], 0), ("acoustic", sizes[1:], 1))
    )  # fmt: skip
    shape = config(streams, 4, text_vocab_size=256, audio_vocab_size=512, tick_hz=25.0)
    return replace(shape, temporal=replace(shape.temporal, window=window))


def write_run(folder: Path) -> Path:
    """A run folder whose model was never trained; gives its checkpoint."""
    torch.manual_seed(0)
    model = build(codec2_config())
    run = Run(
        name="talker",
        system=model.config,
        data=SpeechData(train="nowhere.jsonl"),
        train=TrainConfig(num_steps=1, batch_rows=1),
    )
    optimizers = KindOptimizers(model, OptimizerConfig())
    return save_checkpoint(folder, model, optimizers, Counters(), World(), {"run": encode(run)})


def change_weights(checkpoint: Path, *, drop: str = "", add: str = "") -> None:
    """Take a weight away or put one in, as if the checkpoint had been written so."""
    file = checkpoint / "weights.safetensors"
    weights = load_file(file)
    weights.pop(drop, None)
    if add:
        weights[add] = torch.zeros(1)
    save_file(weights, file)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    content = file.read_bytes()
    manifest["files"][file.name] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (checkpoint / "manifest.json").write_text(json.dumps(sealed(manifest)))


def write_published(folder: Path) -> Path:
    """Model, Mimi and text tokeniser by their published names, all of them tiny and random."""
    torch.manual_seed(0)
    shape = config(two_speakers(7), 16, text_vocab_size=64, audio_vocab_size=MIMI_IDS)
    shape = replace(shape, temporal=replace(shape.temporal, window=300))
    save_moshi(build(shape), folder)
    mimi = MimiModel(MimiConfig(
        hidden_size=128, num_filters=2, num_residual_layers=1, codebook_size=MIMI_IDS,
        codebook_dim=16, vector_quantization_hidden_dimension=16, num_quantizers=8,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=64,
        intermediate_size=96, upsample_groups=128,
    ))  # fmt: skip
    with torch.no_grad():
        for name, value in mimi.state_dict().items():
            if name.endswith("embed_sum"):
                value.normal_()
    save_file(mimi.state_dict(), folder / MIMI_FILE)
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["you are a kind teacher of the sea", "the light wind is warm"] * 9),
        model_writer=written, vocab_size=40, pad_id=3, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    (folder / TEXT_FILE).write_bytes(written.getvalue())
    return folder
