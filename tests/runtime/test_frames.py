from collections.abc import Sequence
from dataclasses import replace
from inspect import unwrap
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.runtime.choices import MOST_CANDIDATES, FrameSampling, _Kind, _sampled
from counterpoint.runtime.given import _parse_ids
from counterpoint.runtime.sampler import Sampling, row_samplings, sample, seed_hashes, uniform
from counterpoint.runtime.session import Frame
from counterpoint.runtime.sessions import Sessions
from counterpoint.streams.spec import Ticks
from counterpoint.systems.moshi import Moshi, two_speakers
from tests.systems.tiny_moshi import (
    AUDIO_VOCAB,
    CONFIGS,
    TEXT_VOCAB,
    build,
    codebooks,
    config,
    random_codes,
)

GREEDY = FrameSampling(text=Sampling(temperature=0), audio=Sampling(temperature=0))
NUM_FRAMES = 14  # several windows


def sampling_of(seed: int) -> FrameSampling:
    return FrameSampling(text=Sampling(seed=seed), audio=Sampling(seed=seed, top_k=4))


def one_frame(codes: Ticks, frame: int, row: int = 0) -> dict[str, Tensor]:
    return {name: ids[row, frame] for name, ids in codes.items()}


def heard_of(model: Moshi, codes: Ticks) -> dict[str, Tensor]:
    said = {"text", *(stream.name for stream in model.predicted)}
    return {name: ids for name, ids in codes.items() if name not in said}


def talk(
    sessions: Sessions, heard: Ticks, row: int = 0, frames: Sequence[int] = range(NUM_FRAMES)
) -> list[Frame]:
    """What a row says while it hears some frames."""
    said = [sessions.step({row: one_frame(heard, frame)}) for frame in frames]
    return [frames[row] for frames in said if frames]


def stacked(frames: list[Frame]) -> dict[str, Tensor]:
    """Codes of frames in content order, one row."""
    codes = {name: torch.stack([frame[name] for frame in frames])[None] for name in frames[0]}
    return codes | {"text": codes["text"][..., 0]}


def run(model: Moshi, samplings: Sequence[FrameSampling], heard: Ticks) -> dict[str, Tensor]:
    """Codes that the rows of a batch say, in content order; row i hears row i."""
    sessions = Sessions(model, len(samplings))
    said: dict[int, list[Frame]] = {}
    for row, sampling in enumerate(samplings):
        first = sessions.start(row, sampling).opening
        said[row] = [first] if first else []
    for frame in range(NUM_FRAMES):
        new = sessions.step({row: one_frame(heard, frame, row) for row in said})
        for row, codes in new.items():
            said[row].append(codes)
    rows = [stacked(frames) for frames in said.values()]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_session_says_what_training_predicts(name: str) -> None:
    """The likeliest ids of a whole pass over what was heard and said, undelayed."""
    model = build(name)
    heard = heard_of(model, random_codes(model, 1, NUM_FRAMES))
    said = run(model, [GREEDY], heard)
    num_frames = said["text"].shape[1]
    latest = max(model.layout[name].delay_ticks for name in said)
    assert num_frames == NUM_FRAMES + 1 - latest
    if heard:  # without a delay what is said is one frame ahead
        num_frames = min(num_frames, NUM_FRAMES)
    codes = {name: ids[:, :num_frames] for name, ids in (heard | said).items()}
    logits = model(model.lay_out(codes))
    for name, ids in said.items():
        late = model.layout[name].delay_ticks
        likeliest = logits[name].argmax(-1)[:, late:]
        assert torch.equal(likeliest, ids[:, : num_frames - late])
        assert len(ids.unique()) > 2


def reference_codes_of(model: Moshi, heard: Ticks) -> dict[str, Tensor]:
    """What the reference says, by its own loop; it never hears the first frame it is given."""
    # Skips the test where the reference is not installed.
    from tests.systems.reference_moshi import generator, reference_of

    columns = torch.cat([torch.empty(1, NUM_FRAMES, 0).long(), *heard.values()], 2)
    columns = torch.cat((columns[:, :1], columns), 1)
    loop, frames = generator(reference_of(model), use_sampling=False), []
    with loop.streaming(1):
        for column in columns.transpose(1, 2).split(1, 2):
            if (found := loop.step(column)) is not None:
                frames.append(found[0, :, 0])
    depths = [stream.depth for stream in model.predicted]
    text, *audio = torch.stack(frames)[None].split([1, *depths], 2)
    said = {s.name: ids for s, ids in zip(model.predicted, audio, strict=True)}
    return {"text": text[..., 0], **said}


