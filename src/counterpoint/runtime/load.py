"""Loading a model with its codec and tokeniser: every verb, example and notebook uses `load`."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from counterpoint.blocks.quantized import store_int8
from counterpoint.config_json import decode
from counterpoint.data.source import DataSource, KeepsFiles
from counterpoint.data.speech.opening import PUBLISHED_SIZES, Fillers
from counterpoint.data.speech.rows import SpeechData, codec_of
from counterpoint.data.speech.words import open_tokenizer
from counterpoint.data.text.corpus import DataConfig
from counterpoint.data.text.published import open_published
from counterpoint.data.text.tokenizer import (
    Tokenizer,
    load_tokenizer,
    text_pieces,
)
from counterpoint.errors import UserError
from counterpoint.files import read_json
from counterpoint.formats import PublishedModel, find_format
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.generate import generate
from counterpoint.runtime.hub import PREFIX, download, is_on_hub
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.shipped import find_shipped, model_name
from counterpoint.runtime.talk import Talker
from counterpoint.streams.spec import Layout
from counterpoint.systems.contract import System, SystemConfig
from counterpoint.train.checkpoint import MANIFEST, load_system, read_manifest, resolve
from counterpoint.train.distributed import pick_device
from counterpoint.train.run import Run

WeightType = Literal["float32", "bfloat16", "int8"]
"""Type in which the weights of a loaded model are stored."""

_TYPES: dict[WeightType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.bfloat16,
}

SAMPLING = "sampling.json"
"""Name of the file next to a model that holds its preferred sampling of speech."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model, ready for inference, with what converts text and sound to its ids.

    Attributes:
        path: Its checkpoint, or its folder of published files.
        system: The model, in evaluation mode.
        run: The run that trained it; ``None`` for a published model or one that was saved alone.
        published: What came with a published model; ``None`` for other models.
        in_int8: Whether the matrices of the talker are stored in 8 bits.
    """

    path: Path
    system: System
    run: Run | None = None
    published: PublishedModel | None = None
    in_int8: bool = False

    @property
    def is_speech(self) -> bool:
        """Whether the model hears and speaks."""
        return self.system.layout.tick_hz is not None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokeniser of a text model.

        Raises:
            UserError: It is a speech model, or its tokeniser has another number of ids.
        """
        if self.is_speech:
            raise UserError(
                f"{self.name} must be a model of text: it is a {type(self.system).__name__}, which "
                "hears and speaks. Use `counterpoint talk`."
            )
        if self.published is not None:
            return open_published(self.published)
        return check_vocabulary(self.system.layout, self.trained_by.text_data.tokenizer)

    def write(
        self,
        prompt: str,
        sampling: Sampling | None = None,
        num_ticks: int = 256,
        *,
        whole_from: str | None = None,
    ) -> Iterator[str]:
        """Continue a text, piece by piece.

        Args:
            prompt: The text to continue; an empty one starts a new text.
            sampling: How ids are chosen.
            num_ticks: Largest number of ids to write.
            whole_from: Another text, at least as long as the prompt, under whose whole the prompt
                is continued.

        Yields:
            Pieces of text, such as the characters of one id.

        Raises:
            UserError: See `tokenizer` and `counterpoint.generate`.
        """
        tokenizer = self.tokenizer
        before = [tokenizer.start_id, *tokenizer.encode(prompt).tolist()]
        other = None
        if whole_from is not None:
            other = [tokenizer.start_id, *tokenizer.encode(whole_from).tolist()]
        written = generate(
            self.system, before, sampling, num_ticks, end_id=tokenizer.end_id, whole_from=other
        )
        return text_pieces(tokenizer, written, before)

    @property
    def name(self) -> str:
        """What a reader calls the model: its path, or its name if it comes with the package."""
        return model_name(self.path)

    @cached_property
    def talker(self) -> Talker:
        """The model trimmed to the agent, with its codec and its tokeniser.

        Raises:
            UserError: The model does not talk, or its codec or tokeniser cannot be used.
        """
        if not self.is_speech:
            raise UserError(
                f"{self.name} must hold a system that talks, trained on speech: got "
                f"{type(self.system).__name__}, trained on text. For text use "
                "`counterpoint generate`."
            )
        system = self.system.agent_alone()
        if self.in_int8:
            store_int8(system)  # it must follow trimming
        data = self._speech_data
        tokenizer = open_tokenizer(data.tokenizer)
        codec = codec_of(system, data.codec, system.device)
        # The known codes of silence and of a hum belong to the published Mimi.
        known = self.published is not None and codec.codebook_sizes == PUBLISHED_SIZES
        fillers = Fillers() if known else None
        return Talker(system=system, codec=codec, tokenizer=tokenizer, fillers=fillers)

    def measured_on(self, recordings: str = "") -> DataSource:
        """Return the data on which the model is measured.

        Args:
            recordings: A list of recordings, as `SpeechData.held_out`, for a model that learned
                from recordings. By default what its run held out; a published model has nothing.

        Raises:
            UserError: Recordings are given for a model that learns from other data, the model has
                no run, or the tokeniser of a text model has another number of ids.
        """
        speaks = self.is_speech and self.published is not None
        data = self._speech_data if speaks else self.trained_by.data
        if isinstance(data, SpeechData):
            return replace(data, held_out=recordings) if recordings else data
        if recordings:
            raise UserError(
                "`--recordings` is for a model that learned from recordings: "
                f"{self.name} learned from {type(data).__name__}. Leave it out."
            )
        if isinstance(data, DataConfig):
            _ = self.tokenizer  # check that it fits the model
        return data

    @property
    def _speech_data(self) -> SpeechData:
        """Codec and tokeniser of a speech model, and the data of its run if it has one."""
        if self.published is None:
            return self.trained_by.speech_data
        codec = str(self.published.codec)
        return SpeechData(train="", codec=codec, tokenizer=str(self.published.tokenizer))

    @property
    def sampling(self) -> FrameSampling:
        """The sampling that was chosen for the model; by default that of the published Moshi.

        Raises:
            UserError: The file of the sampling cannot be read.
        """
        return self.chosen_sampling or FrameSampling()

    @property
    def chosen_sampling(self) -> FrameSampling | None:
        """The sampling in the file beside the model; ``None`` if there is none.

        Raises:
            UserError: The file cannot be read.
        """
        file = file_beside(self.path, SAMPLING)
        if file is None:
            return None
        chosen: FrameSampling = decode(FrameSampling, read_json(file), str(file))
        return chosen

    @property
    def trained_by(self) -> Run:
        """The run of a checkpoint.

        Raises:
            UserError: The model is a published one, or was saved without its run.
        """
        if self.run is None:
            what = "a model alone" if self.published is None else "a published model"
            raise UserError(f"{self.name} must be a checkpoint of a run: it is {what}.")
        return self.run


