"""The verb ``export``: write a run as a folder that the programs of its family can read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from counterpoint.errors import UserError
from counterpoint.recipes.overrides import parse_options
from counterpoint.runtime.compact import export_checkpoint
from counterpoint.runtime.export import export_adapters, export_model, has_adapters
from counterpoint.runtime.load import find_checkpoint
from counterpoint.train.tensor_files import Stored

_HELP = """Write a run as a folder that the programs of its family can read.

With `--merge` the folder is a whole model with its codec and its tokeniser. Without it, only the
adapters of a run are written, to be used with the model for which they were trained:
`counterpoint talk MODEL --lora FOLDER`.

`--form counterpoint` writes a small checkpoint of this library instead, for any system: without the
state of its optimiser, but with its codec and its tokeniser.

Example: counterpoint export runs/finetune_moshi --merge --out my_moshi
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """Options of ``export``.

    Attributes:
        checkpoint: A checkpoint or a run folder.
        out: A new or empty folder.
        merge: Merge adapters into the weights, and write a whole model.
        dtype: Type of the weights of a whole model; int8 needs `--form counterpoint`.
        form: Kind of files: those of the model's family, or a checkpoint of this library.
    """

    checkpoint: tyro.conf.Positional[Path]
    out: Path
    merge: bool = False
    dtype: Stored = "bfloat16"
    form: Literal["published", "counterpoint"] = "published"


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words after it."""
    options = parse_options(ExportOptions, arguments, "export", _HELP)
    path = find_checkpoint(options.checkpoint)
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UserError(f"`--out` must be a new or empty folder: {options.out} is not.")
    if options.form == "counterpoint":
        export_checkpoint(path, options.out, options.dtype)
    elif options.dtype == "int8":
        raise UserError("`--dtype int8` needs `--form counterpoint`: no other form has it.")
    elif options.merge or not has_adapters(path):
        dtype = torch.float32 if options.dtype == "float32" else torch.bfloat16
        export_model(path, options.out, dtype)
    else:
        export_adapters(path, options.out)
    for file in sorted(options.out.iterdir()):
        print(f"{file}  {file.stat().st_size / 1e6:,.1f} MB")
    return 0
