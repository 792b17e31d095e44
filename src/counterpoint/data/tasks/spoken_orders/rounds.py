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
last thought. The rounds assume that every thought has the time of a whole chunk.
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
from counterpoint.streams.rounds import ANSWER, HEARD, MARK, RESPONSE, THOUGHT, Marks
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
    rounds: list[dict[str, str]] = []
    words: list[str] = []
    known: dict[str, str] = {}
    was_complete = False
    response = ""
    due = -1
    for place, chunk in enumerate(chunks):
        is_last = place == len(chunks) - 1
        words += chunk.words
        part = {HEARD: spaced(chunk.words), MARK: marks.last if is_last else marks.part}
        thought = ""
        if place == due:
            part[RESPONSE] = response
            thought = ORDERED
        now, is_complete = determined(words, menu, is_over=is_last)
        thought += spaced([f"{slot} {value}" for slot, value in now.items() if slot not in known])
        is_called = is_complete and not was_complete
        known = now
        was_complete = is_complete
        if is_called:
            rounds.append(part | {THOUGHT: thought + written_call(now, marks)})
            response = marks.response + json.dumps({"ordered": now}) + marks.response_end
            if late and not is_last:
                due = place + 1 + late
                rounds.append({MARK: marks.close})  # not by the model: its time is over
                continue
            part = {RESPONSE: response}
            thought = ORDERED
        rounds.append(part | {THOUGHT: thought + marks.close})
    if due >= len(chunks):
        rounds.append({RESPONSE: response, THOUGHT: ORDERED + marks.close})
    answer = answer_to(known) if DRINK in known else NOT_UNDERSTOOD
    rounds[-1][ANSWER] = f"{answer}{marks.stop}"
    return rounds


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
