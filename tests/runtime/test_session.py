from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.runtime.generate import generate
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.session import Ended, NoIdError
from counterpoint.runtime.sessions import Sessions
from counterpoint.systems.contract import Choose, System
from tests.runtime import tiny
from tests.systems.contract_models import CONFIGS, build
from tests.systems.scoring import extend

SYSTEMS: dict[str, Callable[[], System]] = {
    "single_stream": tiny.single_stream,
    "two_stream_lag_0": lambda: tiny.two_stream(0),
    "two_stream_lag_1": lambda: tiny.two_stream(1),
}
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5]


def step(sessions: Sessions) -> int:
    """The id that row 0 samples."""
    return int(sessions.step()[0]["part"])


def hidden_of(sessions: Sessions) -> torch.Tensor:
    """What every row writes from."""
    assert sessions._hidden is not None
    return sessions._hidden


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> System:
    return SYSTEMS[request.param]()


def continuation(
    system: System, prompt: Sequence[int], number: int, sampling: Sampling
) -> list[int]:
    return list(generate(system, prompt, sampling, number, sliding=True))


def greedy_by_definition(system: System, prompt: Sequence[int], number: int) -> list[int]:
    """One whole pass from the first tick for every id: no state that could be wrong."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(number):
            logits, _ = extend(system, {"part": torch.tensor([ids])}, system.initial_state(1))
            ids.append(int(logits["part"][0, -1].argmax()))
    return ids[len(prompt) :]


def test_generate_gives_the_likeliest_ids_of_whole_passes(system: System) -> None:
    greedy = continuation(system, PROMPT, 30, Sampling(temperature=0))
    assert greedy == greedy_by_definition(system, PROMPT, 30)
    assert len(set(greedy)) > 3


@settings(max_examples=8)
@given(cuts=st.lists(st.integers(0, 9), max_size=4), kind=st.sampled_from(sorted(SYSTEMS)))
def test_prefill_may_be_cut_anywhere(cuts: list[int], kind: str) -> None:
    system = SYSTEMS[kind]()
    sessions = Sessions(system, 1)
    sessions.start(0, Sampling(seed=5))
    edges = [0, *sorted(cuts), len(PROMPT)]
    for first, stop in zip(edges, edges[1:], strict=False):
        sessions.feed({0: PROMPT[first:stop]})
    pieces = [step(sessions) for _ in range(12)]
    assert pieces == continuation(system, PROMPT, 12, Sampling(seed=5))


def test_rows_are_the_same_bit_for_bit_whatever_the_others_do(system: System) -> None:
    def scores(busy: bool) -> list[torch.Tensor]:
        sessions = Sessions(system, 3, sliding=True)
        sessions.start(1, Sampling(seed=7))
        if busy:
            sessions.start(0, Sampling(seed=1, temperature=2.0, top_k=3))
            sessions.feed({0: list(range(20)) * 5})
        sessions.feed({1: PROMPT, **({0: [8] * 3} if busy else {})})
        found = []
        for tick in range(40):
            if busy and tick == 6:
                sessions.start(2, Sampling(seed=3))
                sessions.feed({2: [tick] * 11})
            if busy and tick == 15:
                sessions.stop(0)
            if busy and tick == 21:
                sessions.start(0)
                sessions.feed({0: [2]})
            sessions.step([1, 2] if busy and 6 <= tick < 9 else None)
            found.append(hidden_of(sessions)[1].clone())
        return [*found, torch.tensor(sessions[1].sampled)]

    for quiet, busy in zip(scores(False), scores(True), strict=True):
        assert torch.equal(quiet, busy)


def test_a_row_that_starts_again_remembers_nothing(system: System) -> None:
    sessions = Sessions(system, 2, sliding=True)
    for row in (0, 1):
        sessions.start(row, Sampling(seed=row))
        sessions.feed({row: [7, 8, 9] * 30})
    for _ in range(10):
        sessions.step()
    other = sessions[1].sampled
    sessions.start(0, Sampling(seed=4))
    sessions.feed({0: PROMPT})
    for _ in range(10):
        sessions.step()
    assert sessions[0].sampled == continuation(system, PROMPT, 10, Sampling(seed=4))
    assert other == continuation(system, [7, 8, 9] * 30, 20, Sampling(seed=1))


def test_rows_stop_independently(system: System) -> None:
    expected = continuation(system, PROMPT, 20, Sampling(seed=2))
    end_id = next(found for found in expected if expected.index(found) >= 4)
    sessions = Sessions(system, 4)
    sessions.start(0, Sampling(seed=2), end_id=end_id)
    sessions.start(1, Sampling(seed=2), max_sampled=3)
    sessions.start(3, Sampling(seed=2))
    sessions.feed(dict.fromkeys((0, 1, 3), PROMPT))
    assert [sorted(sessions.step()) for _ in range(4)] == [[0, 1, 3]] * 3 + [[0, 3]]
    while 0 in sessions.running:
        sessions.step()
    sessions.stop(3)
    assert sessions.step() == {}
    assert sessions[0].sampled == expected[: expected.index(end_id) + 1]
    assert sessions[1].sampled == expected[:3]
    assert [sessions[row].ended for row in (0, 1, 3)] == [
        Ended.END_ID, Ended.LIMIT, Ended.STOPPED,
    ]  # fmt: skip


def test_a_session_goes_on_after_it_is_fed_between_steps(system: System) -> None:
    sessions = Sessions(system, 1, sliding=True)
    sessions.start(0, Sampling(temperature=0))
    sessions.feed({0: PROMPT})
    first = [step(sessions) for _ in range(3)]
    sessions.feed({0: [4, 4]})
    second = [step(sessions) for _ in range(3)]
    assert second == greedy_by_definition(system, [*PROMPT, *first, 4, 4], 3)


def test_window_counts_the_stream_that_reaches_furthest() -> None:
    assert tiny.single_stream(window=16).window_ticks == 16
    assert tiny.two_stream(1).window_ticks == (6 + 1) * tiny.BLOCK + tiny.BLOCK - 1


def test_prompt_longer_than_the_window_is_refused_unless_it_may_slide() -> None:
    system = tiny.single_stream(window=16)
    sessions = Sessions(system, 1)
    sessions.start(0)
    sessions.feed({0: [1] * 10})
    with pytest.raises(ValueError, match="must fit the model's window of 16 ticks: got 17"):
        sessions.feed({0: [1] * 7})
    sessions.feed({0: [1] * 6})
    assert len([sessions.step() for _ in range(5)]) == 5
    assert len(list(generate(system, [1] * 40, num_ticks=2, sliding=True))) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda s: s.feed({0: [tiny.VOCAB]}), "Ids must be 0 to 22: got 23 for row 0"),
        (lambda s: s.feed({0: [-1]}), "Ids must be 0 to 22: got -1"),
        (lambda s: s.feed({1: [1]}), "Row 1 must have been started"),
        (lambda s: s.step([2]), "Row 2 must have been started"),
        (lambda s: s.step(), "Row 0 must be fed at least one id"),
        (lambda s: s.start(2), "`row` must be 0 to 1: got 2"),
        (lambda s: s.start(0, max_sampled=0), "`max_sampled` must be >= 1, got 0"),
        (lambda s: (s.stop(0), s.feed({0: [1]})), r"must be running: it has ended \(stopped\)"),
        (lambda s: Sessions(s.system, 0), "`num_rows` must be >= 1, got 0"),
    ],
)
def test_sessions_refuse_mistakes_in_one_line(
    wrong: Callable[[Sessions], object], message: str
) -> None:
    sessions = Sessions(tiny.single_stream(), 2)
    sessions.start(0)
    with pytest.raises(ValueError, match=message) as caught:
        wrong(sessions)
    assert "\n" not in str(caught.value)


def forbids(system: System, ids: torch.Tensor) -> None:
    """Let a model that has read one of these ids last allow no id."""
    write = system.write

    def forbidding(hidden: torch.Tensor, choose: Choose, state: object = None) -> object:
        def narrowed(stream: str, codebook: int, scores: torch.Tensor) -> torch.Tensor:
            bad = scores.argmax(-1, keepdim=True).eq(ids).any(1)
            return choose(stream, codebook, scores.masked_fill(bad[:, None], -torch.inf))

        return write(hidden, narrowed, state)

    system.write = forbidding  # type: ignore[method-assign, assignment]


def test_scores_that_allow_no_id_are_one_line_and_the_other_rows_go_on() -> None:
    """speechturn#14: such a row sampled an id without a word."""
    system = tiny.single_stream()
    expected = continuation(system, [7, 8, 9], 6, Sampling(temperature=0))
    other = continuation(system, PROMPT, 1, Sampling(temperature=0))
    assert other[0] not in expected
    forbids(system, torch.tensor(other))
    sessions = Sessions(system, 3)
    for row, prompt in ((0, PROMPT), (2, [7, 8, 9])):
        sessions.start(row, Sampling(temperature=0))
        sessions.feed({row: prompt})
    with pytest.raises(NoIdError, match="scores that allow an id: for row 0 all are") as caught:
        sessions.step()
    assert "\n" not in str(caught.value)
    assert caught.value.ended == [0]
    assert (sessions[0].ended, sessions[0].sampled) == (Ended.NO_ID, [])
    frames = [caught.value.frames, *(sessions.step() for _ in range(5))]
    assert [int(frame[2]["part"]) for frame in frames] == expected
    assert all(frame.keys() == {2} for frame in frames)


