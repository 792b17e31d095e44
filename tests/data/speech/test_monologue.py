"""The rules of the inner monologue one by one, each case worked out by hand from the rule."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from counterpoint.data.speech.monologue import (
    Word,
    WordStarts,
    count_written,
    read_monologue,
    write_monologue,
)
from counterpoint.streams.spec import UNSET_ID

P, E = 3, 0
HZ = 12.5  # frames of 80 ms
WORDS = {"a": (10,), "bb": (20, 21), "ccc": (30, 31, 32), "": ()}


def encode(text: str) -> Sequence[int]:
    return WORDS[text]


def decode(ids: Sequence[int]) -> str:
    return next(text for text, known in WORDS.items() if known == tuple(ids))


def starts_word(token: int) -> bool:
    return token % 10 == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param([], [P] * 8, id="silence is padding"),
        pytest.param(
            # 0.24 s is 3.0 frames: the word starts on frame 3, epad is on 2.
            [("bb", 0.24, 0.4)],
            [P, P, E, 20, 21, P, P, P],
            id="epad, then an id a frame",
        ),
        pytest.param(
            # 0.3199 s is 3.999 frames, still frame 3; its duration is of no account.
            [("a", 0.3199, 0.64)],
            [P, P, E, 10, P, P, P, P],
            id="the frame that holds the start",
        ),
        pytest.param([("a", 0.0, 0.1)], [10] + [P] * 7, id="no epad before frame 0"),
        pytest.param([("a", 0.08, 0.1)], [E, 10] + [P] * 6, id="epad on frame 0"),
        pytest.param(
            # "ccc" fills 2, 3, 4; "a" starts on 5 right behind it: there is no padding for epad.
            [("ccc", 0.16, 0.39), ("a", 0.40, 0.5)],
            [P, E, 30, 31, 32, 10, P, P],
            id="no epad in the place of a word",
        ),
        pytest.param(
            # One padding frame between the words: epad takes it.
            [("bb", 0.08, 0.2), ("a", 0.32, 0.4)],
            [E, 20, 21, E, 10, P, P, P],
            id="epad takes the only padding",
        ),
        pytest.param(
            # "ccc" from frame 1; "bb" starts on frame 2 and replaces 31, 32.
            [("ccc", 0.08, 0.3), ("bb", 0.16, 0.3)],
            [E, 30, 20, 21, P, P, P, P],
            id="a word replaces the rest of the one before",
        ),
        pytest.param(
            # Both start on frame 2: the later one replaces the other before a single id is out.
            [("ccc", 0.16, 0.3), ("a", 0.2, 0.3)],
            [P, E, 10, P, P, P, P, P],
            id="of two on one frame the last",
        ),
        pytest.param(
            # A word without ids still clears what was to come.
            [("ccc", 0.08, 0.3), ("", 0.16, 0.3)],
            [E, 30, P, P, P, P, P, P],
            id="an empty word replaces, too",
        ),
        pytest.param(
            # An empty word on frame 2 replaces "bb"; "a" on 4 has its epad on 3.
            [("bb", 0.16, 0.3), ("", 0.2, 0.3), ("a", 0.32, 0.4)],
            [P, P, P, E, 10, P, P, P],
            id="an empty word has no epad",
        ),
        pytest.param(
            [("a", 0.16, 0.16), ("bb", 0.4, 0.3)], [P] * 8, id="zero or negative duration"
        ),
        pytest.param(
            # Dropped before it could replace "ccc".
            [("ccc", 0.08, 0.3), ("a", 0.16, 0.16)],
            [E, 30, 31, 32, P, P, P, P],
            id="a dropped word replaces nothing",
        ),
        pytest.param(
            # Frames 6, 7 are the last; the third id falls off.
            [("ccc", 0.48, 0.9)],
            [P] * 5 + [E, 30, 31],
            id="cut by the end",
        ),
        pytest.param([("a", 0.64, 0.9)], [P] * 8, id="after the end: no epad either"),
        pytest.param([(" a ", 0.08, 0.1)], [E, 10] + [P] * 6, id="blanks are stripped"),
        pytest.param(
            [("a", 0.4, 0.5), ("bb", 0.08, 0.2)],
            [E, 20, 21, P, E, 10, P, P],
            id="sorted by start",
        ),
        pytest.param([("bb", -0.5, 0.2)], [P] * 8, id="began before the first frame"),
    ],
)
def test_rule(words: list[tuple[str, float, float]], expected: list[int]) -> None:
    ids = write_monologue([Word(*word) for word in words], encode, HZ, 8)
    assert ids.tolist() == expected


def test_frame_rate_and_ids_are_arguments() -> None:
    ids = write_monologue([Word("bb", 0.08, 0.2)], encode, 25.0, 5, pad_id=7, epad_id=8)
    assert ids.tolist() == [7, 8, 20, 21, 7]  # 0.08 s is frame 2 of 40 ms


def test_a_word_on_the_edge_of_a_frame_is_in_that_frame() -> None:
    for frame in range(1, 2000):
        ids = write_monologue([Word("a", frame / HZ, frame / HZ + 1)], encode, HZ, 2001)
        assert ids[frame] == 10


def test_a_part_of_a_recording() -> None:
    """Frames 2 to 6: "ccc" began before and is gone whole, "a" is on the first frame."""
    words = [Word("ccc", 0.08, 0.3), Word("a", 0.16, 0.3), Word("bb", 0.4, 0.5)]
    ids = write_monologue(words, encode, HZ, 5, first_frame=2)
    assert ids.tolist() == [10, P, E, 20, 21]
    # 100.24 s is frame 1253; 100.24 - 100 is less than 3 frames of 80 ms.
    ids = write_monologue([Word("a", 100.24, 101)], encode, HZ, 5, first_frame=1250)
    assert ids.tolist() == [P, P, E, 10, P]


def test_starts_on_edges_as_moshi_finetune_rounds_them() -> None:
    """Values of its interleaver (2acc879): a float of a time decides, and where the part begins."""

    def frames(start_s: float, first_frame: int) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        rules: tuple[WordStarts, ...] = ("exact", "moshi_finetune")
        for rule in rules:
            ids = write_monologue(
                [Word("a", start_s, start_s + 0.1)],
                encode,
                HZ,
                160,
                first_frame=first_frame,
                word_starts=rule,
            )
            found[rule] = (ids == 10).nonzero().flatten().tolist()
        return found

    assert 2.32 * HZ < 29
    assert frames(2.32, 0) == {"exact": [29], "moshi_finetune": [28]}
    assert frames(2.32, 3) == {"exact": [26], "moshi_finetune": [26]}
    assert frames(2.33, 0) == {"exact": [29], "moshi_finetune": [29]}
    # Its reader says that the part that begins with frame 160 begins at 12.8000002 s: a word that
    # starts with it belongs to the part before, which has no frame for it.
    assert frames(12.8, 160) == {"exact": [0], "moshi_finetune": []}
    assert frames(12.8, 0) == {"exact": [], "moshi_finetune": []}
    # The next part begins at 25.6000004 s, so that the part before still has a word at 25.6 s.
    assert frames(25.6, 160) == {"exact": [], "moshi_finetune": [159]}


def test_no_frames() -> None:
    assert write_monologue([Word("a", 0.0, 1.0)], encode, HZ, 0).shape == (0,)


@pytest.mark.parametrize("time_s", [math.nan, math.inf, -math.inf])
def test_times_must_be_finite(time_s: float) -> None:
    for word in (Word("a", time_s, 1.0), Word("a", 0.0, time_s)):
        with pytest.raises(ValueError, match="finite times"):
            write_monologue([word], encode, HZ, 8)


words_in_time = st.lists(
    st.builds(
        lambda text, start, duration: Word(text, start, start + duration),
        st.sampled_from(sorted(WORDS)),
        st.floats(0, 3) | st.integers(0, 37).map(lambda frame: frame / HZ),
        st.sampled_from([-0.1, 0.0, 0.1]),
    ),
    max_size=12,
)


@given(words_in_time)
@example([Word("a", 2.32, 2.42)])
def test_ids_are_those_of_a_frame_by_frame_writer(words: list[Word]) -> None:
    """Another form of the rules: a queue of ids that waits while frames go by."""
    kept = sorted((w for w in words if w.start_s < w.end_s), key=lambda word: word.start_s)
    ids = list[int]()
    queue = list[int]()
    for frame in range(40):
        # A start on the edge of two frames, such as 2.32 s, is not rounded down.
        while kept and kept[0].start_s * HZ < frame + 1 - 1e-6:
            queue = list(encode(kept.pop(0).text))
        if queue and frame and ids[-1] == P:
            ids[-1] = E
        ids.append(queue.pop(0) if queue else P)
    assert write_monologue(words, encode, HZ, 40).tolist() == ids


@given(words_in_time, st.sampled_from([0, 7]), st.sampled_from(["exact", "moshi_finetune"]))
def test_words_are_counted_as_they_are_written(
    words: list[Word], first_frame: int, rule: WordStarts
) -> None:
    """Each word gets ids of its own: what is found of them in the monologue was written."""
    own = [replace_text(word, number) for number, word in enumerate(words)]

    def encode_own(text: str) -> list[int]:
        number = int(text)
        return [100 * (number + 1) + place for place in range(len(WORDS[words[number].text]))]

    ids = write_monologue(
        own, encode_own, HZ, 20, first_frame=first_frame, word_starts=rule
    ).tolist()
    expected = [0, 0]
    for number in range(len(own)):
        encoded = encode_own(str(number))
        if found := sum(token in ids for token in encoded):
            expected[found < len(encoded)] += 1
    counted = count_written(own, encode_own, HZ, 20, first_frame=first_frame, word_starts=rule)
    assert list(counted) == expected


def replace_text(word: Word, number: int) -> Word:
    return word._replace(text=str(number))


words_to_the_hundredth = st.lists(
    st.builds(
        lambda text, start, duration: Word(text, start / 100, (start + duration) / 100),
        st.sampled_from(sorted(WORDS)),
        st.integers(0, 3000),
        st.sampled_from([-10, 0, 10]),
    ),
    max_size=12,
)


@given(words_to_the_hundredth, st.sampled_from([0, 125, 160]))
def test_starts_of_moshi_finetune_are_those_of_a_frame_by_frame_writer(
    words: list[Word], first_frame: int
) -> None:
    """As its interleaver goes: words of a part, times within it, then a queue of ids."""
    begin_s = float(np.float32(first_frame / HZ))
    part = [word for word in words if begin_s <= word.start_s < begin_s + 160 / HZ]
    within = [Word(w.text, w.start_s - begin_s, w.end_s - begin_s) for w in part]
    kept = sorted((w for w in within if w.start_s < w.end_s), key=lambda word: word.start_s)
    ids = list[int]()
    queue = list[int]()
    for frame in range(160):
        while kept and kept[0].start_s * HZ < frame + 1:
            queue = list(encode(kept.pop(0).text))
        if queue and frame and ids[-1] == P:
            ids[-1] = E
        ids.append(queue.pop(0) if queue else P)
    ours = write_monologue(
        words, encode, HZ, 160, first_frame=first_frame, word_starts="moshi_finetune"
    )
    assert ours.tolist() == ids


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "bb", "ccc"]), st.integers(3, 6), st.floats(0, 0.9)),
        max_size=6,
    )
)
def test_words_are_read_back(spoken: list[tuple[str, int, float]]) -> None:
    """Words that have room come back with their frames, next to each other or not."""
    words, frame = [], 0
    for text, room, phase in spoken:
        words.append(Word(text, (frame + phase) / HZ, (frame + room) / HZ))
        frame += room
    ids = write_monologue(words, encode, HZ, frame + 3)
    timeline = read_monologue(ids, decode, HZ, starts_word=starts_word, stream="agent")
    assert [event.text for event in timeline] == [word.text for word in words]
    for event, word in zip(timeline, words, strict=True):
        assert (event.stream, event.kind) == ("agent", "word")
        assert round(event.start_s * HZ) == math.floor(word.start_s * HZ)
        assert round((event.end_s - event.start_s) * HZ) == len(encode(word.text))
        assert event.start_s <= word.start_s < event.start_s + 1 / HZ


def test_reading_knows_what_is_no_word() -> None:
    ids = torch.tensor([UNSET_ID, 10, 10, P, 20, 21, E, 30, 31, 32])
    timeline = read_monologue(ids, decode, HZ, starts_word=starts_word)
    found = [(round(e.start_s * HZ), round(e.end_s * HZ), e.text) for e in timeline]
    assert found == [(1, 2, "a"), (2, 3, "a"), (4, 6, "bb"), (7, 10, "ccc")]
    assert len(read_monologue(ids[:0], decode, HZ, starts_word=starts_word)) == 0
