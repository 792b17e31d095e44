"""A model that speaks a given text hears a recording: when it falls silent, and why."""

import math
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from counterpoint.data.making.interrupted import InterruptedSpeech, PreparedUtterances
from counterpoint.data.making.sounds import SoundsConfig
from counterpoint.errors import UserError
from counterpoint.evaluate.duplex.speaking import PUBLISHED, ToSpeak, TrialSpeaker, speak_and_listen
from counterpoint.evaluate.word_errors import plain_words
from counterpoint.progress import Progress
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.talk import AGENT, USER
from counterpoint.speech.audio import resample
from counterpoint.streams.timeline import Event, Timeline
from counterpoint.systems.contract import System

THRESHOLD = 0.5
"""Probability of the stop above which a model falls silent."""

_MOST_WORDS_PER_S = 6.0  # nobody reads aloud faster than this
_QUIET_S = 0.5  # silence behind the last sound


class SpokenText(NamedTuple):
    """What became of a text.

    Attributes:
        sound: The agent (left) and what it heard (right) at 16 kHz, until both are over.
        text: The text as the model read it.
        said_s: Seconds for which the model spoke.
        end: Why it fell silent: it was interrupted, it had finished, or the text was about to leave
            its window.
        stop_score: Highest probability of the stop until then.
    """

    sound: Float[Tensor, "2 _N"]
    text: str
    said_s: float
    end: Literal["interrupted", "finished", "no room"]
    stop_score: float

    def timeline(self) -> Timeline:
        """Return the text as one word of the agent, and the interruption if there is one."""
        stops = self.end == "interrupted"
        text = f"{self.text} [cut]" if self.end != "finished" else self.text
        said = Event(start_s=0, end_s=self.said_s, stream=AGENT, kind="word", text=text)
        stop = Event(
            start_s=self.said_s,
            end_s=self.said_s,
            stream="stop",
            kind="interruption",
            payload={"by": USER, "score": self.stop_score},
        )
        return Timeline(events=(said, stop) if stops else (said,))


def prepare_speaker(
    data: InterruptedSpeech, system: System, progress: Progress
) -> PreparedUtterances:
    """Return codec, features and tokeniser of a trained model; no voice is needed.

    Raises:
        UserError: A package is missing, or the model does not fit the data.
    """
    alone = replace(data, num_held_out=0, phrases_file="", sounds=SoundsConfig())
    return PreparedUtterances(alone, system, progress, held_out_only=True)


def unlike_training(data: InterruptedSpeech, text: str) -> list[str]:
    """Return how a text differs from all that a model has learned to say, one line for each way.

    Args:
        data: What the model learned from.
        text: The text as the model reads it; see `SpokenText`.
    """
    words = text.split()
    notes = []
    if len(words) < data.fewest_words:
        notes.append(
            f"The text has fewer words ({len(words)}) than all that the model learned from "
            f"({data.fewest_words} and more): it may stop early, as if it were interrupted."
        )
    known = {word for phrase in data.phrases("train") for word in phrase.split()}
    if unknown := [word for word in dict.fromkeys(words) if word not in known]:
        notes.append(
            f"The model never learned to say {', '.join(map(repr, unknown))}: it knows "
            f"{len(known)} words."
        )
    return notes


def left_out(said: SpokenText) -> list[str]:
    """Return a line if a text that the model took as finished cannot have been said as a whole."""
    num_words = len(said.text.split())
    if said.end != "finished" or num_words <= _MOST_WORDS_PER_S * said.said_s:
        return []
    note = (
        f"The model ended a text of {num_words} words after {said.said_s:.2f} s, and nobody speaks "
        f"more than {_MOST_WORDS_PER_S:g} a second: it left words out. Try another `--seed`."
    )
    return [note]


def speak_text(
    prepared: PreparedUtterances,
    text: str,
    heard: Float[Tensor, " N"],
    threshold: float = THRESHOLD,
    sampling: Sampling = PUBLISHED,
) -> SpokenText:
    """Let a model speak a text while it hears a recording from its first frame on.

    Args:
        prepared: The model with what it needs; see `prepare_speaker`.
        text: The text, in the letters a to z; other signs are left out, and digits become words.
        heard: What it hears, at 16 kHz; afterwards it hears silence. It does not hear itself.
        threshold: It falls silent at the first probability of the stop above this.
        sampling: How its codes are chosen.

    Raises:
        UserError: The text has other letters or none, or is as long as the model's window.
    """
    system = prepared.system
    rate = prepared.mels.sample_rate
    words = [word for word in plain_words(text) if word.strip("'")]
    unknown = next((one for one in text if one.isalpha() and not one.isascii()), None)
    if unknown is not None or not words:
        raise UserError(
            f"`--text` must be written in the letters a to z and digits: got {unknown or text!r}."
        )
    prompt = prepared.prompt(" ".join(words))
    num_read = prompt[prepared.layout.text.name].shape[1]
    if num_read >= system.window_ticks:
        raise UserError(
            f"`--text` must be shorter than the model's window of {system.window_ticks} frames: "
            f"got {num_read} pieces of words. Shorten it."
        )
    frame_s = 1 / prepared.codec.frame_rate_hz
    longest_s = (system.window_ticks - num_read) * frame_s
    ends = prepared.ends
    speaker = TrialSpeaker(system, prepared.codec, prepared.mels, ends.end, ends.interrupted)
    row = ToSpeak(prompt, heard[: math.ceil(longest_s * rate)], seed=sampling.seed)
    (spoke,) = speak_and_listen(speaker, [row], longest_s, sampling)
    stop_s = spoke.stops.stop_s(threshold, len(spoke.codes) * frame_s)
    num_said = len(spoke.codes) if stop_s is None else round(stop_s / frame_s)
    scores = spoke.stops.scores[: num_said + 1]
    unstopped: Literal["finished", "no room"] = "finished" if spoke.ended else "no room"
    return SpokenText(
        sound=_both(prepared, spoke.codes[:num_said], heard),
        text=" ".join(words),
        said_s=num_said * frame_s,
        end=unstopped if stop_s is None else "interrupted",
        stop_score=float(scores.max()) if len(scores) else 0.0,
    )


def _both(
    prepared: PreparedUtterances, codes: Tensor, heard: Float[Tensor, " N"]
) -> Float[Tensor, "2 M"]:
    """Return what was said and heard, with silence where one of them is shorter."""
    rate = prepared.mels.sample_rate
    said = torch.zeros(0)
    if len(codes):
        sound = prepared.codec.decode(codes[None])[0].float().cpu()
        said = resample(sound[None], prepared.codec.sample_rate, rate)[0]
    length = max(len(said) + round(_QUIET_S * rate), len(heard))
    return torch.stack([F.pad(one, (0, length - len(one))) for one in (said, heard)])
