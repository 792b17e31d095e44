"""Tokenisers of published text models, with the model or alone."""

from pathlib import Path
from typing import Any

from counterpoint.data.text.tokenizer import (
    HuggingFaceTokenizer,
    ModelIds,
    Tokenizer,
    load_tokenizer,
)
from counterpoint.errors import UserError
from counterpoint.files import read_json, write_json
from counterpoint.formats import PublishedModel, find_format

ALONE = ".tokenizer"
"""End of the name of a file that holds the tokeniser of a published model without the model."""


def open_published(published: PublishedModel) -> Tokenizer:
    """Return the tokeniser of a published text model.

    Raises:
        UserError: It cannot be used.
    """
    if published.text is None:
        return load_tokenizer(str(published.tokenizer))
    text = published.text()
    ids = ModelIds(text.start_id, text.end_id, text.num_ids)
    return HuggingFaceTokenizer(published.tokenizer, ids, text.content)


def write_tokenizer(model: Path, file: Path) -> None:
    """Write the tokeniser of a published text model alone, with the ids that the model uses.

    Args:
        model: Folder or file of the model.
        file: The file, whose name ends with `ALONE`; `tokenizer_of` reads it.

    Raises:
        UserError: It is no published text model.
    """
    known = find_format(model)
    text = None if known is None else known.open(model).text
    if text is None:
        raise UserError(f"{model} must be a published text model to have a tokeniser: it is none.")
    content, *ids = text()
    write_json(file, {"ids": ModelIds(*ids)._asdict(), "tokenizer": content.decode()})


def tokenizer_of(name: str) -> Tokenizer:
    """Return the tokeniser of a published model, or of what `load_tokenizer` knows.

    Args:
        name: Folder or file of the model, or a file of `write_tokenizer`; or "bytes", or the file
            of a tokeniser.

    Raises:
        UserError: It cannot be used.
    """
    path = Path(name).expanduser()
    if path.name.endswith(ALONE):
        kept = _read(path)
        return HuggingFaceTokenizer(path, ModelIds(**kept["ids"]), kept["tokenizer"].encode())
    known = None if name == "bytes" else find_format(path)
    return load_tokenizer(name) if known is None else open_published(known.open(path))


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a file of `write_tokenizer`."""
    try:
        kept = read_json(path)
    except OSError as error:
        raise UserError(
            f"{path} must be the tokeniser of a model: {error.strerror}. Put it back."
        ) from None
    if not (isinstance(kept, dict) and kept.keys() == {"ids", "tokenizer"}):
        raise UserError(
            f"{path} must hold a tokeniser and the ids of its model: it does not. Export it again."
        )
    content: dict[str, Any] = kept
    return content
