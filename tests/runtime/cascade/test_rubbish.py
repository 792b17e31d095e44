"""Engines that return what they must not: an error is told, and the conversation goes on."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.runtime.cascade.cascade import Cascade, CascadeRules
from counterpoint.runtime.cascade.thinking import FixedChunks, Scene
from counterpoint.speech.partials import ScoredWord
from tests.runtime.cascade.scripted import Stage

SAID = "now what is this strange thing? - - - - - - - - - - -"
ANSWER = "Here is a rather long answer for you."


def converse(stage: Stage, **engines: Any) -> Cascade:
    """Return a conversation that heard a question, with engines in place of the stage's."""
    rules = CascadeRules(trigger=FixedChunks(chunk_s=0.6))
    cascade = stage.cascade(replace(stage.engines(), **engines), rules)
    cascade.hear(stage.sound(SAID))
    return cascade


def error_streams(cascade: Cascade) -> set[str]:
    return {event.stream for event in cascade.timeline().where(kind="error")}


def answers(cascade: Cascade) -> list[str]:
    return [event.text for event in cascade.timeline().where(kind="answer")]


@pytest.mark.parametrize(
    "words",
    [
        None,
        "what is this",
        ["what", "is"],
        [ScoredWord("what", math.nan, 1.0, 0.9)],
        [ScoredWord("what", 0.0, math.inf, 0.9)],
        [ScoredWord("what", 0.0, 1.0, math.nan)],
        [ScoredWord("what", "0", "1", 0.9)],  # type: ignore[arg-type]
        [ScoredWord(None, 0.0, 1.0, 0.9)],  # type: ignore[arg-type]
    ],
)
def test_recogniser_that_gives_no_words_of_the_right_kind(words: Any) -> None:
    cascade = converse(Stage(), recognise=lambda audio: words)
    assert error_streams(cascade) == {"ear"}
    assert answers(cascade) == [cascade.rules.unclear]
    assert cascade.is_idle


@pytest.mark.parametrize("texts", [("",), (" ", "..."), ("-", "\u266a")])
def test_words_without_letters_are_no_words(texts: tuple[str, ...]) -> None:
    found = [ScoredWord(text, 0.0, 1.0, 0.9) for text in texts]
    cascade = converse(Stage(), recognise=lambda audio: found)
    assert not error_streams(cascade)
    assert answers(cascade) == [cascade.rules.unclear]
    assert len(cascade.timeline().where(kind="unclear")) == 1


def test_times_that_run_backwards_are_borne() -> None:
    words = [ScoredWord("what", 2.0, 1.0, 0.9), ScoredWord("this", -5.0, -1.0, 0.9)]
    cascade = converse(Stage(), recognise=lambda audio: words)
    assert not error_streams(cascade)
    assert answers(cascade) == [ANSWER]


@pytest.mark.parametrize("piece", [None, 3, b"text", ["text"], 0.7])
@pytest.mark.parametrize("part", ["think", "answer"])
def test_writer_that_gives_no_text(part: str, piece: Any) -> None:
    def write(scene: Scene) -> Iterator[Any]:
        yield piece

    cascade = converse(Stage(), **{part: write})
    assert error_streams(cascade) == {"thought" if part == "think" else "answer"}
    assert answers(cascade) == [ANSWER if part == "think" else cascade.rules.apology]
    assert not cascade.timeline().where(kind="interruption")


@pytest.mark.parametrize("score", [math.nan, math.inf, None, "sure"])
def test_judge_that_gives_no_chance(score: Any) -> None:
    cascade = converse(Stage(), judge=lambda scene: score)
    assert error_streams(cascade) == {"thought"}
    assert answers(cascade) == [ANSWER]
    assert not cascade.timeline().where(kind="interruption")


def test_thinker_or_writer_that_is_no_iterator() -> None:
    for part in ("think", "answer", "read"):
        cascade = converse(Stage(), **{part: lambda scene: None})
        assert len(error_streams(cascade)) == 1
        assert len(answers(cascade)) == 1


def broken(kind: str) -> Any:
    if kind == "raises":
        raise OSError("no detector")
    return {"no number": math.nan, "nothing": None}[kind]


@pytest.mark.parametrize("kind", ["raises", "no number", "nothing"])
def test_detector_that_fails_is_told_once_until_it_works_again(kind: str) -> None:
    stage = Stage()

    def detect(block: Tensor) -> float:
        is_broken = cascade.now_s < 2.0 or 20.0 < cascade.now_s < 22.0
        return broken(kind) if is_broken else stage.detect(block)

    cascade = stage.cascade(replace(stage.engines(), detect=detect))
    cascade.hear(torch.zeros(2 * 16_000))
    cascade.hear(stage.sound(SAID))
    assert answers(cascade) == [ANSWER]
    assert len(cascade.timeline().where(kind="error")) == 1
    cascade.hear(torch.zeros(20 * 16_000))
    errors = cascade.timeline().where(stream="ear", kind="error")
    assert len(errors) == 2
    assert all(event.text.startswith("the detector fails: ") for event in errors)


def test_turn_in_which_the_detector_fails_ends_as_in_silence() -> None:
    stage = Stage()

    def detect(block: Tensor) -> float:
        if cascade.now_s > 1.0:
            raise OSError("no detector")
        return stage.detect(block)

    cascade = stage.cascade(replace(stage.engines(), detect=detect))
    cascade.hear(stage.sound(SAID))
    assert answers(cascade) == [ANSWER]
    assert cascade.is_idle
