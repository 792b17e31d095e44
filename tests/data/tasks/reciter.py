"""A model that writes given rounds, and tools that answer late, for the rows of spoken orders."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from counterpoint.runtime.clocked import Proposal
from counterpoint.runtime.clocks import Response
from counterpoint.runtime.thinker import Vocabulary
from counterpoint.streams.rounds import ANSWER, THOUGHT


class Reciter:
    """Writes the thoughts and the answer of an order, and keeps all that it reads."""

    def __init__(self, rounds: Sequence[dict[str, str]], words: Vocabulary) -> None:
        text = "".join(one.get(name, "") for one in rounds for name in (THOUGHT, ANSWER))
        self.words = words
        self.ahead = words.encode(text).tolist()
        self.context = ""
        self.proposed = ""
        self.num_chunks = 0

    def hear(self, content: Any) -> None:
        self.num_chunks += 1
        self.context += content

    def read(self, text: str) -> None:
        self.context += text
        if text == self.proposed:  # and not a mark that the decoder writes
            self.ahead.pop(0)
        self.proposed = ""

    def propose(self) -> Proposal:
        self.proposed = self.words.decode(np.array(self.ahead[:1]))
        return Proposal(self.proposed)


class LateTools:
    """Answers a call so many chunks late, or when it is waited for after the speech."""

    def __init__(self, reciter: Reciter, late: int) -> None:
        self.reciter = reciter
        self.late = late
        self.due: dict[int, tuple[int, str]] = {}
        self.is_over = False
        self.is_awaited = False

    def start(self, call: int, text: str, now_s: float) -> None:
        response = json.dumps({"ordered": json.loads(text)["arguments"]})
        self.due[call] = (self.reciter.num_chunks + self.late, response)

    def cancel(self, call: int, now_s: float) -> str:
        self.due.pop(call, None)
        return ""

    def end_speech(self, now_s: float) -> None:
        self.is_over = True

    def wait(self, until_s: float) -> float:
        self.is_awaited = self.is_over
        return 0.0 if self.is_awaited else until_s

    def arrived(self, now_s: float) -> Sequence[Response]:
        # This is asked before the next chunk is heard.
        here = [
            Response(call, text)
            for call, (due, text) in self.due.items()
            if self.is_awaited or self.reciter.num_chunks >= due
        ]
        for response in here:
            del self.due[response.call]
        return here
