"""Recognised words, told chunk by chunk: each once, none too soon, and none before it was said."""

import math
from collections.abc import Sequence
from os.path import commonprefix
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.data.tasks.recognised import in_known_words
from counterpoint.data.tasks.spoken_maths.problems import SpokenMaths
from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData
from counterpoint.data.tasks.spoken_maths.words import in_problem_words
from counterpoint.data.tasks.spoken_orders.source import SpokenOrdersData
from counterpoint.data.tasks.spoken_orders.words import in_order_words
from counterpoint.data.tools import spoken_values
from counterpoint.errors import UserError
from counterpoint.runtime.heard_words import (
    ChunkedWords,
    RecognisedPasses,
    Waiting,
    recognised_by,
)
from counterpoint.speech.ears import ChunkEar, HeardChunk, HeardWords
from counterpoint.speech.partials import ScoredWord
from counterpoint.systems import shanks
from counterpoint.systems.shanks import Shanks

HZ = 16_000
SAID = [f"word{number}" for number in range(40)]  # one every half second


class Recogniser:
    """Hears `SAID`: every sample tells its place, and so which words sound."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, int]] = []

    def __call__(self, sound: Tensor) -> list[ScoredWord]:
        begin, stop = int(sound[0]), int(sound[-1]) + 1
        self.heard.append((begin, stop))
        found = []
        for number, text in enumerate(SAID):
            start_s, end_s = number / 2, (number + 1) / 2
            if start_s >= begin / HZ and start_s < stop / HZ:
                is_cut = end_s > stop / HZ
                found.append(
                    ScoredWord(
                        text[:4] if is_cut else text,
                        start_s - begin / HZ,
                        min(end_s, stop / HZ) - begin / HZ,
                        0.4 if is_cut else 0.9,
                    )
                )
        return found


def places(seconds: float) -> Tensor:
    return torch.arange(round(seconds * HZ), dtype=torch.float64)


def hear(ear: ChunkedWords, sound: Tensor, length: int) -> list[HeardChunk]:
    chunks = [chunk for piece in sound.split(length) for chunk in ear.push(piece)]
    return [*chunks, ear.finish()]


def as_it_is(text: str) -> Sequence[str]:
    return [text]


@pytest.fixture(autouse=True)
def _any_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("counterpoint.runtime.heard_words.check_channel", lambda _: None)


@pytest.mark.parametrize("seconds", [0.4, 1.9, 2.0, 7.3, 19.8])
@pytest.mark.parametrize("length", [160, 31_999, 10**7])
def test_every_word_is_told_once_and_the_last_of_a_chunk_waits(seconds: float, length: int) -> None:
    ear = ChunkedWords(Recogniser(), 2.0, as_it_is)
    assert isinstance(ear, ChunkEar)
    chunks = hear(ear, places(seconds), length)
    assert len(chunks) == max(math.ceil(seconds / 2 - 1e-9), 1)
    whole = int(seconds * 2 + 1e-9)
    told = [word for chunk in chunks for word in chunk.text.split()]
    assert told == SAID[:whole] + ["word"] * (seconds * 2 > whole)
    for number, chunk in enumerate(chunks[:-1]):
        assert chunk.text.split() == SAID[max(4 * number - 1, 0) : 4 * number + 3]
        assert chunk.content == f" {chunk.text}" or not chunk.text
        assert (chunk.start_s, chunk.end_s) == (2.0 * number, 2.0 * number + 2)
    assert chunks[-1].end_s == pytest.approx(seconds)


@pytest.mark.parametrize("chunk_s", [0.3, 1 / 3, 7.0, 8.0, 14.0, 20.0, 60.0])
def test_long_chunks_lose_no_word(chunk_s: float) -> None:
    """A pass reads 14 s, and a chunk may be longer; every word is told once, and in its chunk."""
    recogniser = Recogniser()
    ear = ChunkedWords(recogniser, chunk_s, as_it_is)
    chunks = hear(ear, places(20.0), 4000)
    assert [word for chunk in chunks for word in chunk.text.split()] == SAID
    for chunk in chunks:
        for word in chunk.text.split():
            assert (SAID.index(word) + 1) / 2 <= chunk.end_s + 0.5
    assert all(stop - begin <= 14 * HZ for begin, stop in recogniser.heard)
    assert (ear.num_told, ear.num_known) == (40, 40)


def silent_after(words: list[str]) -> Any:
    """A recogniser that hears words every half second, and then nothing."""

    def recognise(sound: Tensor) -> list[ScoredWord]:
        begin_s, stop_s = int(sound[0]) / HZ, (int(sound[-1]) + 1) / HZ
        return [
            ScoredWord(word, place / 2 - begin_s, place / 2 + 0.5 - begin_s, 0.9)
            for place, word in enumerate(words)
            if begin_s <= place / 2 and place / 2 + 0.5 <= stop_s
        ]

    return recognise


@pytest.mark.parametrize("seconds", [4.0, 9.0, 30.0])
def test_last_word_before_a_pause_waits_no_longer_than_a_second_and_a_chunk(seconds: float) -> None:
    """However long the pause is, and without an end of the recording."""
    ear = ChunkedWords(silent_after(["a", "small", "latte"]), 2.0, as_it_is)
    first, second, *rest = [
        chunk for piece in places(seconds).split(9000) for chunk in ear.push(piece)
    ] + [ear.finish()]
    assert (first.text, second.text) == ("a small", "latte")
    assert not any(chunk.text for chunk in rest)


def test_words_said_again_after_a_long_pause_are_told_again() -> None:
    words = ["a", "latte", *[""] * 40, "a", "latte"]
    heard = silent_after(words)

    def recognise(sound: Tensor) -> list[ScoredWord]:
        return [word for word in heard(sound) if word.text]

    chunks = hear(ChunkedWords(recognise, 2.0, as_it_is), places(23.0), 9000)
    assert " ".join(chunk.text for chunk in chunks).split() == ["a", "latte", "a", "latte"]


def test_recogniser_hears_nothing_of_later_chunks_and_no_more_than_it_can_read() -> None:
    recogniser = Recogniser()
    hear(ChunkedWords(recogniser, 2.0, as_it_is), places(19.8), 7000)
    stops = [2 * HZ * (number + 1) for number in range(9)] + [round(19.8 * HZ)]
    assert [stop for _, stop in recogniser.heard] == stops
    assert all(stop - begin <= 14 * HZ for begin, stop in recogniser.heard)


@pytest.mark.parametrize("chunk_s", [0.7, 1 / 3, 2 / 3])
def test_sample_that_ends_after_a_border_belongs_to_the_next_chunk(chunk_s: float) -> None:
    recogniser = Recogniser()
    chunks = hear(ChunkedWords(recogniser, chunk_s, as_it_is), places(5.0), 999)
    for (_, stop), chunk in zip(recogniser.heard, chunks[:-1], strict=False):
        assert stop / HZ <= chunk.end_s < (stop + 1) / HZ


def test_chunk_is_known_when_a_sample_after_it_has_come() -> None:
    ear = ChunkedWords(Recogniser(), 2.0, as_it_is)
    sound = places(2.1)
    assert ear.push(sound[: 2 * HZ]) == []
    (chunk,) = ear.push(sound[2 * HZ : 2 * HZ + 1])
    assert chunk.end_s == 2.0
    for chunk_s in (0.0, math.inf, math.nan):
        with pytest.raises(UserError, match="`chunk_s` must be positive"):
            ChunkedWords(Recogniser(), chunk_s, as_it_is)


def test_recording_without_a_sample_is_one_empty_chunk() -> None:
    chunk = ChunkedWords(Recogniser(), 2.0, as_it_is).finish()
    assert (chunk.start_s, chunk.end_s, chunk.content) == (0.0, 0.0, "")


def scored(*words: tuple[str, float, float]) -> list[ScoredWord]:
    return [ScoredWord(text, end_s - 0.3, end_s, probability) for text, end_s, probability in words]


def test_word_that_changes_is_told_as_it_is_in_the_end() -> None:
    passes = RecognisedPasses(Waiting(last=1))
    first = passes.tell(scored(("has", 1.0, 0.9), ("twenty", 1.9, 0.9)), 2.0)
    assert [word.text for word in first] == ["has"]
    later = scored(("has", 1.1, 0.9), ("twenty", 1.8, 0.9), ("eight", 2.3, 0.9), ("and", 3.3, 0.9))
    assert [word.text for word in passes.tell(later, 4.0)] == ["twenty", "eight"]
    assert [word.text for word in passes.tell(later, 4.1, last=True)] == ["and"]


def test_unsure_words_wait_or_are_left_out() -> None:
    words = scored(("one", 0.5, 0.9), ("two", 1.0, 0.3), ("three", 1.5, 0.9))
    waits = RecognisedPasses(Waiting(last=0, unsure=0.5))
    assert [word.text for word in waits.tell(words, 2.0)] == ["one"]
    assert [word.text for word in waits.tell(words, 4.0)] == ["two", "three"]
    leaves = RecognisedPasses(Waiting(last=0, left_out=0.5))
    assert [word.text for word in leaves.tell(words, 2.0)] == ["one", "three"]


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("54", ["fifty", "four"]),
        ("100.", []),
        ("1,000", []),
        ("10-3", ["ten", "minus", "three"]),
        ("-", ["minus"]),
        ("Tom,", ["tom"]),
        ("+", ["plus"]),
        ("twenty-eight", ["twenty", "eight"]),
        ("xylophone", []),
        ("", []),
    ],
)
def test_words_of_problems(text: str, own: list[str]) -> None:
    assert in_problem_words(text) == own


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("Cappuccino,", ["cappuccino"]),
        ("16-ounce", ["sixteen", "ounce"]),
        ("8", ["eight"]),
        ("oz", ["ounce"]),
        ("9", []),
        ("No,", ["no"]),
        ("helicopter", []),
        ("8oz", ["eight", "ounce"]),
        ("not", []),
        ("hot", []),
        ("late", []),
        ("now", []),
        ("capuccino", ["cappuccino"]),
        ("9" * 5000, []),
    ],
)
def test_words_of_orders(text: str, own: list[str]) -> None:
    assert in_order_words(text) == own


def test_what_is_said_is_heard_as_it_is() -> None:
    for number in range(20):
        for word in SpokenMaths().problem(0, number).words:
            assert in_problem_words(word.capitalize()) == [word]
        for word in SpokenOrdersData().request(number).text.split():
            assert in_order_words(f"{word},") == [word]


def test_signs_are_words_only_where_they_are_named() -> None:
    assert in_known_words("=", ["is"], lambda _: [], {"=": "is"}) == ["is"]
    assert in_known_words("=", ["is"], lambda _: [], {}) == []


def test_models_of_words_get_a_recogniser_with_their_chunks() -> None:
    asked: list[HeardWords] = []
    recognisers: list[str] = []

    def by_words(how: HeardWords) -> ChunkEar:
        asked.append(how)

        def recogniser(example: str) -> Recogniser:
            recognisers.append(example)
            return Recogniser()

        return recognised_by(recogniser)(how)

    layout = Shanks(shanks.tiny()).layout
    SpokenMathsData(chunk_s=3.0).ear(layout, by_words)
    SpokenOrdersData(chunk_s=1.0).ear(layout, by_words)
    SpokenMathsData(held_back=2).ear(layout, by_words)
    assert [(how.chunk_s, how.num_waiting) for how in asked] == [(3.0, 1), (1.0, 1), (2.0, 2)]
    problems, in_orders, _ = (how.in_own_words for how in asked)
    assert problems is in_problem_words
    assert in_orders("Mocha,") == in_order_words("Mocha,") == ["mocha"]
    assert in_orders("sugar") == []
    whole = SpokenOrdersData(whole_menu=True).heard_words().in_own_words
    assert whole("sugar") == ["sugar"]
    maths, orders, _ = recognisers
    said = SpokenMathsData().heard(0).problem.words
    assert maths.lower().startswith(f"{' '.join(said)}. ")
    assert maths.count(".") == 3
    first = SpokenOrdersData().request(0).text
    values = spoken_values(SpokenOrdersData().tools())
    assert values.startswith("Small, medium, large, eight ounce")
    assert orders.lower().startswith(f"{values} {first}. ".lower())


@pytest.mark.parametrize("seconds", [0.4, 7.3, 19.8])
@pytest.mark.parametrize("length", [160, 31_999])
def test_retold_chunk_has_all_words_so_far(seconds: float, length: int) -> None:
    """Also of sound that the newest pass does not read any more; a cut word is mended."""
    ear = ChunkedWords(Recogniser(), 1.3, as_it_is, is_retold=True)
    chunks = hear(ear, places(seconds), length)
    shown: list[str] = []
    for chunk in chunks:
        whole, is_cut = divmod(chunk.end_s * 2, 1)
        said = SAID[: int(whole)] + ["word"] * (is_cut > 1e-6)
        assert str(chunk.content).split() == said
        same = len(commonprefix([shown, said]))
        assert chunk.text.split() == said[same:]
        shown = said
    assert ear.num_told == len(shown)


def test_retold_chunk_that_changes_nothing_is_empty() -> None:
    ear = ChunkedWords(silent_after(["a", "small", "latte"]), 1.0, as_it_is, is_retold=True)
    contents = [chunk.content for chunk in hear(ear, places(5.0), 999)]
    assert contents == [" a small", " a small latte", "", "", ""]
    changing = iter([["a"], ["a", "lot"], ["a", "latte"], ["a"], ["a"]])

    def recognise(sound: Tensor) -> list[ScoredWord]:
        words = next(changing)
        return [
            ScoredWord(word, place / 9, place / 9 + 0.1, 0.9) for place, word in enumerate(words)
        ]

    ear = ChunkedWords(recognise, 1.0, as_it_is, is_retold=True)
    chunks = hear(ear, places(5.0), 16_000)
    assert [chunk.content for chunk in chunks] == [" a", " a lot", " a latte", " a", ""]
    assert [chunk.text for chunk in chunks] == ["a", "lot", "latte", "", ""]


@pytest.mark.parametrize(("long_s", "gap_s"), [(0.2, 0.05), (0.25, 0.1), (0.36, 0.0), (0.5, 0.3)])
@pytest.mark.parametrize("least", [0.0, 0.5])
@pytest.mark.parametrize("num_texts", [200, 5])
def test_no_word_is_lost_where_retold_passes_begin(
    long_s: float, gap_s: float, least: float, num_texts: int
) -> None:
    """Words at the border of a pass are cut there, and left out if less than a share is left."""
    step_s = long_s + gap_s

    def recognise(sound: Tensor) -> list[ScoredWord]:
        begin_s, stop_s = int(sound[0]) / HZ, (int(sound[-1]) + 1) / HZ
        found = []
        for place in range(int(25 / step_s)):
            start_s, end_s = place * step_s, place * step_s + long_s
            left_s = min(end_s, stop_s) - max(start_s, begin_s)
            if left_s > 1e-3 + least * long_s:
                is_cut = left_s < long_s - 1e-3
                text = f"cut{place}" if is_cut else f"word{place * place % num_texts}"
                found.append(
                    ScoredWord(text, max(start_s - begin_s, 0), min(end_s, stop_s) - begin_s, 0.9)
                )
        return found

    chunks = hear(ChunkedWords(recognise, 1.0, as_it_is, is_retold=True), places(24.0), 9000)
    told = next(str(one.content) for one in reversed(chunks) if one.content).split()
    whole = [f"word{place * place % num_texts}" for place in range(len(told))]
    assert abs(len(told) - 24.0 / step_s) <= 1.5
    assert told[:-1] == whole[:-1]


def test_words_said_again_after_a_long_pause_are_retold() -> None:
    heard = silent_after(["a", "latte", *[""] * 40, "a", "latte"])

    def recognise(sound: Tensor) -> list[ScoredWord]:
        return [word for word in heard(sound) if word.text]

    chunks = hear(ChunkedWords(recognise, 1.0, as_it_is, is_retold=True), places(23.0), 9000)
    contents = [str(chunk.content).split() for chunk in chunks if chunk.content]
    assert contents == [["a", "latte"], ["a", "latte", "a", "latte"]]
