"""Data for training: text as documents, token shards and packed rows; spoken dialogues as streams.

The way of a corpus: `documents` reads it, `tokenizer` turns it into ids, `shards` keeps the ids on
disk, `packing` cuts them into rows, `loader` orders the rows, `config` states all of it.
"""
