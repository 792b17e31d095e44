"""Folders of models on the Hugging Face hub, through `huggingface_hub`.

Its plain functions are used instead of its mixin, because the mixin would be a base class of every
system and would make the package a dependency of the core.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from counterpoint.errors import UserError
from counterpoint.files import write_text
from counterpoint.packages import optional_module

PREFIX = "hub:"
"""Beginning of the name of a model on the hub: "hub:owner/name" or "hub:owner/name@revision"."""

_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.md", "*.flac", "*.pt")


def is_on_hub(name: str | Path) -> bool:
    """Return whether a name refers to a model on the hub."""
    return str(name).startswith(PREFIX)


def download(name: str | Path) -> Path:
    """Return the folder of a model, from the local cache of `huggingface_hub` or from the hub.

    Args:
        name: Name of the model; see `PREFIX`.

    Raises:
        UserError: There is no such model, or there is no network and no copy in the cache.
        MissingPackageError: `huggingface-hub` is not installed.
    """
    plain, _, revision = str(name).removeprefix(PREFIX).partition("@")
    with _hub(plain) as hub:
        folder = hub.snapshot_download(
            plain, revision=revision or None, allow_patterns=list(_FILES)
        )
        return Path(folder)


def upload(write: Callable[[Path], None], name: str, card: str, *, private: bool) -> str:
    """Write a temporary folder and upload it.

    Args:
        write: Writes the folder, which does not exist before.
        name: The repository, "owner/name", with or without `PREFIX`; it is created if needed.
        card: Text of its README.md.
        private: Whether a new repository is visible to its owner alone.

    Returns:
        Address of the commit.

    Raises:
        UserError: The hub refuses the upload.
        MissingPackageError: `huggingface-hub` is not installed.
    """
    plain = name.removeprefix(PREFIX)
    with _hub(plain) as hub, TemporaryDirectory() as place:
        folder = Path(place) / "model"
        write(folder)
        write_text(folder / "README.md", card)
        api = hub.HfApi()
        api.create_repo(plain, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=plain, folder_path=folder, commit_message="Upload a model of Counterpoint"
        )
        return str(commit.commit_url)


@contextmanager
def _hub(name: str) -> Iterator[Any]:
    """Give the package; errors of the hub become a `UserError` of one line."""
    hub = optional_module("huggingface_hub")
    try:
        yield hub
    except UserError:
        raise
    except Exception as error:  # the hub, its client and the network raise many classes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"The hub must have {name!r} and allow access to it: {reason}. Check the name, the "
            "network and `hf auth login`."
        ) from error
