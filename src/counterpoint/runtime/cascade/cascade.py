"""A conversation of separate engines on one clock: recognise, think, call tools, answer, speak.

The user is heard in blocks of 32 ms. While they speak, their words are recognised again and again,
and a language model thinks about them: after every few seconds (`FixedChunks`, as in SHANKS) or
when a clause is complete (`ClauseTrigger`). Thoughts may call tools before the user has finished,
and may interrupt. When the user pauses, the last words are recognised and an answer is prepared at
once; it is heard when the pause is long enough to end the turn, and dropped if the user goes on.

Everything that happens is an event: words, thoughts, calls, answers, interruptions, failures. What
fails is an event too, and the conversation goes on.

Source: the cascade of SHANKS (arXiv:2510.06917), sections 2 and 4. Deviations: the engines are not
trained for it; speculative answers, the flush after an interruption, repeated and cancelled calls,
and the semantic trigger are ours.
"""

import time
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.data.tools import Tool
from counterpoint.runtime.cascade.answering import Answering
from counterpoint.runtime.cascade.calls import Calls
from counterpoint.runtime.cascade.ear import BLOCK_S, EAR_BLOCK, EAR_HZ, Ear, Sign, UserTurn
from counterpoint.runtime.cascade.history import History
from counterpoint.runtime.cascade.lanes import LaneFactory, ThreadLane, close_lanes
from counterpoint.runtime.cascade.ledger import SoundLedger
from counterpoint.runtime.cascade.mind import THOUGHT, Mind
from counterpoint.runtime.cascade.models import Message
from counterpoint.runtime.cascade.parts import Backlog, CascadeRules, Engines
from counterpoint.runtime.cascade.read_ahead import ReadAhead
from counterpoint.runtime.cascade.reply import Mouth
from counterpoint.runtime.cascade.thinking import Scene
from counterpoint.runtime.cascade.trace import Trace, WordTeller
from counterpoint.runtime.talk import AGENT, USER
from counterpoint.speech.codec import check_channel
from counterpoint.streams.timeline import Event, Timeline

__all__ = ["Cascade", "CascadeRules", "Engines"]


