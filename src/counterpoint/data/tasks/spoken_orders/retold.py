"""Spoken orders of which every chunk tells all words again, and calls that are taken back.

A recogniser changes its mind about words that it has given out, mostly about the last one, of which
it may have heard a half. Here a model is told all words of the order with every chunk, as they are
known by then, so that none must wait until it is certain; a chunk that changes nothing tells
nothing. The tool is called as soon as a drink is among them, and if the order changes, the call is
taken back and made anew. In words, with one chunk after "latte" and one at the end:

    round  could i have a latte [EOPA] coffeeDrink latte<tool_call>{"name": ...}</tool_call>
    round  <tool_response>{"ordered": ...}</tool_response> ordered</think>
    round  could i have a latte with milk [EOA] milkAmount milk<tool_cancel/><tool_call>{...
    round  <tool_response>{"ordered": ...}</tool_response> ordered</think> one latte milk ...[STOP]

A value that is no longer said ("medium" has become "medium roast") gets no note. Such calls are
only for tools that can be undone. A response that is late stands as in
`counterpoint.data.tasks.spoken_orders.rounds`; that of a call that was taken back never comes.

The thought before a short last chunk may be closed before its end. Training has that also
elsewhere: in the middle of the notes, so that the call is made in the next thought, and after a
call, so that the next thought begins with " ordered".

Source: none; SHANKS (arXiv:2510.06917) hears sound, and takes no call back.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from counterpoint.data.tasks.spoken_orders.menu import DRINK, Menu, determined
from counterpoint.data.tasks.spoken_orders.rounds import (
    NOT_UNDERSTOOD,
    OrderChunk,
    WrittenRounds,
    answer_to,
    spaced,
    written_call,
)
from counterpoint.streams.rounds import Marks


class Hypothesis(NamedTuple):
    """The words of an order so far, as a recogniser knows them.

    Attributes:
        known: The words that are known by now.
        told: The words that the model is told this time.
        kept: Share of the notes that there is time for until the next chunk; below 1 there is none
            for a call.
        has_time: Whether there is time to think about the response to a call.
    """

    known: Sequence[str]
    told: Sequence[str]
    kept: float = 1.0
    has_time: bool = True


Recognising = Callable[[Sequence[str], bool], Hypothesis]
"""Returns what a recogniser knows of the words so far, and of whether the last one is certain."""


def exactly(words: Sequence[str], is_certain: bool) -> Hypothesis:
    """Return the words that were said; a `Recognising`."""
    return Hypothesis(words, words)


def retold_rounds(
    chunks: Sequence[OrderChunk],
    marks: Marks,
    menu: Menu,
    late: int = 0,
    recall: Recognising = exactly,
) -> list[dict[str, str]]:
    """Return the rounds of an order; see `counterpoint.data.tasks.spoken_orders.rounds`.

    Args:
        chunks: The chunks of the order.
        marks: Marks of the sequence.
        menu: What can be ordered.
        late: Number of chunks by which the responses of its calls are late; see `order_rounds`.
        recall: How the words are recognised.
    """
    written = WrittenRounds(marks, late, len(chunks))
    said: list[str] = []
    told = ""
    known: Mapping[str, str] = {}
    called: Mapping[str, str] = {}
    for place, chunk in enumerate(chunks):
        is_last = place == len(chunks) - 1
        said += chunk.words
        hypothesis = recall(said, is_last or not chunk.words)
        before, told = told, spaced(hypothesis.told)
        thought = written.begin("" if told == before else told)
        now = determined(hypothesis.known, menu, is_over=True).values
        notes = [f"{slot} {own}" for slot, own in now.items() if known.get(slot) != own]
        if notes and hypothesis.kept < 1 and not is_last:
            written.cut(thought + _begun(notes, hypothesis.kept))
            continue
        thought += spaced(notes)
        known = now
        if DRINK in now and now != called:
            thought += written.take_back() if called else ""
            called = now
            written.call(thought, called, has_time=hypothesis.has_time)
        else:
            written.close(thought)
    return written.finish(answer_to(called) if called else NOT_UNDERSTOOD)


def heard_again(
    chunks: Sequence[OrderChunk],
    marks: Marks,
    menu: Menu,
    recall: Recognising = exactly,
    stands: Callable[[Mapping[str, str]], Mapping[str, str]] = dict,
) -> list[dict[str, str]]:
    """Return the rounds of who hears an order at once when it is over.

    First stands what was called before the last chunk, and then all words as they are known in the
    end. What was known once still counts, as it does for who called, but not if nothing stands:
    then nobody can know it. In words:

        round  <tool_call>{... latte}</tool_call> could i have a latte with milk [EOA] coffeeDrink
               latte milkAmount milk<tool_call>{"name": ...}</tool_call>
        round  <tool_response>{"ordered": ...}</tool_response> ordered</think> one latte milk ...

    Args:
        chunks: The chunks in which the other session hears the order.
        marks: Marks of the sequence.
        menu: What can be ordered.
        recall: How the words are recognised.
        stands: Returns what was called in place of what should have been; nothing if it is empty.
    """
    said: list[str] = []
    called: Mapping[str, str] = {}
    now: Mapping[str, str] = {}
    told = ""
    for place, chunk in enumerate(chunks):
        called = now if DRINK in now else called
        said += chunk.words
        hypothesis = recall(said, place == len(chunks) - 1 or not chunk.words)
        now = determined(hypothesis.known, menu, is_over=True).values
        told = spaced(hypothesis.told) or told
    made = stands(called) if called else {}
    if not made:
        now = determined(told.split(), menu, is_over=True).values
    written = WrittenRounds(marks, 0, 1)
    thought = written.begin(told, written_call(made, marks) if made else "")
    thought += spaced([f"{slot} {value}" for slot, value in now.items()])
    if DRINK not in now:
        written.close(thought)
        return written.finish(NOT_UNDERSTOOD)
    written.call(thought, now)
    return written.finish(answer_to(now))


def _begun(notes: Sequence[str], kept: float) -> str:
    words = " ".join(notes).split()
    return spaced(words[: int(kept * (len(words) + 1))])
