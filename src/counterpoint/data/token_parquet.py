"""Dialogues that are tokenised already: ids of both speakers in .parquet files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from counterpoint.data.dialogues import Example
from counterpoint.data.documents import parquet_files


def read_token_parquet(path: str | Path, chunk_frames: int, agent: str = "A") -> Iterator[Example]:
    """Examples of tokenised dialogues in the form of `nu-dialogue/moshi-finetune`.

    A row has ``dialogue_id`` and, for the speakers ``A`` and ``B``, a list of K + 1 lists of T ids:
    text, then each codebook. Either can be the agent; the other one's text is left out.

    Args:
        path: A .parquet file, or a folder of them.
        chunk_frames: Frames in an example; the last one of a dialogue has what remains.
        agent: Which speaker, "A" or "B".

    Raises:
        ValueError: `pyarrow` is missing, no such file or speaker, or a row is not what it must be.
    """
    if agent not in ("A", "B"):
        raise ValueError(f"`agent` must be A or B: got {agent!r}.")
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(
            "This corpus needs the package `pyarrow`: pip install 'counterpoint[train]'."
        ) from error
    if chunk_frames < 1:
        raise ValueError(f"`chunk_frames` must be >= 1, got {chunk_frames}.")
    user = "B" if agent == "A" else "A"
    for file in parquet_files(path):
        with parquet.ParquetFile(file) as source:
            if missing := {"dialogue_id", "A", "B"} - set(source.schema_arrow.names):
                raise ValueError(f"{file} must have the columns {sorted(missing)}: it has not.")
            for batch in source.iter_batches(batch_size=16, columns=["dialogue_id", "A", "B"]):
                for row in batch.to_pylist():
                    name = str(row["dialogue_id"])
                    sides = {side: _token_rows(row[side], f"{file}, {name!r}") for side in "AB"}
                    if sides["A"].shape != sides["B"].shape:
                        shapes = [tuple(side.shape) for side in sides.values()]
                        raise ValueError(
                            f"{file}, {name!r}: A and B must have equal shapes: got {shapes}."
                        )
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
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place} must be lists of equally many ids ({error}).") from error
    if ids.ndim != 2 or len(ids) < 2 or ids.dtype != torch.long:
        raise ValueError(
            f"{place} must have lists of ids, text and at least one codebook: got shape "
            f"{tuple(ids.shape)}."
        )
    return ids
