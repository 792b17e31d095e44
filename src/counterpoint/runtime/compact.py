"""Checkpoints for inference: small weights, the files that they need beside them, and nothing else.

Such a folder can be moved, uploaded, or put into a package. Whoever loads it finds a checkpoint
like any other, and fine-tuning can begin with it. Training cannot go on from it, because the state
of the optimiser is left out.
"""

import shutil
from dataclasses import replace
from pathlib import Path

from counterpoint.config_json import encode
from counterpoint.data.speech.rows import SpeechData
from counterpoint.data.text.corpus import DataConfig
from counterpoint.errors import UserError
from counterpoint.files import whole_folder, write_json, write_tensors
from counterpoint.runtime.load import SAMPLING, file_beside, find_checkpoint, load_run
from counterpoint.train.checkpoint import load_weights
from counterpoint.train.manifest import MANIFEST, WEIGHTS, Counters, make_manifest, read_manifest
from counterpoint.train.run import Run
from counterpoint.train.tensor_files import Stored, compacted


def export_checkpoint(path: Path, folder: Path, weights: Stored = "bfloat16") -> None:
    """Write a checkpoint for inference, with the files that it needs beside it.

    Args:
        path: A checkpoint, or a run folder with one.
        folder: A new or empty folder.
        weights: How the weights are stored; see `counterpoint.train.tensor_files.compacted`.

    Raises:
        UserError: There is no checkpoint, it is damaged, or its tokeniser is missing.
        OSError: The folder cannot be written, or is not empty.
    """
    path = find_checkpoint(path)
    manifest = read_manifest(path)
    run, tokenizer = _with_tokenizer_beside(load_run(path))
    # Adapters are merged into what `load_weights` gives.
    run = replace(run, train=replace(run.train, fine_tune=None))
    small = compacted(load_weights(path), weights)
    beside = [file for file in (tokenizer, file_beside(path, SAMPLING)) if file is not None]
    with whole_folder(folder) as partial:
        write_tensors(partial / WEIGHTS, small)
        for file in beside:
            shutil.copyfile(file, partial / file.name)
        written = make_manifest(
            partial,
            manifest["system"],
            manifest["config"],
            Counters(**manifest["counters"]),
            num_processes=1,
            extra={"train": encode(run.train), "run": encode(run)},
        )
        write_json(partial / MANIFEST, written)


def _with_tokenizer_beside(run: Run) -> tuple[Run, Path | None]:
    """A run whose tokeniser lies beside its checkpoint, and the file to put there, if it is one."""
    if not isinstance(run.data, DataConfig | SpeechData) or run.data.tokenizer == "bytes":
        return run, None
    file = Path(run.data.tokenizer)
    if not file.is_file():
        raise UserError(
            f"The tokeniser must be there to be exported with the model: {file} is not. Copy it "
            "into the folder of the checkpoint."
        )
    return replace(run, data=replace(run.data, tokenizer=file.name)), file
