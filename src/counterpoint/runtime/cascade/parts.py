"""What a conversation is made of, how it goes, and what waits in it."""

from dataclasses import dataclass, field
from typing import NamedTuple

from counterpoint.runtime.cascade.calls import CallRules
from counterpoint.runtime.cascade.ear import Detect, EarRules, Recognise
from counterpoint.runtime.cascade.reply import Speak
from counterpoint.runtime.cascade.thinking import FixedChunks, Judge, SceneWriter, Trigger


@dataclass(frozen=True, kw_only=True, slots=True)
class Engines:
    """What a conversation is made of; each part is a function, and any other may take its place.

    Attributes:
        detect: Tells speech from other sound.
        recognise: Recognises words.
        answer: Writes answers.
        speak: Speaks sentences, at `EAR_HZ`.
        think: Thinks while the user speaks; ``None`` for a model that does not.
        judge: Tells how sure it is that the user must be interrupted.
        read: Reads the history while an answer is heard, and the newest words while the user
            speaks, so that the next answer begins sooner; see `ReadAhead`.
    """

    detect: Detect
    recognise: Recognise
    answer: SceneWriter
    speak: Speak
    think: SceneWriter | None = None
    judge: Judge | None = None
    read: SceneWriter | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CascadeRules:
    """How a conversation goes.

    Attributes:
        trigger: When to think.
        early_calls: Whether tools are called while the user speaks. Otherwise all calls are made
            after the turn: the baseline "call after listen".
        checks_calls: Whether the calls are checked once more after the turn: what the thought about
            the whole turn asks for is made anew if it has failed before. With early calls this is
            "SHANKS + call after listen".
        interrupt_at: Score of the judge from which on the user is interrupted; above 1 for never.
        barge_in_s: Voice of the user that stops the agent. A turn with less voice is answered when
            the agent has finished.
        wait_s: Longest time for which an answer waits for the last thought and for calls.
        answer_s: Longest time for which the first sentence of an answer is waited for, and then
            for more of its text, and for the sound of each sentence.
        apology: What is said if no answer could be written or spoken.
        unclear: What is said if a turn had no words that could be recognised.
        unclear_s: Shortest such turn; what is shorter is ignored, unless the recogniser failed.
        calls: Limits of calls.
        ear: Limits of turns.
    """

    trigger: Trigger = field(default_factory=FixedChunks)
    early_calls: bool = True
    checks_calls: bool = False
    interrupt_at: float = 0.5
    barge_in_s: float = 0.2
    wait_s: float = 8.0
    answer_s: float = 20.0
    apology: str = "Sorry, I cannot answer that now."
    unclear: str = "Sorry, I did not understand that."
    unclear_s: float = 1.0
    calls: CallRules = field(default_factory=CallRules)
    ear: EarRules = field(default_factory=EarRules)


class Backlog(NamedTuple):
    """What waits at a moment.

    Attributes:
        unrecognised_s: Seconds of the user's voice whose words are not known yet.
        queued_s: Seconds of sound that wait to be played.
        open_calls: Calls that are not settled.
    """

    unrecognised_s: float
    queued_s: float
    open_calls: int
