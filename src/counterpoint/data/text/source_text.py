"""Text sources as one word of a command line, such as ``folder:texts``."""

import dataclasses
import re
from collections.abc import Mapping

from counterpoint.data.text.corpus import Folder, HubDataset, Jsonl, Kjv, Parquet, Source
from counterpoint.errors import UserError, nearest

_SOURCES: Mapping[str, type[Source]] = {
    "kjv": Kjv,
    "folder": Folder,
    "jsonl": Jsonl,
    "parquet": Parquet,
    "hub": HubDataset,
}


def parse_source(text: str) -> Source:
    """Parse a source from ``kind:place,field=value``; the place is the kind's first field.

    Raises:
        UserError: The kind or a field is unknown, or a field is missing.
    """
    kind, _, rest = text.partition(":")
    if kind not in _SOURCES:
        raise UserError(
            f"A source must begin with one of {', '.join(_SOURCES)}: got {kind!r}. "
            f"{nearest(kind, _SOURCES)}"
        )
    names = [field.name for field in dataclasses.fields(_SOURCES[kind])]
    words = re.split(r",(?=\w+=)", rest) if rest else []
    values = {}
    for i, word in enumerate(words):
        name, _, value = (names[0], "=", word) if i == 0 and names else word.partition("=")
        if name not in names:
            raise UserError(
                f"The source {kind!r} has the fields {', '.join(names) or 'none'}: got {name!r}."
            )
        values[name] = value
    if names and not values.get(names[0]):
        raise UserError(
            f"The source {kind!r} needs its {names[0]}: write {kind}:{names[0].upper()}."
        )
    return _SOURCES[kind](**values)


def write_source(source: Source) -> str:
    """Return the text from which `parse_source` makes the source."""
    kind = next(name for name, cls in _SOURCES.items() if type(source) is cls)
    place, *others = dataclasses.fields(source) or (None,)
    if place is None:
        return kind
    changed = [
        f",{field.name}={getattr(source, field.name)}"
        for field in others
        if getattr(source, field.name) != field.default
    ]
    return f"{kind}:{getattr(source, place.name)}{''.join(changed)}"
