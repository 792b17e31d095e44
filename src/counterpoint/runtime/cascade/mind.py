"""The thoughts about one turn: begun, read for their marks, ended by force when the next begins."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from counterpoint.runtime.cascade.calls import Calls
from counterpoint.runtime.cascade.lanes import Lane
from counterpoint.runtime.cascade.returned import checked_number, checked_texts
from counterpoint.runtime.cascade.thinking import Judge, Marked, MarkReader, Scene, SceneWriter
from counterpoint.runtime.cascade.trace import Trace

THOUGHT = "thought"
"""Name of the stream of thoughts, and kind of its events."""


@dataclass(slots=True)
class _Thought:
    """A thought in the making."""

    scene: Scene
    turn: int
    begin_s: float
    is_final: bool  # whether no words came after those that it sees
    marks: MarkReader = field(default_factory=MarkReader)
    text: str = ""
    interrupts: bool = False
    score: float | None = None


class Mind:
    """Thinks about a turn.

    Args:
        think: Writes thoughts; ``None`` for a conversation without thoughts.
        judge: Scores how surely the user must be interrupted; ``None`` for no judge.
        lane: Where thoughts run.
        calls: The calls that they ask for.
        trace: Where they are told.
        interrupt_at: Score from which on the user is interrupted.
        early_calls: Whether a thought before the last words may call tools.
        checks_calls: Whether the thought after them may make anew what has failed.

    Attributes:
        thoughts: Thoughts about the turn so far.
        newest_s: When the newest one began; ``None`` before the first.
        num_words: Number of words that it saw.
        is_done: Whether the thought after the last words has ended.
    """

    def __init__(
        self,
        think: SceneWriter | None,
        judge: Judge | None,
        lane: Lane,
        calls: Calls,
        trace: Trace,
        interrupt_at: float,
        *,
        early_calls: bool,
        checks_calls: bool = False,
    ) -> None:
        self.thoughts: list[str] = []
        self.newest_s: float | None = None
        self.num_words = 0
        self.is_done = False
        self._think = think
        self._judge = judge
        self._lane = lane
        self._calls = calls
        self._trace = trace
        self._interrupt_at = interrupt_at
        self._early_calls = early_calls
        self._checks_calls = checks_calls
        self._thought: _Thought | None = None
        self._num_thoughts = 0

    @property
    def thinks(self) -> bool:
        """Whether there is anything to run while the user speaks."""
        return self._think is not None or self._judge is not None

    @property
    def is_ending(self) -> bool:
        """Whether the thought after the last words runs or has ended."""
        runs = self._thought is not None and self._thought.is_final
        return self.is_done or runs or self._think is None

    @property
    def is_waiting(self) -> bool:
        """Whether the thought after the last words is still running."""
        return self._think is not None and not self.is_done

    def clear(self, now_s: float) -> None:
        """End a running thought by force, and forget everything: a new turn begins."""
        self._end(now_s, forced=True)
        self.thoughts = []
        self.newest_s = None
        self.num_words = 0
        self.is_done = False

    def reopen(self) -> None:
        """Await another thought after the last words: the user goes on."""
        self.is_done = False
        if self._thought is not None:
            self._thought.is_final = False

    def cut(self, now_s: float) -> bool:
        """End a running thought by force; return whether it asks for an interruption."""
        return self._end(now_s, forced=True)

    def begin(self, scene: Scene, turn: int, now_s: float) -> None:
        """Begin a thought, and end one that still runs by force.

        Args:
            scene: What is known so far.
            turn: Number of the user's turn.
            now_s: Time of the conversation.
        """
        self._end(now_s, forced=True)
        if not scene.is_over:  # else a user who pauses often is never judged
            self.num_words = len(scene.words)
            self.newest_s = now_s
        self._thought = _Thought(scene, turn, now_s, scene.is_over)
        self._lane.start(self._job(scene), now_s)

    def advance(self, now_s: float) -> bool:
        """Take what was thought.

        Returns:
            Whether a thought that has ended asks for an interruption.
        """
        interrupts = False
        for step in self._lane.poll(now_s):
            thought = self._thought
            if thought is None:
                break
            if step.error is not None:
                self._trace.fail(THOUGHT, str(step.error), step.at_s)
            if step.is_last:
                interrupts |= self._end(step.at_s, forced=False)
            elif isinstance(step.value, float):
                thought.score = step.value
                thought.interrupts |= step.value >= self._interrupt_at
            else:
                self._read(thought, thought.marks.read(step.value), step.at_s)
        return interrupts

    def _read(self, thought: _Thought, marked: Iterator[Marked], at_s: float) -> None:
        for one in marked:
            if one.kind in ("text", "inner"):
                thought.text += one.text
            elif one.kind == "interrupt":
                thought.interrupts = True
            elif one.kind == "broken":
                self._calls.refuse(one.text, "the call was cut off", at_s)
            elif self._early_calls or thought.scene.is_over:
                again = self._checks_calls and thought.scene.is_over
                if one.kind == "call":
                    self._calls.request(one.text, thought.turn, at_s, again=again)
                else:
                    self._calls.cancel(one.text, thought.turn, at_s)

    def _end(self, at_s: float, *, forced: bool) -> bool:
        """End the running thought, if any; return whether it asks for an interruption."""
        thought = self._thought
        if thought is None:
            return False
        self._lane.stop()
        self._thought = None
        self._read(thought, thought.marks.end(), at_s)
        text = " ".join(thought.text.split())
        if text:
            self.thoughts.append(text)
        is_over = thought.scene.is_over
        interrupts = thought.interrupts and not is_over
        closed = "interruption" if interrupts else "clock" if forced else "model"
        payload = {
            "chunk": self._num_thoughts,
            "closed": closed,
            "interrupt": thought.score,
            "last": is_over,
            "heard": thought.scene.text,
        }
        self._num_thoughts += 1
        self._trace.add(THOUGHT, THOUGHT, thought.begin_s, at_s, text, **payload)
        self.is_done |= thought.is_final
        return interrupts

    def _job(self, scene: Scene) -> Iterator[str | float]:
        """Yield the pieces of a thought, and then the score of the judge."""
        if self._think is not None:
            yield from checked_texts(self._think(scene), "a thought")
        if self._judge is not None and not scene.is_over:
            yield checked_number(self._judge(scene), "scores of a judge")
