"""Conversations of scripted engines: when the agent speaks, stops, thinks and interrupts."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from counterpoint.runtime.cascade.cascade import CascadeRules
from counterpoint.runtime.cascade.ear import EAR_BLOCK, EAR_HZ, EarRules
from counterpoint.runtime.cascade.thinking import FixedChunks, Scene
from counterpoint.speech.partials import ScoredWord
from tests.runtime.cascade.scripted import WORD_S, Stage, kinds, sounding_s


def test_answer_comes_as_soon_as_the_turn_is_over() -> None:
    stage = Stage()
    cascade = stage.cascade()
    sound = cascade.hear(stage.sound("what is this? - - - - - - - - - - - - - -"))
    begin_s, _ = sounding_s(sound)
    silence_s = begin_s - 3 * WORD_S
    # It is prepared while the pause lasts: waiting for its words, text and sound would take longer.
    assert 0.5 <= silence_s < 0.5 + 3 * EAR_BLOCK / EAR_HZ
    assert stage.asked[-1].text == "what is this?"
    (answer,) = cascade.timeline().where(kind="answer")
    assert answer.text == answer.payload["written"] == "Here is a rather long answer for you."
    assert answer.payload["played_s"] == answer.payload["generated_s"] == 1.6
    assert [event.text for event in cascade.timeline().where(stream="user", kind="word")] == [
        "what",
        "is",
        "this?",
    ]


def test_sound_does_not_depend_on_how_it_is_cut() -> None:
    whole, pieces = Stage(), Stage()
    audio = whole.sound("what is this? - - - - - - - -")
    pieces.vocabulary = whole.vocabulary
    at_once = whole.cascade().hear(audio)
    cascade = pieces.cascade()
    parts = [cascade.hear(part) for part in audio.split([1, 700, 511, len(audio) - 1212])]
    assert torch.equal(torch.cat(parts), at_once)


def test_prepared_answer_is_dropped_when_the_user_goes_on() -> None:
    stage = Stage()
    cascade = stage.cascade()
    sound = cascade.hear(stage.sound("I want - tea please. - - - - - - - - - - - -"))
    begin_s, _ = sounding_s(sound)
    assert begin_s > 5 * WORD_S
    (dropped,) = cascade.timeline().where(kind="discarded")
    assert dropped.start_s < 3.1 * WORD_S
    assert [scene.text for scene in stage.asked] == ["I want", "I want tea please."]
    assert len(cascade.timeline().where(kind="answer")) == 1


def test_unfinished_sentence_gets_more_patience() -> None:
    stage = Stage()
    sound = stage.cascade().hear(stage.sound("I want - - - - - - -"))
    begin_s, _ = sounding_s(sound)
    assert 1.0 <= begin_s - 2 * WORD_S < 1.1


def test_barge_in_flushes_and_only_what_was_heard_is_remembered() -> None:
    stage = Stage()
    engines = stage.engines("one two three four five six seven eight nine ten eleven twelve.")
    cascade = stage.cascade(engines)
    asked = stage.sound("what is this? - - - stop now please. - - - - - - - - - - - - -")
    sound = cascade.hear(asked)
    begin_s, _ = sounding_s(sound)
    barged_s = 6 * WORD_S
    later = sound[round((barged_s + 0.3) * EAR_HZ) : round((9 * WORD_S + 0.4) * EAR_HZ)]
    assert begin_s < barged_s
    assert not later.any()
    assert sound[round((barged_s + 0.1) * EAR_HZ)]  # a click of the tongue stops nobody
    first, _ = cascade.timeline().where(kind="answer").events
    assert first.payload["cut"]
    assert first.payload["generated_s"] == 2.4
    assert first.payload["played_s"] < 0.8
    assert first.payload["sent_s"] >= first.payload["played_s"]
    said = first.text.split()
    assert said == ["one", "two", "three", "four"][: len(said)]
    assert said
    assert stage.asked[-1].history == (
        {"role": "user", "content": "what is this?"},
        {"role": "assistant", "content": " ".join(said)},
    )
    (cut,) = cascade.timeline().where(kind="interruption")
    assert cut.payload["by"] == "user"
    assert cut.payload["flushed_s"] > 1
    assert cut.end_s - barged_s < 0.3


def test_device_delay_counts_as_not_yet_heard() -> None:
    stage = Stage()
    cascade = stage.cascade(stage.engines("one two three four five six seven eight nine."))
    near, far = cascade, Stage()
    far.vocabulary = stage.vocabulary
    audio = stage.sound("what is this? - - - stop now. -")
    near.hear(audio)
    delayed = far.cascade(far.engines("one two three four five six seven eight nine."))
    delayed._mouth.ledger.device_delay_s = 0.25
    delayed.hear(audio)
    heard = [
        len(one.timeline().where(kind="answer").events[0].text.split()) for one in (near, delayed)
    ]
    assert heard[0] > heard[1]


def test_thought_is_closed_when_the_next_chunk_is_heard() -> None:
    stage = Stage()

    def think(scene: Scene) -> Iterator[str]:
        if not scene.is_over:
            yield from stage.writer(*["hm "] * 100, step_s=0.1)(scene)

    engines = replace(stage.engines(), think=think)
    rules = CascadeRules(trigger=FixedChunks(chunk_s=1.0))
    cascade = stage.cascade(engines, rules)
    cascade.hear(stage.sound("a b c d e f g h. - - - - - - - -"))
    thoughts = cascade.timeline().where(stream="thought").events
    first, second, *_ = thoughts
    assert first.payload["closed"] == "clock"
    assert first.end_s == pytest.approx(second.start_s)
    assert 8 <= len(first.text.split()) <= 11  # no more than a second of 0.1 s a token
    assert first.payload["heard"] in "a b c d"
    assert thoughts[-1].payload["last"]
    assert stage.asked[-1].thoughts[0] == first.text


def test_judge_interrupts_once_and_the_turn_gets_no_second_answer() -> None:
    stage = Stage()

    def judge(scene: Scene) -> float:
        return float("wrong" in scene.text)

    engines = replace(stage.engines("That is not so."), judge=judge)
    rules = CascadeRules(trigger=FixedChunks(chunk_s=0.6))
    cascade = stage.cascade(engines, rules)
    sound = cascade.hear(stage.sound("one two wrong four five six. - - - - - - - -"))
    begin_s, end_s = sounding_s(sound)
    (event,) = cascade.timeline().where(kind="interruption")
    assert event.payload["by"] == "agent"
    assert 3 * WORD_S < event.start_s < begin_s < 6 * WORD_S
    assert end_s - begin_s == pytest.approx(0.8, abs=0.05)
    (answer,) = cascade.timeline().where(kind="answer")
    assert not answer.payload["cut"]  # the user who is interrupted does not interrupt back at once
    scores = [one.payload["interrupt"] for one in cascade.timeline().where(stream="thought")]
    assert scores[-1] == 1.0
    assert 0.0 in scores


def test_failures_are_events_and_the_conversation_goes_on() -> None:
    stage = Stage()
    broken = [True]

    def recognise(audio: Tensor) -> list[ScoredWord]:
        if broken[0]:
            raise RuntimeError("no memory")
        return stage.recognise(audio)

    def answer(scene: Scene) -> Iterator[str]:
        yield from ()
        raise OSError("the line is dead")

    engines = replace(stage.engines(), recognise=recognise, answer=answer)
    cascade = stage.cascade(engines)
    cascade.hear(stage.sound("now what is this? - - - - - - - - - -"))
    broken[0] = False
    cascade.hear(stage.sound("what is that? - - - - - - - - - - -"))
    errors = cascade.timeline().where(kind="error")
    assert {(one.stream, one.text) for one in errors} == {
        ("ear", "no memory"),
        ("answer", "the line is dead"),
    }
    first, second = cascade.timeline().where(kind="answer").events
    assert first.text == "Sorry, I did not understand that."
    assert second.text == "Sorry, I cannot answer that now."


def test_voice_that_is_no_words_is_told_once() -> None:
    stage = Stage()
    engines = replace(stage.engines(), recognise=lambda audio: [])
    cascade = stage.cascade(engines)
    cascade.hear(stage.sound("la la la la - - - - - - - - - - la la la la - - - - - - - - - -"))
    assert kinds(cascade.timeline(), "user") == ["turn", "unclear"] * 2
    assert len(cascade.timeline().where(kind="answer")) == 1
    assert cascade.history == [
        {"role": "assistant", "content": "Sorry, I did not understand that."}
    ]


def test_silence_and_a_single_sample_give_nothing() -> None:
    stage = Stage()
    cascade = stage.cascade()
    assert len(cascade.hear(torch.ones(1))) == 1
    assert not cascade.hear(torch.zeros(5 * EAR_HZ)).any()
    assert len(cascade.timeline()) == 0


def test_long_turn_is_recognised_in_parts_with_every_word_once() -> None:
    stage = Stage()
    lengths = []

    def recognise(audio: Tensor) -> list[ScoredWord]:
        lengths.append(len(audio) / EAR_HZ)
        return stage.recognise(audio)

    text = " ".join(f"w{number}" for number in range(150)) + "."
    cascade = stage.cascade(replace(stage.engines(), recognise=recognise))
    cascade.hear(stage.sound(text + " - - - - -"))
    assert stage.asked[-1].text == text
    assert max(lengths) < 21
    assert 150 * WORD_S > 45


def test_backlog_tells_what_waits() -> None:
    stage = Stage()
    cascade = stage.cascade()
    cascade.hear(stage.sound("what is this?"))
    assert 0 < cascade.backlog.unrecognised_s < 0.8
    cascade.hear(stage.sound("- - -"))
    assert 0.5 < cascade.backlog.queued_s < 1.6
    cascade.hear(stage.sound("- - - - - -"))
    assert cascade.backlog == (0.0, 0.0, 0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_hour_of_silence_and_ten_minutes_of_one_turn_keep_their_pace() -> None:
    stage = Stage()
    cascade = stage.cascade()
    for _ in range(60):
        assert not cascade.hear(torch.zeros(60 * EAR_HZ)).any()
    assert len(cascade.timeline()) == 0
    text = " ".join(f"w{number % 900}" for number in range(1875)) + "."
    cascade.hear(stage.sound(text + " - - - - -"))
    assert stage.asked[-1].text == text
    assert len(cascade._ear._sound.blocks) < 700


def test_thought_after_a_pause_is_not_the_last_if_the_user_goes_on() -> None:
    stage = Stage()

    def think(scene: Scene) -> Iterator[str]:
        if scene.is_over:
            yield from stage.writer("hm ", "so ", step_s=0.1)(scene)

    cascade = stage.cascade(replace(stage.engines(), think=think))
    cascade.hear(stage.sound("I want - tea please. - - - - - - - - - - - -"))
    thoughts = cascade.timeline().where(stream="thought").events
    assert [one.payload["heard"] for one in thoughts] == ["I want", "I want tea please."]
    (answer,) = cascade.timeline().where(kind="answer")
    assert stage.asked[-1].thoughts[-1] == thoughts[-1].text
    assert answer.start_s > thoughts[-1].end_s


def test_answer_that_the_user_stops_is_cut_even_if_nothing_was_queued() -> None:
    stage = Stage()

    def slow(scene: Scene) -> Iterator[str]:
        yield "One. "
        yield "Two. "
        stage.clock.now_s += 10.0
        yield "Three."

    cascade = stage.cascade(replace(stage.engines(), answer=slow))
    cascade.hear(stage.sound("who? - - - - - - - - - - - - - - - - - -"))
    cascade.hear(stage.sound("stop now. -"))
    (answer,) = cascade.timeline().where(kind="answer")
    assert answer.text == "One. Two."
    assert answer.payload["cut"]


def test_few_words_before_long_noise_are_kept() -> None:
    stage = Stage()

    def without_noise(audio: Tensor) -> list[ScoredWord]:
        return [word for word in stage.recognise(audio) if not word.text.startswith("noise")]

    cascade = stage.cascade(
        replace(stage.engines(), recognise=without_noise),
        CascadeRules(ear=EarRules(fixed_s=3.0)),
    )
    noise = " ".join(f"noise{number}" for number in range(30))
    cascade.hear(stage.sound(f"please call me {noise} - - - - - - -"))
    (turn,) = cascade.timeline().where(kind="turn")
    assert turn.text == "please call me"


def test_turn_whose_answer_was_not_begun_is_remembered() -> None:
    stage = Stage()

    def think(scene: Scene) -> Iterator[str]:
        if scene.text == "Hello.":
            stage.clock.now_s += 2.0
        yield "hm"

    cascade = stage.cascade(replace(stage.engines(), think=think))
    cascade.hear(stage.sound("Hello. - - my friend. - - - - - -"))
    assert [scene.text for scene in stage.asked] == ["my friend."]
    assert stage.asked[0].history == ({"role": "user", "content": "Hello."},)


def test_words_are_recognised_once_when_the_voice_stops_before_it_is_a_pause() -> None:
    stage = Stage()
    ends: list[int] = []

    def recognise(audio: Tensor) -> list[ScoredWord]:
        ends.append(int(audio.nonzero()[-1]) + 1 - len(audio))
        return stage.recognise(audio)

    rules = EarRules(partial_s=100.0)  # no other recognition comes between
    cascade = stage.cascade(
        replace(stage.engines(), recognise=recognise), rules=CascadeRules(ear=rules)
    )
    cascade.hear(stage.sound("what is this? - - - - -"))
    # Its sound ends with the first blocks of silence, not with those of a pause, and it is enough.
    assert ends == [-2 * EAR_BLOCK]
    assert [event.text for event in cascade.timeline().where(kind="turn")] == ["what is this?"]


def test_sound_that_ends_with_the_voice_is_recognised_again_with_silence() -> None:
    """The quiet end of a word may follow the last voiced block."""
    stage = Stage()
    heard: list[int] = []  # blocks of silence at the end of each sound

    def recognise(audio: Tensor) -> list[ScoredWord]:
        heard.append((len(audio) - 1 - int(audio.nonzero()[-1])) // EAR_BLOCK)
        words = stage.recognise(audio)
        return words if heard[-1] else words[:-1]

    rules = EarRules(partial_s=0.85)  # the only partial falls on the last voiced block
    cascade = stage.cascade(
        replace(stage.engines(), recognise=recognise), rules=CascadeRules(ear=rules)
    )
    cascade.hear(stage.sound("what is this? - - - - -"))
    assert len(heard) == 2
    assert heard[0] == 0
    assert heard[1] > 0
    assert [scene.text for scene in stage.asked] == ["what is this?"]


def test_model_reads_new_words_and_the_history_ahead() -> None:
    stage = Stage()
    read: list[tuple[str, int]] = []

    def note(scene: Scene) -> Iterator[str]:
        read.append((scene.text, len(scene.history)))
        if len(read) == 1:
            raise OSError("too long")
        yield "x"

    cascade = stage.cascade(replace(stage.engines(), read=note))
    cascade.hear(stage.sound("what is this big thing? - - - - - - - - - - -"))
    words = [text for text, num_messages in read if num_messages == 0]
    assert words
    assert all("what is this big thing?".startswith(text) for text in words)
    assert read[-1] == ("", 2)  # the question and its answer, before the next question
    (failed,) = cascade.timeline().where(kind="error")
    assert (failed.stream, failed.text) == ("reading", "too long")
    assert len(cascade.timeline().where(kind="answer")) == 1
