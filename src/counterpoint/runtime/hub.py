"""Folders of models on the Hugging Face hub, through `huggingface_hub`.

Its plain functions are used and not its mixin, because the mixin would be a base class of every
system and would bring the package into the core.
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
"""Begins the name of a model on the hub: "hub:owner/name", or "hub:owner/name@revision"."""

_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.md", "*.flac", "*.pt")


def is_on_hub(name: str | Path) -> bool:
    """Whether a name means a model on the hub."""
    return str(name).startswith(PREFIX)


def download(name: str | Path) -> Path:
    """The folder of a model, from the local cache of `huggingface_hub` or from the hub.

    Args:
        name: Its name; see `PREFIX`.

    Raises:
        UserError: There is no such model, or no network and nothing in the cache.
        MissingPackageError: `huggingface-hub` is not installed.
    """
    plain, _, revision = str(name).removeprefix(PREFIX).partition("@")
    with _hub(plain) as hub:
        folder = hub.snapshot_download(
            plain, revision=revision or None, allow_patterns=list(_FILES)
        )
        return Path(folder)


def upload(write: Callable[[Path], None], name: str, card: str, *, private: bool) -> str:
    """Upload a folder, which is made for it and deleted afterwards.

    Args:
        write: Writes the folder, which does not exist before.
        name: The repository, "owner/name", with or without `PREFIX`; made if there is none.
        card: Text of its README.md.
        private: Whether a new repository is seen by its owner alone.

    Returns:
        Address of the commit.

    Raises:
        UserError: The hub refuses.
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
    """The package, whose errors about a repository become one line."""
    hub = optional_module("huggingface_hub")
    try:
        yield hub
    except UserError:
        raise
    except Exception as error:  # the hub, its client and the network have many error classes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"The hub must have {name!r} and let it be used: {reason}. Check the name, the network "
            "and `hf auth login`."
        ) from error