@pytest.mark.parametrize("name", ["agent_only", "own_delays", "published"])
def test_greedy_ids_are_those_of_the_reference(name: str) -> None:
    model = build(config(two_speakers(7), 8) if name == "published" else CONFIGS[name])
    heard = heard_of(model, random_codes(model, 1, NUM_FRAMES))
    ours, theirs = run(model, [GREEDY], heard), reference_codes_of(model, heard)
    assert set(ours) == set(theirs)
    for name, ids in theirs.items():
        assert torch.equal(ours[name], ids), name


def test_what_is_heard_changes_the_same_frame_and_the_text_of_the_next() -> None:
    """The user's frame acts on the agent's acoustic codebooks of that frame, the rest is later."""
    model, num_rows = build("agent_only"), 12
    heard = heard_of(model, random_codes(model, num_rows, NUM_FRAMES))
    other = {name: ids.clone() for name, ids in heard.items()}
    for ids in other.values():
        ids[:, 7] = (ids[:, 7] + 1) % AUDIO_VOCAB
    both = {name: torch.cat((ids, other[name])) for name, ids in heard.items()}
    said = run(model, [sampling_of(row % num_rows) for row in range(2 * num_rows)], both)
    first = {}
    for name, ids in said.items():
        moved = (ids[:num_rows] != ids[num_rows:]).view(num_rows, NUM_FRAMES, -1).any(-1)
        first[name] = int(moved.any(0).nonzero()[0])
    assert first == {"text": 8, "agent_semantic": 8, "agent_acoustic": 7}


@pytest.mark.parametrize("name", ["agent_only", "late_text"])
def test_rows_start_pause_and_end_without_touching_each_other(name: str) -> None:
    model = build(name)
    heard = heard_of(model, random_codes(model, 4, NUM_FRAMES))

    def said(busy: bool) -> list[Frame]:
        sessions = Sessions(model, 3)
        if busy:
            sessions.start(0, sampling_of(8))
            talk(sessions, heard, 0, range(9))
        sessions.start(1, sampling_of(3))
        frames = []
        for frame in range(NUM_FRAMES):
            given = {1: one_frame(heard, frame)}
            if busy and frame == 4:
                sessions.start(2, GREEDY, prompt=random_codes(model, 1, 7))
            if busy and frame == 9:
                sessions.stop(0)
            for row in sessions.running if busy else ():
                if row != 1 and frame % 3:
                    given[row] = one_frame(heard, frame, 3)
            new = sessions.step(given)
            assert set(new) <= set(given)
            frames += [new[1]] if 1 in new else []
            if busy and frame % 4 == 0:  # row 1 pauses
                sessions.step({row: one_frame(heard, 2) for row in sessions.running if row != 1})
        assert sessions.running == ([1, 2] if busy else [1])
        assert sessions[1].num_ticks == NUM_FRAMES
        return frames

    for quiet, busy in zip(said(False), said(True), strict=True):
        assert all(torch.equal(ids, busy[name]) for name, ids in quiet.items())


def test_row_starts_again_as_new() -> None:
    model = build("agent_only")
    heard = heard_of(model, random_codes(model, 1, NUM_FRAMES))
    sessions = Sessions(model, 2)
    talks = []
    for frames in (range(13), range(NUM_FRAMES)):
        sessions.start(1, sampling_of(5))
        talks.append(stacked(talk(sessions, heard, 1, frames)))
    for name, ids in talks[0].items():
        assert torch.equal(ids, talks[1][name][:, :13])


def test_seeds_decide_and_text_and_audio_are_sampled_apart() -> None:
    model = build("agent_only")
    heard = heard_of(model, random_codes(model, 1, NUM_FRAMES))
    alike = {name: ids.expand(5, *ids.shape[1:]) for name, ids in heard.items()}
    mixed = FrameSampling(text=Sampling(top_k=1, seed=9), audio=Sampling(seed=1))
    samplings = [sampling_of(1), sampling_of(1), sampling_of(2), mixed, GREEDY]
    said = run(model, samplings, alike)
    for ids in said.values():
        one, again, other, *_ = ids
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
    assert torch.equal(said["text"][3, :2], said["text"][4, :2])  # before audio differs
    assert not torch.equal(said["agent_acoustic"][3], said["agent_acoustic"][4])


