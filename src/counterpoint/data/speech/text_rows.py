"""Text-only rows in the form that a speech model reads, for a `counterpoint.data.mixture.Mixture`.

In a text-only batch documents follow each other without padding, one id a tick, and the audio is
unset.

Source: Moshi (arXiv:2410.00037), section 4. The paper does not say how documents are packed; here
none of them can see another.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from counterpoint.data.source import Fingerprint
from counterpoint.data.text.corpus import DataConfig, Kjv, Source, prepare
from counterpoint.data.text.packing import PackedRows
from counterpoint.errors import UserError
from counterpoint.streams import schedule
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems.contract import System

END_ID = 2
"""Text id after a document: the end of a sequence in the published tokeniser."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextBatches:
    """Text-only batches of a speech run.

    Attributes:
        source: Source of the documents.
        share: Share of these batches.
        row_ticks: Number of ids in a row.
        cache_folder: Folder of the cached token shards.
    """

    source: Source = Kjv()
    share: float = 0.1
    row_ticks: int = 1024
    cache_folder: str = "~/.cache/counterpoint"

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"`share` must be between 0 and 1: got {self.share}.")


class TextRows:
    """Rows of text as a speech model reads it; documents begin with the initial frame.

    The size of a batch counts ticks that carry loss, as in speech.

    Args:
        rows: The packed text. The ids of its tokeniser, except the last two (start and end), must
            be those of the model.
        model: Only its layout is used.
        fingerprint: Digests of the text; see `counterpoint.data.source.PreparedSource`.

    Raises:
        UserError: The model has fewer text ids.
    """

    def __init__(
        self,
        rows: PackedRows,
        model: System,
        fingerprint: Fingerprint | None = None,
    ) -> None:
        self._rows = rows
        self._layout = model.layout
        self._text = model.layout.text.name
        self._initial_id = schedule.initial_ids(model.layout)[self._text]
        self.fingerprint = fingerprint or {}
        found = rows.shards.vocab_size - 2
        most = model.layout.text.vocab_size or 0
        if found > most or (rows.shards.start_id, rows.shards.end_id) != (found, found + 1):
            raise UserError(
                f"`text_vocab_size` must be at least the {found} ids of the text without start and "
                f"end: got {most}. Change the model or the tokeniser."
            )

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """Return the rows at ``indices`` as a batch."""
        batch = self._rows.rows(indices)
        text = self._model_ids(batch.ticks[self._rows.stream])
        targets = self._model_ids(batch.targets[self._rows.stream])
        nothing = schedule.unset_columns(self._layout, text == self._initial_id)
        return Batch(
            ticks={**nothing, self._text: text},
            targets={self._text: targets},
            elements={self._text: targets},
            document_start=batch.document_start,
            size=int((targets != UNSET_ID).sum()),
            unit="frame",
        )

    def _model_ids(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        # The end id is replaced first, because the model's initial id may equal the text's end id.
        shards = self._rows.shards
        ids = torch.where(ids == shards.end_id, END_ID, ids)
        return torch.where(ids == shards.start_id, self._initial_id, ids)


def prepare_text(
    config: TextBatches,
    tokenizer: str,
    model: System,
    on_progress: Callable[[int, int], None] | None = None,
) -> TextRows:
    """Make the rows of a config; text that is not in the cache is tokenised into it.

    Args:
        config: The text.
        tokenizer: Tokeniser of the speech run, as in `SpeechData.tokenizer`.
        model: The model that reads the rows.
        on_progress: See `counterpoint.data.text.corpus.prepare`.

    Raises:
        UserError: The source or the tokeniser cannot be used, or does not fit the model.
        OSError: The cache cannot be written.
    """
    data = DataConfig(
        source=config.source,
        tokenizer=tokenizer,
        row_ticks=config.row_ticks,
        held_out=(),
        cache_folder=config.cache_folder,
    )
    # The size of a speech run is never counted in bytes, so its tokeniser may normalise text.
    corpus = prepare(data, model.layout.block_ticks, on_progress, normalising=True)
    return TextRows(corpus.train, model, corpus.fingerprint)
