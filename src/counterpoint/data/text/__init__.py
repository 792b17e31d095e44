"""Text: documents, tokenisers, shards, packed rows, corpora."""
