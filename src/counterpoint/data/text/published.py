"""Tokenisers of published text models."""

from pathlib import Path

from counterpoint.data.text.tokenizer import (
    HuggingFaceTokenizer,
    ModelIds,
    Tokenizer,
    load_tokenizer,
)
from counterpoint.formats import PublishedModel, find_format


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


def tokenizer_of(name: str) -> Tokenizer:
    """Return the tokeniser of a published model, or of what `load_tokenizer` knows.

    Args:
        name: Folder or file of the model; or "bytes", or the file of a tokeniser.

    Raises:
        UserError: It cannot be used.
    """
    path = Path(name).expanduser()
    known = None if name == "bytes" else find_format(path)
    return load_tokenizer(name) if known is None else open_published(known.open(path))