def test_bias_of_padding_is_that_of_its_row_alone() -> None:
    model = build("agent_only")
    heard = heard_of(model, random_codes(model, 1, NUM_FRAMES))
    both = {name: ids.expand(2, *ids.shape[1:]) for name, ids in heard.items()}
    plain = stacked(talk_alone(model, GREEDY, heard))
    padding = model.config.text_padding_id
    assert (plain["text"] != padding).any()
    for bias, share in ((1e4, 1.0), (-1e4, 0.0)):
        biased = replace(GREEDY, padding_bias=bias)
        found = run(model, [GREEDY, biased], both)
        assert torch.equal(found["text"][:1], plain["text"])
        assert (found["text"][1] == padding).float().mean() == share
    for bad in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="`padding_bias` must be finite"):
            replace(GREEDY, padding_bias=bad)


def talk_alone(model: Moshi, sampling: FrameSampling, heard: Ticks) -> list[Frame]:
    sessions = Sessions(model, 1)
    sessions.start(0, sampling)
    return talk(sessions, heard)


def test_no_random_number_is_used_twice() -> None:
    """With even odds everywhere an id shows its random number, however large the vocabulary."""
    model, num_ids = Moshi(config(codebooks((0, 0, 0)), 3, audio_vocab_size=1000)), 1000
    said = run(model, [FrameSampling(audio=Sampling(seed=4))], {})
    ids = torch.cat([said[stream.name] for stream in model.predicted], 2)[0]
    # Column 0 is the initial frame; an element of the text comes before those of the audio.
    count = torch.arange(4, 4 * (len(ids) + 1)).view(-1, 4)[:, 1:].flatten()
    numbers = uniform(seed_hashes([4], "cpu"), count)
    assert len(numbers.unique()) == len(numbers)
    assert torch.equal(ids.flatten(), (numbers * num_ids).long())


@pytest.mark.parametrize("name", CONFIGS)
def test_prompt_is_what_was_heard_and_said_before(name: str) -> None:
    """A session goes on behind its own first frames as it did."""
    model = build(name)
    heard = heard_of(model, random_codes(model, 1, NUM_FRAMES))
    whole = run(model, [GREEDY], heard)
    for num_prompt in (1, 2, 8):
        prompt = {name: ids[:, :num_prompt] for name, ids in (heard | whole).items()}
        sessions = Sessions(model, 1)
        first = sessions.start(0, GREEDY, prompt=prompt).opening
        assert sessions[0].num_prompt == sessions[0].num_ticks == num_prompt
        rest = talk(sessions, heard, 0, range(num_prompt, NUM_FRAMES))
        said = stacked([*([first] if first else []), *rest])
        for key, ids in said.items():
            assert torch.equal(ids, whole[key][:, num_prompt:])


@pytest.mark.parametrize("name", CONFIGS)
def test_unset_ids_of_a_prompt_stay_nothing(name: str) -> None:
    """Also in late streams, whose last ones come when the session has begun."""
    model, num_prompt = build(name), 4
    heard = heard_of(model, random_codes(model, 1, NUM_FRAMES))
    prompt = random_codes(model, 1, num_prompt)
    prompt = {name: ids if name == "text" else ids * 0 - 1 for name, ids in prompt.items()}
    sessions = Sessions(model, 1)
    first = sessions.start(0, GREEDY, prompt=prompt).opening
    rest = talk(sessions, heard, 0, range(num_prompt, NUM_FRAMES))
    said = stacked([*([first] if first else []), *rest])
    behind = {name: ids[:, num_prompt:] for name, ids in heard.items()} | said
    num_said = said["text"].shape[1]
    codes = {name: torch.cat((ids, behind[name][:, :num_said]), 1) for name, ids in prompt.items()}
    logits = model(model.lay_out(codes))
    for name, ids in said.items():
        late = model.layout[name].delay_ticks
        expected = logits[name].argmax(-1)[:, num_prompt + late :]
        assert torch.equal(ids[:, : num_said - late], expected)


