"""What happens in a conversation, as events in the order in which they become known."""

from collections.abc import Callable

from counterpoint.runtime.cascade.ear import UserTurn, plain
from counterpoint.runtime.talk import USER
from counterpoint.speech.partials import ScoredWord
from counterpoint.streams.timeline import Event


class Trace:
    """Collects the events of a conversation.

    Args:
        on_event: Called with every event as soon as it is known.
    """

    def __init__(self, on_event: Callable[[Event], None] | None = None) -> None:
        self.events: list[Event] = []
        self._on_event = on_event

    def take(self) -> list[Event]:
        """Return the events since the last time, and forget them."""
        events = self.events
        self.events = []
        return events

    def tell(self, *events: Event) -> None:
        """Add events."""
        for event in events:
            self.events.append(event)
            if self._on_event is not None:
                self._on_event(event)

    def add(
        self,
        stream: str,
        kind: str,
        start_s: float,
        end_s: float | None = None,
        text: str = "",
        **payload: object,
    ) -> None:
        """Add an event of its parts; without ``end_s`` it has no duration.

        Args:
            stream: Name of the stream to which it belongs.
            kind: Its kind.
            start_s: Time of the conversation at which it begins.
            end_s: Time at which it ends.
            text: Its text.
            **payload: Further values, which can be written as JSON.
        """
        self.tell(
            Event(
                start_s=start_s,
                end_s=start_s if end_s is None else max(start_s, end_s),
                stream=stream,
                kind=kind,
                text=text,
                payload=payload,
            )
        )

    def fail(self, stream: str, why: str, at_s: float) -> None:
        """Add a failure, in one line."""
        self.add(stream, "error", at_s, text=" ".join(why.split())[:300] or "unknown")


class WordTeller:
    """Tells the words of a user's turns, each once, although a recogniser may revise them.

    Args:
        trace: Where they are told.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._turn = 0
        self._told: tuple[ScoredWord, ...] = ()

    def tell(self, turn: UserTurn) -> str:
        """Tell what was said since the last time, and the turn itself when it is over.

        If words that were told have changed meanwhile, the new ones are those that begin after the
        middle of the last of them: a place in the list says nothing then, for words may have come
        or gone, and the last one may have been cut off.

        Returns:
            The words that were told, as one text.
        """
        if turn.number != self._turn:
            self._turn = turn.number
            self._told = ()
        same = 0
        for old, new in zip(self._told, turn.words, strict=False):
            if plain(old.text) != plain(new.text):
                break
            same += 1
        told_s = max(((word.start_s + word.end_s) / 2 for word in self._told[same:]), default=-1.0)
        texts = []
        for word, known_s in list(zip(turn.words, turn.known_s, strict=True))[same:]:
            if word.start_s <= told_s:
                continue
            payload = {"p": round(word.probability, 3), "known_s": round(known_s, 3)}
            self._trace.add(USER, "word", word.start_s, word.end_s, word.text, **payload)
            texts.append(word.text)
        self._told = turn.words
        if turn.is_over:
            self._trace.add(
                USER, "turn", turn.start_s, turn.voice_end_s, turn.text, turn=turn.number
            )
        return " ".join(texts)
