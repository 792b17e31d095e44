"""Text for training: tokenisers, documents, token shards, packing and order.

The way of a corpus: `documents` reads it, `tokenizer` turns it into ids, `shards` keeps the ids on
disk, `packing` cuts them into rows, `loader` orders the rows, `config` states all of it.
"""
