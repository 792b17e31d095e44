"""Digests, which show whether a file or a JSON value has changed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its own digest under `DIGEST`, as it will be when read back."""
    plain = json.loads(json.dumps({key: content[key] for key in content if key != DIGEST}))
    return {**plain, DIGEST: json_digest(plain)}


def is_intact(content: Mapping[str, Any]) -> bool:
    """Return whether an object still equals the one that was sealed."""
    plain = {key: value for key, value in content.items() if key != DIGEST}
    return content.get(DIGEST) == json_digest(plain)