class Cascade:
    """One conversation.

    Its memory grows only by its events, which can be taken out with `take_events`.

    Args:
        engines: The engines; a detector has a state, so every conversation needs its own.
        tools: Tools that may be called.
        rules: See `CascadeRules`.
        lanes: Makes the lanes of the slow work (see `lanes`).
        device_delay_s: Seconds until a sample that was sent is heard.
        on_event: Called with every event as soon as it is known.
    """

    def __init__(
        self,
        engines: Engines,
        *,
        tools: tuple[Tool, ...] = (),
        rules: CascadeRules | None = None,
        lanes: LaneFactory = ThreadLane,
        device_delay_s: float = 0.0,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.engines = engines
        self.rules = rules or CascadeRules()
        self.calls = Calls(tools, lanes, self.rules.calls)
        self._history = History()
        hearing, writing, speaking, reading, thinking, rehearsing = self._lanes = tuple(
            lanes() for _ in range(6)
        )
        self._ear = Ear(engines.detect, engines.recognise, hearing, self.rules.ear)
        self._mouth = Mouth(
            engines.answer,
            engines.speak,
            SoundLedger(EAR_HZ, device_delay_s),
            writing,
            speaking,
            rehearsing,
            self.rules.apology,
            self.rules.answer_s,
        )
        self._trace = Trace(on_event)
        self._words = WordTeller(self._trace)
        self._ahead = ReadAhead(engines.read, reading, self._trace)
        self._answers = Answering(
            self._mouth, self._ahead, self._history, self._trace, self.rules.barge_in_s
        )
        self._mind = Mind(
            engines.think,
            engines.judge,
            thinking,
            self.calls,
            self._trace,
            self.rules.interrupt_at,
            early_calls=self.rules.early_calls,
            checks_calls=self.rules.checks_calls,
        )
        self._now_s = 0.0
        self._pending = torch.zeros(0)
        self._sound = torch.zeros(EAR_BLOCK)  # what sounds while the pending block is heard
        self._open_turn: UserTurn | None = None  # the turn that was not told as a whole yet
        self._newest: UserTurn | None = None  # the turn that is or was to be answered last
        self._doubtful: UserTurn | None = None  # a turn after it that may be a cough, so far
        self._waits_since_s: float | None = None  # since when all else is ready for the answer
        self._was_unclear = False

    @property
    def now_s(self) -> float:
        """Time of the conversation: seconds heard so far, in whole blocks."""
        return self._now_s

    @property
    def history(self) -> list[Message]:
        """What is remembered; see `History`."""
        return self._history.messages

    @property
    def backlog(self) -> Backlog:
        """What waits now."""
        turn = self._ear.turn
        late = 0.0 if turn is None else max(turn.voice_end_s - turn.words_end_s, 0.0)
        open_calls = sum(not call.is_settled for call in self.calls.calls)
        return Backlog(late if self._ear.in_turn else 0.0, self._mouth.ledger.queued_s, open_calls)

    def hear(self, samples: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Hear any number of samples at `EAR_HZ`, and return what sounds meanwhile.

        Raises:
            UserError: The samples are not of one channel (see `check_channel`).
        """
        check_channel(samples)
        sound = [self._sound[:0]]
        while len(samples):
            begun = len(self._pending)
            piece, samples = samples[: EAR_BLOCK - begun], samples[EAR_BLOCK - begun :]
            sound.append(self._sound[begun : begun + len(piece)])
            self._pending = torch.cat([self._pending, piece.float()])
            if len(self._pending) == EAR_BLOCK:
                block, self._pending = self._pending, torch.zeros(0)
                self._now_s += BLOCK_S
                for sign in self._ear.push(block, self._now_s):
                    self._notice(sign)
                self._take(may_sound=True)
                self._sound = self._mouth.ledger.send(EAR_BLOCK, self._now_s)
        return torch.cat(sound)

    def attend(self) -> None:
        """Take what the engines have finished, and let the next engine begin.

        `hear` does so after every block. Who waits for the next block calls this meanwhile, as
        often as they like: what is finished between two blocks then waits for no block.
        """
        self._take(may_sound=False)

    @property
    def is_idle(self) -> bool:
        """Whether nothing will happen unless the user speaks."""
        turn = self._newest
        open_turn = self._ear.in_turn or self._open_turn is not None
        answers = self._answers
        answered = turn is None or not turn.words or turn.number in (answers.replied, answers.held)
        return self._mouth.reply is None and not open_turn and answered

    def note(self, event: Event) -> None:
        """Add an event from outside of the conversation."""
        self._trace.tell(event)

    def take_events(self) -> list[Event]:
        """Return the events since the last time, and forget them."""
        return self._trace.take()

    def timeline(self) -> Timeline:
        """Return the events since `take_events`, and what is being said now."""
        header = {"rate": EAR_HZ, "streams": [USER, THOUGHT, AGENT]}
        playing = self._mouth.said(self._now_s)
        return Timeline(events=(*self._trace.events, *playing), header=header)

    def close(self, wait_s: float = 2.0) -> None:
        """End what still runs, and wait so many seconds at most until the engines are quiet.

        The turn and the answer that are going on are told as far as they have come.
        A process that ends while a thread is within an engine may be aborted by it. Only a tool
        that hangs keeps a thread; see `Calls.leave`, which may take half of the time.
        """
        until_s = time.monotonic() + wait_s
        self._tell_the_end()
        lanes = (*self._lanes, *self.calls.leave(self._now_s, wait_s / 2))
        self._trace.tell(*self.calls.take_events())
        close_lanes(lanes, until_s - time.monotonic())

    def _tell_the_end(self) -> None:
        """Tell and remember what is going on: nothing comes after it."""
        self._mind.cut(self._now_s)
        if self._mouth.sounds:
            self._answers.close(self._now_s, is_cut=True)
        self._answers.leave(self._newest, "the conversation was closed", self._now_s)
        self._newest = None
        self._doubtful = None
        if self._open_turn is not None:
            self._open_turn.is_over = True
            self._tell_turn(self._open_turn)

    # ------------------------------------------------------------------------------- one block

    def _take(self, *, may_sound: bool) -> None:
        """Take what is finished; only after a block may sound be queued, for it is sent then.

        Sound that was queued between blocks would count as heard when the user begins to speak in
        the next block, before any of it was sent.
        """
        now_s = self._now_s
        for sign in self._ear.take_words(now_s):
            self._notice(sign)
        self._advance(now_s, may_sound)

    def _advance(self, now_s: float, may_sound: bool) -> None:
        self._settle_doubt()
        open_turn = self._open_turn
        if open_turn is not None and open_turn.is_over and open_turn.is_recognised:
            self._end_turn(open_turn)
        turn = self._newest
        if turn is not None:
            if self._answers.held == turn.number:
                self.calls.withhold(turn.number, now_s)
            elif turn.is_over and turn.is_incomplete:  # the missing words may take them back
                self.calls.withhold(turn.number, now_s, is_told=True)
            self.calls.advance(
                now_s,
                is_over=self._may_last(turn),
                is_speaking=self._is_speaking,
                makes_early=self.rules.early_calls,
            )
            self._think(turn)
            self._trace.tell(*self.calls.take_events())
            self._prepare(turn)
        self._mouth.advance(now_s, may_sound=may_sound)
        self._answers.watch(self._ear.turn if self._ear.in_turn else None, now_s)
        self._ahead.advance(now_s)

    def _notice(self, sign: Sign) -> None:
        self._settle_doubt()
        if sign == Sign.FAILED:
            self._trace.fail("ear", self._ear.error, self._now_s)
            return
        turn = self._ear.turn
        if turn is None:
            raise AssertionError("all other signs come with a turn")
        if sign == Sign.BEGAN:
            self._meet(turn)
        elif turn is not self._newest:
            return  # it may be a cough, which changes nothing
        elif sign == Sign.RESUMED and turn.number != self._answers.held:
            if self._answers.is_prepared and self._answers.is_of(turn.number):
                self._answers.discard("the user goes on", self._now_s)
            self._mind.reopen()
            self._waits_since_s = None
        elif sign == Sign.PAUSED:
            # The answer may be next, and needs the language model; to interrupt it is too late.
            self._mind.cut(self._now_s)
        elif sign == Sign.WORDS and self._is_speaking and self._mouth.reply is None:
            self._ahead.read(self._scene(turn))

    def _meet(self, turn: UserTurn) -> None:
        """Notice that a turn has begun; it may be a cough if the one before is still unanswered.

        Until that is known, nothing sounds and no lasting call is made, but nothing is dropped.
        """
        if self._open_turn is not None:  # its last words never came
            if self._open_turn is self._doubtful:
                self._begin_turn(self._open_turn)
            self._tell_turn(self._open_turn)
        self._open_turn = turn
        self._mouth.rehearse(self._now_s)
        if not self._is_unanswered:
            self._begin_turn(turn)
            return
        self._doubtful = turn
        self._answers.hold_back()
        if self._mind.is_waiting:  # thought once more if it was a cough
            self._mind.cut(self._now_s)
            self._mind.reopen()

    def _settle_doubt(self) -> None:
        """Let a turn that may be a cough take the place of the one before, when it is none."""
        turn = self._doubtful
        if turn is not None and turn.words:
            self._begin_turn(turn)

    def _begin_turn(self, turn: UserTurn) -> None:
        """Go on to a turn, and forget what belonged to the one before."""
        self._answers.leave(self._newest, "the user goes on", self._now_s)
        self._newest = turn
        self._doubtful = None
        self._mind.clear(self._now_s)
        self.calls.withhold(turn.number - 1, self._now_s)
        self.calls.forget_before(self._answers.answered + 1)
        self._waits_since_s = None

    def _tell_turn(self, turn: UserTurn) -> None:
        """Tell a turn with the words that are known of it."""
        self._open_turn = None
        told = self._words.tell(turn)
        if turn.number == self._answers.held:
            self._answers.remember(told)
        if turn.words:
            self._was_unclear = False
        else:
            self._trace.add(USER, "unclear", turn.start_s, turn.voice_end_s)

    def _end_turn(self, turn: UserTurn) -> None:
        """Tell a turn when its last words are known, and say so if it has none."""
        self._tell_turn(turn)
        was_doubtful = turn is self._doubtful
        if was_doubtful and turn.is_incomplete:  # nobody knows whether it was a cough
            self._begin_turn(turn)
        elif was_doubtful:
            self._doubtful = None
            self._waits_since_s = None
            self._answers.let_go()
        is_unclear = turn.voice_end_s - turn.start_s >= self.rules.unclear_s
        is_unclear = is_unclear and not (self._was_unclear or was_doubtful)
        if not turn.words and (is_unclear or turn.is_incomplete) and not self._mouth.sounds:
            self._was_unclear = True  # music must not be answered again and again
            self._mouth.say(self.rules.unclear, self._scene(turn), turn.number, self._now_s)

    def _think(self, turn: UserTurn) -> None:
        """Begin a thought if it is time, and interrupt the user if one has asked for it."""
        mind = self._mind
        interrupts = mind.advance(self._now_s)
        is_speaking = self._is_speaking and turn is self._ear.turn
        if not is_speaking or turn.number == self._answers.held or not mind.thinks:
            return
        new = turn.words[mind.num_words :]
        since_s = self._now_s - (mind.newest_s or turn.start_s)
        if new and self.rules.trigger(new, since_s):
            interrupts |= mind.cut(self._now_s)
            if not interrupts:  # else the interruption needs the language model
                mind.begin(self._scene(turn), turn.number, self._now_s)
        if interrupts and self._mouth.reply is None:
            self._interrupt(turn)

    def _interrupt(self, turn: UserTurn) -> None:
        """Take the floor from the user."""
        self._answers.held = turn.number
        self._trace.add(AGENT, "interruption", self._now_s, by=AGENT, turn=turn.number)
        self._words.tell(turn)
        scene = self._scene(turn, is_over=True, interrupts=True)
        self._answers.begin(scene, self._now_s, is_sure=True)

    # ------------------------------------------------------------------------------- answering

    def _prepare(self, turn: UserTurn) -> None:
        """Take the steps to an answer when the user pauses or has finished."""
        if not (self._ear.is_pausing or turn.is_over) or not turn.words:
            return
        answers = self._answers
        if self._doubtful is not None or turn.number in (answers.held, answers.replied):
            return
        if answers.is_of(turn.number):
            if turn.is_over:
                answers.let_go()
            return
        # While the agent speaks, the length of the user's voice decides whether it is interrupted.
        if turn.is_recognised and not self._mouth.sounds:
            self._finish_thinking(turn)

    def _finish_thinking(self, turn: UserTurn) -> None:
        """Think about the last words, wait for the calls, and begin to answer."""
        mind = self._mind
        if self._waits_since_s is None:
            self._waits_since_s = self._now_s
        is_late = self._now_s - self._waits_since_s > self.rules.wait_s
        if not mind.is_ending:
            mind.begin(self._scene(turn, is_over=True), turn.number, self._now_s)
        if mind.is_waiting and is_late:
            mind.cut(self._now_s)
        if mind.is_waiting:
            return
        waiting = [one for one in self.calls.of_turn(turn.number) if not one.is_settled]
        if waiting and not is_late:
            return
        for call in waiting:
            self.calls.give_up(call, self._now_s)
        scene = self._scene(turn, is_over=True)
        self._answers.begin(scene, self._now_s, is_sure=turn.is_over)

    # ------------------------------------------------------------------------------- small parts

    @property
    def _is_speaking(self) -> bool:
        """Whether the user's voice is heard."""
        return self._ear.in_turn and not self._ear.is_pausing

    @property
    def _is_unanswered(self) -> bool:
        """Whether an answer is due of which nothing was heard yet."""
        answers = self._answers
        if answers.is_prepared:
            return True
        turn = self._newest
        if turn is None or turn.number in (answers.answered, answers.held):
            return False
        return turn.is_recognised and bool(turn.words)

    def _may_last(self, turn: UserTurn) -> bool:
        """Whether a call may be made that stays: nothing more can take it back."""
        is_known = turn.is_over and turn.is_recognised and bool(turn.words)
        return (
            is_known
            and not turn.is_incomplete
            and self._doubtful is None
            and not self._mind.is_waiting
        )

    def _scene(self, turn: UserTurn, *, is_over: bool = False, interrupts: bool = False) -> Scene:
        return Scene(
            words=turn.words,
            history=tuple(self.history),
            thoughts=tuple(self._mind.thoughts),
            calls=self.calls.of_turn(turn.number),
            turn=turn.number,
            is_over=is_over,
            interrupts=interrupts,
        )
