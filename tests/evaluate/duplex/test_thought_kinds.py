"""Every word that a model of spoken maths writes has a kind, and kinds add up to the whole loss."""

import math

import pytest
import torch

from counterpoint.data.tasks.spoken_maths.hearing import spoken_rounds
from counterpoint.data.tasks.spoken_maths.source import Arrangement, SpokenMathsData
from counterpoint.evaluate.duplex.thought_kinds import KindScorer, kinds_of
from counterpoint.streams.rounds import ANSWER, MARK, THOUGHT
from counterpoint.systems import shanks
from counterpoint.systems.shanks import Shanks


def test_every_written_word_has_its_kind() -> None:
    data = SpokenMathsData()
    for number in range(30):
        one = data.heard(number, held_out=True)
        rounds = spoken_rounds(one, 2.0, thinks=True, marks=data.marks)
        written = [word for own in rounds for word in [*own[THOUGHT], *own.get(ANSWER, [])]]
        kinds = kinds_of(one, written, data)
        assert written[-kinds.count("answer") :] == rounds[-1][ANSWER]
        assert kinds.count("close") == len(rounds)
        assert kinds.count("computed") == 2 * len(one.problem.steps)
        is_late = rounds[-1][MARK] == [data.marks.last]
        assert kinds.count("interrupt") == int(one.problem.fault is not None and not is_late)


@pytest.mark.parametrize("arrangement", ["interleaved", "silent", "parallel"])
def test_kinds_add_up_to_the_loss(arrangement: Arrangement) -> None:
    torch.manual_seed(0)
    is_parallel = arrangement == "parallel"
    model = Shanks(shanks.tiny_parallel() if is_parallel else shanks.tiny()).eval()
    torch.nn.init.normal_(model.get_parameter("head.weight"))
    data = SpokenMathsData(arrangement=arrangement)
    problems = [data.heard(number, held_out=True) for number in range(6)]
    scores = KindScorer(model.layout, data, problems).score(model)
    with torch.no_grad():
        sums = model.losses(data.prepare(model).padded(problems))["thought"]
    assert sum(own.number for own in scores.values()) == int(sums.num_ticks)
    bits = sum(own.number * own.bits for own in scores.values())
    assert bits == pytest.approx(float(sums.nats) / math.log(2), rel=1e-5)
    assert {"answer", "interrupt"} < scores.keys()
