"""The content of a folder of a published model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from counterpoint.systems.contract import System, SystemConfig


class PublishedText(NamedTuple):
    """The tokeniser that came with a text model, and the ids that the model uses.

    Attributes:
        content: Content of its tokenizer.json.
        start_id: Id before the first token of a text.
        end_id: Id after the last token.
        num_ids: Number of ids of the model, which may be more than the tokeniser's.
    """

    content: bytes
    start_id: int
    end_id: int
    num_ids: int


@runtime_checkable
class LoadModel(Protocol):
    """Reads the weights of a published model."""

    def __call__(self, dtype: torch.dtype | None = None, adapters: Path | None = None) -> System:
        """Return the model in evaluation mode, on the CPU.

        Args:
            dtype: Type of the weights; by default the usual one of the format's files.
            adapters: A folder or a file of adapters, which are merged into the weights.

        Raises:
            UserError: A file cannot be used, or the format has no adapters.
        """


ChatIds = Callable[[Sequence[Mapping[str, str]]], list[int]]
"""Returns the ids of a conversation up to the model's next answer; messages have the keys "role"
("system", "user", "assistant") and "content"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Companions:
    """Files and settings of a published folder other than the weights of its model.

    Attributes:
        codec: File of the codec's weights.
        tokenizer: File of the text tokeniser of a speech model.
        text: Tokeniser and ids of a text model.
        settings: Keys of the config that do not concern the weights, such as sampling.
        files: Further files, which are copied unchanged.
    """

    codec: Path | None = None
    tokenizer: Path | None = None
    text: PublishedText | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedModel:
    """A published model and what belongs to it.

    Attributes:
        load: Reads the weights, which may take long.
        shape: Returns the config of the system, without its weights.
        tokenizer: File of the text tokeniser, or a file that contains it.
        codec: File of the codec's weights; ``None`` for a text model.
        text: Reads the tokeniser of a text model.
        chat: Opens its template of conversations; ``None`` for a model that knows none.
        settings: Keys of its config that do not concern its weights.
        files: Further files that belong to it.
    """

    load: LoadModel
    shape: Callable[[], SystemConfig]
    tokenizer: Path
    codec: Path | None = None
    text: Callable[[], PublishedText] | None = None
    chat: Callable[[], ChatIds] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    def companions(self) -> Companions:
        """Return what belongs to the model, to be written with other weights of it."""
        is_text = self.codec is None
        return Companions(
            codec=self.codec,
            tokenizer=None if is_text else self.tokenizer,
            text=None if self.text is None else self.text(),
            settings=self.settings,
            files=self.files,
        )
