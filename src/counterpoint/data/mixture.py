"""Text-only batches among those of speech, so that a model does not forget how to write text.

Their kind is "text": `counterpoint.train.optimizer.KindOptimizers` keeps separate moments for them.

Source: Moshi (arXiv:2410.00037), section 4: half of the batches are text-only in pre-training, and
one in ten after diarisation.
"""

from dataclasses import replace
from fractions import Fraction

from torch import nn

from counterpoint.data.source import BatchSource, attach
from counterpoint.streams.batch import Batch

TEXT_KIND = "text"
"""Kind of the text-only batches."""


class Mixture:
    """Batches of speech, and text-only batches in a share of the steps, evenly spread.

    Step s is a text step if ``floor((s + 1) * share)`` is more than ``floor(s * share)``: with a
    share of 0.1, steps 9, 19 and so on. Each source gives its batches 0, 1, 2, ... in turn. A batch
    is therefore a function of the step alone, and the sources may be those of one process among
    many.

    Args:
        speech: Source of the other steps.
        text: Source of the text steps, with equally many rows.
        share: Share of the text steps.
    """

    def __init__(self, speech: BatchSource, text: BatchSource, share: float) -> None:
        self.speech = speech
        self.text = text
        self._share = Fraction(share).limit_denominator(1_000_000)

    def attach(self, model: nn.Module) -> None:
        """Give the model to the sources that ask for it."""
        attach(self.speech, model)
        attach(self.text, model)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0; its kind tells its source."""
        before, after = (int(done * self._share) for done in (step, step + 1))
        if after > before:
            return replace(self.text.batch(before), kind=TEXT_KIND)
        return self.speech.batch(step - before)
