"""Choosing the elements of a frame: each row has its own settings, all rows share one call."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.runtime.sampler import (
    RowSamplings,
    Sampling,
    row_samplings,
    sample,
    seed_hashes,
    uniform,
)
from counterpoint.streams.spec import Layout, Role, Stream

MOST_CANDIDATES = 256
"""Sessions that keep at most this many ids (`top_k`) are sampled without sorting all ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSampling:
    """How one session chooses text and audio; the defaults are those of the published Moshi.

    The two may have the same seed: no random number is used twice.

    Attributes:
        text: Sampling of every stream that is neither spoken nor heard.
        audio: Sampling of every codebook of the streams that are spoken or heard.
        guidance: Scale of classifier-free guidance: the scores without the prompt, plus this factor
            times the change that the prompt makes. 1 means no guidance; other values need a second
            row.
        padding_bias: Number added to the score of the text's padding id. Above 0 the model is
            slower to speak, below 0 it speaks more.

    Source of the bias: `pad_mult` of Kyutai's server.
    """

    text: Sampling = Sampling(temperature=0.7, top_k=25)
    audio: Sampling = Sampling(temperature=0.8, top_k=250)
    guidance: float = 1.0
    padding_bias: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < math.inf:
            raise UserError(f"`guidance` must be >= 0 (1 is none): got {self.guidance}.")
        if not math.isfinite(self.padding_bias):
            raise UserError(f"`padding_bias` must be finite: got {self.padding_bias}.")

    @classmethod
    def of(cls, sampling: "Sampling | FrameSampling | None") -> "FrameSampling":
        """Return one setting for all streams, the given settings, or the default."""
        if isinstance(sampling, Sampling):
            return cls(text=sampling, audio=sampling)
        return sampling or cls()


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechChoices:
    """How an agent chooses what it says; ``None`` leaves a setting to the model.

    Attributes:
        seed: Seed of its choices.
        text_temperature: Divisor of the text scores; 0 always takes the likeliest id.
        text_top_k: Number of likeliest text ids that are kept; 0 keeps all.
        padding_bias: Added to the score of no text; above 0 it is slower to speak.
        audio_temperature: Divisor of the audio scores; 0 always takes the likeliest id.
        audio_top_k: Number of likeliest audio ids that are kept; 0 keeps all.
    """

    seed: int = 0
    text_temperature: float | None = None
    text_top_k: int | None = None
    padding_bias: float | None = None
    audio_temperature: float | None = None
    audio_top_k: int | None = None

    @classmethod
    def of(cls, sampling: FrameSampling) -> "SpeechChoices":
        """Return the settings of a session in this form."""
        return cls(
            seed=sampling.text.seed,
            text_temperature=sampling.text.temperature,
            text_top_k=sampling.text.top_k,
            padding_bias=sampling.padding_bias,
            audio_temperature=sampling.audio.temperature,
            audio_top_k=sampling.audio.top_k,
        )

    def over(self, default: FrameSampling) -> FrameSampling:
        """Return ``default`` with the settings that were chosen here."""
        return replace(
            default,
            text=_chosen(default.text, self.seed, self.text_temperature, self.text_top_k),
            audio=_chosen(default.audio, self.seed, self.audio_temperature, self.audio_top_k),
            padding_bias=(default.padding_bias if self.padding_bias is None else self.padding_bias),
        )


def _chosen(default: Sampling, seed: int, temperature: float | None, top_k: int | None) -> Sampling:
    return replace(
        default,
        seed=seed,
        temperature=default.temperature if temperature is None else temperature,
        top_k=default.top_k if top_k is None else top_k,
    )


def sampling_of(layout: Layout, sampling: Sampling | FrameSampling | None) -> FrameSampling:
    """Return the sampling of a session, or the default for this kind of model if it is ``None``."""
    if sampling is None and not layout.by_role(Role.SPOKEN):
        sampling = Sampling()
    return FrameSampling.of(sampling)


class PromptGuidance(NamedTuple):
    """How the rows of guided sessions are combined.

    Attributes:
        lead: For each row, the row whose ids it takes.
        null: For each row, the row without the prompt.
        scale: For each row, the scale of the difference that the prompt makes.
    """

    lead: Int[Tensor, " n"]
    null: Int[Tensor, " n"]
    scale: Float[Tensor, "n 1"]


class _Kind(NamedTuple):
    """How one kind of elements is chosen, and which rows may keep more than `MOST_CANDIDATES`."""

    rows: RowSamplings
    wide: Bool[Tensor, " n"] | None


