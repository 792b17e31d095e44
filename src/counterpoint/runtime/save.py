"""Saving a model with its codec and tokeniser, so that `load` restores it."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from counterpoint.config_json import encode
from counterpoint.data.source import KeepsFiles
from counterpoint.data.speech.rows import SpeechData
from counterpoint.data.text.published import ALONE, write_tokenizer
from counterpoint.errors import UserError
from counterpoint.files import whole_folder, write_json, write_tensors
from counterpoint.formats import FORMATS, Companions, Format, find_format
from counterpoint.runtime.hub import upload
from counterpoint.runtime.load import SAMPLING, Loaded, file_beside, is_ours
from counterpoint.systems.contract import System
from counterpoint.train.manifest import MANIFEST, WEIGHTS, Counters, make_manifest
from counterpoint.train.run import Run

SavedForm = Literal["counterpoint", "published"]
"""Kind of files: a checkpoint of this library, or the published format of the model's family."""


def save(
    model: Loaded | System,
    folder: str | Path,
    *,
    form: SavedForm | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Write a model with codec, tokeniser and settings to a new folder, which can be moved.

    The current weights of the model are written in their current type. `load` reads the folder.
    Training cannot be resumed from it, but another run can begin with it.

    Args:
        model: A result of `load`, or a system alone, which has no tokeniser and no run.
        folder: A new or empty folder.
        form: Kind of files; by default the one that was loaded, and "counterpoint" for a system
            alone.
        shard_bytes: Largest size of a file of published weights; by default that of its family.

    Raises:
        UserError: The folder cannot be written, a file of the codec or tokeniser is missing, there
            is no published format for the model, or ``form`` is unknown.
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
            f"{folder} must be a new folder on a disk with free space: {reason}. Choose another."
        ) from None


def push_to_hub(
    model: Loaded | System,
    name: str,
    *,
    form: SavedForm | None = None,
    card: str = "",
    private: bool = True,
) -> str:
    """Upload a model to the Hugging Face hub, in the form that `save` writes.

    Args:
        model: See `save`.
        name: Name of the repository, "owner/name"; it is created if needed.
        form: See `save`.
        card: Text of its README.md; by default a short one that says how the model is loaded.
        private: Whether a new repository is visible to its owner alone.

    Returns:
        Address of the commit.

    Raises:
        UserError: See `save`; or the hub refuses the upload.
        MissingPackageError: `huggingface-hub` is not installed.
    """
    system = model.system if isinstance(model, Loaded) else model
    text = card or _card(system, name)
    return upload(lambda folder: save(model, folder, form=form), name, text, private=private)


def save_published(
    system: System, folder: Path, companions: Companions, shard_bytes: int | None = None
) -> None:
    """Write a system in the format in which models of its class are published.

    Args:
        system: The system.
        folder: Folder of the files.
        companions: Files and settings that belong to the model beside its weights.
        shard_bytes: Largest size of a file of weights, where the format has several; ``None`` means
            its default.

    Raises:
        UserError: There is no such format, or the folder cannot be written.
    """
    writer = _format_of(system).save
    assert writer is not None
    writer(system, folder, companions, shard_bytes)


def companions_of(loaded: Loaded) -> Companions:
    """Return the files that belong to a model: those published with it, or those of its run.

    If the run began with a published model, the settings of that model are included as long as its
    folder still exists.

    Raises:
        UserError: A file is missing.
    """
    if loaded.published is not None:
        return loaded.published.companions()
    if loaded.run is None or not isinstance(loaded.run.data, SpeechData):
        return Companions()
    files = loaded.run.data.find_files()
    return Companions(
        codec=files.get("codec"),
        tokenizer=files.get("tokenizer"),
        settings=_settings_of_base(loaded.run),
    )


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
            f"Only a {' or a '.join(writable)} has a published format: got a "
            f'{name}. Give the form "counterpoint" (`--form counterpoint`).'
        )
    return writable[name]


def _save_own(system: System, folder: Path, loaded: Loaded | None) -> None:
    """Write a checkpoint of this library without the state of the optimizer."""
    run = None if loaded is None else loaded.run
    beside: dict[str, Path] = {}
    if run is not None and loaded is not None:
        run, beside = with_files_beside(run)
        run = replace(run, train=replace(run.train, fine_tune=None))  # adapters are merged
        sampling = file_beside(loaded.path, SAMPLING)
        beside |= {} if sampling is None else {sampling.name: sampling}
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
    beside: Mapping[str, Path] | None = None,
) -> None:
    """Write a checkpoint for inference, together with the files that it needs.

    Args:
        folder: A new or empty folder.
        system: Name of the class.
        config: Its config, encoded.
        weights: Weights in the form in which they are stored.
        run: Run that trained the model, if there is one.
        counters: Counters of that run.
        beside: Files that are copied into the folder, by their names there; see
            `with_files_beside`.

    Raises:
        OSError: The folder cannot be written, or is not empty.
    """
    extra = {} if run is None else {"train": encode(run.train), "run": encode(run)}
    with whole_folder(folder) as partial:
        write_tensors(partial / WEIGHTS, weights)
        for name, file in (beside or {}).items():
            if name.endswith(ALONE) and not file.name.endswith(ALONE):
                write_tokenizer(file, partial / name)
            else:
                shutil.copyfile(file, partial / name)
        written = make_manifest(
            partial, system, config, counters or Counters(), num_processes=1, extra=extra
        )
        write_json(partial / MANIFEST, written)


def with_files_beside(run: Run) -> tuple[Run, dict[str, Path]]:
    """Return a run that refers to copies of its tokeniser and codec, and the files to copy.

    The files have the names of their copies; see `names_beside`.

    Raises:
        UserError: One of the files is missing.
    """
    if not isinstance(run.data, KeepsFiles):
        return run, {}
    files = run.data.find_files()
    names = names_beside(files)
    beside = {names[key]: file for key, file in files.items()}
    return replace(run, data=run.data.with_files(names)), beside


def names_beside(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the names that copies of the files of a data source have beside a model.

    Of a published model that is named as tokeniser, only the tokeniser is copied.

    Args:
        files: The files; see `KeepsFiles.find_files`.
    """
    names = {key: file.name for key, file in files.items()}
    if "tokenizer" in files and find_format(files["tokenizer"]) is not None:
        names["tokenizer"] += ALONE
    return names


def _card(system: System, name: str) -> str:
    """Return a short README.md for a model."""
    num_parameters = sum(parameter.numel() for parameter in system.parameters())
    return (
        f"---\nlibrary_name: counterpoint\n---\n# {name}\n\n"
        f"A `{type(system).__name__}` of Counterpoint with {num_parameters:,} parameters.\n\n"
        f'```python\nimport counterpoint\n\nmodel = counterpoint.load("hub:{name}")\n```\n'
    )
