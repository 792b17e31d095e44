"""Sequences whose items are read when they are needed."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

_Read = TypeVar("_Read")


class ReadSequence(Sequence[_Read]):
    """Base of sequences that read an item when it is asked for; a slice is a list of items."""

    @abstractmethod
    def read(self, index: int) -> _Read:
        """Return the item at an index, which is 0 to the length less 1."""

    @overload
    def __getitem__(self, index: int) -> _Read: ...

    @overload
    def __getitem__(self, index: slice) -> list[_Read]: ...

    def __getitem__(self, index: int | slice) -> _Read | list[_Read]:
        places = range(len(self))[index]
        return self.read(places) if isinstance(places, int) else [self.read(i) for i in places]
