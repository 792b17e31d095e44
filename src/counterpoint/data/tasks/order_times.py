"""When each argument of a recorded order is determined: what the ceiling of early calls needs.

A recording comes with its arguments, but not with its text or its times. A recogniser gives words
with times, and mishears some. All orders have one form: some of size, roast and shots in any order,
the drink, and milk and sugar in any order. So few texts are possible, and the one with the fewest
edits to the letters that were heard is the reference; words that were not heard get their times
from their neighbours.

Source: the form was read off the set of spoken orders (Picovoice's speech-to-intent benchmark).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, permutations
from pathlib import Path
from typing import NamedTuple

from counterpoint.data.tasks.spoken_maths.numbers import MOST, spoken
from counterpoint.data.tasks.tool_world import SLOTS
from counterpoint.errors import UserError, absent
from counterpoint.files import read_json
from counterpoint.speech.spoken_words import num_edits, owners
from counterpoint.speech.transcriber import HeardWord

_BEFORE = ("size", "roast", "numberOfShots")
_DRINK = "coffeeDrink"
_ADDED = ("milkAmount", "sugarAmount")


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderTimes:
    """Times of a recorded order, in seconds since the first sample.

    Attributes:
        said: For each slot, the end of the last word of its value.
        known: For each slot, the end of the last word that is needed to know its value.
        end_s: End of the last word that was heard.
        missed: Words of the values that were not heard; their times are between their neighbours.
    """

    said: Mapping[str, float]
    known: Mapping[str, float]
    end_s: float
    missed: tuple[str, ...] = ()

    @property
    def known_s(self) -> float:
        """Time at which all values are determined, if no further one comes.

        An order might go on ("and sugar"), so who calls then guesses that it does not.
        """
        return max(self.known.values())


_Unit = tuple[str, float, float]
_Span = tuple[float, float]


class _Said(NamedTuple):
    """A word of a possible text, and the slot to which it belongs; empty for none."""

    text: str
    slot: str = ""


def order_times(
    slots: Mapping[str, str],
    heard: Sequence[HeardWord],
    listed: Mapping[str, Sequence[str]] = SLOTS,
) -> OrderTimes | None:
    """Return when each value of an order is determined; ``None`` if no word was heard.

    A value is determined by the first word after which no other listed value is possible: "soy
    milk" by "soy", and "medium", with which "medium roast" begins too, by the word after it. If no
    word follows, the end of the speech determines it.

    Args:
        slots: The values by the names of their slots, all of them among the listed ones.
        heard: What a recogniser heard.
        listed: All values of each slot.

    Raises:
        UserError: There are no slots, or an unknown one.
    """
    if not slots or slots.keys() - {*_BEFORE, _DRINK, *_ADDED}:
        raise UserError(
            f"An order must have slots among {', '.join((*_BEFORE, _DRINK, *_ADDED))}: got "
            f"{', '.join(slots) or 'none'}."
        )
    units = _units(heard)
    if not units:
        return None
    letters = [unit for unit, _, _ in units]
    text = min(_texts(slots), key=lambda words: num_edits(_spelled(words), letters))
    ends_s, missed = word_ends([word.text for word in text], heard)
    end_s = units[-1][2]
    values = [tuple(value.split()) for own in listed.values() for value in own]
    said: dict[str, float] = {}
    known: dict[str, float] = {}
    for name in slots:
        own = [place for place, word in enumerate(text) if word.slot == name]
        said[name] = ends_s[own[-1]]
        last = own[0] + _num_needed([word.text for word in text[own[0] :]], len(own), values)
        known[name] = ends_s[last - 1] if last <= len(text) else end_s
    unheard = (text[place] for place in missed)
    return OrderTimes(
        said=said,
        known=known,
        end_s=end_s,
        missed=tuple(word.text for word in unheard if word.slot),
    )


def said_once(heard: Sequence[HeardWord]) -> list[HeardWord]:
    """Return words without their second half if it says the first again: recognisers do that."""
    half = len(heard) // 2
    texts = [word.text for word in heard]
    return [*heard[:half]] if half and texts[:half] * 2 == texts else [*heard]


def cut_to_voice(
    heard: Sequence[HeardWord], voiced: Sequence[bool], block_s: float
) -> list[HeardWord]:
    """Return words that end with the voice: a recogniser lets them last until the next one begins.

    Args:
        heard: Words.
        voiced: Whether there is a voice in each block of the recording.
        block_s: Seconds of a block.
    """
    ends_s = [(place + 1) * block_s for place, is_voiced in enumerate(voiced) if is_voiced]
    cut = []
    for word in heard:
        within = [one for one in ends_s if word.start_s < one < word.end_s]
        is_over = not any(one >= word.end_s and one - block_s < word.end_s for one in ends_s)
        cut.append(word._replace(end_s=within[-1]) if is_over and within else word)
    return cut


def word_ends(text: Sequence[str], heard: Sequence[HeardWord]) -> tuple[list[float], list[int]]:
    """Return when each word of a text ends, by the alignment of letters with the fewest edits.

    What was heard may begin before the text and end after it. Words of which nothing was heard
    share the time between their neighbours by their letters.

    Args:
        text: Words that were said.
        heard: What a recogniser heard, at least one word with a letter or digit.

    Returns:
        The ends in seconds, and the places of the words that were not heard.
    """
    units = _units(heard)
    alone = _spelled([_Said(word) for word in text])
    spans = _spans(alone, units)
    missed = [place for place in range(1, len(alone) - 1) if place not in spans]
    spans.setdefault(0, (units[0][1], units[0][1]))
    spans.setdefault(len(alone) - 1, (units[-1][2], units[-1][2]))
    ends_s = [0.0] * len(alone)
    unheard: list[int] = []
    before_s = units[0][1]
    for place in range(len(alone)):
        if place in missed:
            unheard.append(place)
            continue
        start_s, end_s = spans[place]
        sizes = list(accumulate(len(alone[one]) for one in unheard))
        for one, size in zip(unheard, sizes, strict=True):
            ends_s[one] = before_s + size / max(sizes[-1], 1) * max(start_s - before_s, 0.0)
        ends_s[place] = end_s
        before_s = end_s
        unheard = []
    return ends_s[1:-1], [place - 1 for place in missed]


def _spans(alone: Sequence[Sequence[str]], units: Sequence[_Unit]) -> dict[int, _Span]:
    """Return start and end of what was heard of each word, in seconds, by the word's place."""
    # Backwards, what was heard besides goes to the word after it, and no end is too late.
    backwards = owners([one[::-1] for one in alone[::-1]], [unit for unit, _, _ in units[::-1]])
    spans: dict[int, _Span] = {}
    before = 0
    for owner, (unit, start_s, end_s) in zip(backwards[::-1], units, strict=True):
        place = len(alone) - 1 - owner
        if place == len(alone) - 1 and before:  # the last letters of a word that was misheard
            place = before
        before = 0 if unit == " " else place
        if unit != " ":
            spans[place] = (spans.get(place, (start_s, 0.0))[0], end_s)
    return spans


