"""What `attack_files.py` damages: good files of every kind, and what a user does with them."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import sentencepiece
import soundfile
import tokenizers
import torch
from pyarrow import parquet
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from counterpoint.data.making.scripts import read_scripts
from counterpoint.data.speech.dialogues import read_dialogues
from counterpoint.data.speech.token_parquet import read_token_parquet
from counterpoint.data.text.corpus import DataConfig, Folder, prepare
from counterpoint.data.text.documents import read_jsonl, read_parquet
from counterpoint.data.text.tokenizer import load_tokenizer
from counterpoint.formats.moshi.checkpoint import load_moshi, save_moshi
from counterpoint.formats.moshi.voice import read_voice
from counterpoint.progress import Progress
from counterpoint.recipes.training import train_run
from counterpoint.speech.audio import read_audio
from counterpoint.systems import moshi, single_stream
from counterpoint.train.checkpoint import checkpoint_paths, load_weights
from counterpoint.train.config import TrainConfig
from counterpoint.train.distributed import World
from counterpoint.train.metrics import read_metrics
from counterpoint.train.run import Run

SOUNDS = {
    "wav": "PCM_16",
    "w64": "PCM_16",
    "aiff": "PCM_16",
    "flac": "PCM_16",
    "ogg": "VORBIS",
    "mp3": None,
}
TEXT = "The quick brown fox, naïve as ever, jumps over 42 lazy dogs. "


@dataclass(frozen=True, kw_only=True)
class Target:
    """Files that are damaged.

    Attributes:
        name: Shown with the figures.
        use: Gives what a user gets of a folder, as JSON.
        good: A folder with whole files.
        files: Those that are damaged, relative to it.
        flips_show: Whether every flipped bit that changes something must be told.
        cuts_show: Whether every cut that changes something must be.
    """

    name: str
    use: Callable[[Path], Any]
    good: Path
    files: list[Path]
    flips_show: bool = True
    cuts_show: bool = True


def targets(root: Path) -> Iterator[Target]:
    """All of them; the good files are made below a folder."""
    yield from _run_targets(root)
    yield from _published_targets(root)
    yield from _speech_targets(root)
    yield from _text_targets(root)


def _digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].double().numpy().tobytes())
    return found.hexdigest()


def _run_targets(root: Path) -> Iterator[Target]:
    texts = root / "texts"
    run_folder = root / "run"
    cache = root / "cache"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number}.txt").write_text(f"Document number {number}. " * number + "é.")
    data = DataConfig(source=Folder(path=str(texts)), row_ticks=64, cache_folder=str(cache))
    train = TrainConfig(
        num_steps=4, batch_rows=2, checkpoint_every=2, evaluate_every=2, precision="float32"
    )
    run = Run(name="attacked", system=single_stream.tiny(), train=train, data=data)
    train_run(run, run_folder, World(), loggers=[], progress=Progress())
    longer = replace(run, train=replace(train, num_steps=6))

    def go_on(folder: Path) -> Any:
        train_run(longer, folder, World(), loggers=[])
        rows = read_metrics(folder / "metrics.jsonl")
        losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
        return _digest(load_weights(folder)), losses[5], losses[6]

    def load(folder: Path) -> str:
        return _digest(load_weights(folder))

    def open_corpus(folder: Path) -> Any:
        found = prepare(replace(data, cache_folder=str(folder)), 1)
        ids = found.train.shards.tokens(np.arange(found.train.shards.num_tokens))
        return ids.tolist(), [unit.title for unit in found.held_out]

    newest = checkpoint_paths(run_folder)[0].relative_to(run_folder)
    manifest = newest / "manifest.json"
    weights = newest / "weights.safetensors"
    moments = newest / "optimizer" / "state.safetensors"
    caches = [file.relative_to(cache) for file in cache.rglob("*") if file.is_file()]
    yield Target(name="manifest, go on", use=go_on, good=run_folder, files=[manifest])
    yield Target(name="tensors, go on", use=go_on, good=run_folder, files=[weights, moments])
    for name in ("metrics.jsonl", "learned.json"):
        yield Target(name=f"{name}, go on", use=go_on, good=run_folder, files=[Path(name)])
    both = [manifest, weights]
    yield Target(name="manifest and weights, load", use=load, good=run_folder, files=both)
    yield Target(name="corpus, prepare", use=open_corpus, good=cache, files=caches)


def _published_targets(root: Path) -> Iterator[Target]:
    config = moshi.tiny()
    save_moshi(moshi.Moshi(config), root / "moshi")

    def load(folder: Path) -> str:
        return _digest(load_moshi(folder, dtype=torch.float32).state_dict())

    for name in ("config.json", "model.safetensors"):
        yield Target(
            name=f"{name} of a published model, load",
            use=load,
            good=root / "moshi",
            files=[Path(name)],
            flips_show=False,
        )
    voices = root / "voices"
    voices.mkdir()
    delays = max(stream.delay_ticks for stream in config.audio)
    voice = {
        "embeddings": torch.randn(5, 1, 1, config.temporal.width),
        "cache": torch.zeros(1, config.num_codebooks + 1, delays + 3, dtype=torch.int64),
    }
    torch.save(voice, voices / "voice.pt")
    yield Target(
        name="voice (.pt), read",
        use=lambda folder: read_voice(folder / "voice.pt", config).embeddings.tolist(),
        good=voices,
        files=[Path("voice.pt")],
        flips_show=False,
    )


def _speech_targets(root: Path) -> Iterator[Target]:
    folder = root / "speech"
    folder.mkdir()
    sound = np.random.default_rng(0).normal(0, 0.1, (8000, 2))
    for kind, subtype in SOUNDS.items():
        name = f"sound.{kind}"
        soundfile.write(folder / name, sound, 8000, subtype=subtype)
        yield Target(
            name=f"sound ({kind}), read",
            use=lambda place, name=name: _digest(  # type: ignore[misc]
                {"sound": read_audio(place / name, 8000, 2)}
            ),
            good=folder,
            files=[Path(name)],
            flips_show=False,
        )
    words = [["Hi", [0.1, 0.4], "SPEAKER_MAIN"], ["you", [0.5, 0.9], "SPEAKER_MAIN"]]
    (folder / "sound.json").write_text(json.dumps({"alignments": words}))
    (folder / "list.jsonl").write_text('{"path": "sound.wav", "duration": 1.0}\n' * 3)
    turns = [{"speaker": "user", "text": "Hello."}, {"speaker": "agent", "text": "Hi."}]
    lines = [json.dumps({"name": f"s{i}", "role": None, "turns": turns}) for i in range(3)]
    (folder / "scripts.jsonl").write_text("\n".join(lines))
    ids = [[[1, 2, 3]] * 3] * 2
    table = {"dialogue_id": ["x/0", "x/1"], "A": ids, "B": ids}
    parquet.write_table(pyarrow.table(table), folder / "codes.parquet")

    def dialogues(place: Path) -> Any:
        return repr(read_dialogues(place / "list.jsonl")).replace(str(place), "")

    def codes(place: Path) -> Any:
        return [
            {name: part.tolist() for name, part in example.streams.items()}
            for example in read_token_parquet(place / "codes.parquet", 2)
        ]

    yield Target(
        name="words and list of recordings, read",
        use=dialogues,
        good=folder,
        files=[Path("sound.json"), Path("list.jsonl")],
        flips_show=False,
        cuts_show=False,  # a list that was cut between two lines is a shorter list
    )
    yield Target(
        name="scripts, read",
        use=lambda place: repr(read_scripts(place / "scripts.jsonl")),
        good=folder,
        files=[Path("scripts.jsonl")],
        flips_show=False,
        cuts_show=False,
    )
    yield Target(
        name="codes (.parquet), read",
        use=codes,
        good=folder,
        files=[Path("codes.parquet")],
        flips_show=False,
    )


def _text_targets(root: Path) -> Iterator[Target]:
    folder = root / "text"
    folder.mkdir()
    rows = [{"title": f"t{i}", "text": TEXT * (i + 1)} for i in range(20)]
    (folder / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    columns = {name: [row[name] for row in rows] for name in ("title", "text")}
    parquet.write_table(pyarrow.table(columns), folder / "a.parquet")
    _write_tokenizers(folder)
    readers: dict[str, Callable[[Path], Any]] = {
        "a.jsonl": lambda place: repr(list(read_jsonl(place / "a.jsonl"))),
        "a.parquet": lambda place: repr(list(read_parquet(place / "a.parquet"))),
        "tokenizer.json": lambda place: _ids(place / "tokenizer.json"),
        "pieces.model": lambda place: _ids(place / "pieces.model"),
    }
    for name, use in readers.items():
        yield Target(
            name=f"text ({name}), read",
            use=use,
            good=folder,
            files=[Path(name)],
            flips_show=False,
            # A list that was cut between two lines is a shorter list, also one of pieces.
            cuts_show=name in ("a.parquet", "tokenizer.json"),
        )


def _ids(path: Path) -> Any:
    tokenizer = load_tokenizer(str(path))
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    return ids.tolist()


def _write_tokenizers(folder: Path) -> None:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator([TEXT] * 9, trainer)
    made.save(str(folder / "tokenizer.json"))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 20),
        model_prefix=str(folder / "pieces"),
        vocab_size=300,
        hard_vocab_limit=False,
        minloglevel=2,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
