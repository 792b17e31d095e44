"""Packing: whole dialogues one after another in rows of equal length.

Each dialogue goes into the first row with enough room, begins with the initial frame of the model
and cannot see the others. If the agent has a role, the dialogue may begin with a prompt, which
carries no loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from counterpoint.data.speech.dialogues import Example
from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch, join_batches
from counterpoint.streams.spec import UNSET_ID, Role, Ticks
from counterpoint.systems.contract import System


class DialogueRows:
    """Rows of equal length, filled with whole examples: each goes into the first row with room.

    After the last example of a row nothing is read and nothing is trained.

    Args:
        examples: Dialogues, none longer than a row.
        model: Only its layout is used.
        row_ticks: Number of frames in a row, to which the longest prompt is added.
        prompts: Returns the prompt of an example, which carries no loss; ``None`` for no prompts.
        only_text: Whether only the text is trained.
        parts: Numbers of consecutive examples whose rows are kept apart; by default all examples
            share their rows.

    Attributes:
        row_ticks: Number of frames in a row.
        parts: The rows of each part.

    Raises:
        UserError: There are no examples, or one is longer than a row.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        model: System,
        row_ticks: int,
        prompts: Callable[[Example], Ticks | None] | None = None,
        only_text: bool = False,
        parts: Sequence[int] = (),
    ) -> None:
        self._only_text = only_text
        self._examples = examples
        self._model = model
        self._text = model.layout.text.name
        self._prompts = prompts
        sizes = [
            (self._prompt_ticks(example), len(example.streams["text"])) for example in examples
        ]
        lengths = [length for _, length in sizes]
        if not lengths or max(lengths) > row_ticks:
            raise UserError(
                f"Rows must have at least one example, and none longer than a row of {row_ticks} "
                f"frames: got {len(lengths)}, the longest of {max(lengths, default=0)}."
            )
        self.row_ticks = row_ticks + max(prompt for prompt, _ in sizes)
        self._rows: list[list[int]] = []
        self.parts: list[range] = []
        numbers = iter(range(len(sizes)))
        for count in parts or [len(sizes)]:
            before = len(self._rows)
            self._pack([(number, sum(sizes[number])) for number in islice(numbers, count)])
            self.parts.append(range(before, len(self._rows)))

    def _pack(self, examples: Sequence[tuple[int, int]]) -> None:
        """Put examples, given as (number, length), into new rows."""
        before = len(self._rows)
        room = np.full(len(examples), self.row_ticks)
        for number, length in examples:
            row = int((room >= length).argmax())
            self._rows += [[] for _ in range(before + row - len(self._rows) + 1)]
            self._rows[before + row].append(number)
            room[row] -= length

    def __len__(self) -> int:
        return len(self._rows)

    def title(self, index: int) -> str:
        """Return the recordings in a row, in words."""
        return ", ".join(dict.fromkeys(self._examples[n].source for n in self._rows[index]))

    def rows(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """Return the rows at ``indices`` as a batch; its size counts frames."""
        batch = join_batches(
            [self._row(self._rows[index]) for index in np.asarray(indices).tolist()]
        )
        if self._only_text:
            batch = replace(batch, targets={self._text: batch.targets[self._text]})
        return batch

    def _prompt(self, example: Example) -> Ticks | None:
        try:
            return None if self._prompts is None else self._prompts(example)
        except ValueError as error:
            raise UserError(f"{example.source}: {error}") from error

    def _prompt_ticks(self, example: Example) -> int:
        prompt = self._prompt(example)
        return 0 if prompt is None else prompt[self._text].shape[1]

    def _row(self, numbers: Sequence[int]) -> Batch:
        layout = self._model.layout
        parts = list[Batch]()
        filled = 0
        for number in numbers:
            example = self._examples[number]
            streams = example.streams
            codes: Ticks = {
                self._text: streams["text"][None],
                **layout.with_role(Role.SPOKEN, streams["agent"][None]),
                **layout.with_role(Role.HEARD, streams["user"][None]),
            }
            prompt = self._prompt(example)
            num_prompt = 0
            if prompt is not None:
                codes = {name: torch.cat((prompt[name], ids), 1) for name, ids in codes.items()}
                num_prompt = prompt[self._text].shape[1]
            part = self._model.lay_out(codes, num_prompt)
            parts.append(replace(part, document_start=part.document_start + filled))
            # Without an initial frame the batch of a document is a tick shorter than its content.
            filled += part.document_start.shape[1]
        rest = self.row_ticks - filled

        def extended(x: Tensor) -> Tensor:
            return F.pad(x, (0, rest) if x.ndim == 2 else (0, 0, 0, rest), value=UNSET_ID)

        row = join_batches(parts, 1).mapped(extended)
        row.document_start[:, filled:] = filled
        return replace(row, unit="frame")