def load(
    path: str | Path,
    device: torch.device | str = "cpu",
    *,
    dtype: WeightType | None = None,
    adapters: Path | None = None,
) -> Loaded:
    """Load a checkpoint, the newest good checkpoint of a run folder, or a published model.

    Args:
        path: The checkpoint, the run folder, or a folder or file of published weights. It may also
            be the name of a model that comes with the package, or of one on the Hugging Face hub:
            "hub:owner/name".
        device: Device on which the model computes.
        dtype: Type of the weights. The default is float32 for our own runs, and the published type
            for published models. ``"int8"`` stores the matrices of a model that talks in 8 bits,
            and everything else in bfloat16.
        adapters: A folder or file of adapters for a published model; they are merged.

    Returns:
        The model with its codec and tokeniser.

    Raises:
        UserError: There is no such model, it cannot be used, torch cannot use the device, or
            ``dtype`` is none of the types above.
    """
    if dtype is not None and dtype not in _TYPES:
        raise UserError(
            f"`dtype` must be None or one of {', '.join(_TYPES)}: got {dtype!r}. Weights "
            "in bfloat16 take the same memory as in float16."
        )
    path = find_shipped(download(path) if is_on_hub(path) else Path(path))
    kept_in = None if dtype is None else _TYPES[dtype]
    device = pick_device(str(device))
    found = None if is_ours(path) else find_format(path)
    if found is not None:
        published = found.open(path)
        # Quick checks come before gigabytes are read.
        check_tokenizer(published)
        system = published.load(dtype=kept_in, adapters=adapters)
        return Loaded(
            path=path,
            system=system.to(device).eval(),
            published=published,
            in_int8=dtype == "int8",
        )
    if adapters is not None:
        raise UserError(
            f"Adapters can be used with a published model only: {path} is none, and a run of ours "
            "has its own adapters. Name the folder of the model for which they were trained."
        )
    path = find_checkpoint(path)
    run = load_run(path) if "run" in read_manifest(path) else None
    system = load_system(path).to(device, kept_in)
    return Loaded(path=path, system=system, run=run, in_int8=dtype == "int8")


