"""Conversations in real time: pacing, the end of a recording, and a card that does not wait."""

import torch

from counterpoint.runtime.cascade.ear import BLOCK_S, EAR_BLOCK, EAR_HZ
from counterpoint.runtime.cascade.live import Exchange, listen
from tests.runtime.cascade.scripted import FakeClock, Stage, sounding_s


def test_recording_is_heard_at_its_pace_and_until_the_answer_is_over() -> None:
    stage = Stage()
    cascade = stage.cascade()
    asked = stage.sound("what is this?")
    clock = FakeClock()

    def sleep(seconds: float) -> None:
        assert seconds > 0
        clock.now_s += seconds

    blocks = [part[None] for part in asked.split(700)]
    pieces = list(listen(cascade, blocks, 30.0, clock=clock, sleep=sleep))
    sound = torch.cat(pieces, 1)
    assert torch.equal(sound[1, : len(asked)], asked)
    assert abs(clock.now_s - sound.shape[1] / EAR_HZ) < 0.001
    _, end_s = sounding_s(sound[0])
    assert end_s <= sound.shape[1] / EAR_HZ < end_s + 0.2  # not all of the 30 s
    assert len(cascade.timeline().where(kind="answer")) == 1


def test_recording_without_a_voice_ends_at_once() -> None:
    stage = Stage()
    for samples in (1, EAR_BLOCK, 3 * EAR_HZ + 1):
        pieces = list(listen(stage.cascade(), [torch.zeros(1, samples)], 30.0, paced=False))
        assert len(pieces) == -(-samples // EAR_BLOCK) + 1


def test_card_gets_silence_where_nothing_is_said() -> None:
    exchange = Exchange()
    assert not exchange.swap(torch.ones(EAR_BLOCK)).any()
    assert exchange.next() is not None
    assert exchange.next() is None
    exchange.say(torch.ones(EAR_BLOCK))
    assert exchange.swap(torch.zeros(EAR_BLOCK)).all()


def test_oldest_sound_is_dropped_when_the_conversation_is_late() -> None:
    exchange = Exchange(most_waiting_s=1.0)
    for number in range(100):
        exchange.swap(torch.full((EAR_BLOCK,), float(number)))
    assert exchange.waiting_s <= 1.0
    assert exchange.num_dropped == 100 - round(exchange.waiting_s / BLOCK_S)
    first = exchange.next()
    assert first is not None
    assert first[0] == exchange.num_dropped


def test_sound_that_was_not_fetched_does_not_pile_up() -> None:
    exchange = Exchange()
    for number in range(50):
        exchange.say(torch.full((EAR_BLOCK,), float(number)))
    assert [float(exchange.swap(torch.zeros(EAR_BLOCK))[0]) for _ in range(3)] == [48.0, 49.0, 0.0]
