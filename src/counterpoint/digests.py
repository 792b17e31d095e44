"""Digests: whether a file or a JSON value is still what was written."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DIGEST = "digest"
"""Key of a sealed object that holds the digest of its other keys."""


def file_digest(path: Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal digits.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys and the blanks between them."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """An object with the digest of itself under `DIGEST`, as it will be when it is read back."""
    plain = json.loads(json.dumps({key: content[key] for key in content if key != DIGEST}))
    return {**plain, DIGEST: json_digest(plain)}


def is_intact(content: Mapping[str, Any]) -> bool:
    """Whether an object that was read is the one that was sealed."""
    plain = {key: value for key, value in content.items() if key != DIGEST}
    return content.get(DIGEST) == json_digest(plain)
