"""Interruptions are scored from timelines, and constant policies get what they must."""

import pytest
import torch

from counterpoint.data.tasks.spoken_maths.source import Arrangement, SpokenMathsData
from counterpoint.data.tasks.spoken_maths.words import Words
from counterpoint.evaluate.duplex.spoken_maths import clock_of, floors, listen, made_by_program
from counterpoint.evaluate.duplex.thinking import (
    Attempt,
    operating_curve,
    score_interruptions,
)
from counterpoint.runtime.thinker import SystemThinker
from counterpoint.streams.timeline import Event, Timeline
from counterpoint.systems import shanks
from counterpoint.systems.shanks import Shanks

DATA = SpokenMathsData()
CONFIG = clock_of(DATA)
PROBLEMS = [DATA.heard(number, held_out=True) for number in range(30)]


def event(kind: str, start_s: float, stream: str = "agent", **payload: object) -> Event:
    return Event(start_s=start_s, end_s=start_s, stream=stream, kind=kind, payload=payload)


def thought(start_s: float, *chances: float) -> Event:
    return event("thought", start_s, "thought", chances=chances)


def test_the_maker_of_the_problems_finds_all_errors_and_interrupts_nobody_else() -> None:
    attempts = [made_by_program(one, CONFIG) for one in PROBLEMS]
    score = score_interruptions(attempts)
    assert score.right.value == 0
    assert score.valid.value == 1
    # An error in the last chunk cannot be interrupted, for its thought comes after the speech.
    assert score.wrong.value == score.found.value == score.corrected.value > 0.9
    assert 0 < score.latency(0.0) < score.latency(0.5) < score.latency(1.0) < 2.0 + 4.0 + 2.0


def test_constant_policies_are_floors() -> None:
    found = {name: score_interruptions(own) for name, own in floors(PROBLEMS, CONFIG, 3).items()}
    assert found["never"].wrong.value == found["never"].right.value == 0
    assert found["after chunk 1"].wrong.value == found["after chunk 1"].right.value == 1
    assert found["after chunk 1"].latency(0.5) < 0  # nothing wrong was said by then
    assert 0 < found["random"].valid.value < 1


def test_latency_counts_from_the_first_wrong_word() -> None:
    late = Attempt(timeline=Timeline(events=(event("interruption", 9.0),)), wrong_s=6.5, named=True)
    alarm = Attempt(timeline=Timeline(events=(event("interruption", 3.0),)))
    missed = Attempt(timeline=Timeline(), wrong_s=4.0)
    score = score_interruptions([late, alarm, missed])
    assert score.latency_s == (2.5,)
    assert (score.right.value, score.wrong.value, score.valid.value) == (1, 0.5, 1)


def test_a_threshold_interrupts_where_the_chance_reaches_it() -> None:
    end = event("chunk", 12.0, "user")
    wrong = Attempt(
        timeline=Timeline(events=(thought(4.0, 0.1, 0.4), thought(8.0, 0.9), end)), wrong_s=3.0
    )
    right = Attempt(timeline=Timeline(events=(thought(4.0, 0.3), thought(12.0, 1.0), end)))
    low, middle, high = operating_curve([wrong, right], (0.2, 0.5, 0.95), 10.0)
    assert (low.wrong, low.right, middle.right, high.wrong) == (1, 1, 0, 0)
    assert low.latency_s == pytest.approx(1.2)
    assert middle.latency_s == pytest.approx(5.1)


@pytest.mark.parametrize("arrangement", ["interleaved", "silent", "parallel"])
def test_any_model_can_listen(arrangement: Arrangement) -> None:
    """Random weights say anything; the conversation still ends, and its timeline can be read."""
    torch.manual_seed(0)
    data = SpokenMathsData(arrangement=arrangement)
    parallel = arrangement == "parallel"
    model = Shanks(shanks.tiny_parallel() if parallel else shanks.tiny()).eval()
    torch.nn.init.normal_(model.get_parameter("head.weight"))
    attempt = listen(model, data, PROBLEMS[0], threshold=2.0)
    assert attempt.interrupted_s is None
    assert len(attempt.timeline.where(kind="answer")) == 1
    sure = listen(model, data, PROBLEMS[0], threshold=0.0)
    assert sure.interrupted_s is not None
    assert Timeline.from_jsonl(sure.timeline.to_jsonl()) == sure.timeline


def test_a_session_proposes_what_whole_rows_predict() -> None:
    torch.manual_seed(0)
    data = SpokenMathsData(num_held_out=1)
    model = Shanks(shanks.tiny()).eval()
    torch.nn.init.normal_(model.get_parameter("head.weight"))
    units = data.prepare(model).held_out_units()
    assert units is not None
    (batch,) = units.batches(0)
    with torch.no_grad():
        expected = model(batch)["thought"][0]
    words = Words()
    thinker = SystemThinker(model, words)
    ids, heard = batch.ticks["thought"][0], batch.ticks["heard"][0]
    for tick in range(len(ids)):
        own = ids[tick : tick + 1]
        if int(own) >= 0:
            thinker.read(words.decode(own.numpy()))
        else:
            thinker.hear(words.decode(heard[tick : tick + 1].numpy()))
        proposal = thinker.propose()
        assert proposal.text.strip() == words.words[int(expected[tick].argmax())]


def test_a_chance_after_the_end_of_the_speech_interrupts_nobody() -> None:
    end = event("chunk", 4.0, "user")
    in_parallel = Attempt(timeline=Timeline(events=(thought(0.0, *[0.1] * 45, 0.9), end)))
    judged_late = Event(
        start_s=3.5, end_s=4.5, stream="thought", kind="thought", payload={"interrupt": 0.9}
    )
    judged = Attempt(timeline=Timeline(events=(judged_late, end)))
    (point,) = operating_curve([in_parallel, judged], (0.5,), 10.0)
    assert point.right == 0


def test_wrong_problems_are_heard_to_their_end_on_the_clock_of_the_parallel_model() -> None:
    data = SpokenMathsData(arrangement="parallel")
    model = Shanks(shanks.tiny_parallel()).eval()
    heard = next(one for one in PROBLEMS if one.problem.fault is not None)
    words = listen(model, data, heard, threshold=1.1).timeline.where(stream="user").events
    assert [one.text for one in words] == [*(one.text for one in heard.words), data.marks.last]
    assert words[-2].end_s - heard.end_s < 0.1 + 1e-6
