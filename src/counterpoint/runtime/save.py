"""Write a model with what belongs to it, so that `load` finds it again as it was."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from counterpoint.config_json import encode
from counterpoint.data.speech.rows import SpeechData
from counterpoint.data.text.corpus import DataConfig
from counterpoint.errors import UserError
from counterpoint.files import whole_folder, write_json, write_tensors
from counterpoint.formats import FORMATS, Companions, Format, find_format
from counterpoint.runtime.hub import upload
from counterpoint.runtime.load import SAMPLING, Loaded, file_beside, is_ours
from counterpoint.systems.contract import System
from counterpoint.train.manifest import MANIFEST, WEIGHTS, Counters, make_manifest
from counterpoint.train.run import Run

SavedForm = Literal["counterpoint", "published"]
"""Whose files are written: a checkpoint of this library, or those of the model's family."""


def save(
    model: Loaded | System,
    folder: str | Path,
    *,
    form: SavedForm | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Write a model to a new folder, with codec, tokeniser and settings, so that it can be moved.

    The weights are those that the model has now, in their type. `load` reads the folder; training
    cannot go on from it, but another run can begin with it.

    Args:
        model: What `load` gave, or a system alone, which has no tokeniser and no run.
        folder: A new or empty folder.
        form: By default the one in which it was loaded; of a system alone "counterpoint".
        shard_bytes: Most bytes of a file of published weights; by default as its family does.

    Raises:
        UserError: Nothing can be written, a file of the codec or tokeniser is gone, there is no
            published form of the model, or no form of this name.
    """
    loaded = model if isinstance(model, Loaded) else None
    system = model.system if isinstance(model, Loaded) else model
    if form is None:
        form = "published" if loaded is not None and loaded.published else "counterpoint"
    if form not in get_args(SavedForm):
        raise UserError(
            f"`form` must be None or one of {', '.join(get_args(SavedForm))}: got {form!r}."
        )
    try:
        if form == "published":
            companions = Companions() if loaded is None else companions_of(loaded)
            save_published(system, Path(folder), companions, shard_bytes)
        else:
            _save_own(system, Path(folder), loaded)
    except OSError as problem:
        reason = problem.strerror or problem
        raise UserError(
            f"{folder} must be a new folder on a disk with room: {reason}. Choose another."
        ) from None


def push_to_hub(
    model: Loaded | System,
    name: str,
    *,
    form: SavedForm | None = None,
    card: str = "",
    private: bool = True,
) -> str:
    """Upload a model to the Hugging Face hub, as `save` writes it.

    Args:
        model: As `save`.
        name: Name of the repository, "owner/name"; it is made if there is none.
        form: As `save`.
        card: Text of its README.md; by default one that says what it is and how it is loaded.
        private: Whether a new repository is seen by its owner alone.

    Returns:
        Address of what was uploaded.

    Raises:
        UserError: As `save`; or the hub refuses.
        MissingPackageError: `huggingface-hub` is not installed.
    """
    system = model.system if isinstance(model, Loaded) else model
    text = card or _card(system, name)
    return upload(lambda folder: save(model, folder, form=form), name, text, private=private)


def save_published(
    system: System, folder: Path, companions: Companions, shard_bytes: int | None = None
) -> None:
    """Write a system in the format in which models of its class are published.

    Raises:
        UserError: There is none, or nothing can be written.
    """
    writer = _format_of(system).save
    assert writer is not None
    writer(system, folder, companions, shard_bytes)


def companions_of(loaded: Loaded) -> Companions:
    """What belongs to a model: what it was published with, or codec and tokeniser of its run.

    A run that began with a published model has the settings of that model, where it still lies.

    Raises:
        UserError: A file is gone.
    """
    if loaded.published is not None:
        return loaded.published.companions()
    if loaded.run is None or not isinstance(loaded.run.data, SpeechData):
        return Companions()
    data = loaded.run.data
    return Companions(
        codec=_existing(data.codec),
        tokenizer=_existing(data.tokenizer),
        settings=_settings_of_base(loaded.run),
    )


def _existing(name: str) -> Path | None:
    """The file of a codec or tokeniser; ``None`` where it is built in."""
    if name in ("codec2", "bytes"):
        return None
    file = Path(name).expanduser()
    if not file.is_file():
        raise UserError(
            f"Codec and tokeniser of a run must still be where they were: {file} is missing. "
            "Put it back."
        )
    return file


def _settings_of_base(run: Run) -> dict[str, Any]:
    begun_with = None if run.train.fine_tune is None else run.train.fine_tune.init_from
    path = None if not begun_with else Path(begun_with).expanduser()
    if path is None or not path.exists() or is_ours(path):
        return {}
    known = find_format(path)
    return {} if known is None else dict(known.open(path).settings)


def _format_of(system: System) -> Format:
    name = type(system).__name__
    writable = {known.system: known for known in FORMATS.values() if known.save}
    if name not in writable:
        raise UserError(
            f"A model must be a {' or a '.join(writable)} to be written as it is published: got a "
            f'{name}, which no published format holds. Write it as "counterpoint".'
        )
    return writable[name]


def _save_own(system: System, folder: Path, loaded: Loaded | None) -> None:
    """Write a checkpoint of this library without the state of an optimiser."""
    run = None if loaded is None else loaded.run
    beside: list[Path] = []
    if run is not None and loaded is not None:
        run, beside = with_files_beside(run)
        run = replace(run, train=replace(run.train, fine_tune=None))  # adapters were merged
        sampling = file_beside(loaded.path, SAMPLING)
        beside += [] if sampling is None else [sampling]
    write_checkpoint(
        folder,
        type(system).__name__,
        encode(system.config),
        system.state_dict(),
        run,
        beside=beside,
    )


def write_checkpoint(
    folder: Path,
    system: str,
    config: Any,
    weights: dict[str, torch.Tensor],
    run: Run | None,
    *,
    counters: Counters | None = None,
    beside: list[Path] | None = None,
) -> None:
    """Write a checkpoint for inference, with the files that it needs beside it.

    Args:
        folder: A new or empty folder.
        system: Name of the class.
        config: Its config, encoded.
        weights: As they are stored.
        run: What it was trained by, if anything.
        counters: What the run had done.
        beside: Files that are copied.

    Raises:
        OSError: The folder cannot be written, or is not empty.
    """
    extra = {} if run is None else {"train": encode(run.train), "run": encode(run)}
    with whole_folder(folder) as partial:
        write_tensors(partial / WEIGHTS, weights)
        for file in beside or ():
            shutil.copyfile(file, partial / file.name)
        written = make_manifest(
            partial, system, config, counters or Counters(), num_processes=1, extra=extra
        )
        write_json(partial / MANIFEST, written)


def with_files_beside(run: Run) -> tuple[Run, list[Path]]:
    """A run whose tokeniser and codec lie beside its checkpoint, and those that are files.

    Raises:
        UserError: One of these is gone.
    """
    if not isinstance(run.data, DataConfig | SpeechData):
        return run, []
    names = {"tokenizer": run.data.tokenizer}
    if isinstance(run.data, SpeechData):
        names["codec"] = run.data.codec
    existing = {field: _existing(name) for field, name in names.items()}
    files = {field: file for field, file in existing.items() if file is not None}
    beside: dict[str, Any] = {field: file.name for field, file in files.items()}
    return replace(run, data=replace(run.data, **beside)), [*files.values()]


def _card(system: System, name: str) -> str:
    """A short README.md of a model."""
    num_parameters = sum(parameter.numel() for parameter in system.parameters())
    return (
        f"---\nlibrary_name: counterpoint\n---\n# {name}\n\n"
        f"A `{type(system).__name__}` of Counterpoint with {num_parameters:,} parameters.\n\n"
        f'```python\nimport counterpoint\n\nmodel = counterpoint.load("hub:{name}")\n```\n'
    )