@pytest.mark.parametrize("name", ["agent_only", "own_delays", "late_text"])
def test_forced_streams_say_what_they_are_given(name: str) -> None:
    """What is said in the next content frame, and everything else sampled under it."""
    model = build(name)
    heard = heard_of(model, random_codes(model, 1, NUM_FRAMES))
    wanted = random_codes(model, 1, NUM_FRAMES)
    forced = ["text", model.predicted[0].name]
    sessions = Sessions(model, 1)
    sessions.start(0, GREEDY)
    said = []
    for frame in range(NUM_FRAMES - 1):
        ahead = {name: wanted[name][0, frame + 1] for name in forced} if frame >= 4 else {}
        new = sessions.step({0: one_frame(heard, frame) | ahead})
        said += [new[0]] if new else []
    codes = stacked(said)
    num_frames = codes["text"].shape[1]
    for name in forced:
        assert torch.equal(codes[name][:, 5:], wanted[name][:, 5:num_frames])
    logits = model(model.lay_out({n: ids[:, :num_frames] for n, ids in (heard | codes).items()}))
    free = [stream.name for stream in model.predicted[1:]]
    for name in free:
        late = model.layout[name].delay_ticks
        assert torch.equal(logits[name].argmax(-1)[:, late:], codes[name][:, : num_frames - late])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_acoustic": None}, "must hear all of user_acoustic, user_semantic: got no user_ac"),
        ({"user_semantic": [AUDIO_VOCAB]}, "1 ids from 0 to 6: got .7."),
        ({"user_acoustic": [0]}, "2 ids from 0 to 6: got .0."),
        ({"user_acoustic": torch.tensor([0.5, 2.0])}, "2 ids from 0 to 6: got .0.5, 2.0."),
        ({"text": -1}, f"1 ids from 0 to {TEXT_VOCAB - 1}"),
        ({"user_semantic": None}, "must hear all of"),
        ({"user_semantic": [2**70]}, "1 ids from 0 to 6: got .1180591620717411303424."),
        ({"agents": [0]}, "must be of the layout .*got agents for row 0"),
    ],
)
def test_frames_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    model = build("agent_only")
    sessions = Sessions(model, 1)
    sessions.start(0)
    frame = one_frame(heard_of(model, random_codes(model, 1, 1)), 0) | change
    with pytest.raises(ValueError, match=message):
        sessions.step({0: {name: ids for name, ids in frame.items() if ids is not None}})
    assert sessions[0].num_ticks == 0


def test_ids_that_a_codebook_has_not_are_refused() -> None:
    """Also where the largest codebook has them."""
    sessions = Sessions(build("unlike_codebooks"), 1)
    sessions.start(0)
    heard = {"user_semantic": [3], "user_acoustic": [6, 1]}
    for more in ({"user_acoustic": [6, 2]}, {"agent_acoustic": [0, 2]}):
        with pytest.raises(ValueError, match=r"must have 2 ids from 0 to .6, 1.: got .[06], 2."):
            sessions.step({0: heard | more})
    with pytest.raises(ValueError, match="must have 1 ids from 0 to 3: got .4."):
        sessions.step({0: heard | {"user_semantic": [4]}})
    assert sessions[0].num_ticks == 0
    sessions.step({0: heard | {"agent_acoustic": [6, 1]}})


def test_what_is_no_id_is_refused_also_without_type_checks() -> None:
    for codes in (None, "3", [None], [[1], [2, 3]], 1j, [2**70], [True]):
        with pytest.raises(ValueError, match="'user' must have 1 ids from 0 to 6: got"):
            unwrap(_parse_ids)("user", codes, (7,))
    assert _parse_ids("user", [6], (7,)) == [6]


def test_rows_must_have_been_started() -> None:
    model = build("agent_only")
    with pytest.raises(ValueError, match="`num_rows` must be >= 1, got 0"):
        Sessions(model, 0)
    sessions = Sessions(model, 2)
    with pytest.raises(ValueError, match="`row` must be 0 to 1: got 2"):
        sessions.start(2)
    with pytest.raises(ValueError, match="Row 1 must have been started"):
        sessions.step({1: {}})
    with pytest.raises(ValueError, match=r"one row, with text of shape .1, P.: got text .2, 3."):
        sessions.start(0, prompt=random_codes(model, 2, 3))
    assert len(sessions) == 2
    assert sessions.running == []
    assert sessions.step({}) == {}


def test_few_candidates_give_the_ids_of_the_whole_vocabulary() -> None:
    """And a row that keeps them all beside the others changes none of theirs."""
    samplings = [
        Sampling(temperature=0),
        Sampling(top_k=250, seed=1),
        Sampling(top_k=MOST_CANDIDATES, temperature=3.0, top_p=0.9, seed=2),
        Sampling(top_k=4, min_p=0.2, seed=3),
        Sampling(top_k=300, temperature=5.0, seed=4),
        Sampling(temperature=5.0, seed=5),
    ]
    rows = row_samplings(samplings, "cpu")
    hashes = seed_hashes([sampling.seed for sampling in samplings], "cpu")
    wide = torch.tensor([False] * 4 + [True] * 2)
    narrow = row_samplings(samplings[:4], "cpu")
    for turn in range(50):
        logits = torch.randn(6, 1000)
        logits[0, [5, 900]] = 9.0
        number = uniform(hashes, torch.full((6,), turn))
        ids = _sampled(logits, _Kind(rows, wide), number)
        assert ids[0] == 5
        assert torch.equal(ids, sample(logits, rows, number))
        assert torch.equal(ids[:4], _sampled(logits[:4], _Kind(narrow, None), number[:4]))
