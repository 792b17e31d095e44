"""An answer in the making: its text is written, spoken sentence by sentence, and then played.

It may be prepared before it is certain that the user has finished. Then its first sentence waits,
and it is dropped if the user goes on.

An answer of which nothing can be heard, whatever engine is to blame, is followed by an apology. Its
sound is made ahead, so that it can be heard when the voice has failed.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.runtime.cascade.lanes import Lane
from counterpoint.runtime.cascade.ledger import SoundLedger
from counterpoint.runtime.cascade.returned import checked_texts
from counterpoint.runtime.cascade.sentences import Sentence, SentenceReader
from counterpoint.runtime.cascade.thinking import Marked, MarkReader, Scene
from counterpoint.runtime.talk import AGENT
from counterpoint.speech.codec import check_channel
from counterpoint.speech.spoken_words import SpokenWord
from counterpoint.streams.timeline import Event


class Voiced(NamedTuple):
    """A spoken sentence.

    Attributes:
        audio: Its samples at the rate of the conversation.
        words: Its words, with times from the first sample on.
    """

    audio: Float[Tensor, " N"]
    words: tuple[SpokenWord, ...]


Speak = Callable[[str], Voiced]
"""Speaks a sentence."""


@dataclass(kw_only=True, slots=True)
class Reply:
    """An answer to a turn.

    Attributes:
        scene: What it answers.
        turn: Number of the user's turn.
        begin_s: When the first piece of its text was asked for.
        is_sure: Whether the user has finished, so that it may be heard.
        marks: Finds what is not to be spoken in what is written.
        text: What was written so far, without that.
        waiting: Sentences that are still to be spoken.
        ready: Spoken sentences that wait until the answer is sure.
        text_s: When its newest text came.
        voice_s: When its newest sentence began to be spoken.
        is_written: Whether the text is complete.
        is_apology: Whether it ends with the apology.
        was_read: Whether the language model reads it as a part of the history.
        first_sound_s: When its sound was first queued to be played.
        faults: What failed.
    """

    scene: Scene
    turn: int
    begin_s: float
    is_sure: bool = False
    marks: MarkReader = field(default_factory=MarkReader)
    text: str = ""
    waiting: deque[Sentence] = field(default_factory=deque)
    ready: list[Voiced] = field(default_factory=list)
    text_s: float = 0.0
    voice_s: float = 0.0
    is_written: bool = False
    is_apology: bool = False
    was_read: bool = False
    first_sound_s: float | None = None
    faults: list[tuple[str, str, float]] = field(default_factory=list)

    @property
    def is_voiced(self) -> bool:
        """Whether there is sound of it."""
        return bool(self.ready) or self.first_sound_s is not None


class Mouth:
    """Writes, speaks and plays one answer after another.

    Args:
        answer: Writes the text of an answer.
        speak: Speaks a sentence.
        ledger: Queue and accounts of the sound.
        writing: Lane of the text.
        speaking: Lane of the sound.
        rehearsing: Lane in which the sound of the apology is made ahead.
        apology: What is said if nothing of an answer can be heard.
        most_s: Longest wait for the first sentence of an answer, for more of its text, and for the
            sound of a sentence.
    """

    def __init__(
        self,
        answer: Callable[[Scene], Iterator[str]],
        speak: Speak,
        ledger: SoundLedger,
        writing: Lane,
        speaking: Lane,
        rehearsing: Lane,
        apology: str,
        most_s: float = math.inf,
    ) -> None:
        self.ledger = ledger
        self.reply: Reply | None = None
        self._answer = answer
        self._speak = speak
        self._writing = writing
        self._speaking = speaking
        self._rehearsing = rehearsing
        self._rehearsed: Voiced | None = None
        self._apology = apology
        self._most_s = most_s
        self._sentences = SentenceReader()

    def rehearse(self, now_s: float) -> None:
        """Make the sound of the apology, if it is not there: the voice may fail when it is needed.

        If it fails now, nothing is told: the voice is tried again when the apology is needed.
        """
        self._take_rehearsed(now_s)
        if self._rehearsed is None and not self._rehearsing.busy:
            self._rehearsing.start(self._spoken(Sentence(self._apology)), now_s)

    def _take_rehearsed(self, now_s: float) -> None:
        for step in self._rehearsing.poll(now_s):
            if step.value is not None:
                self._rehearsed = step.value

    @property
    def sounds(self) -> bool:
        """Whether sound of the answer has been queued to be played."""
        return self.reply is not None and self.reply.first_sound_s is not None

    def begin(self, scene: Scene, turn: int, now_s: float, *, is_sure: bool) -> None:
        """Begin to write an answer.

        Args:
            scene: What is known so far.
            turn: Number of the user's turn.
            now_s: Time of the conversation.
            is_sure: Whether the turn is over, so that the answer may sound; otherwise it is
                prepared only.
        """
        self._write(_asked(self._answer, scene), scene, turn, now_s, is_sure=is_sure)

    def say(self, text: str, scene: Scene, turn: int, now_s: float) -> None:
        """Say a text that is known already; for the other arguments see `begin`."""
        self._write([text], scene, turn, now_s, is_sure=True)

    def _write(
        self, pieces: Iterable[str], scene: Scene, turn: int, now_s: float, *, is_sure: bool
    ) -> None:
        """Begin an answer, whose text comes piece by piece.

        Each piece is a step of the lane, so a writer that is dropped ends with its next piece and
        not with its sentence: what it writes on would hold up the writer of the next answer.
        """
        self.drop()
        self.reply = Reply(scene=scene, turn=turn, begin_s=now_s, is_sure=is_sure)
        self._sentences = SentenceReader()
        self._writing.start(checked_texts(pieces, "an answer"), now_s)

    def drop(self) -> None:
        """Stop writing and speaking, and forget the answer; its queued sound is flushed."""
        self._writing.stop()
        self._speaking.stop()
        self.ledger.begin()
        self.reply = None

    def advance(self, now_s: float, *, may_sound: bool = True) -> None:
        """Take what is finished, and queue the sound of an answer that is sure if it may sound."""
        reply = self.reply
        if reply is None:
            return
        self._take_text(reply, now_s)
        self._take_sound(reply, now_s)
        if reply.is_sure:
            self._end_stalled(reply, now_s)
        if reply.is_written and not (reply.is_voiced or reply.waiting or self._speaking.busy):
            self._apologize(reply, now_s)
        if not (reply.is_sure and may_sound):
            return
        for voiced in reply.ready:
            self.ledger.add(voiced.audio, voiced.words)
            if reply.first_sound_s is None:
                reply.first_sound_s = now_s
        reply.ready.clear()

    def _take_text(self, reply: Reply, now_s: float) -> None:
        for step in self._writing.poll(now_s):
            if step.is_last:
                fault = None if step.error is None else str(step.error)
                self._end_text(reply, fault, step.at_s)
                continue
            if step.value.strip():
                reply.text_s = step.at_s
            self._read(reply, reply.marks.read(step.value), step.at_s)

    def _read(self, reply: Reply, marked: Iterator[Marked], at_s: float) -> None:
        """Take what is to be spoken; marks are not, and a call in an answer is not made."""
        for one in marked:
            if one.kind == "text":
                self._add(reply, self._sentences.read(one.text))
            elif one.kind in ("call", "cancel", "broken"):
                reply.faults.append(("answer", "calls are made by thoughts only", at_s))

    def _end_text(self, reply: Reply, fault: str | None, at_s: float) -> None:
        """Take a text as complete; with a fault, what has come of a begun answer is said."""
        reply.is_written = True
        self._read(reply, reply.marks.end(), at_s)
        if fault is None or reply.text:
            self._add(reply, self._sentences.end())
        if fault is None and not reply.text:
            fault = "the answer has no words"
        if fault is not None:
            reply.faults.append(("answer", fault, at_s))

    def _apologize(self, reply: Reply, now_s: float) -> None:
        """Say the apology, once, in place of what cannot be heard."""
        if reply.is_apology:
            return
        reply.is_apology = True
        self._take_rehearsed(now_s)
        self._add(reply, [Sentence(self._apology)])
        if self._rehearsed is not None:
            reply.waiting.clear()
            reply.ready.append(self._rehearsed)

    def _end_stalled(self, reply: Reply, now_s: float) -> None:
        """End what waits too long for an engine; what was spoken so far is still played."""
        text_s = reply.text_s if reply.text else reply.begin_s
        if not reply.is_written and now_s - text_s > self._most_s:
            self._writing.stop()
            self._end_text(reply, f"no text within {self._most_s:g} s", now_s)
        if self._speaking.busy and now_s - reply.voice_s > self._most_s:
            self._writing.stop()
            self._speaking.stop()
            reply.faults.append(("speech", f"no sound within {self._most_s:g} s", now_s))
            reply.waiting.clear()
            reply.is_written = True

    def _add(self, reply: Reply, found: list[Sentence]) -> None:
        reply.text = " ".join([reply.text, *(sentence.text for sentence in found)]).strip()
        reply.waiting += found

    def _take_sound(self, reply: Reply, now_s: float) -> None:
        for step in self._speaking.poll(now_s):
            if step.error is not None:
                reply.faults.append(("speech", str(step.error), step.at_s))
            elif not step.is_last:
                reply.ready.append(step.value)
        if reply.waiting and not self._speaking.busy:
            reply.voice_s = now_s
            self._speaking.start(self._spoken(reply.waiting.popleft()), now_s)

    def is_finished(self, now_s: float) -> bool:
        """Return whether all of the answer has been played."""
        reply = self.reply
        return (
            reply is not None
            and reply.is_sure
            and reply.is_written
            and not (reply.waiting or reply.ready or self._speaking.busy)
            and not self.ledger.is_playing(now_s)
        )

    def said(self, now_s: float) -> list[Event]:
        """Return the words of the answer that were played, as events."""
        if self.reply is None:
            return []
        payload = {"turn": self.reply.turn}
        return [
            Event(
                start_s=word.start_s,
                end_s=word.end_s,
                stream=AGENT,
                kind="word",
                text=word.text,
                payload=payload,
            )
            for word in self.ledger.heard(now_s)
        ]

    def _spoken(self, sentence: Sentence) -> Iterator[Voiced]:
        voiced = self._speak(sentence.spoken)
        check_channel(voiced.audio)
        if not voiced.audio.any():
            raise UserError(f"A voice must give sound: got {len(voiced.audio)} silent samples.")
        words = voiced.words
        if words and words[-1].text == sentence.spoken.split()[-1]:  # told as it was written
            words = (*words[:-1], words[-1]._replace(text=sentence.text.split()[-1]))
        yield Voiced(voiced.audio.to(torch.float32), words)


def _asked(answer: Callable[[Scene], Iterator[str]], scene: Scene) -> Iterator[str]:
    """Yield an answer; it is asked for in the lane, where an engine may fail or take its time."""
    yield from answer(scene)
