"""Spoken maths: the errors are where they are said to be, and thoughts know only what was heard."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise

import pytest
import torch

from counterpoint.data.tasks.items import HELD_OUT_SEED
from counterpoint.data.tasks.spoken_maths.hearing import (
    NOTHING,
    Chunk,
    Heard,
    at_rate,
    chunks,
    heard_ticks,
    misheard,
    spoken_rounds,
    spoken_ticks,
)
from counterpoint.data.tasks.spoken_maths.numbers import MOST, NUMBER_WORDS, spoken
from counterpoint.data.tasks.spoken_maths.problems import (
    FRIENDS,
    NAMES,
    THINGS,
    Problem,
    SpokenMaths,
    is_held_out,
    vocabulary,
)
from counterpoint.data.tasks.spoken_maths.source import Arrangement, SpokenMathsData
from counterpoint.data.tasks.spoken_maths.thoughts import OK, WRONG, Style
from counterpoint.data.tasks.spoken_maths.words import Words
from counterpoint.errors import UserError
from counterpoint.speech.spoken_words import SpokenWord
from counterpoint.streams.rounds import ANSWER, HEARD, MARK, THOUGHT, Marks
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems import shanks, sketch
from counterpoint.systems.shanks import Shanks
from counterpoint.systems.single_stream import SingleStream, SingleStreamConfig
from tests.systems import tiny_models

TASK = SpokenMaths()
MARKS = Marks()
PROBLEMS = [TASK.problem(seed, i) for seed in (0, HELD_OUT_SEED) for i in range(150)]


def heard(number: int) -> Heard:
    return at_rate(TASK.problem(0, number), 2.8, 0, number)


def test_misheard_words_change_what_is_heard_and_nothing_else() -> None:
    pairs = [(heard(number), misheard(heard(number), 0.3, 0, number)) for number in range(40)]
    changed = left_out = 0
    for exact, wrong in pairs:
        assert [word[1:] for word in wrong.words] == [word[1:] for word in exact.words]
        assert wrong.wrong_s == exact.wrong_s
        differs = [new.text != old.text for new, old in zip(wrong.words, exact.words, strict=True)]
        changed += sum(differs)
        left_out += sum(not word.text for word in wrong.words)
        told = [spoken_rounds(one, 2.0, thinks=True, marks=MARKS) for one in (exact, wrong)]
        assert [one[THOUGHT] for one in told[0]] == [one[THOUGHT] for one in told[1]]
        assert all(word in vocabulary() for one in told[1] for word in one[HEARD])
    total = sum(len(exact.words) for exact, _ in pairs)
    assert 0.27 < changed / total < 0.33
    assert 0.2 < left_out / changed < 0.3
    assert misheard(pairs[0][0], 0.3, 0, 0) == pairs[0][1]
    assert misheard(pairs[0][0], 0.0, 0, 0) == pairs[0][0]


@pytest.mark.parametrize("arrangement", ["interleaved", "silent", "parallel"])
def test_misheard_words_are_read_in_every_arrangement(arrangement: Arrangement) -> None:
    """What is thought stays, also where a word is not heard at all."""
    config = shanks.small_parallel() if arrangement == "parallel" else shanks.small()
    data = SpokenMathsData(arrangement=arrangement, misheard=0.5)
    prepared = data.prepare(sketch(config))
    told = prepared.told(data.heard(3))
    exact = prepared.told(replace(data, misheard=0.0).heard(3))
    for round_, other in zip(told.rounds, exact.rounds, strict=True):
        assert torch.equal(round_[THOUGHT], other[THOUGHT])
    assert any(
        not torch.equal(round_[HEARD], other[HEARD])
        for round_, other in zip(told.rounds, exact.rounds, strict=True)
    )


@pytest.mark.parametrize("held_back", [0, 1, 3])
def test_words_that_are_held_back_are_heard_in_the_next_chunk(held_back: int) -> None:
    for number in range(20):
        one = heard(number)
        usual = chunks(one, 2.0)
        cut = chunks(one, 2.0, held_back)
        assert [chunk[:2] for chunk in cut] == [chunk[:2] for chunk in usual]
        words = [word for chunk in cut for word in chunk.words]
        assert words == [word.text for word in one.words]
        clauses = [clause for chunk in cut for clause in chunk.clauses]
        assert clauses == list(one.problem.clauses)
        said = held = 0
        for chunk, plain in zip(cut[:-1], usual[:-1], strict=True):
            said += len(plain.words)
            held += len(chunk.words)
            assert held == max(said - held_back, held - len(chunk.words))
            complete = sum(len(clause.words) for clause in clauses[: _complete(cut, chunk)])
            assert complete <= held
        if not held_back:
            assert cut == usual


@pytest.mark.parametrize("tick_hz", [10.0, 12.5, 100.0, 3.0, 0.75])
def test_a_word_that_ends_with_a_tick_is_heard_in_it(tick_hz: float) -> None:
    problem = TASK.problem(0, 0)
    for first in range(0, 300, 7):
        ends = [first + 2 * place for place in range(len(problem.words))]
        words = tuple(
            SpokenWord(word, (end - 1) / tick_hz, end / tick_hz)
            for word, end in zip(problem.words, ends, strict=True)
            if end
        )
        said = heard_ticks(Heard(problem, words, words[-1].end_s), tick_hz, MARKS)
        assert [tick + 1 for tick, word in enumerate(said[:-1]) if word] == [e for e in ends if e]


def _complete(cut: list[Chunk], until: Chunk) -> int:
    """Return how many clauses are complete at the end of a chunk."""
    return sum(len(chunk.clauses) for chunk in cut if chunk.end_s <= until.end_s)


@pytest.mark.parametrize(("share", "spread"), [(1.0, 0.1), (0.1, -0.1)])
def test_shares_of_misheard_words_are_checked(share: float, spread: float) -> None:
    with pytest.raises(UserError, match="must be shares"):
        SpokenMathsData(misheard=share, pace_spread=spread)


def test_numbers_are_said_in_different_words() -> None:
    assert len({" ".join(spoken(number)) for number in range(MOST + 1)}) == MOST + 1


def test_half_of_the_problems_are_wrong_in_every_way() -> None:
    wrong = [one for one in PROBLEMS if one.fault]
    assert 0.4 < len(wrong) / len(PROBLEMS) < 0.6
    assert {one.fault for one in wrong} == {"result", "operand", "operation"}
    assert {one.wrong_step for one in wrong} == {1, 2, 3}


def test_steps_that_allow_no_error_are_drawn_again() -> None:
    assert len(TASK.problem(0, 2_624_001).steps) in (2, 3)


@pytest.mark.parametrize("problem", PROBLEMS[::7])
def test_the_first_wrong_word_belongs_to_the_wrong_step(problem: Problem) -> None:
    first = 0
    for clause in problem.clauses:
        if clause.step:
            is_wrong = clause.thought[-1] == WRONG
            assert is_wrong or clause.thought[-1] == OK
            if clause.step == problem.wrong_step:
                assert is_wrong
                assert first <= problem.wrong_word < first + len(clause.words)
            elif clause.step < (problem.wrong_step or 99):
                assert not is_wrong
        first += len(clause.words)


def frames(problems: Sequence[Problem]) -> set[tuple[str, ...]]:
    """All sentences but the last ones, without their numbers, names and things."""
    signs = dict.fromkeys(NUMBER_WORDS, "#") | dict.fromkeys((*NAMES, *FRIENDS), "@")
    signs |= dict.fromkeys(THINGS, "things")
    said = (clause.words for one in problems for clause in one.clauses[:-1])
    in_signs = ((signs.get(word, word) for word in words) for words in said)
    return {tuple(word for word, _ in groupby(sentence)) for sentence in in_signs}


def test_held_out_sentences_are_new_but_their_neighbouring_words_are_not() -> None:
    train, test = frames(PROBLEMS[:150]), frames(PROBLEMS[150:])
    assert len(test) > 10
    assert not train & test
    assert {pair for one in test for pair in pairwise(one)} <= {
        pair for one in train for pair in pairwise(one)
    }


def test_held_out_problems_share_no_step_with_training() -> None:
    train, test = PROBLEMS[:150], PROBLEMS[150:]
    assert not {step for one in train for step in one.steps} & {
        step for one in test for step in one.steps
    }
    assert all(is_held_out(step) for one in test for step in one.steps)
    said = {word for one in train for word in one.words}
    assert {word for one in test for word in one.words} <= said


def test_a_thought_knows_only_clauses_that_were_complete() -> None:
    for number in range(40):
        one = heard(number)
        cut = chunks(one, 4.0)
        words = [word for chunk in cut for word in chunk.words]
        assert words == one.problem.words
        told = 0
        for chunk in cut:
            told += len(chunk.clauses)
            end = sum(len(clause.words) for clause in one.problem.clauses[:told])
            assert end == 0 or one.words[end - 1].end_s <= chunk.end_s + 1e-9
            assert (
                end == len(words)
                or one.words[end].end_s <= chunk.end_s
                or told < len(one.problem.clauses)
            )


def test_rounds_end_with_the_first_error_or_with_an_agreement() -> None:
    for number in range(60):
        one = heard(number)
        rounds = spoken_rounds(one, 2.0, thinks=True, marks=MARKS)
        assert all(len(own[THOUGHT]) <= 40 for own in rounds)  # the budget of 20 words a second
        assert [ANSWER in own for own in rounds] == [False] * (len(rounds) - 1) + [True]
        answer = rounds[-1][ANSWER]
        if one.problem.fault is None:
            assert rounds[-1][MARK] == [MARKS.last]
            assert answer == [*one.problem.agreement, MARKS.stop]
            assert [w for own in rounds for w in own[HEARD]] == one.problem.words
        else:
            assert answer == [*one.problem.correction, MARKS.stop]
            assert (rounds[-1][MARK] == [MARKS.last]) != (WRONG in rounds[-1][THOUGHT])


def test_parallel_thoughts_come_after_what_they_are_about() -> None:
    one = heard(0)
    said, thought = spoken_ticks(one, 10.0, MARKS)
    assert len(said) == len(thought)
    assert [word for word in said if word][:20] == one.problem.words[:20]
    first = next(tick for tick, word in enumerate(thought) if word != NOTHING)
    complete = len(one.problem.clauses[0].words)
    assert len([word for word in said[:first] if word]) >= complete


def test_the_end_of_the_speech_is_heard_also_while_the_model_answers() -> None:
    """Training rows hold what a session hears until its answer ends."""
    num_during_answers = 0
    for number in range(60):
        one = heard(number)
        said, thought = spoken_ticks(one, 10.0, MARKS)
        live = heard_ticks(one, 10.0, MARKS)
        assert said == [*live, *[None] * (len(thought) - len(live))][: len(thought)]
        num_during_answers += one.problem.fault is not None and MARKS.last in said
    assert num_during_answers


@pytest.mark.parametrize("arrangement", ["interleaved", "silent", "parallel"])
def test_rows_train_what_is_written_and_nothing_else(arrangement: Arrangement) -> None:
    row_ticks = 512 if arrangement == "parallel" else 256
    data = SpokenMathsData(arrangement=arrangement, row_ticks=row_ticks)
    model = Shanks(shanks.tiny())
    batch = data.prepare(model).batches(2, 0).batch(3)
    targets = batch.targets["thought"]
    assert batch.ticks["thought"].shape == batch.ticks["heard"].shape == (2, row_ticks)
    assert batch.size == int((targets != UNSET_ID).sum()) > 0
    following = batch.ticks["thought"][:, 1:]
    same = batch.document_start[:, 1:] == batch.document_start[:, :-1]
    trained = (targets[:, :-1] != UNSET_ID) & same
    assert torch.equal(following[trained], targets[:, :-1][trained])
    if arrangement != "parallel":
        marks = Words().encode(f"{MARKS.part} {MARKS.last}").tolist()
        assert not any((targets == mark).any() for mark in marks)
        assert not (trained & (batch.ticks["heard"][:, 1:] != UNSET_ID)).any()


def test_a_verdict_stands_beside_what_it_compares() -> None:
    for number in range(60):
        problem = heard(number).problem
        for clause in problem.clauses:
            if not clause.step:
                continue
            words, kinds = clause.about
            ends = [place for place, kind in enumerate(kinds) if kind == "verdict"]
            begins = [1, *(end + 1 for end in ends)]
            for begin, end in zip(begins, ends, strict=False):
                middle = (begin + end) // 2
                same = words[begin:middle] == words[middle:end]
                assert words[end] == (OK if same else WRONG)
            assert words[ends[-1]] == (WRONG if clause.step == problem.wrong_step else OK) or (
                0 < problem.wrong_step < clause.step
            )


@pytest.mark.parametrize("style", ["plain", "checked", "recalled"])
def test_all_styles_say_the_same_about_the_same_problem(style: Style) -> None:
    for number in range(40):
        own, other = (replace(TASK, style=s).problem(0, number) for s in ("plain", style))
        assert own.words == other.words
        verdicts = [one.thought[-1] for one in own.clauses if one.step]
        assert verdicts == [one.thought[-1] for one in other.clauses if one.step]


def test_a_plain_language_model_reads_what_is_heard_in_its_own_stream() -> None:
    config = SingleStreamConfig(tower=tiny_models.tower(8, 1, 1, 256), vocab_size=len(Words()))
    data = SpokenMathsData(row_ticks=256, num_held_out=2)
    units = data.prepare(SingleStream(config)).held_out_units()
    assert units is not None
    (batch,) = units.batches(1)
    words = Words().decode(batch.ticks["part"][0].numpy()).split()
    first = data.heard(1, held_out=True).problem.words
    assert words[: words.index(MARKS.part)] == first[: words.index(MARKS.part)]
    with pytest.raises(UserError, match="hears a stream of words"):
        SpokenMathsData(arrangement="parallel").prepare(SingleStream(config))
