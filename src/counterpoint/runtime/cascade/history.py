"""What a conversation remembers: what the user said, and of the agent only what was heard."""

from counterpoint.runtime.cascade.models import Message
from counterpoint.runtime.cascade.thinking import exchange, old_messages

_REMEMBERED = 40  # messages of the history that stay at least


class History:
    """The messages of a conversation, in the order in which its turns were taken.

    Attributes:
        messages: What was said; old messages are forgotten.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._meanwhile: list[str] = []  # what was said while an answer was made or heard

    def keep(self, question: str, answer: str = "") -> None:
        """Remember a question and its answer, and then what was said meanwhile."""
        self.messages += exchange(question, answer)
        for said in self._meanwhile:
            self.messages += exchange(said, "")
        self._meanwhile.clear()
        del self.messages[: old_messages(len(self.messages), _REMEMBERED)]

    def keep_for_later(self, said: str) -> None:
        """Remember what was said beside a question, after the answer to that."""
        self._meanwhile.append(said)
