"""Times of the arguments of recorded orders, from words that a recogniser heard or did not."""

import json
from pathlib import Path

import pytest

from counterpoint.data.tasks.order_times import (
    OrderTimes,
    cut_to_voice,
    order_times,
    read_order_times,
    said_once,
    word_ends,
)
from counterpoint.data.tasks.spoken_tools import recorded_requests, score_requests, tool_policies
from counterpoint.data.tasks.tool_world import ORDER
from counterpoint.errors import UserError
from counterpoint.speech.transcriber import HeardWord

SLOTS = {"coffeeDrink": "iced mocha", "roast": "light roast", "milkAmount": "soy milk"}


def heard(text: str, step_s: float = 1.0) -> list[HeardWord]:
    """Words that follow each other without a gap; the first ends after one step."""
    return [
        HeardWord(word, step_s * place, step_s * (place + 1))
        for place, word in enumerate(text.split())
    ]


def times_of(slots: dict[str, str], text: str) -> OrderTimes:
    times = order_times(slots, heard(text))
    assert times is not None
    return times


def test_a_value_is_said_when_its_last_word_ends() -> None:
    times = times_of(SLOTS, "can i have a light roast iced mocha with soy milk")
    assert times.said == {"coffeeDrink": 8, "roast": 6, "milkAmount": 11}
    assert (times.end_s, times.missed) == (11, ())


def test_a_value_is_known_at_the_end_of_the_last_word_that_is_needed() -> None:
    """ "soy" can only be soy milk, but "iced" may be a coffee, and "medium" a roast."""
    times = times_of(SLOTS, "can i have a light roast iced mocha with soy milk")
    assert times.known == {"coffeeDrink": 8, "roast": 5, "milkAmount": 10}
    assert times.known_s == 10
    slots = {"coffeeDrink": "latte", "size": "medium"}
    assert times_of(slots, "a medium latte").known == {"coffeeDrink": 3, "size": 3}
    slots = {"coffeeDrink": "latte", "roast": "medium roast", "size": "medium"}
    times = times_of(slots, "a medium medium roast latte please")
    assert times.said == {"size": 2, "roast": 4, "coffeeDrink": 5}
    assert times.known == {"size": 3, "roast": 4, "coffeeDrink": 5}
    assert times.end_s == 6


@pytest.mark.parametrize("kind", ["cream", "sweetener"])
def test_how_much_does_not_tell_of_what(kind: str) -> None:
    slot = "milkAmount" if kind == "cream" else "sugarAmount"
    slots = {"coffeeDrink": "coffee", slot: f"a little bit of {kind}"}
    times = times_of(slots, f"a coffee with a little bit of {kind}")
    assert times.known == {"coffeeDrink": 2, slot: 8}


def test_a_value_that_a_later_word_may_change_is_known_at_the_end_of_the_speech() -> None:
    times = times_of({"size": "medium"}, "make it medium")
    assert (times.said, times.known) == ({"size": 3}, {"size": 3})
    times = times_of({"size": "medium"}, "make it medium uhm")
    assert (times.said["size"], times.known["size"]) == (3, 4)


def test_misheard_words_have_the_times_of_what_was_heard_instead() -> None:
    times = times_of(SLOTS, "can i have a light rose ice smoke her with soil milk")
    assert times.said == {"roast": 6, "coffeeDrink": 9, "milkAmount": 12}
    assert not times.missed
    times = times_of({"coffeeDrink": "mocha"}, "give me a marker thanks")
    assert (times.said["coffeeDrink"], times.end_s) == (4, 5)  # not the end of its "a"


def test_numbers_in_figures_and_words_that_were_joined_are_found() -> None:
    slots = {"coffeeDrink": "espresso", "size": "twenty ounce", "numberOfShots": "double shot"}
    times = times_of(slots, "a 20 -ounce double-shot espresso")
    assert times.said == {"size": 3, "numberOfShots": 4, "coffeeDrink": 5}
    assert 3 < times.known["numberOfShots"] < 4  # its first word is within what was heard


def test_words_that_were_not_heard_are_between_their_neighbours() -> None:
    words = [
        HeardWord("a", 0.0, 1.0),
        HeardWord("light", 1.0, 2.0),
        HeardWord("iced", 4.0, 5.0),
        HeardWord("mocha", 5.0, 6.0),
    ]
    times = order_times({"coffeeDrink": "iced mocha", "roast": "light roast"}, words)
    assert times is not None
    assert times.missed == ("roast",)
    assert times.said == {"roast": 4, "coffeeDrink": 6}
    ends_s, missed = word_ends(["light", "or", "roasted", "iced", "mocha"], words)
    assert missed == [1, 2]
    assert ends_s == [2, pytest.approx(2 + 2 * 2 / 9), 4, 5, 6]
    ends_s, missed = word_ends(["iced", "mocha", "please"], words[2:])
    assert (ends_s, missed) == ([5, 6, 6], [2])


