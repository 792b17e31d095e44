"""Digests, which show whether a file or a JSON value has changed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

DIGEST = "digest"
"""Key of a sealed object that holds the digest of its other keys."""


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value; the order of keys and blanks do not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def short_digest(content: bytes) -> int:
    """Return a number of 64 bits for a content.

    Different contents have different numbers but for a chance of n² / 2⁶⁵ among n of them, three in
    a million for ten million.
    """
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def ids_digest(ids: Integer[np.ndarray, " n"]) -> int:
    """Return the `short_digest` of ids, whatever their type."""
    return short_digest(ids.astype("<i8").tobytes())


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its own digest under `DIGEST`, as it will be when read back."""
    plain = json.loads(json.dumps({key: content[key] for key in content if key != DIGEST}))
    return {**plain, DIGEST: json_digest(plain)}


def is_intact(content: Mapping[str, Any]) -> bool:
    """Return whether an object still equals the one that was sealed."""
    plain = {key: value for key, value in content.items() if key != DIGEST}
    return content.get(DIGEST) == json_digest(plain)
