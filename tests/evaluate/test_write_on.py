"""Texts after an exchange of the whole: when it happens, and what it changes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.data.tasks.items import Item
from counterpoint.data.tasks.part_whole.acrostic import Acrostic
from counterpoint.data.tasks.source import label_stream
from counterpoint.errors import UserError
from counterpoint.evaluate.control import Way
from counterpoint.evaluate.write_on import NEVER, Beginning, pairs_of, write_both, write_on
from counterpoint.runtime.rollouts import _Row
from counterpoint.systems.contract import Choose, State, System
from tests.evaluate.arms import untrained_arm

TASK = Acrostic(num_lines=4, filler=9, lengths=(4,))
ITEMS = [TASK.item(0, number) for number in range(3)]
PROMPT = len(ITEMS[0].facts["prompt"])
SEEDS = [3, 4, 5]
NEXT = [1, 2, 0]
WAYS: dict[str, set[Way]] = {
    "two_stream": {"swap", "prompt"},
    "hrt_words": {"swap", "prompt"},
    "full": {"prompt"},
    "hdlm": {"text", "prompt"},
    "two_stream_text": {"text", "prompt"},
}


def _beginnings(items: list[Item]) -> list[Beginning]:
    return [Beginning(item=item, exchange_ticks=PROMPT, num_given=PROMPT) for item in items]


@pytest.mark.parametrize("arm", WAYS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_another_whole_changes_what_is_written_and_the_own_one_does_not(
    arm: str, temperature: float
) -> None:
    system = untrained_arm(arm)
    beginnings = _beginnings(ITEMS)
    found = {
        way: (own, other)
        for way, own, other in write_both(
            system, beginnings, NEXT, SEEDS, temperature=temperature, most_symbols=9
        )
    }
    assert set(found) == WAYS[arm]
    for way, (own, other) in found.items():
        assert [len(text) for text in own + other] == [9] * 6
        assert own != other
        # Equal texts lend each other equal wholes.
        twins = _beginnings([ITEMS[0]] * 2)
        for donors in ([0, 1], [1, 0]):
            assert (
                write_on(
                    system, twins, donors, way, SEEDS[:1] * 2, temperature=temperature,
                    most_symbols=9,
                )
                == [own[0]] * 2
            )  # fmt: skip
    if "text" in found:  # what the system writes in its whole itself is not what it is given
        assert found["text"][0] != found["prompt"][0]
    else:
        assert all(own == found["prompt"][0] for own, _ in found.values())


def test_with_the_prompt_of_another_item_that_poem_is_written() -> None:
    """The last symbol of all prompts is the same, so nothing of the own item is read."""
    for arm in ("full", "two_stream", "hdlm"):
        system = untrained_arm(arm)
        found = {way: sides for way, *sides in write_both(
            system, _beginnings(ITEMS), NEXT, [7] * 3, temperature=1.0, most_symbols=9
        )}  # fmt: skip
        own, other = found["prompt"]
        assert other == [own[1], own[2], own[0]]


def test_greedy_texts_are_those_that_forward_scores_highest() -> None:
    system = untrained_arm("two_stream")
    (text,) = write_on(system, _beginnings(ITEMS[:1]), [0], "swap", [0], most_symbols=6) or [""]
    ids = [256, *ITEMS[0].facts["prompt"].encode(), *text.encode("latin-1")]
    hidden, state = system.read({"part": torch.tensor([ids])}, system.initial_state(1))
    likeliest: list[Tensor] = []

    def choose(stream: str, codebook: int, scores: Tensor) -> Tensor:
        likeliest.append(scores.argmax(-1))
        return likeliest[-1]

    system.write(hidden[0], choose, state)
    assert likeliest[0][PROMPT : PROMPT + 6].tolist() == ids[PROMPT + 1 :]


class _Watched:
    """Notes how many ticks a system has read at every exchange and at every symbol written.

    A session reads a tick at a time after its prompt, so ticks are counted by calls.
    """

    def __init__(self, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
        self.swapped: list[int] = []
        swap = system.swap
        write = system.write

        def watched_swap(state: Any, donor: Any) -> State:
            self.swapped += state.position.tolist()
            return swap(state, donor)

        def watched_write(hidden: Tensor, choose: Choose, state: State | None = None) -> Any:
            return write(hidden, choose, state)

        monkeypatch.setattr(system, "swap", watched_swap)
        monkeypatch.setattr(system, "write", watched_write)


def test_the_exchange_comes_before_the_last_given_symbol_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One tick is read under the other whole before the first symbol is written."""
    system = untrained_arm("two_stream")
    begin = Beginning(item=ITEMS[0], exchange_ticks=PROMPT, num_given=PROMPT)
    late = Beginning(item=ITEMS[1], exchange_ticks=PROMPT, num_given=PROMPT)
    assert begin.num_forced == 1
    watched = _Watched(system, monkeypatch)
    write_on(system, [begin, late], [1, 0], "swap", SEEDS[:2], most_symbols=1)
    assert watched.swapped == [PROMPT, PROMPT]  # the id of the beginning, and all but "\n"
    assert ITEMS[0].text[PROMPT - 1] == "\n"
    early = replace(begin, exchange_ticks=PROMPT - 3)
    assert early.num_forced == 4


