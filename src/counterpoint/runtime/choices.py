"""Choosing the elements of a frame: every row by its own settings, all rows in one call."""

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
"""Sessions that keep at most so many ids (`top_k`) are sampled without sorting a vocabulary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSampling:
    """How one session chooses text and audio; by default as the published Moshi does.

    The two may have the same seed: no random number is used twice.

    Attributes:
        text: For every stream that is not spoken.
        audio: For every codebook of the streams that are spoken or heard.
        guidance: Scale of classifier-free guidance: scores become those without the prompt, plus
            so many times what the prompt adds. 1 is none; any other needs a second row.
        padding_bias: What is added to the score of the text's padding: above 0 the model is slower
            to speak, below 0 it speaks more.

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
        """One setting for all streams, or these, or the default."""
        if isinstance(sampling, Sampling):
            return cls(text=sampling, audio=sampling)
        return sampling or cls()


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechChoices:
    """How an agent chooses what it says; ``None`` leaves a setting to the model.

    Attributes:
        seed: Decides its choices.
        text_temperature: Divides the scores of the text; 0 takes the likeliest id.
        text_top_k: Likeliest text ids to choose among; 0 keeps all.
        padding_bias: Added to the score of no text: above 0 the agent is slower to speak.
        audio_temperature: Divides the scores of the audio; 0 takes the likeliest id.
        audio_top_k: Likeliest audio ids to choose among; 0 keeps all.
    """

    seed: int = 0
    text_temperature: float | None = None
    text_top_k: int | None = None
    padding_bias: float | None = None
    audio_temperature: float | None = None
    audio_top_k: int | None = None

    @classmethod
    def of(cls, sampling: FrameSampling) -> "SpeechChoices":
        """The same settings as a session has them."""
        return cls(
            seed=sampling.text.seed,
            text_temperature=sampling.text.temperature,
            text_top_k=sampling.text.top_k,
            padding_bias=sampling.padding_bias,
            audio_temperature=sampling.audio.temperature,
            audio_top_k=sampling.audio.top_k,
        )

    def over(self, default: FrameSampling) -> FrameSampling:
        """What was chosen, and where nothing was, what the model has by default."""
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
    """How a session of a model chooses: as it is told, or by default as its kind of model does."""
    if sampling is None and not layout.by_role(Role.SPOKEN):
        sampling = Sampling()
    return FrameSampling.of(sampling)


class PromptGuidance(NamedTuple):
    """Whose ids each row takes, whose scores are those without its prompt, and its scale."""

    lead: Int[Tensor, " n"]
    null: Int[Tensor, " n"]
    scale: Float[Tensor, "n 1"]


class _Kind(NamedTuple):
    """How one kind of elements is chosen, and which rows may keep over `MOST_CANDIDATES`."""

    rows: RowSamplings
    wide: Bool[Tensor, " n"] | None


class RowChoices(NamedTuple):
    """How the elements of some rows are chosen; see `choices_of`."""

    kinds: Mapping[str, _Kind]
    guidance: PromptGuidance | None
    biases: Mapping[str, Float[Tensor, "n V"]]
    seed_hashes: Int[Tensor, "n K"]
    places: Int[Tensor, " K"]

    def numbers(self, drawn: Int[Tensor, " n"]) -> Float[Tensor, "n K"]:
        """Random numbers of the elements of a column; ``drawn`` counts the columns before it."""
        return uniform(self.seed_hashes, drawn[:, None] * len(self.places) + self.places)

    def choose(
        self, stream: str, logits: Float[Tensor, "n V"], number: Float[Tensor, " n"]
    ) -> Int[Tensor, " n"]:
        """An id of a stream for every row, by one of its `numbers`."""
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
    """How some rows choose.

    Args:
        layout: What is chosen.
        samplings: The sampling of every row.
        guidance: Who guides whom; ``None`` where no row is guided.
        device: Where the scores are.
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
    """What rows add to the scores of a stream that has padding."""
    added = torch.zeros(len(samplings), stream.vocab_size or 0, device=device)
    added[:, stream.padding_id] = torch.tensor([s.padding_bias for s in samplings], device=device)
    return added


def _kind(samplings: Sequence[Sampling], device: torch.device) -> _Kind:
    each = [s.temperature > 0 and not 0 < s.top_k <= MOST_CANDIDATES for s in samplings]
    wide = torch.tensor(each, device=device) if any(each) else None
    return _Kind(row_samplings(samplings, device), wide)


def _guided(logits: Float[Tensor, "n V"], guidance: PromptGuidance) -> Float[Tensor, "n V"]:
    """Scores moved away from those without the prompt; equal ones, also of -inf, stay."""
    null = logits[guidance.null]
    moved = null + guidance.scale.to(logits.dtype) * (logits - null)
    return torch.where(logits == null, logits, moved)


def _sampled(
    logits: Float[Tensor, "n V"], kind: _Kind, number: Float[Tensor, " n"]
) -> Int[Tensor, " n"]:
    """Choose as `sample` does; rows that keep few ids choose among their likeliest.

    The number of candidates is fixed, so that a row never feels how many others keep.
    """
    if logits.shape[1] < 2 * MOST_CANDIDATES:  # sorting them all costs no more
        return sample(logits, kind.rows, number)
    # In the order of their ids, so that the first of equal ones stays the first.
    likeliest = logits.topk(MOST_CANDIDATES).indices.sort().values
    ids = sample(logits.gather(1, likeliest), kind.rows, number, likeliest)
    if kind.wide is None:
        return ids
    return torch.where(kind.wide, sample(logits, kind.rows, number), ids)
