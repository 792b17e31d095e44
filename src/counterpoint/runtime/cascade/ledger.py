"""The sound that an agent says: what was generated, what was sent, and what was really played.

Sound is generated faster than it is played, so much of it is queued when a user interrupts. It is
flushed then, and the ledger tells which words the user has heard: only these may go into the
model's history, or it would refer to what nobody has heard.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.speech.spoken_words import SpokenWord


class Amounts(NamedTuple):
    """Seconds of an answer's sound.

    Attributes:
        generated_s: Seconds that were made.
        sent_s: Seconds of these that were sent to be played.
        played_s: Seconds of these that were played.
    """

    generated_s: float
    sent_s: float
    played_s: float


class PlayedWord(NamedTuple):
    """A word that was played, and its times in the conversation, in seconds."""

    text: str
    start_s: float
    end_s: float


@dataclass(slots=True)
class _Stretch:
    """Sound that was sent without a gap.

    Attributes:
        words: Words with times from the first sample on.
        sent: Number of samples sent so far.
        begin_s: Time in the conversation at which the first sample was sent.
    """

    audio: Float[Tensor, " N"]
    words: tuple[SpokenWord, ...]
    sent: int = 0
    begin_s: float = 0.0


@dataclass(slots=True)
class SoundLedger:
    """The queue of one agent's sound, and its accounts since the last `begin`.

    Attributes:
        rate: Samples a second.
        device_delay_s: Seconds between sending a sample and hearing it.
    """

    rate: int
    device_delay_s: float = 0.0
    _queue: deque[_Stretch] = field(default_factory=deque)
    _sent: list[_Stretch] = field(default_factory=list)
    _generated: int = 0

    @property
    def queued_s(self) -> float:
        """Seconds of sound that wait to be sent."""
        return sum(len(one.audio) - one.sent for one in self._queue) / self.rate

    def begin(self) -> None:
        """Begin a new answer: the accounts start at zero, and nothing is queued."""
        self._queue.clear()
        self._sent.clear()
        self._generated = 0

    def add(self, audio: Float[Tensor, " N"], words: tuple[SpokenWord, ...]) -> None:
        """Queue sound with its words."""
        self._generated += len(audio)
        self._queue.append(_Stretch(audio, words))

    def send(self, num_samples: int, now_s: float) -> Float[Tensor, " N"]:
        """Return the next samples to play, with silence where nothing is queued.

        Args:
            num_samples: Number of samples.
            now_s: Time in the conversation at which the first of them is sent.
        """
        sound = torch.zeros(num_samples)
        place = 0
        while self._queue and place < num_samples:
            stretch = self._queue[0]
            if not stretch.sent:
                stretch.begin_s = now_s + place / self.rate
                self._sent.append(stretch)
            piece = stretch.audio[stretch.sent : stretch.sent + num_samples - place]
            sound[place : place + len(piece)] = piece
            place += len(piece)
            stretch.sent += len(piece)
            if stretch.sent == len(stretch.audio):
                self._queue.popleft()
        return sound

    def flush(self) -> float:
        """Drop what is queued, and return its seconds."""
        dropped_s = self.queued_s
        self._queue.clear()
        return dropped_s

    def is_playing(self, now_s: float) -> bool:
        """Return whether sound is queued, or sent and still on its way to the ear."""
        if self._queue:
            return True
        if not self._sent:
            return False
        last = self._sent[-1]
        return now_s < last.begin_s + last.sent / self.rate + self.device_delay_s

    def amounts(self, now_s: float) -> Amounts:
        """Return the accounts of the answer at a time of the conversation."""
        sent = sum(one.sent for one in self._sent)
        played_s = sum(self._played_s(one, now_s) for one in self._sent)
        return Amounts(self._generated / self.rate, sent / self.rate, played_s)

    def heard(self, now_s: float) -> list[PlayedWord]:
        """Return the words of the answer that have been played to their middle."""
        words = []
        for stretch in self._sent:
            played_s = self._played_s(stretch, now_s)
            begin_s = stretch.begin_s + self.device_delay_s
            for word in stretch.words:
                if (word.start_s + word.end_s) / 2 <= played_s:
                    end_s = begin_s + min(word.end_s, played_s)
                    start_s = begin_s + word.start_s
                    words.append(PlayedWord(word.text, start_s, max(start_s, end_s)))
        return words

    def _played_s(self, stretch: _Stretch, now_s: float) -> float:
        elapsed_s = now_s - stretch.begin_s - self.device_delay_s
        return max(min(elapsed_s, stretch.sent / self.rate), 0.0)
