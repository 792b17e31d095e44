"""What a folder of a published model holds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from counterpoint.systems.contract import System


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedModel:
    """A published model and what belongs to it.

    Attributes:
        load: Reads the weights, which may take long.
        tokenizer: File of the text tokeniser.
        codec: File of the codec's weights; ``None`` of a model of text.
    """

    load: Callable[[], System]
    tokenizer: Path
    codec: Path | None = None