class RowChoices(NamedTuple):
    """How the elements of some rows are chosen; see `choices_of`.

    Attributes:
        kinds: Sampling of each stream.
        guidance: Guidance of the rows; ``None`` if no row is guided.
        biases: What is added to the scores of a stream.
        seed_hashes: Hash of the seed of each row for each of the K elements of a column.
        places: Places of these elements in a column.
    """

    kinds: Mapping[str, _Kind]
    guidance: PromptGuidance | None
    biases: Mapping[str, Float[Tensor, "n V"]]
    seed_hashes: Int[Tensor, "n K"]
    places: Int[Tensor, " K"]

    def numbers(self, drawn: Int[Tensor, " n"]) -> Float[Tensor, "n K"]:
        """Return random numbers for the elements of a column.

        ``drawn`` is the number of columns that each row has chosen before.
        """
        return uniform(self.seed_hashes, drawn.unsqueeze(1) * len(self.places) + self.places)

    def choose(
        self, stream: str, logits: Float[Tensor, "n V"], number: Float[Tensor, " n"]
    ) -> Int[Tensor, " n"]:
        """Choose an id of a stream for every row, with one of its `numbers`."""
        if self.guidance is not None:
            logits = _guided(logits, self.guidance)
        if stream in self.biases:
            logits = logits + self.biases[stream]
        return _sampled(logits, self.kinds[stream], number)


def choices_of(
    layout: Layout,
    samplings: Sequence[FrameSampling],
    guidance: PromptGuidance | None,
    device: torch.device,
) -> RowChoices:
    """Return how the elements of some rows are chosen.

    Args:
        layout: Streams whose elements are chosen.
        samplings: Sampling of each row.
        guidance: Guidance of the rows; ``None`` if no row is guided.
        device: Device of the scores.
    """
    biases = {
        stream.name: _padding_bias(stream, samplings, device)
        for stream in layout.predicted
        if stream.padding_id is not None and any(s.padding_bias for s in samplings)
    }
    kinds: dict[str, _Kind] = {}
    hashes: list[Tensor] = []
    for stream in layout.predicted:
        is_audio = stream.role in (Role.SPOKEN, Role.HEARD)
        own = [sampling.audio if is_audio else sampling.text for sampling in samplings]
        kinds[stream.name] = _kind(own, device)
        hashes += [seed_hashes([one.seed for one in own], device)] * stream.depth
    return RowChoices(
        kinds=kinds,
        guidance=guidance,
        biases=biases,
        seed_hashes=torch.stack(hashes, 1),
        places=torch.arange(len(hashes), device=device),
    )


def _padding_bias(
    stream: Stream, samplings: Sequence[FrameSampling], device: torch.device
) -> Float[Tensor, "n V"]:
    """Return the numbers that rows add to the scores of a stream that has padding."""
    added = torch.zeros(len(samplings), stream.vocab_size or 0, device=device)
    added[:, stream.padding_id] = torch.tensor([s.padding_bias for s in samplings], device=device)
    return added


def _kind(samplings: Sequence[Sampling], device: torch.device) -> _Kind:
    each = [s.temperature > 0 and not 0 < s.top_k <= MOST_CANDIDATES for s in samplings]
    wide = torch.tensor(each, device=device) if any(each) else None
    return _Kind(row_samplings(samplings, device), wide)


def _guided(logits: Float[Tensor, "n V"], guidance: PromptGuidance) -> Float[Tensor, "n V"]:
    """Move scores away from those without the prompt; equal scores stay, also if they are -inf."""
    null = logits[guidance.null]
    moved = null + guidance.scale.to(logits.dtype) * (logits - null)
    return torch.where(logits == null, logits, moved)


def _sampled(
    logits: Float[Tensor, "n V"], kind: _Kind, number: Float[Tensor, " n"]
) -> Int[Tensor, " n"]:
    """Choose ids as `sample` does, but sort only the likeliest ids in rows that keep few.

    The number of candidates is fixed, so that a row does not depend on how many others keep.
    """
    if logits.shape[1] < 2 * MOST_CANDIDATES:  # then sorting all ids costs no more
        return sample(logits, kind.rows, number)
    # The candidates are in the order of their ids, so that the first of equal scores stays first.
    likeliest = logits.topk(MOST_CANDIDATES).indices.sort().values
    ids = sample(logits.gather(1, likeliest), kind.rows, number, likeliest)
    if kind.wide is None:
        return ids
    return torch.where(kind.wide, sample(logits, kind.rows, number), ids)
