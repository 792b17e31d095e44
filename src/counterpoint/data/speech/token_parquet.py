"""Dialogues that have been tokenised already: ids of both speakers in .parquet files."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from counterpoint.data.listed import ReadSequence
from counterpoint.data.speech.dialogues import Example
from counterpoint.data.text.parquet import parquet_files, parquet_rows
from counterpoint.errors import UserError
from counterpoint.streams.spec import UNSET_ID, Layout, Role


def is_token_parquet(path: str | Path) -> bool:
    """Return whether a path names a .parquet file or a folder; an empty path names neither."""
    return Path(path).suffix == ".parquet" or (bool(str(path)) and Path(path).is_dir())


class TokenExamples(ReadSequence[Example]):
    """The examples of `read_token_parquet`, held in memory with four bytes an id.

    Args:
        path: A .parquet file, or a folder of them; speaker A is the agent.
        chunk_frames: Number of frames in an example.
        layout: Layout of the model that reads them.

    Attributes:
        digest: Digest of the files.

    Raises:
        UserError: A row has a wrong form, or an id is outside the model's vocabulary.
    """

    def __init__(self, path: str | Path, chunk_frames: int, layout: Layout) -> None:
        self._examples = list[Example]()
        for example in read_token_parquet(path, chunk_frames):
            _check_ids(example, layout)
            small = {name: ids.int() for name, ids in example.streams.items()}
            self._examples.append(replace(example, streams=small))
        digest = hashlib.sha256()
        for file in parquet_files(path):
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        self.digest = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, index: int) -> Example:
        """Return example ``index``."""
        example = self._examples[index]
        return replace(example, streams={name: ids.long() for name, ids in example.streams.items()})


def _check_ids(example: Example, layout: Layout) -> None:
    sizes = {"text": torch.tensor(layout.text.vocab_size or 0)}
    for role, name in ((Role.SPOKEN, "agent"), (Role.HEARD, "user")):
        own = [size for stream in layout.by_role(role) for size in stream.sizes]
        sizes[name] = torch.tensor(own)
        if (found := example.streams[name].shape[1]) != len(own):
            raise UserError(
                f"{example.source}: the {name} must have the model's {len(own)} codebooks: got "
                f"{found}."
            )
    for name, ids in example.streams.items():
        if ((ids < UNSET_ID) | (ids >= sizes[name])).any():
            raise UserError(
                f"{example.source}: ids of the {name} must be {UNSET_ID} (unset) to "
                f"{int(sizes[name].max()) - 1}: got {int(ids.min())} to {int(ids.max())}."
            )


def read_token_parquet(path: str | Path, chunk_frames: int, agent: str = "A") -> Iterator[Example]:
    """Yield examples of tokenised dialogues in the form of `nu-dialogue/moshi-finetune`.

    A row has ``dialogue_id`` and, for each of the speakers ``A`` and ``B``, a list of K + 1 lists
    of T ids: text, then each codebook. Either speaker can be the agent; the other's text is left
    out.

    Args:
        path: A .parquet file, or a folder of them.
        chunk_frames: Number of frames in an example; the last one of a dialogue may be shorter.
        agent: Speaker who is the agent, "A" or "B".

    Raises:
        UserError: `pyarrow` is missing, there is no such file or speaker, or a row has a wrong
            form.
    """
    if agent not in ("A", "B"):
        raise UserError(f"`agent` must be A or B: got {agent!r}.")
    if chunk_frames < 1:
        raise UserError(f"`chunk_frames` must be >= 1, got {chunk_frames}.")
    user = "B" if agent == "A" else "A"
    for place, row in parquet_rows(path, ("dialogue_id", "A", "B")):
        name = str(row["dialogue_id"])
        sides = {side: _token_rows(row[side], f"{place}, {name!r}") for side in "AB"}
        if sides["A"].shape != sides["B"].shape:
            shapes = [tuple(side.shape) for side in sides.values()]
            raise UserError(f"{place}, {name!r}: A and B must have equal shapes: got {shapes}.")
        streams = {
            "text": sides[agent][0],
            "agent": sides[agent][1:].T,
            "user": sides[user][1:].T,
        }
        yield from _cut(name, streams, chunk_frames)


def _cut(
    source: str, streams: Mapping[str, Int[Tensor, "T ..."]], chunk_frames: int
) -> Iterator[Example]:
    for first in range(0, len(streams["text"]), chunk_frames):
        part = {name: ids[first : first + chunk_frames] for name, ids in streams.items()}
        yield Example(source=source, first_frame=first, streams=part)


def _token_rows(rows: Any, place: str) -> Int[Tensor, "K T"]:
    try:
        ids = torch.tensor(rows)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{place} must be lists of equally many ids ({reason}).") from error
    if ids.ndim != 2 or len(ids) < 2 or ids.dtype != torch.long:
        raise UserError(
            f"{place} must have lists of ids, text and at least one codebook: got shape "
            f"{tuple(ids.shape)}."
        )
    return ids