@pytest.mark.parametrize("arm", ["two_stream", "hdlm", "two_stream_text"])
def test_symbols_after_the_exchange_are_given_and_then_the_system_writes(arm: str) -> None:
    """However late the exchange of a text with itself comes, the same text is written."""
    system = untrained_arm(arm)
    texts = [
        write_on(
            system,
            [Beginning(item=ITEMS[0], exchange_ticks=ticks, num_given=PROMPT)],
            [0],
            "prompt" if label_stream(system.layout) is None else "text",
            [0],
            most_symbols=7,
        )
        for ticks in (PROMPT, PROMPT - 4, PROMPT - 11)
    ]
    assert texts[0] == texts[1] == texts[2]


def test_a_written_whole_is_given_the_words_of_the_donor() -> None:
    """Both texts differ in their labels alone, so only these can be followed."""
    system = untrained_arm("two_stream_text")
    first = ITEMS[0]
    foreign = replace(first, whole=tuple(replace(one, text="zzzz") for one in first.whole))
    own, other = (
        write_on(system, _beginnings([first, foreign]), donors, "text", [3, 3], most_symbols=20)
        for donors in ([0, 1], [1, 0])
    )
    assert own is not None
    assert other is not None
    assert own[0] != own[1]
    assert other == own[::-1]


def test_an_exchange_at_another_tick_is_refused() -> None:
    beginnings = _beginnings(ITEMS[:2])
    beginnings[1] = replace(beginnings[1], exchange_ticks=PROMPT - 1)
    with pytest.raises(UserError, match="at the tick of the exchange"):
        write_on(untrained_arm("full"), beginnings, [1, 0], "prompt", [0, 0], most_symbols=1)
    for ticks in (0, PROMPT + 1):
        with pytest.raises(UserError, match="before the last given symbol"):
            Beginning(item=ITEMS[0], exchange_ticks=ticks, num_given=PROMPT)


def test_a_frame_without_a_symbol_does_not_end_a_text() -> None:
    """The first frames of a session may have no symbol yet."""
    content = {"part": torch.tensor([[256]])}
    row = _Row(untrained_arm("full"), content, content, 3, NEVER)
    row.note({})
    row.note({"part": torch.tensor([65])})
    assert not row.is_complete


def test_places_are_paired_with_the_next_one_of_their_kind_that_differs() -> None:
    pairs = pairs_of([5, 7, 5, 5, 7, 9, 3, 3], "abacbdee")
    # 1 and 4 agree, 5 is alone, 6 and 7 agree; 0 and 2 skip each other.
    assert pairs.places == [0, 2, 3]
    assert pairs.donors == [2, 2, 0]
