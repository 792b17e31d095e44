"""The rule of turn taking on recordings and times whose answer is known by hand."""

import math

import pytest
import torch
from torch import Tensor

from counterpoint.evaluate.duplex.turns import (
    ConversationRule,
    Overlap,
    Segment,
    as_timeline,
    bridge_gaps,
    measure_levels,
    percentile,
    speech_segments,
    take_turns,
)
from counterpoint.streams.timeline import Timeline

RATE = 8000


def spans(*times: tuple[float, float]) -> tuple[Segment, ...]:
    return tuple(Segment(*pair) for pair in times)


def voice(duration_s: float, *times: tuple[float, float], noise: float = 1e-4) -> Tensor:
    """Tone bursts of full voice in hiss."""
    time_s = torch.arange(round(duration_s * RATE)) / RATE
    loud = torch.zeros_like(time_s)
    for start_s, end_s in times:
        loud[round(start_s * RATE) : round(end_s * RATE)] = 0.3
    return loud * torch.sin(2 * torch.pi * 200 * time_s) + noise * torch.randn(len(time_s))


def speech(audio: Tensor) -> list[tuple[float, float]]:
    levels = measure_levels([audio[None]], RATE)
    found = speech_segments(levels.loudness_db[0], levels.duration_s)
    return [(round(s.start_s, 6), round(s.end_s, 6)) for s in found]


def test_levels_are_those_of_parts_of_10_ms_however_the_recording_is_cut() -> None:
    audio = torch.randn(2, 1234) * 0.1
    whole = measure_levels([audio], RATE)
    cut = measure_levels(audio.split((1, 0, 79, 80, 81, 993), 1), RATE)
    assert whole.loudness_db.shape == (2, 16)
    assert whole.duration_s == 1234 / RATE
    for one, other in zip(whole, cut, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    part = audio[1, 80:160]
    assert whole.loudness_db[1, 1] == pytest.approx(float(10 * part.square().mean().log10()))
    assert whole.low[1, 1] == part.min()
    assert whole.high[1, 1] == part.max()
    full = measure_levels([torch.ones(1, 80), torch.zeros(1, 80)], RATE)
    assert full.loudness_db[0].tolist() == [0, -100]


def offsets() -> dict[str, Tensor]:
    time_s = torch.arange(10 * RATE) / RATE
    return {
        "none": torch.zeros(10 * RATE),
        "constant": torch.full((10 * RATE,), 0.03),
        "negative": torch.full((10 * RATE,), -0.09),
        "drifting": 0.015 * time_s - 0.08,
        "begins": 0.05 * (time_s > 1),
        "ends amid speech": 0.05 * (time_s < 4.52),
    }


@pytest.mark.parametrize("name", offsets())
@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_an_offset_of_the_channel_is_no_sound(name: str, noise: float) -> None:
    audio = voice(10, (3.0, 6.0), noise=noise) + offsets()[name]
    assert speech(audio) == [(3.0, 6.0)]
    pieces = audio[None].split((1, 79, 40_003, 39_917), 1)
    whole, cut = measure_levels([audio[None]], RATE), measure_levels(pieces, RATE)
    assert torch.equal(whole.loudness_db, cut.loudness_db)


def test_silence_amid_an_offset_is_digital_silence() -> None:
    audio = 0.03 * torch.ones(1, 5 * RATE)
    assert set(measure_levels([audio], RATE).loudness_db[0].tolist()) == {-100.0}


@pytest.mark.parametrize("rate", [0, 8050, 11025])
def test_levels_need_whole_parts(rate: int) -> None:
    with pytest.raises(ValueError, match="multiple of 100 Hz"):
        measure_levels([torch.zeros(1, 5)], rate)
    with pytest.raises(ValueError, match="at least one block"):
        measure_levels([], RATE)


def test_speech_is_found_to_10_ms() -> None:
    assert speech(voice(5, (1.0, 1.5), (2.5, 4.0))) == [(1.0, 1.5), (2.5, 4.0)]
    assert speech(voice(2, (0, 0.5), (1.5, 2))) == [(0, 0.5), (1.5, 2)]
    assert speech(voice(2, (0.5, 1.9))[: round(1.2345 * RATE)]) == [(0.5, 1.2345)]


def test_short_gaps_are_bridged_and_short_sounds_dropped() -> None:
    assert speech(voice(4, (1.0, 1.5), (1.7, 2.0))) == [(1.0, 2.0)]
    assert speech(voice(4, (1.0, 1.5), (1.72, 2.0))) == [(1.0, 1.5), (1.72, 2.0)]
    assert speech(voice(4, (1.0, 1.09), (2, 2.1))) == [(2.0, 2.1)]


@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-2])
def test_speech_is_what_stands_out_from_the_channel(noise: float) -> None:
    assert speech(voice(4, (1, 2), noise=noise)) == [(1, 2)]
    assert speech(voice(4, noise=noise)) == []
    # A recording in hiss, behind which silence was put.
    tail = torch.zeros(RATE * 30)
    assert speech(torch.cat((voice(4, (1, 2), noise=noise), tail))) == [(1, 2)]


