"""A model that thinks while it hears: its timeline says who closed the thought and the answer."""

import pytest
import torch

from counterpoint.data.tasks.spoken_maths.words import Words
from counterpoint.errors import UserError
from counterpoint.runtime.parallel import ParallelConfig, think_in_parallel
from counterpoint.runtime.thinker import SystemThinker
from counterpoint.streams.rounds import Marks
from counterpoint.streams.timeline import Timeline
from counterpoint.systems import shanks
from counterpoint.systems.shanks import Shanks

NUM_HEARD = 6
NUM_ANSWERED = 3


def listened(stop: str | None = None, threshold: float | None = 2.0) -> Timeline:
    """Let a model with random weights hear some ticks of silence; `stop` is its mark of the end."""
    torch.manual_seed(0)
    model = Shanks(shanks.tiny_parallel()).eval()
    torch.nn.init.normal_(model.get_parameter("head.weight"))
    marks = Marks() if stop is None else Marks(stop=stop)
    config = ParallelConfig(answer_tokens=NUM_ANSWERED, threshold=threshold, marks=marks)
    return think_in_parallel(SystemThinker(model, Words()), [None] * NUM_HEARD, config)


def closed(timeline: Timeline) -> tuple[str, str]:
    thought, answer = (timeline.where(kind=kind).events[0] for kind in ("thought", "answer"))
    return thought.payload["closed"], answer.payload["closed"]


def test_the_end_of_the_speech_closes_a_thought_and_the_budget_an_answer() -> None:
    timeline = listened()
    (answer,) = timeline.where(kind="answer").events
    assert answer.payload["tokens"] == NUM_ANSWERED
    assert closed(timeline) == ("clock", "budget")


def test_an_interruption_closes_a_thought_and_the_budget_the_answer_after_it() -> None:
    assert closed(listened(threshold=0.0)) == ("interruption", "budget")


def test_a_threshold_that_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match="must be a chance from 0 to 1"):
        ParallelConfig(threshold=float("nan"))


def test_the_model_closes_a_thought_that_it_ends_itself() -> None:
    (thought,) = listened().where(kind="thought").events
    assert closed(listened(stop=thought.text.split()[0]))[0] == "model"


def test_the_model_closes_an_answer_that_it_ends_itself() -> None:
    timeline = listened()
    before, answer = (timeline.where(kind=kind).events[0] for kind in ("thought", "answer"))
    stop = next(word for word in answer.text.split() if word not in before.text.split())
    assert closed(listened(stop=stop)) == ("clock", "model")