def from_pretrained(
    name: str | Path,
    device: torch.device | str = "cpu",
    *,
    revision: str | None = None,
    dtype: WeightType | None = None,
) -> Loaded:
    """Load a model from the Hugging Face hub or from a folder, as `load` does.

    Args:
        name: "owner/name" on the hub, or a folder.
        device: Device on which the model computes.
        revision: Branch, tag or commit on the hub.
        dtype: Type of the weights; see `load`.

    Returns:
        The model with its codec and tokeniser.

    Raises:
        UserError: See `load`.
        MissingPackageError: `huggingface-hub` is not installed.
    """
    if Path(name).exists() or find_shipped(Path(name)) != Path(name):
        return load(name, device, dtype=dtype)
    return load(f"{PREFIX}{name}{f'@{revision}' if revision else ''}", device, dtype=dtype)


def shape_of(path: Path) -> Run | SystemConfig:
    """Return the run of a checkpoint, or the config of a published model, without its weights.

    Raises:
        UserError: There is no such model, or it cannot be used.
    """
    path = download(path) if is_on_hub(path) else path
    known = None if is_ours(find_shipped(path)) else find_format(path)
    if known is not None:
        return known.open(path).shape()
    return load_run(find_checkpoint(path))


def check_vocabulary(layout: Layout, name: str) -> Tokenizer:
    """Return the tokeniser of a text model, after a check that both have the same ids.

    Raises:
        UserError: The tokeniser cannot be used, or has another number of ids.
    """
    tokenizer = load_tokenizer(name)
    vocab_size = layout.text_part.vocab_size
    if vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"`system.vocab_size` must be that of the tokeniser {name!r}, "
            f"{tokenizer.vocab_size}: got {vocab_size}. Change one of them."
        )
    return tokenizer


def check_tokenizer(published: PublishedModel) -> None:
    """Refuse a published model whose tokeniser cannot be opened.

    Raises:
        UserError: The tokeniser cannot be opened.
    """
    if published.codec is None:
        open_published(published)
    else:
        open_tokenizer(str(published.tokenizer))


def is_ours(path: Path) -> bool:
    """Return whether a path is a checkpoint of this library, or a folder with checkpoints."""
    return (path / MANIFEST).exists() or (path / "checkpoints").exists()


def find_checkpoint(path: Path, note: Callable[[str], None] | None = None) -> Path:
    """Return the checkpoint that a user names.

    Args:
        path: A checkpoint, or a run folder, whose newest good checkpoint is returned. It may also
            be the name of a model that comes with the package.
        note: Function that is told about damaged newer checkpoints; by default they are reported
            on stderr.

    Raises:
        UserError: There is no checkpoint; a study folder has one for each arm.
    """
    path = find_shipped(path)
    arms = [str(arm.parent) for arm in sorted(path.glob("*/checkpoints"))]
    if arms and not (path / "checkpoints").exists():
        raise UserError(f"{path} must be one run: it is a study. Name one of {', '.join(arms)}.")
    return resolve(path, note or _tell)


def load_run(path: Path) -> Run:
    """Return the run that wrote a checkpoint.

    Raises:
        UserError: The checkpoint was written without its run, or by a version with other fields.
    """
    saved = read_manifest(path).get("run")
    if saved is None:
        raise UserError(
            f"{path} must hold the run that trained it: it holds none. "
            "Train with `counterpoint train`, or give `run` to `train`."
        )
    try:
        run: Run = decode(Run, saved, "run")
    except UserError as error:
        raise UserError(
            f"{path} must hold a run that this version can read: {error} Use the version that "
            "wrote it, or train again."
        ) from None
    return replace(run, data=with_kept_files(run.data, path))


def with_kept_files(data: DataSource, path: Path) -> DataSource:
    """Return the same data with the files that a checkpoint or a run has kept in its folder.

    Args:
        data: Data of the run.
        path: The checkpoint, or the folder of the run.
    """
    if not isinstance(data, KeepsFiles):
        return data
    files = {key: file_beside(path, name) for key, name in data.file_names().items()}
    names = {key: str(file.absolute()) for key, file in files.items() if file is not None}
    kept: DataSource = data.with_files(names)
    return kept


def file_beside(path: Path, name: str) -> Path | None:
    """Return a file in the folder of a checkpoint or of its run; ``None`` if there is none."""
    folders = [path, path.parent.parent] if path.parent.name == "checkpoints" else [path]
    found = (folder / name for folder in folders if name == Path(name).name)
    return next((file for file in found if file.is_file()), None)


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
