"""What happens in a conversation, as events in the order in which they become known."""

from collections import Counter
from collections.abc import Callable
from difflib import SequenceMatcher

from counterpoint.runtime.cascade.ear import UserTurn
from counterpoint.runtime.cascade.returned import plain
from counterpoint.runtime.talk import USER
from counterpoint.speech.partials import ScoredWord
from counterpoint.streams.timeline import Event, Timeline

RETRACTED = "retracted"
"""Kind of the event of a word that was told and is not believed any more."""


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

    A word is an event "word". If a later hypothesis has no such word any more, an event "retracted"
    with the same times and text follows. What was told of a turn and not retracted is its newest
    hypothesis, apart from punctuation, capitals and times; see `standing_words`.

    Args:
        trace: Where they are told.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._turn = 0
        self._told: list[ScoredWord] = []  # as they were told

    def tell(self, turn: UserTurn) -> str:
        """Tell what has changed since the last time, and the turn itself when it is over.

        The new words are aligned with those that were told: neither times nor places in the list
        say which is which, for words may have come or gone, and a recogniser moves their times.

        Returns:
            The words that were told after all of before, or in place of the last of before, which
            may have been cut off, as one text.
        """
        if turn.number != self._turn:
            self._turn = turn.number
            self._told = []
        old = [plain(word.text) for word in self._told]
        new = [plain(word.text) for word in turn.words]
        told: list[ScoredWord] = []
        last: tuple[ScoredWord, ...] = ()
        for change, i, i_stop, j, j_stop in _changes(old, new):
            if change == "equal":
                told += self._told[i:i_stop]
                continue
            for word in self._told[i:i_stop]:
                self._trace.add(USER, RETRACTED, word.start_s, word.end_s, word.text)
            for word, known_s in zip(turn.words[j:j_stop], turn.known_s[j:j_stop], strict=True):
                payload = {"p": round(word.probability, 3), "known_s": round(known_s, 3)}
                self._trace.add(USER, "word", word.start_s, word.end_s, word.text, **payload)
            told += turn.words[j:j_stop]
            last = turn.words[j:j_stop] if i_stop == len(old) else ()
        self._told = told
        if turn.is_over:
            self._trace.add(
                USER, "turn", turn.start_s, turn.voice_end_s, turn.text, turn=turn.number
            )
        return " ".join(word.text for word in last)


def _changes(old: list[str], new: list[str]) -> list[tuple[str, int, int, int, int]]:
    """Return how old words become new ones, as `difflib.SequenceMatcher.get_opcodes` does.

    Words that both begin with are equal in any case: only what follows must be searched.
    """
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    found = SequenceMatcher(None, old[same:], new[same:], autojunk=False).get_opcodes()
    changes: list[tuple[str, int, int, int, int]] = []
    if same:
        changes.append(("equal", 0, same, 0, same))
    changes += [
        (change, i + same, i_stop + same, j + same, j_stop + same)
        for change, i, i_stop, j, j_stop in found
    ]
    return changes


def standing_words(timeline: Timeline, stream: str) -> list[Event]:
    """Return the words of a stream, without those that were retracted."""
    retracted = Counter(map(_times_and_text, timeline.where(stream=stream, kind=RETRACTED)))
    words = []
    for word in timeline.where(stream=stream, kind="word"):
        if retracted[_times_and_text(word)]:
            retracted[_times_and_text(word)] -= 1
        else:
            words.append(word)
    return words


def _times_and_text(event: Event) -> tuple[float, float, str]:
    return event.start_s, event.end_s, event.text
