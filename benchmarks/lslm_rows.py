"""Training rows and trials of LSLM, made once for many models: on the device there are no voices.

    python benchmarks/lslm_rows.py pack --sounds FOLDER --out PACK
    python benchmarks/lslm_rows.py make --pack PACK --out ROWS --rows 98304 --trials 500

`pack` needs the voices: it writes the codes of all phrases, and the sounds that are heard, to a few
small files. `make` needs only them. It writes rows as they are trained on, each both with what is
heard and as it is said in silence to its end, held-out rows, and the trials of
`bench_interruptions.py` without those that have an echo.
"""

import argparse
import json
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from bench_interruptions import CONDITIONS, LONGEST_S, Case, both, number_of
from torch import Tensor

from counterpoint.data.making.heard_scene import HeardScene
from counterpoint.data.making.interrupted import InterruptedSpeech, Items, PreparedUtterances
from counterpoint.data.making.order_wordings import Split
from counterpoint.data.making.sounds import (
    RATE,
    Interrupter,
    Sounds,
    SoundsConfig,
    load_sounds,
)
from counterpoint.data.making.spoken_phrases import (
    Phrase,
    SynthesisedPhrases,
    write_phrases,
)
from counterpoint.data.source import ALONE, Preparation
from counterpoint.digests import file_digest
from counterpoint.errors import UserError
from counterpoint.formats import open_codec
from counterpoint.recipes.begun import keep_or_check_begun
from counterpoint.speech.voices import Synthesizer
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems import lslm, sketch

NUM_PHRASES = 2000
PHRASES = "phrases.json"
NUM_TICKS = 96  # one row in ten is longer if nobody interrupts: its end is cut off
SPLITS: tuple[Split, ...] = ("train", "tuning", "held_out")
KINDS: tuple[Interrupter, ...] = ("command", "voice")
GAP = RATE // 10
MOST_SOUNDS = 400  # of a kind and split: every second, third, ... is kept
COMPRESSION = {"interruptions": 0.9, "backchannels": 0.9, "noises": 0.95}  # 31 and 18.5 kbit/s
SILENCE = HeardScene(None, None, None, 0.0, 0.0)
SHARD = 512
HELD_OUT_ROWS = 256


def speech(**changes: Any) -> InterruptedSpeech:
    """The utterances of all runs."""
    return replace(InterruptedSpeech(num_phrases=NUM_PHRASES), **changes)


# Packing


