"""A model that listens again when the speech is over, and corrects what it called too soon.

Two sessions of one model: `listening` hears chunk after chunk, each of which tells all words so
far, and calls tools while the user speaks. `again` is new when the speech is over. It reads the
calls that stand and then all words, as one last chunk; the last thought and the answer are its own.
So it knows what was called, and thinks about the whole with nothing else between:

    stands               the call of `again`   what is written
    nothing              a call                the call
    the same call        the same call         the call, which `Calls` does not make twice
    one other, or more   a call                `CANCEL` for each that stands, and the call
    any                  no JSON object        that, which is refused; what stands is kept
    any                  none                  `CANCEL` for each that stands

Which of these it is, is known when the call of `again` is complete. Until then its tokens take
their time, and nothing of them is written; then the call is written as one token. A call of n
tokens takes n + 1 that way, and one more for each `CANCEL`. All of it is written after the speech:
for the answer the check costs the time of one thought, for which `ClockConfig.last_tokens` must
have room, and early calls stand meanwhile. A call that the budget cuts leaves what stands as it is,
and no event.

Marks must be one token each. What stands is given up before the tool has seen the new call: if it
refuses that, nothing is left. A turn whose first session made several calls is called anew. Memory
is that of two sessions, and both hear the last chunk.

Source: "SHANKS + call-after-listen" of SHANKS (arXiv:2510.06917), whose second model hears the
whole speech after the calls that succeeded, as if it had made them. Taking calls back is ours.
"""

import json
from typing import Any

from counterpoint.runtime.clocked import Proposal, Thinker
from counterpoint.streams.rounds import CANCEL, Marks


class CheckedThinker:
    """Two sessions, of which the second checks the calls of the first; a `Thinker` of words.

    Args:
        listening: Session that hears chunk after chunk.
        again: New session of a model that learned to hear all at once, after what was called.
        marks: Marks of the sequence.
    """

    def __init__(self, listening: Thinker, again: Thinker, marks: Marks) -> None:
        self._listening = listening
        self._again = again
        self._marks = marks
        self._is_over = False
        self._may_end = False  # until the first session writes about the newest chunk
        self._words = ""
        self._text = ""  # of the thought of the first session, since its newest call
        self._standing: list[str] = []  # calls of the first session
        self._call: str | None = None  # of the second one, as far as it is written
        self._ahead: list[str] = []
        self._is_awaiting = False  # the response to its call
        self._is_thinking = True
        self._is_idle = False  # in a thought about the response to a call of the first session

    def hear(self, content: str) -> None:
        """Read the words of a chunk, which is empty if it changes nothing; see `Thinker.hear`."""
        self._words = content or self._words
        self._may_end = True
        self._listening.hear(content)

    def read(self, text: str) -> None:
        """Read a text; with the mark of the last chunk the second session begins."""
        if self._is_over:
            self._read_again(text)
        elif text == self._marks.last and self._may_end:
            self._is_over = True
            for call in self._standing:
                self._again.read(f"{self._marks.call}{call}{self._marks.call_end}")
            self._again.hear(self._words)
            self._again.read(text)
        else:
            self._listening.read(text)
            self._note(text)

    def propose(self) -> Proposal:
        """Return the next token; empty while a call is written of which nobody knows yet."""
        if not self._is_over:
            self._may_end = False
            return self._listening.propose()
        if self._ahead:
            return Proposal(self._ahead[0])
        if self._call is not None:
            return Proposal("")
        if self._is_idle:
            return Proposal(self._marks.close)
        proposal = self._again.propose()
        if proposal.text == self._marks.call:
            self._call = ""
            return Proposal("")
        if proposal.text == self._marks.close and self._standing:
            self._take_back()
            return Proposal(self._ahead[0])
        return proposal

    def _note(self, text: str) -> None:
        """Keep what the first session calls and takes back."""
        marks = self._marks
        self._text += text
        if marks.call and self._text.endswith(marks.call_end):
            self._standing.append(self._text.removesuffix(marks.call_end).rpartition(marks.call)[2])
        elif self._text.endswith(CANCEL) and not (marks.call and marks.call in self._text):
            self._standing = self._standing[:-1]
        elif not text.endswith(marks.close):
            return
        self._text = ""

    def _take_back(self) -> None:
        self._ahead = [CANCEL] * len(self._standing)
        self._standing = []

    def _read_again(self, text: str) -> None:
        marks = self._marks
        if self._ahead and text == self._ahead[0]:
            self._ahead.pop(0)  # the second session has it already, or never writes it
        elif self._call is not None and not text:
            self._write_call()
        elif text == marks.close:  # its own, or that of a thought that had no time
            if not self._is_idle:
                self._again.read(text)
            self._call = None
            self._ahead = []
            self._is_thinking = self._is_idle = False
        elif not text.startswith(marks.response):
            self._again.read(text)
        elif self._is_awaiting:
            self._is_awaiting = self._is_idle = False
            self._is_thinking = True
            self._again.read(text)
        else:  # it is that of a call of the first session
            self._is_idle = not self._is_thinking

    def _write_call(self) -> None:
        """Let the second session write a token of its call, and decide when it is complete."""
        token = self._again.propose().text
        self._again.read(token)
        self._call = f"{self._call}{token}"
        is_closed = token == self._marks.close  # before the call is complete: it is refused
        if not (is_closed or self._call.endswith(self._marks.call_end)):
            return
        call, self._call = self._call, None
        content = _content(call.removeprefix(self._marks.call).removesuffix(self._marks.call_end))
        if content is not None and [content] != [_content(one) for one in self._standing]:
            self._take_back()
        self._standing = []
        self._ahead.append(call)
        self._is_awaiting = not is_closed
        self._is_thinking = not is_closed


def _content(call: str) -> Any:
    """Return what a call says, whatever its blanks and the order of its names, if it is one."""
    try:
        content = json.loads(call)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
