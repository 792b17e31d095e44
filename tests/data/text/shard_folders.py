"""Folders of token shards, for tests that read them."""

from collections.abc import Iterable
from pathlib import Path

from counterpoint.data.text.documents import Document, UnitKind
from counterpoint.data.text.shards import SHARD_TOKENS, ShardWriter, TokenShards
from counterpoint.data.text.tokenizer import Tokenizer


def write_shards(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    folder: str | Path,
    shard_tokens: int = SHARD_TOKENS,
    unit: UnitKind = "section",
) -> TokenShards:
    """Write the units of all documents into a new folder."""
    with ShardWriter(folder, tokenizer, shard_tokens) as writer:
        for document in documents:
            for heading, text in document.units(unit):
                writer.add(text, document.title, heading)
    return TokenShards(folder)