def pack(
    sounds: Path, out: Path, kinds: Sequence[Interrupter], num_phrases: int = NUM_PHRASES
) -> None:
    """Write phrases, their tokeniser and sounds of all splits to a folder."""
    out.mkdir(parents=True, exist_ok=True)
    data = speech(num_phrases=num_phrases)
    for old in (*out.glob("*.model"), *out.glob(PHRASES)):
        old.unlink()
    speaker = Synthesizer(data.cache_folder)
    codec = open_codec(data.codec, 4)
    book = SynthesisedPhrases(codec, speaker, data.voice)
    texts = [text for split in SPLITS for text in data.phrases(split)]
    write_phrases(out / "phrases.safetensors", spoken(book, texts), codec)
    prepared = data.prepare(sketch(lslm.small()), Preparation(held_out_only=True))
    shutil.copy(prepared.tokenizer_path, out)
    found: dict[str, dict[str, list[int]]] = {}
    for kind in kinds:
        for split in SPLITS:
            config = SoundsConfig(folder=str(sounds), interrupter=kind)
            own = load_sounds(config, split, speaker)
            parts = own._asdict() if kind == "command" else {"interruptions": own.interruptions}
            for name, some in parts.items():
                some = some[:: -(-len(some) // MOST_SOUNDS)]
                key = f"{kind}-{split}-{name}"
                found[key] = {"sizes": _write(out / f"{key}.opus", some, COMPRESSION[name])}
                print(key, len(some), (out / f"{key}.opus").stat().st_size)
    (out / "sounds.json").write_text(json.dumps(found))
    (out / PHRASES).write_text(json.dumps({"num_phrases": num_phrases}))


def spoken(book: SynthesisedPhrases, texts: Sequence[str]) -> Iterator[Phrase]:
    """Speak phrases, and show how far it is."""
    begin = time.perf_counter()
    for done, text in enumerate(texts, 1):
        yield book.phrase(text)
        if done % 500 == 0:
            left_s = (time.perf_counter() - begin) / done * (len(texts) - done)
            print(f"{done} of {len(texts)} phrases, {left_s:.0f} s left", flush=True)


def num_phrases_of(folder: Path) -> int:
    """Return the number of training phrases of a packed folder."""
    about = folder / PHRASES
    return int(json.loads(about.read_text())["num_phrases"]) if about.exists() else NUM_PHRASES


def _write(path: Path, sounds: Sequence[Tensor], compression: float) -> list[int]:
    """Write sounds one after another to one file; return their numbers of samples."""
    level = 0.5 / max(float(sound.abs().max()) for sound in sounds)
    whole = torch.cat([F.pad(sound * level, (0, GAP)) for sound in sounds])
    with soundfile.SoundFile(
        path, "w", RATE, 1, format="OGG", subtype="OPUS", compression_level=compression
    ) as file:
        file.write(whole.numpy())
    return [len(sound) for sound in sounds]


def digests_of(folder: Path) -> dict[str, str]:
    """Return the digests of the files of a packed folder."""
    return {file.name: file_digest(file) for file in sorted(folder.iterdir()) if file.is_file()}


def unpack(folder: Path, out: Path, kind: Interrupter) -> None:
    """Write the sounds of a kind as a folder that `load_sounds` reads."""
    sizes = json.loads((folder / "sounds.json").read_text())
    lists: dict[str, list[dict[str, Any]]] = {"wake": [], "noise": [], "backchannels": []}
    for split in SPLITS:
        for name, where in zip(Sounds._fields, ("wake", "backchannels", "noise"), strict=True):
            key = f"{kind if where == 'wake' else 'command'}-{split}-{name}"
            audio, _ = soundfile.read(folder / f"{key}.opus", dtype="float32")
            first = 0
            for number, size in enumerate(sizes[key]["sizes"]):
                path = f"{where}/{split}-{number}.wav"
                (out / where).mkdir(parents=True, exist_ok=True)
                soundfile.write(out / path, audio[first : first + size], RATE, "FLOAT")
                line = {"path": path, "split": split, "trimmed": True, "word": "alexa"}
                lists[where].append(line)
                first += size + GAP
    for where, lines in lists.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (out / f"{where}.jsonl").write_text(text)


def unpacked(
    folder: Path,
    out: Path,
    kind: Interrupter,
    how: Preparation = ALONE,
    spliced: float = 0.0,
) -> PreparedUtterances:
    """The data of a packed folder, ready to be made; `UserError` if `out` is of another one."""
    sounds = out / f"sounds-{kind}"
    record = out / "pack.json"
    is_known = record.exists()  # otherwise the sounds may be of any pack
    keep_or_check_begun(record, {"files": digests_of(folder)}, "pack")
    if not is_known or not (sounds / "backchannels.jsonl").exists():
        unpack(folder, sounds, kind)
    cache = out / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.model"):
        shutil.copy(path, cache)
    # The recordings of each split are named by the list, so every word there is a keyword.
    data = speech(
        phrases_file=str(folder / "phrases.safetensors"),
        sounds=SoundsConfig(folder=str(sounds)),
        cache_folder=str(cache),
        spliced=spliced,
        num_phrases=num_phrases_of(folder),
    )
    return data.prepare(sketch(lslm.small()), how)


# Making


def row_tensors(
    prepared: PreparedUtterances, items: Items, numbers: Sequence[int]
) -> dict[str, Any]:
    """Rows as a model reads them, of one length; those in silence have the prefix ``silent/``."""
    found: dict[str, Any] = {}
    for prefix in ("", "silent/"):
        contents = []
        for number in numbers:
            said = items.utterance(number)
            scene = SILENCE if prefix else items.scene(number, prepared.seconds(said))
            contents.append(prepared.content(said, scene))
        batch = prepared.batch(contents)
        for field in ("ticks", "targets", "elements"):
            for name, x in getattr(batch, field).items():
                if prefix and name == "heard":
                    continue
                empty = UNSET_ID if field == "targets" else 0
                own = x[:, :NUM_TICKS]
                missing = NUM_TICKS - own.shape[1]
                own = F.pad(own, (*[0, 0] * (own.ndim - 2), 0, missing), value=empty)
                dtype = np.float16 if own.is_floating_point() else np.int16
                found[f"{prefix}{field}/{name}"] = own.numpy().astype(dtype)
    return found


def trial_tensors(prepared: PreparedUtterances, case: Case) -> dict[str, Any]:
    """A trial with features of what is heard."""
    features = prepared.mels.encode(case.row.heard[None].clamp(-1, 1))[0]
    text = case.row.prompt["text"]
    return {
        "text": text[0].short(),
        "heard": features[: round(LONGEST_S * prepared.codec.frame_rate_hz)].half(),
        "seed": case.row.seed,
        "onset_s": case.trial.onset_s,
        "duration_s": case.trial.duration_s,
        "words": case.text,
        "planned": case.planned.short(),
    }


def trial_cases(
    prepared: PreparedUtterances, count: int
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Functions that make the trials without echo: the tuning trials first."""
    for number, name in enumerate(("clean", "noisy", "backchannel")):
        heard = CONDITIONS[name]
        tuning = prepared.items("tuning")
        yield "tuning", partial(both, prepared, tuning, 1000 * number, max(count // 8, 1), heard)
    for number, (name, heard) in enumerate(CONDITIONS.items()):
        if not heard.echo:
            own = number_of(name, count) if name != "backchannel" else count
            held_out = prepared.items("held_out")
            yield name, partial(both, prepared, held_out, 10_000 * number, own, heard)


class Maker:
    """Makes shards of rows into one file; every process has the same sounds and phrases."""

    def __init__(self, prepared: PreparedUtterances, out: Path, num_rows: int) -> None:
        self.prepared = prepared
        self.out = out
        self.num_rows = num_rows

    def open(self, name: str, like: np.ndarray[Any, Any], mode: Any) -> Any:
        """The file of one tensor of all rows."""
        path = self.out / f"{name.replace('/', '.')}.npy"
        shape = (self.num_rows, *like.shape[1:])
        return np.lib.format.open_memmap(path, mode, like.dtype, shape)

    def create(self) -> None:
        """Make the files with nothing in them."""
        for name, like in row_tensors(self.prepared, self.prepared.items("train"), [0]).items():
            self.open(name, like, "w+")

    def shard(self, first: int) -> int:
        """Make some rows."""
        torch.set_num_threads(1)
        numbers = range(first, min(first + SHARD, self.num_rows))
        items = self.prepared.items("train")
        for name, rows in row_tensors(self.prepared, items, numbers).items():
            file = np.lib.format.open_memmap(self.out / f"{name.replace('/', '.')}.npy", "r+")
            file[numbers.start : numbers.stop] = rows
        return len(numbers)


def make(options: argparse.Namespace) -> None:
    """Make rows and trials with all cores."""
    begin = time.perf_counter()
    torch.set_num_threads(1)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    prepared = unpacked(options.pack, out, options.kind, spliced=options.spliced)
    for split in SPLITS:
        prepared.items(split).utterance(0)
    print(f"unpacked after {time.perf_counter() - begin:.1f} s: {prepared.describe()}", flush=True)
    maker = Maker(prepared, out, options.rows)
    maker.create()
    context = multiprocessing.get_context("fork")
    with context.Pool(options.processes, _share, (maker, options.trials)) as pool:
        trials = pool.map_async(_trials, range(len(list(trial_cases(prepared, options.trials)))), 1)
        done = sum(pool.imap_unordered(_shard, range(0, options.rows, SHARD)))
        made = trials.get()
    held_out = row_tensors(prepared, prepared.items("held_out"), range(HELD_OUT_ROWS))
    torch.save(held_out, out / "held_out.pt")
    for file in (prepared.tokenizer_path, *options.pack.glob(PHRASES)):
        shutil.copy(file, out)  # for the runs that are saved
    torch.save([trial for some in made for trial in some], out / "trials.pt")
    (out / "done").touch()
    print(f"{done} rows after {time.perf_counter() - begin:.1f} s", flush=True)


_shared: list[Any] = []


def _share(*some: Any) -> None:
    _shared[:] = some


def _shard(first: int) -> int:
    return int(_shared[0].shard(first))


def _trials(number: int) -> list[tuple[str, dict[str, Any]]]:
    maker, count = _shared
    torch.set_num_threads(1)
    name, cases = list(trial_cases(maker.prepared, count))[number]
    return [(name, trial_tensors(maker.prepared, case)) for case in cases()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    packing = verbs.add_parser("pack")
    packing.add_argument("--sounds", type=Path, required=True, help="folder of recordings")
    packing.add_argument("--kinds", nargs="+", default=["command"], choices=KINDS)
    packing.add_argument("--phrases", type=int, default=NUM_PHRASES, help="to learn from")
    packing.add_argument("--out", type=Path, required=True)
    making = verbs.add_parser("make")
    making.add_argument("--pack", type=Path, required=True)
    making.add_argument("--kind", default="command", choices=KINDS)
    making.add_argument("--spliced", type=float, default=0.0, help="share of spliced phrases")
    making.add_argument("--rows", type=int, default=98_304)
    making.add_argument("--trials", type=int, default=500, help="of each half of a condition")
    making.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    making.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.verb == "pack":
        pack(options.sounds, options.out, options.kinds, options.phrases)
    else:
        make(options)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