def test_segments_are_joined_over_gaps() -> None:
    apart = spans((0, 1), (1.2, 2), (2.5, 3))
    assert bridge_gaps(apart, 0.2) == spans((0, 2), (2.5, 3))
    assert bridge_gaps(apart, 0.1) == apart
    assert bridge_gaps((), 1) == ()


def test_answers_are_the_next_speech_of_the_agent() -> None:
    user = spans((1, 2), (2.5, 3), (6, 7), (10, 12), (20, 21))
    agent = spans((3.4, 5), (6.9, 7.5), (13, 14), (15, 16))
    found = take_turns(agent, user, 30.0)
    assert [answer.turn for answer in found.answers] == list(
        spans((1, 3), (6, 7), (10, 12), (20, 21))
    )
    outcomes = [answer.outcome for answer in found.answers]
    assert outcomes == ["answered", "answered", "answered", "unanswered"]
    assert found.latencies_s == pytest.approx([0.4, -0.1, 1.0])
    assert found.num_due == 4


def test_answer_comes_before_the_next_turn() -> None:
    found = take_turns(spans((5.5, 6.5)), spans((1, 2), (4, 5)), 9.0)
    assert [answer.latency_s for answer in found.answers] == [None, pytest.approx(0.5)]


def test_early_speech_is_an_answer_from_a_limit_on() -> None:
    user = spans((1, 3))
    for start_s, end_s, outcome in (
        (2.7, 4.0, "answered"),
        (2.6, 4.0, "talked over"),
        (0.5, 4.0, "talked over"),
        (2.0, 2.5, "unanswered"),
        (3.0, 4.0, "answered"),
    ):
        found = take_turns(spans((start_s, end_s)), user, 9.0)
        assert found.answers[0].outcome == outcome, start_s


def test_short_words_under_the_agent_ask_for_no_answer() -> None:
    found = take_turns(spans((1, 5)), spans((2, 2.9), (4.9, 6)), 9.0)
    assert [answer.outcome for answer in found.answers] == ["backchannel", "unanswered"]
    assert found.num_due == 1
    # It does not end the time for the answer to the turn before.
    found = take_turns(spans((3, 6), (6.5, 7)), spans((1, 2), (4, 4.5)), 9.0)
    assert [answer.outcome for answer in found.answers] == ["answered", "backchannel"]


def test_overlaps_name_who_came_second_and_who_gave_way() -> None:
    agent, user = spans((1, 3), (6, 9), (12, 13)), spans((2.5, 5), (7, 7.5), (11, 12.05), (15, 16))
    found = take_turns(agent, user, 20.0)
    assert found.overlaps == (
        Overlap(2.5, 3, "user", yields=True),
        Overlap(7, 7.5, "user", yields=False),
    )
    mirrored = take_turns(user, agent, 20.0)
    assert mirrored.overlaps == tuple(o._replace(second="agent") for o in found.overlaps)
    long = ConversationRule(shortest_s=0.05)
    assert take_turns(agent, user, 20.0, long).overlaps[-1] == Overlap(12, 12.05, "agent", False)


def test_one_segment_may_overlap_several() -> None:
    found = take_turns(spans((0, 10)), spans((1, 2), (3, 4), (9, 12)), 20.0)
    assert [(o.start_s, o.end_s, o.yields) for o in found.overlaps] == [
        (1, 2, False),
        (3, 4, False),
        (9, 10, True),
    ]


def test_timeline_holds_what_was_found() -> None:
    found = take_turns(spans((2.4, 3)), spans((1, 2), (2.7, 4)), 5.0)
    timeline = as_timeline(found)
    assert Timeline.from_jsonl(timeline.to_jsonl()) == timeline
    kinds = [(event.stream, event.kind, dict(event.payload)) for event in timeline]
    assert kinds == [
        ("user", "speech", {}),
        ("user", "turn", {"outcome": "answered", "latency_s": 0.4}),
        ("agent", "speech", {}),
        ("user", "overlap", {"yields": False}),
        ("user", "speech", {}),
        ("user", "turn", {"outcome": "unanswered", "latency_s": None}),
    ]


def test_silence_has_no_turns() -> None:
    found = take_turns((), (), 3.0)
    assert (found.answers, found.overlaps, found.num_due) == ((), (), 0)


def test_percentile_is_the_nearest_rank() -> None:
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert [percentile(values, share) for share in (0.0, 0.2, 0.5, 0.95, 1.0)] == [1, 1, 3, 5, 5]
    assert math.isnan(percentile([], 0.5))


def test_a_user_who_goes_on_without_an_answer_had_paused() -> None:
    user = [Segment(1.0, 2.0), Segment(4.0, 6.5), Segment(8.0, 9.0), Segment(11.0, 12.0)]
    agent = [Segment(5.0, 7.0)]  # talks over the second turn
    found = take_turns(agent, user, 14.0)
    outcomes = [answer.outcome for answer in found.answers]
    assert outcomes == ["unanswered", "talked over", "unanswered", "unanswered"]
    assert found.pauses == (Segment(2.0, 4.0), Segment(9.0, 11.0))
    pauses = [found.pause_after(answer) for answer in found.answers]
    assert pauses == [2.0, None, 2.0, None]
