"""Long silence, streams that end in the middle, and tools that end in another order."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from counterpoint.data.tools import Tool
from counterpoint.runtime.cascade.cascade import Cascade
from counterpoint.runtime.cascade.ear import BLOCK_S, EAR_BLOCK
from counterpoint.runtime.cascade.live import converse_with_microphone, listen
from counterpoint.runtime.cascade.thinking import Answerer, Scene
from tests.runtime.cascade.scripted import Stage, unasked

ANSWER = "Here is a rather long answer for you."


def answers(cascade: Cascade) -> list[str]:
    return [event.text for event in cascade.timeline().where(kind="answer")]


def silence(seconds: float) -> Tensor:
    return torch.zeros(round(seconds / BLOCK_S) * EAR_BLOCK)


# --------------------------------------------------------------------------------- long silence


@pytest.mark.parametrize("minutes", [1, 3])
def test_conversation_after_a_long_silence_is_the_same_but_for_its_times(minutes: int) -> None:
    found = []
    for rest_s in (0.96, 60.0 * minutes):
        stage = Stage()
        cascade = stage.cascade()
        cascade.hear(stage.sound("what is this? - - - - - - - - - -"))
        cascade.take_events()
        sound = cascade.hear(silence(rest_s))
        assert not sound.any()
        begin_s = cascade.now_s
        sound = cascade.hear(stage.sound("and now? - - - - - - - - - -"))
        events = [
            (event.kind, event.text, pytest.approx(event.start_s - begin_s))
            for event in cascade.timeline()
        ]
        found.append((sound, events, cascade.history))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]


# ------------------------------------------------------------------------ streams that end early


@pytest.mark.parametrize("tail_s", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("words", ["what", "what is this?"])
def test_recording_that_ends_in_the_middle_of_a_turn(words: str, tail_s: float) -> None:
    """What was said until then is told when the conversation is closed, and nothing is lost."""
    stage = Stage()
    cascade = stage.cascade()
    for _ in listen(cascade, [stage.sound(words)[None]], tail_s, paced=False):
        pass
    cascade.close()
    (turn,) = cascade.timeline().where(kind="turn")
    assert words.startswith(turn.text)
    assert not cascade.timeline().where(kind="error")


def test_stream_that_breaks_leaves_a_conversation_that_can_be_closed() -> None:
    stage = Stage()
    cascade = stage.cascade()

    def blocks() -> Iterator[Tensor]:
        yield stage.sound("now what is this thing?")[None]
        raise OSError("the line is dead")

    with pytest.raises(OSError, match="the line is dead"):
        for _ in listen(cascade, blocks(), 1.0, paced=False):
            pass
    cascade.close()
    assert [event.text for event in cascade.timeline().where(kind="turn")] == ["now what is this"]


@pytest.mark.parametrize("samples", [1, 100, EAR_BLOCK - 1])
def test_part_of_a_block_at_the_end_is_heard_by_nobody_and_harms_nobody(samples: int) -> None:
    stage = Stage()
    cascade = stage.cascade()
    cascade.hear(stage.sound("what is this? - - - - - - - - - -"))
    assert len(cascade.hear(torch.zeros(samples))) == samples
    cascade.close()
    assert answers(cascade) == [ANSWER]


class SoundCard:
    """A card that gives one block of the microphone after another, and is then pulled out."""

    def __init__(self, sound: Tensor, callback: Any) -> None:
        self.blocks = list(sound.split(EAR_BLOCK))
        self.callback = callback

    def __enter__(self) -> "SoundCard":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is open."""

    @property
    def active(self) -> bool:
        """Whether it runs; it gives a block each time that somebody looks."""
        if not self.blocks:
            return False
        heard = self.blocks.pop(0)[:, None].numpy()
        self.callback(heard, np.zeros_like(heard), len(heard), None, None)
        return True


def test_microphone_that_is_pulled_out_ends_the_conversation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would be waited for without end; there is no card here, so its module is replaced."""
    stage = Stage()
    cascade = stage.cascade()
    sound = stage.sound("now what is this thing?")

    def open_stream(callback: Any, **settings: object) -> SoundCard:
        return SoundCard(sound, callback)

    module = SimpleNamespace(Stream=open_stream)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    pieces = list(converse_with_microphone(cascade))
    cascade.close()
    assert torch.equal(torch.cat(pieces, 1)[1], sound)
    (error,) = cascade.timeline().where(kind="error")
    assert (error.stream, error.text) == ("ear", "the sound card has stopped")
    assert [event.text for event in cascade.timeline().where(kind="turn")] == ["now what is this"]


# ------------------------------------------------------------------------- order of tools


def looking_up(stage: Stage, times_s: dict[str, float]) -> Cascade:
    """Return a conversation that looks things up, each of which takes so long."""

    def make(name: str, seconds: float) -> Tool:
        def look() -> str:
            stage.clock.now_s += seconds
            return name

        return Tool(
            name=name,
            description="",
            parameters={"type": "object", "properties": {}},
            function=look,
            effect="none",
            say=lambda result: f"It is {result}.",
        )

    def think(scene: Scene) -> Iterator[str]:
        for name in times_s if scene.is_over else ():
            yield f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>'

    tools = [make(name, seconds) for name, seconds in times_s.items()]
    engines = replace(stage.engines(), think=think, answer=Answerer(unasked))
    return stage.cascade(engines, None, tools)


def test_results_are_told_in_the_order_in_which_they_were_asked_for() -> None:
    stage = Stage()
    cascade = looking_up(stage, {"slow": 2.0, "quick": 0.1, "middling": 1.0})
    cascade.hear(stage.sound("what is this?"))
    cascade.hear(silence(8.0))
    calls = sorted(cascade.timeline().where(kind="call"), key=lambda event: event.end_s)
    assert [call.payload["response"] for call in calls] == ['"quick"', '"middling"', '"slow"']
    assert answers(cascade) == ["It is slow. It is quick. It is middling."]
    assert cascade.backlog.open_calls == 0
