"""Rows of .parquet files, read one at a time, whatever the size of the files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from counterpoint.data.text.found import existing_file, files_below
from counterpoint.errors import UserError
from counterpoint.packages import optional_module

_BATCH_ROWS = 16
_BUFFER_BYTES = 64 * 1024


def parquet_files(path: str | Path) -> list[Path]:
    """Return the file itself, or the .parquet files below a folder, sorted; at least one.

    Raises:
        UserError: There is none.
    """
    return files_below(path, (".parquet",)) if Path(path).is_dir() else [existing_file(path)]


def parquet_rows(
    path: str | Path, needed: Sequence[str], wanted: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a .parquet file, or of all .parquet files below a folder.

    Args:
        path: The file or folder.
        needed: Columns that every file must have.
        wanted: Columns that are read if a file has them.

    Yields:
        The place of the row for errors, such as "a.parquet, row 3", and its values by column.

    Raises:
        UserError: `pyarrow` is missing, there is no such file, a column is missing, or the file is
            damaged.
    """
    parquet = optional_module("pyarrow.parquet")
    for file in parquet_files(path):
        try:
            # A row group is read while its rows are asked for: not in advance (`pre_buffer`), and
            # not a whole column at once (`buffer_size`, in bytes).
            source = parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        except Exception as error:  # pyarrow has many error classes
            raise UserError(f"{file} must be a parquet file: {_reason(error)}") from error
        with source:
            names = source.schema_arrow.names
            for name in needed:
                if name not in names:
                    raise UserError(f"{file} must have the column {name!r}: it has {names}.")
            columns = [*needed, *(name for name in wanted if name in names)]
            yield from _rows(source, columns, file)


def _rows(source: Any, columns: Sequence[str], file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    batches = source.iter_batches(batch_size=_BATCH_ROWS, columns=columns)
    while True:
        try:
            batch = next(batches, None)
            rows = [] if batch is None else batch.to_pylist()
        except UnicodeDecodeError as error:
            raise UserError(
                f"Text must be UTF-8: {file} has the byte 0x{error.object[error.start]:02x} in one "
                f"of the rows from {number + 1} on. Convert it, or leave the file out."
            ) from None
        except Exception as error:
            raise UserError(
                f"{file} must be a complete parquet file: reading rows from {number + 1} on failed "
                f"with {_reason(error)}. Fetch it again, or leave it out."
            ) from error
        if batch is None:
            return
        for row in rows:
            number += 1
            yield f"{file}, row {number}", row


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
