"""The answers of a conversation: begun, held back, heard or dropped, told and remembered."""

from counterpoint.runtime.cascade.ear import UserTurn
from counterpoint.runtime.cascade.history import History
from counterpoint.runtime.cascade.read_ahead import ReadAhead
from counterpoint.runtime.cascade.reply import Mouth
from counterpoint.runtime.cascade.thinking import Scene, exchange
from counterpoint.runtime.cascade.trace import Trace
from counterpoint.runtime.talk import AGENT, USER


class Answering:
    """Lets a mouth answer one turn after another.

    Args:
        mouth: Writes, speaks and plays.
        ahead: Reads the history while nothing else needs the language model.
        history: Where questions and what was heard of their answers are remembered.
        trace: Where answers, interruptions and failures are told.
        barge_in_s: Voice of the user that stops the agent.

    Attributes:
        replied: Newest turn that was answered.
        held: Turn that the agent has interrupted: it gets no second answer.
    """

    def __init__(
        self, mouth: Mouth, ahead: ReadAhead, history: History, trace: Trace, barge_in_s: float
    ) -> None:
        self.replied = 0
        self.held = 0
        self._mouth = mouth
        self._ahead = ahead
        self._history = history
        self._trace = trace
        self._barge_in_s = barge_in_s

    @property
    def is_prepared(self) -> bool:
        """Whether there is an answer of which nothing was heard yet."""
        return self._mouth.reply is not None and not self._mouth.sounds

    @property
    def answered(self) -> int:
        """Newest turn of which an answer was heard, or is being heard."""
        reply = self._mouth.reply
        return reply.turn if reply is not None and self._mouth.sounds else self.replied

    def is_of(self, turn: int) -> bool:
        """Return whether there is an answer, and it is that of a turn."""
        reply = self._mouth.reply
        return reply is not None and reply.turn == turn

    def begin(self, scene: Scene, now_s: float, *, is_sure: bool) -> None:
        """Begin to write an answer, for which the model stops to read ahead; see `Mouth.begin`."""
        self._ahead.stop()
        self._mouth.begin(scene, scene.turn, now_s, is_sure=is_sure)

    def hold_back(self) -> None:
        """Let an answer of which nothing was heard wait: the user may go on."""
        if self._mouth.reply is not None and not self._mouth.sounds:
            self._mouth.reply.is_sure = False

    def let_go(self) -> None:
        """Let an answer be heard as soon as it can be: the user has finished."""
        if self._mouth.reply is not None:
            self._mouth.reply.is_sure = True

    def watch(self, speaking: UserTurn | None, now_s: float) -> None:
        """End an answer that was played or that the user interrupts.

        Args:
            speaking: Turn of the user who has the floor.
            now_s: Time of the conversation.
        """
        reply = self._mouth.reply
        if reply is None:
            return
        for where, why, at_s in reply.faults:
            self._trace.fail(where, why, at_s)
        reply.faults.clear()
        if self._mouth.sounds and speaking is not None:
            if speaking.number == self.held:
                speaking.ends_soon = True  # what is said after a pause is another turn
            elif speaking.number != reply.turn and speaking.voiced_s >= self._barge_in_s:
                self._yield(speaking, now_s)
                return
        if self._mouth.is_finished(now_s):
            self.close(now_s, is_cut=False)
        elif self._mouth.sounds and reply.is_written and not reply.was_read:
            reply.was_read = True  # the model is free while the answer is spoken
            so_far = (*self._history.messages, *exchange(reply.scene.text, reply.text))
            self._ahead.read(Scene(words=(), history=so_far))

    def _yield(self, turn: UserTurn, now_s: float) -> None:
        """Stop speaking at once: the user has the floor."""
        dropped_s = self._mouth.ledger.flush()
        self._trace.add(
            AGENT, "interruption", turn.start_s, now_s, by=USER, flushed_s=round(dropped_s, 3)
        )
        self.close(now_s, is_cut=True)

    def close(self, now_s: float, *, is_cut: bool) -> None:
        """Tell and remember what was heard of the answer, and end it."""
        reply = self._mouth.reply
        if reply is None:
            return
        said = self._mouth.said(now_s)
        self._trace.tell(*said)
        heard = " ".join(event.text for event in said)
        amounts = self._mouth.ledger.amounts(now_s)
        payload = {name: round(value, 3) for name, value in amounts._asdict().items()}
        payload |= {"turn": reply.turn, "written": reply.text, "cut": is_cut}
        start_s = now_s if reply.first_sound_s is None else reply.first_sound_s
        self._trace.add(AGENT, "answer", start_s, now_s, heard, **payload)
        self._history.keep(reply.scene.text, heard)
        self.replied = reply.turn
        self._mouth.drop()
        self._ahead.read(Scene(words=(), history=tuple(self._history.messages)))

    def discard(self, why: str, now_s: float) -> None:
        """Drop an answer of which nothing was heard."""
        reply = self._mouth.reply
        if reply is not None:
            self._trace.add(AGENT, "discarded", reply.begin_s, now_s, reply.text, why=why)
        self._mouth.drop()

    def leave(self, turn: UserTurn | None, why: str, now_s: float) -> None:
        """Remember the newest turn, which will get no answer, and drop what was prepared."""
        reply = self._mouth.reply
        if reply is not None and self.is_prepared:
            self.discard(why, now_s)
            self._history.keep(reply.scene.text)
        elif turn is not None and turn.number not in (self.answered, self.held):
            self.remember(turn.text)

    def remember(self, said: str) -> None:
        """Remember what the user said beside the question that is being answered, if any."""
        if self._mouth.reply is None:
            self._history.keep(said)
        else:
            self._history.keep_for_later(said)
