"""Batches of text alone between those of speech, so that a model does not forget what it has read.

They are of the kind "text": `counterpoint.train.optimizer.KindOptimizers` keeps moments of their
own for them.

Source: Moshi (arXiv:2410.00037), section 4: half of the batches in pre-training, one in ten after
diarisation.
"""

from dataclasses import replace
from fractions import Fraction

from torch import nn

from counterpoint.data.source import BatchSource, attach
from counterpoint.streams.batch import Batch

TEXT_KIND = "text"
"""Kind of the batches without audio."""


class Mixture:
    """Batches of speech, and of text at a share of the steps, evenly spread.

    Step s is of text where ``floor((s + 1) * share)`` is more than ``floor(s * share)``: with a
    share of 0.1 steps 9, 19, ... Each source gives its batches 0, 1, 2, ... in turn. So a batch is
    a function of the step alone, and the sources may be those of one process among many.

    Args:
        speech: Gives the other steps.
        text: Gives the steps of text, of as many rows.
        share: Share of the steps.
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
        """The batch of a step, 0 first; its kind says what it is."""
        before, after = (int(done * self._share) for done in (step, step + 1))
        if after > before:
            return replace(self.text.batch(before), kind=TEXT_KIND)
        return self.speech.batch(step - before)
