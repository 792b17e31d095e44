"""Checkpoints for inference: small weights and the files that they need, and nothing else.

Such a folder can be moved, uploaded, or put into a package. It is loaded like any other checkpoint,
and fine-tuning can begin with it. Training cannot be resumed from it, because the state of the
optimiser is left out.
"""

from dataclasses import replace
from pathlib import Path

from counterpoint.runtime.load import SAMPLING, file_beside, find_checkpoint, load_run
from counterpoint.runtime.save import with_files_beside, write_checkpoint
from counterpoint.train.checkpoint import load_weights
from counterpoint.train.manifest import Counters, read_manifest
from counterpoint.train.tensor_files import Stored, compacted


def export_checkpoint(path: Path, folder: Path, weights: Stored = "bfloat16") -> None:
    """Write a checkpoint for inference, together with the files that it needs.

    Args:
        path: A checkpoint, or a run folder with a checkpoint.
        folder: A new or empty folder.
        weights: How the weights are stored; see `counterpoint.train.tensor_files.compacted`.

    Raises:
        UserError: There is no checkpoint, it is damaged, or its tokeniser or codec is
            missing.
        OSError: The folder cannot be written, or is not empty.
    """
    path = find_checkpoint(path)
    manifest = read_manifest(path)
    run, beside = with_files_beside(load_run(path))
    # `load_weights` has merged the adapters into the weights.
    run = replace(run, train=replace(run.train, fine_tune=None))
    sampling = file_beside(path, SAMPLING)
    beside |= {} if sampling is None else {sampling.name: sampling}
    write_checkpoint(
        folder,
        manifest["system"],
        manifest["config"],
        compacted(load_weights(path), weights),
        run,
        counters=Counters(**manifest["counters"]),
        beside=beside,
    )