def test_words_before_between_and_after_the_values_change_nothing_else() -> None:
    times = times_of(SLOTS, "oh well a light roast uh iced mocha with some soy milk thank you")
    assert times.said == {"roast": 5, "coffeeDrink": 8, "milkAmount": 12}
    assert times.end_s == 14


def test_the_order_of_the_values_is_found() -> None:
    slots = {"coffeeDrink": "latte", "milkAmount": "cream", "sugarAmount": "sugar"}
    slots |= {"size": "large", "roast": "dark roast", "numberOfShots": "single shot"}
    times = times_of(slots, "a single shot large dark roast latte with sugar and cream")
    assert times.said == {
        "numberOfShots": 3, "size": 4, "roast": 6, "coffeeDrink": 7, "sugarAmount": 9,
        "milkAmount": 11,
    }  # fmt: skip
    assert order_times(slots, []) is None
    assert order_times(slots, [HeardWord("...", 0.0, 1.0)]) is None
    words = heard("a single shot large dark roast latte with sugar and cream")
    assert order_times(slots, words) == order_times(slots, words)
    for wrong in ({}, {"colour": "blue"}):
        with pytest.raises(UserError, match="must have slots among size, roast"):
            order_times(wrong, words)


def test_words_end_with_the_voice() -> None:
    words = [HeardWord("soy", 0.0, 1.0), HeardWord("milk", 1.0, 3.0)]
    voiced = [True, True, False, False, True, True]
    assert cut_to_voice(words, [True] * 6, 0.5) == words
    assert cut_to_voice(words, [*voiced[:3], *voiced[:2], False], 0.5) == [
        words[0],
        words[1]._replace(end_s=2.5),
    ]
    assert cut_to_voice(words, [False] * 6, 0.5) == words


def test_what_a_recogniser_writes_twice_was_said_once() -> None:
    words = heard("an iced mocha")
    again = [word._replace(start_s=3.0, end_s=3.0) for word in words]
    assert said_once([*words, *again]) == words
    assert said_once(words) == words
    assert said_once([*words, *again[:1]]) == [*words, *again[:1]]
    assert said_once([]) == []


def test_an_oracle_calls_early_if_the_times_are_known(tmp_path: Path) -> None:
    texts = {"a.opus": "a light roast iced mocha with soy milk", "b.opus": "an iced mocha"}
    slots = {"a.opus": SLOTS, "b.opus": {"coffeeDrink": "iced mocha"}}
    lines = [{"path": name, "intent": ORDER, "slots": own} for name, own in slots.items()]
    (tmp_path / "orders.jsonl").write_text("\n".join(map(json.dumps, lines)))
    orders = {}
    for name, text in texts.items():
        own = times_of(slots[name], text)
        orders[name] = {"said": own.said, "known": own.known, "end_s": own.end_s, "missed": []}
    path = tmp_path / "times.json"
    path.write_text(json.dumps({"orders": orders}))
    early = {}
    for times in (None, read_order_times(path)):
        requests = recorded_requests(tmp_path, times)
        act = tool_policies(requests)["oracle"]
        scores = score_requests(requests, [act(one) for one in requests])
        assert scores["success"] == scores["total"] == 1
        early[times is None] = scores["early"]
    assert early == {True: 0, False: 0.5}  # "iced mocha" is known when the speech ends
    unknown = {**read_order_times(path), "b.opus": None}
    assert recorded_requests(tmp_path, unknown)[1].calls[0].known_s is None
    for wrong in ({}, {**unknown, "a.opus": OrderTimes(said={}, known={}, end_s=1.0)}):
        with pytest.raises(UserError, match=r"'a.opus' has none, or those of other arguments"):
            recorded_requests(tmp_path, wrong)
    for content in ("[]", '{"orders": {"a": {}}}'):
        path.write_text(content)
        with pytest.raises(UserError, match="must be written by `benchmarks/order_times.py`"):
            read_order_times(path)
    with pytest.raises(UserError, match="must be an existing file"):
        read_order_times(tmp_path / "none.json")
