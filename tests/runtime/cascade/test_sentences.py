"""Answers are cut into what is spoken at once, and the voice knows whether a sentence goes on."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from counterpoint.runtime.cascade.cascade import Cascade
from counterpoint.runtime.cascade.reply import Voiced
from counterpoint.runtime.cascade.sentences import Sentence, SentenceReader
from counterpoint.runtime.cascade.thinking import Scene
from tests.runtime.cascade.scripted import Stage


def cut(text: str, size: int = 1) -> list[Sentence]:
    """Return the sentences of a text that comes in pieces."""
    reader = SentenceReader()
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    return [one for piece in pieces for one in reader.read(piece)] + reader.end()


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_sentences_are_spoken_one_by_one_with_an_early_first_clause(size: int) -> None:
    text = "Well, of course I can do that, if you want. It is 3.5 km! - Bye"
    assert cut(text, size) == [
        Sentence("Well, of course I can do that,", goes_on=True),
        Sentence("if you want."),
        Sentence("It is 3.5 km!"),
        Sentence("- Bye"),
    ]
    assert cut("... \n?!", size) == []


def test_first_clause_ends_before_a_word_at_which_speakers_pause() -> None:
    said = {
        "The capital of France is Paris. It is big.": [
            "The capital of France",
            "is Paris.",
            "It is big.",
        ],
        "There are seven days in a week.": ["There are seven days", "in a week."],
        "It is on the table.": ["It is on the table."],  # too few words before it
        "Blue and yellow give a nice green.": ["Blue and yellow give a nice green."],
        "I like cats and": ["I like cats and"],  # no word has begun after it
    }
    for text, pieces in said.items():
        assert [one.text for one in cut(text)] == pieces


@pytest.mark.parametrize("size", [5, 10**6])
@pytest.mark.parametrize("text", ["word " * 12_000, "It is so. " * 6_000, "x" * 60_000])
def test_long_text_is_cut_at_once_and_nothing_is_lost(text: str, size: int) -> None:
    """A model that writes without end holds up neither its voice nor the conversation."""
    began_s = time.process_time()
    found = cut(text, size)
    assert time.process_time() - began_s < 1.5
    assert "".join(one.text for one in found).replace(" ", "") == text.replace(" ", "")
    assert max(len(one.text) for one in found) <= 400


@pytest.mark.parametrize(
    ("sentence", "spoken"),
    [
        (Sentence("The capital of France", goes_on=True), "The capital of France,"),
        (Sentence("Well, of course,", goes_on=True), "Well, of course,"),
        (Sentence("is Paris."), "is Paris."),
        (Sentence("is Paris"), "is Paris."),
        (Sentence("They eat bacon,"), "They eat bacon."),
        (Sentence("It is 50 %"), "It is 50 %."),
        (Sentence('She said "yes"'), 'She said "yes".'),
        (Sentence('She said "yes!"'), 'She said "yes!"'),
    ],
)
def test_voice_is_told_how_what_it_speaks_ends(sentence: Sentence, spoken: str) -> None:
    assert sentence.spoken == spoken


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        (
            "Well, the capital of France is Paris.",
            ["Well, the capital of France,", "is Paris."],
        ),
        ("The capital of France is Paris", ["The capital of France,", "is Paris."]),
        ("Paris\nIt is big,", ["Paris.", "It is big."]),
    ],
)
def test_voice_falls_only_at_the_end_and_the_answer_is_remembered_as_it_was_written(
    written: str, spoken: list[str]
) -> None:
    stage = Stage()
    said = []

    def speak(text: str) -> Voiced:
        said.append(text)
        return stage.speak(text)

    engines = replace(stage.engines(), answer=stage.writer(*written), speak=speak)
    cascade = stage.cascade(engines)
    cascade.hear(stage.sound("what is it? - - - - - - - - - - - -"))
    assert said == spoken
    (answer,) = cascade.timeline().where(kind="answer")
    assert answer.text == answer.payload["written"] == " ".join(written.split())


def test_answer_that_is_dropped_writes_no_further_piece() -> None:
    """It would hold up the next one, which needs the same language model."""
    stage = Stage()
    may_go_on = threading.Semaphore(0)
    is_asked = threading.Event()
    has_ended = threading.Event()
    pieces = []

    def answer(scene: Scene) -> Iterator[str]:
        is_asked.set()
        try:
            for word in ("this", "is", "one", "sentence", "without", "an", "end"):
                assert may_go_on.acquire(timeout=5)
                pieces.append(word)
                yield f"{word} "
        finally:
            has_ended.set()

    cascade = Cascade(replace(stage.engines(), answer=answer))
    cascade._mouth.begin(Scene(words=()), 1, 0.0, is_sure=False)
    assert is_asked.wait(5)
    cascade._mouth.drop()
    may_go_on.release()
    assert has_ended.wait(5)
    assert pieces == ["this"]
    cascade.close()


@pytest.mark.parametrize("rubbish", [None, 3, b"bytes", ["Paris."]])
def test_engine_that_answers_with_no_text_is_told_and_the_conversation_goes_on(
    rubbish: object,
) -> None:
    stage = Stage()

    def answer(scene: Scene) -> Iterator[Any]:
        yield "It is "
        yield rubbish

    cascade = stage.cascade(replace(stage.engines(), answer=answer))
    cascade.hear(stage.sound("what is it? - - - - - - - - - - - -"))
    (error,) = cascade.timeline().where(kind="error")
    assert "an answer must come in pieces of text" in error.text
    (told,) = cascade.timeline().where(kind="answer")
    assert told.text == "Sorry, I cannot answer that now."


def test_answer_may_be_a_list_of_pieces() -> None:
    stage = Stage()

    def answer(scene: Scene) -> Any:
        return ["It is ", "Paris."]

    cascade = stage.cascade(replace(stage.engines(), answer=answer))
    cascade.hear(stage.sound("what is it? - - - - - - - - - - - -"))
    (told,) = cascade.timeline().where(kind="answer")
    assert told.text == "It is Paris."
