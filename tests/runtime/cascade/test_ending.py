"""What ends a thought, an answer, a call and a conversation, and what is told of it."""

import threading
from collections.abc import Iterator
from dataclasses import replace

from counterpoint.runtime.cascade.cascade import CascadeRules
from counterpoint.runtime.cascade.thinking import FixedChunks, Scene, SceneWriter
from tests.runtime.cascade.scripted import Stage

# ------------------------------------------------------------------------------------ thoughts


def test_thought_that_interrupts_when_its_time_is_over_leaves_the_model_to_the_answer() -> None:
    """Both need the same model, which works for one of them at a time."""
    stage = Stage()
    lock = threading.Lock()

    def model(*pieces: str) -> SceneWriter:
        def write(scene: Scene) -> Iterator[str]:
            assert lock.acquire(blocking=False), "the model works for another"
            try:
                yield from stage.writer(*pieces, step_s=0.1)(scene)
            finally:
                lock.release()

        return write

    engines = replace(
        stage.engines(),
        think=model("[INTERRUPT]", *["hm "] * 30),
        answer=model("No, ", "that is wrong. "),
    )
    cascade = stage.cascade(engines, CascadeRules(trigger=FixedChunks(chunk_s=1.0)))
    cascade.hear(stage.sound("one two three four five six seven eight nine ten."))
    timeline = cascade.timeline()
    assert not timeline.where(kind="error")
    assert len(timeline.where(stream="thought")) == 1
    (event,) = timeline.where(kind="interruption")
    assert event.payload["by"] == "agent"
    (answer,) = timeline.where(kind="answer")
    assert answer.text == "No, that is wrong."


def test_thought_that_a_new_turn_ends_is_told() -> None:
    stage = Stage()

    def think(scene: Scene) -> Iterator[str]:
        if scene.text == "Hello.":
            yield "They greet."
            stage.clock.now_s += 2.0
        yield ""

    cascade = stage.cascade(replace(stage.engines(), think=think))
    cascade.hear(stage.sound("Hello. - - my friend. - - - - - -"))
    first, second = cascade.timeline().where(stream="thought").events
    assert (first.text, first.payload["closed"]) == ("They greet.", "clock")
    assert 0.96 < first.end_s < 1.1  # when the next turn was noticed
    assert second.payload["heard"] == "my friend."
    assert stage.asked[-1].thoughts == ()
