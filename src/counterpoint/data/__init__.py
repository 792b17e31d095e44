"""Data for training: text as token shards and packed rows; spoken dialogues as streams.

A text corpus passes through these modules: `documents` reads it, `tokenizer` turns it into ids,
`shards` stores the ids on disk, `packing` cuts them into rows, `loader` orders the rows. `corpus`
has the config of all these steps.
"""
