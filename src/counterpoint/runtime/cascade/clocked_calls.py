"""The calls of a cascade as the tools of a model that thinks against a clock."""

from counterpoint.runtime.cascade.calls import Call, Calls
from counterpoint.runtime.clocks import Clock, Response

_TURN = 0  # a `ClockedDecoder` hears one turn of the user


class ClockedCalls:
    """Makes what a model calls while it listens, by the rules of `Calls`; these are `Tools`.

    What is no call of a tool is refused. A call that fails is made again with the same idempotency
    key, one that takes too long or returns too much has failed, and equal calls are made once; but
    one that failed is tried anew if the model writes it again when the user has finished. A tool
    that is not safe may be called only when the user has finished: before that its call is refused,
    and the model may write it again in its last thought. A call that the model takes back is undone
    as `Calls.retract` does it, if its tool can undo it. Every attempt is one of `Calls.events`;
    `Calls.leave` ends what still runs when the conversation is over.

    Args:
        calls: The calls. Their lanes must go with the clock: `TimedLane` with a simulated one,
            `ThreadLane` with a real one.
        clock: The clock of the decoder.
        step_s: Seconds after which results are looked for again, while they are waited for.
    """

    def __init__(self, calls: Calls, clock: Clock, step_s: float = 0.02) -> None:
        self._calls = calls
        self._clock = clock
        self._step_s = step_s
        self._is_over = False
        self._asked: dict[int, Call] = {}  # by the number that the decoder gave
        self._made: dict[int, Call] = {}  # the same, also of those whose response was read
        self._repeated: set[int] = set()
        self._refused: list[Response] = []

    def start(self, call: int, text: str, now_s: float) -> None:
        """Begin a call; see `Tools.start`."""
        self._advance(now_s)
        standing = [one for one in self._made.values() if one.state != "failed"]
        asked = self._calls.request(text, _TURN, now_s)
        if asked is not None and asked.state == "failed" and self._is_over:
            self._calls.request(text, _TURN, now_s, again=True)
        if asked is None:
            why = self._calls.events[-1].payload["why"]
            self._refused.append(Response(call, why, ok=False))
        elif not (self._is_over or asked.tool.is_safe):
            self._calls.retract(asked, now_s)
            why = f"{asked.tool.name} may be called only when the user has finished"
            self._refused.append(Response(call, why, ok=False))
        else:
            if asked in standing:
                self._repeated.add(call)
            self._asked[call] = self._made[call] = asked
        self._advance(now_s)

    def cancel(self, call: int, now_s: float) -> str:
        """Take a call back, unless an equal one stands; see `Tools.cancel`."""
        made = self._made.get(call)
        others = [one for number, one in self._made.items() if number != call]
        if made is not None and made not in others:  # it was not refused
            self._calls.retract(made, now_s)
            has_effect = made.state != "failed" or made.tool.effect != "none"
            if made.is_wanted and has_effect:
                return f"what {made.tool.name} did cannot be undone"
        self._asked.pop(call, None)
        self._made.pop(call, None)
        self._advance(now_s)
        return ""

    def end_speech(self, now_s: float) -> None:
        """Learn that the user has finished; see `Tools.end_speech`."""
        self._advance(now_s)
        self._is_over = True

    def wait(self, until_s: float) -> float:
        """Wait for the next response; see `Tools.wait`."""
        while not self._has_arrived() and self._clock.now() < until_s:
            self._clock.reach(min(self._clock.now() + self._step_s, until_s))
            self._advance(self._clock.now())
        return self._clock.now()

    def arrived(self, now_s: float) -> list[Response]:
        """Return the responses that have arrived by now; see `Tools.arrived`."""
        self._advance(now_s)
        found, self._refused = self._refused, []
        for number, call in list(self._asked.items()):
            if call.is_settled:
                is_done = call.state == "done"
                text = call.result if is_done else call.reason or call.state
                is_repeated = number in self._repeated
                found.append(Response(number, text, ok=is_done, is_repeated=is_repeated))
                del self._asked[number]
        return found

    def _has_arrived(self) -> bool:
        return bool(self._refused) or any(call.is_settled for call in self._asked.values())

    def _advance(self, now_s: float) -> None:
        self._calls.advance(now_s, is_over=self._is_over, is_speaking=not self._is_over)