def test_generate_refuses_an_empty_prompt() -> None:
    with pytest.raises(ValueError, match="fed at least one id"):
        next(generate(tiny.single_stream(), []))


def test_generate_under_its_own_whole_changes_nothing_and_another_does() -> None:
    system = tiny.two_stream(1)
    other = [found % tiny.VOCAB for found in range(len(PROMPT))]
    plain = list(generate(system, PROMPT, num_ticks=15))
    assert list(generate(system, PROMPT, num_ticks=15, whole_from=PROMPT)) == plain
    assert list(generate(system, PROMPT, num_ticks=15, whole_from=other)) != plain


@pytest.mark.parametrize("kind", ["hrt", "hnet"])
def test_generate_exchanges_the_coarse_past_of_systems_without_one_whole(kind: str) -> None:
    system = build(kind, next(iter(CONFIGS[kind])))
    size = system.layout.part.sizes[0]
    prompt = [(3 * number) % size for number in range(20)]
    other = [(5 * number + 1) % size for number in range(20)]
    plain = list(generate(system, prompt, num_ticks=15, sliding=True))
    assert list(generate(system, prompt, num_ticks=15, whole_from=prompt, sliding=True)) == plain
    assert list(generate(system, prompt, num_ticks=15, whole_from=other, sliding=True)) != plain


@pytest.mark.parametrize(
    ("kind", "prompt", "other", "message"),
    [
        ("single_stream", PROMPT, PROMPT, "kept apart from the part"),
        ("single_stream", PROMPT, PROMPT[:3], "as long as the prompt before its last id, 8 ids"),
        ("two_stream_lag_1", PROMPT[:8], PROMPT, "must finish 2 blocks or more.*got 1"),
        ("two_stream_lag_1", PROMPT, PROMPT[:7], "as the prompt, 2: got 1"),
    ],
)
def test_generate_refuses_a_whole_that_cannot_be_exchanged(
    kind: str, prompt: list[int], other: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        next(generate(SYSTEMS[kind](), prompt, whole_from=other))