def _num_needed(text: Sequence[str], length: int, values: Collection[tuple[str, ...]]) -> int:
    """Return how many words of a text tell that it begins with its value, and with no other one.

    Args:
        text: Words from the beginning of the value on.
        length: Number of words of the value.
        values: All values.

    Returns:
        One more than there are words if the text ends too soon.
    """
    value = tuple(text[:length])
    for number in range(1, len(text) + 1):
        begun = tuple(text[:number])
        open_ones = {one for one in values if len(one) >= number and one[:number] == begun}
        if number > length:  # the value is over, unless what follows belongs to a longer one
            open_ones.add(value)
        if open_ones == {value}:
            return number
    return len(text) + 1


def _texts(slots: Mapping[str, str]) -> Iterator[list[_Said]]:
    """Yield all texts that say an order, without what opens it."""
    drink = [_DRINK] if _DRINK in slots else []
    for before in permutations([name for name in _BEFORE if name in slots]):
        for added in permutations([name for name in _ADDED if name in slots]):
            text = [_Said(word, name) for name in (*before, *drink) for word in slots[name].split()]
            for number, name in enumerate(added):
                text.append(_Said("and" if number else "with"))
                text += [_Said(word, name) for word in slots[name].split()]
            yield text


def _spelled(words: Sequence[_Said]) -> list[list[str]]:
    """Return the letters of each word, between two words of any letters: what else is heard."""
    return [[], *(list(word.text.lower()) for word in words), []]


def _units(heard: Sequence[HeardWord]) -> list[_Unit]:
    """Return the letters that were heard with blanks between words, each with start and end."""
    units: list[_Unit] = []
    for word in heard:
        letters = _letters(word.text)
        if not letters:
            continue
        if units:
            units.append((" ", units[-1][2], word.start_s))
        step_s = (word.end_s - word.start_s) / len(letters)
        units += [
            (
                letter,
                word.start_s + step_s * place,
                word.end_s if place == len(letters) - 1 else word.start_s + step_s * (place + 1),
            )
            for place, letter in enumerate(letters)
        ]
    return units


def _letters(word: str) -> str:
    """Return the letters of a word; small numbers in figures are spelled as they are said."""
    bare = "".join(filter(str.isalnum, word.lower()))
    return "".join(spoken(int(bare))) if bare.isdecimal() and int(bare) <= MOST else bare


def read_order_times(path: Path) -> dict[str, OrderTimes | None]:
    """Return the times of recorded orders by the names of their recordings.

    Args:
        path: A file that `benchmarks/order_times.py` wrote. An order is ``null`` in it if no word
            of it was heard.

    Raises:
        UserError: There is no such file, or it does not hold times of orders.
    """
    if not Path(path).is_file():
        raise UserError(absent("The file of times of orders", path))
    try:
        return {
            name: None if one is None else OrderTimes(**{**one, "missed": tuple(one["missed"])})
            for name, one in read_json(Path(path))["orders"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"A file of times of orders must be written by `benchmarks/order_times.py`: {path} "
            f"is not ({type(error).__name__}). Name another one."
        ) from error
