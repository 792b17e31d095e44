"""Numbers in speech and in thoughts, and the words of both."""

MOST = 99

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]

NUMBER_WORDS = (*_ONES, *_TENS)


def spoken(number: int) -> list[str]:
    """Return the words of a number from 0 to 99."""
    if number < len(_ONES):
        return [_ONES[number]]
    tens, ones = divmod(number, 10)
    return [_TENS[tens - 2], *([_ONES[ones]] if ones else [])]


def digits(number: int) -> list[str]:
    """Return a number as it is thought: two digits, the ones first, as sums are computed."""
    tens, ones = divmod(number, 10)
    return [str(ones), str(tens)]
