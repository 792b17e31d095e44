"""What happens in a conversation, as events in the order in which they become known."""

from collections.abc import Callable

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
