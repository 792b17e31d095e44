"""What somebody thinks who hears an order chunk by chunk, calls the tool for it, and answers.

A thought notes the values that have become determined, and calls the tool as soon as all are (see
`counterpoint.data.tasks.spoken_orders.menu`). A value is determined when the word after it has been
heard: before that, "medium" may still become "medium roast", and "a latte" may go on with "no wait
make that a mocha". So nothing is called that a speaker takes back at once, as those of the data do.
In words, cut after "dark roast latte":

    round  could i have a medium dark roast latte [EOPA] size medium roast dark roast</think>
    round  please [EOA] coffeeDrink latte<tool_call>{"name": ...}</tool_call>
    round  <tool_response>{"ordered": ...}</tool_response> ordered</think> one medium dark ...[STOP]

The response of a tool may also come late, as `ClockedDecoder` reads it then: the thought that
called it is closed without the model, and the response stands before a later chunk, or after the
last thought. `order_rounds` assumes that every thought has the time of a whole chunk.
The one before the last chunk may have less: 0.6 % of all thoughts (about 2 % with the whole menu)
are longer than that allows, and `ClockedDecoder` would cut them, but for a call that has begun.

Source: SHANKS (arXiv:2510.06917), section 3.2 and figure 2, whose data are not public. Deviations:
the thoughts come from a program that knows the order, and late responses are ours.
"""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from counterpoint.data.tasks.spoken_maths.hearing import chunk_ends
from counterpoint.data.tasks.spoken_orders.menu import DRINK, SMALL, Menu, determined
from counterpoint.data.tasks.tool_world import ORDER
from counterpoint.streams.rounds import ANSWER, CANCEL, HEARD, MARK, RESPONSE, THOUGHT, Marks
from counterpoint.streams.seconds import border_s, exact, num_complete

ORDERED = " ordered"
"""What is thought about the response."""
NOT_UNDERSTOOD = " sorry"
"""The answer if no drink was heard."""


class OrderChunk(NamedTuple):
    """A chunk of a spoken order.

    Attributes:
        start_s: Time at which it begins.
        end_s: Time at which it is complete.
        words: The words that end in it, also just then.
    """

    start_s: float
    end_s: float
    words: tuple[str, ...]


def order_chunks(said: Sequence[str], words_per_s: float, chunk_s: float) -> list[OrderChunk]:
    """Cut an order into chunks.

    Args:
        said: The words, and silences of the same length, which are empty.
        words_per_s: Words a second, all equally long.
        chunk_s: Seconds of a chunk; the last may be shorter.
    """
    word_s = 1 / exact(words_per_s)
    chunks = []
    start_s = 0.0
    first = 0
    for end_s in chunk_ends(border_s(len(said), word_s), chunk_s):
        stop = num_complete(end_s, word_s)
        chunks.append(OrderChunk(start_s, end_s, tuple(filter(None, said[first:stop]))))
        start_s = end_s
        first = stop
    return chunks


def order_rounds(
    said: Sequence[str],
    words_per_s: float,
    chunk_s: float,
    marks: Marks,
    late: int = 0,
    menu: Menu = SMALL,
) -> list[dict[str, str]]:
    """Return the rounds of an order: the text of each part of `counterpoint.streams.rounds.ROUND`.

    Args:
        said: The words of an order, and silences; see `order_chunks`.
        words_per_s: Words a second.
        chunk_s: Seconds of a chunk.
        marks: Marks of the sequence.
        late: Number of chunks after the one that closes the thought with the call until the
            response comes; 0 if it comes during that thought. A call in the last thought is always
            waited for.
        menu: What can be ordered.
    """
    chunks = order_chunks(said, words_per_s, chunk_s)
    written = WrittenRounds(marks, late, len(chunks))
    words: list[str] = []
    known: dict[str, str] = {}
    was_complete = False
    for chunk in chunks:
        words += chunk.words
        thought = written.begin(spaced(chunk.words))
        now, is_complete = determined(words, menu, is_over=written.is_last)
        thought += spaced([f"{slot} {value}" for slot, value in now.items() if slot not in known])
        if is_complete and not was_complete:
            written.call(thought, now)
        else:
            written.close(thought)
        known = now
        was_complete = is_complete
    return written.finish(answer_to(known) if DRINK in known else NOT_UNDERSTOOD)


class WrittenRounds:
    """The rounds of an order, chunk by chunk: how a thought, a call and its response stand there.

    Args:
        marks: Marks of the sequence.
        late: See `order_rounds`.
        num_chunks: Number of chunks that will be begun.

    Attributes:
        is_last: Whether the chunk that was begun is the last.
    """

    def __init__(self, marks: Marks, late: int, num_chunks: int) -> None:
        self.is_last = False
        self._marks = marks
        self._late = late
        self._num_chunks = num_chunks
        self._place = -1
        self._rounds: list[dict[str, str]] = []
        self._part: dict[str, str] = {}
        self._response = ""
        self._due = -1  # place of the chunk before which the response stands
        self._is_unread = False  # the newest response

    def begin(self, heard: str, stands: str = "") -> str:
        """Begin the next chunk, and return how the thought about it begins.

        Args:
            heard: What is heard.
            stands: What is read before: a call that another session has made.
        """
        self._place += 1
        self.is_last = self._place == self._num_chunks - 1
        mark = self._marks.last if self.is_last else self._marks.part
        self._part = {HEARD: heard, MARK: mark}
        if stands:
            self._part[RESPONSE] = stands
        if self._place == self._due:
            self._part[RESPONSE] = self._response
        elif not self._is_unread:
            return ""
        self._is_unread = False
        return ORDERED

    def close(self, thought: str) -> None:
        """End the thought."""
        self._rounds.append(self._part | {THOUGHT: thought + self._marks.close})

    def cut(self, thought: str) -> None:
        """Let a thought be closed although the model goes on: its time is over."""
        self._rounds += [self._part | {THOUGHT: thought}, {MARK: self._marks.close}]

    def take_back(self) -> str:
        """Return the mark that takes the newest call back, whose response then never comes."""
        self._due = -1
        return CANCEL

    def call(self, thought: str, arguments: Mapping[str, str], *, has_time: bool = True) -> None:
        """End the thought with a call, and read the response in it or later.

        Args:
            thought: What is thought before.
            arguments: Arguments of the call.
            has_time: Whether there is time to think about a response that comes at once; if not,
                the next thought begins with it. The last thought always has time.
        """
        thought += written_call(arguments, self._marks)
        ordered = json.dumps({"ordered": arguments})
        self._response = f"{self._marks.response}{ordered}{self._marks.response_end}"
        if self._late and not self.is_last:
            self._due = self._place + 1 + self._late
            self.cut(thought)
        elif has_time or self.is_last:
            self._rounds.append(self._part | {THOUGHT: thought})
            self._read_response()
        else:
            unread = {RESPONSE: self._response, MARK: self._marks.close}
            self._rounds += [self._part | {THOUGHT: thought}, unread]
            self._is_unread = True

    def finish(self, answer: str) -> list[dict[str, str]]:
        """Return the rounds, of which the last ends with the answer."""
        if self._due >= self._num_chunks:
            self._read_response()
        self._rounds[-1][ANSWER] = f"{answer}{self._marks.stop}"
        return self._rounds

    def _read_response(self) -> None:
        own = {RESPONSE: self._response, THOUGHT: ORDERED + self._marks.close}
        self._rounds.append(own)


def written_call(arguments: Mapping[str, str], marks: Marks) -> str:
    """Return the call of an order as a model writes it."""
    written = json.dumps({"name": ORDER, "arguments": dict(arguments)})
    return f"{marks.call}{written}{marks.call_end}"


def answer_to(arguments: Mapping[str, str]) -> str:
    """Return the answer to an order that was made."""
    return spaced(["one", *arguments.values(), "coming"])


def spaced(words: Sequence[str]) -> str:
    """Return words as one text, with a blank before each."""
    return "".join(f" {word}" for word in words)
