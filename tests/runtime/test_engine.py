from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.engine import Engine, FullHouseError
from counterpoint.runtime.given import Codes
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.session import Frame
from counterpoint.runtime.sessions import Sessions
from counterpoint.streams.spec import Ticks
from counterpoint.systems.moshi import Moshi
from tests.systems.tiny_moshi import AUDIO_VOCAB, WINDOW, build, random_codes

NUM_FRAMES = 14  # several windows
GREEDY = FrameSampling(text=Sampling(temperature=0), audio=Sampling(temperature=0))


def sampling_of(seed: int) -> FrameSampling:
    return FrameSampling(text=Sampling(seed=seed), audio=Sampling(seed=seed, top_k=4))


def heard_of(model: Moshi, codes: Ticks, frame: int, row: int = 0) -> dict[str, Tensor]:
    said = {"text", *(stream.name for stream in model.predicted)}
    return {name: ids[row, frame] for name, ids in codes.items() if name not in said}


def same(ours: Sequence[Frame], theirs: Sequence[Frame]) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(ids, b[name])
        for a, b in zip(ours, theirs, strict=True)
        for name, ids in a.items()
    )


def alone(
    model: Moshi,
    codes: Ticks,
    sampling: FrameSampling,
    row: int,
    prompt: Ticks | None = None,
    num_frames: int = NUM_FRAMES,
) -> list[Frame]:
    """What a session of an engine of four rows says when the others are idle."""
    engine, said = Engine(model, 4), []
    session = engine.admit(sampling, prompt=prompt)
    for frame in range(num_frames):
        said.append(engine.step({session: heard_of(model, codes, frame, row)}).get(session))
    return [frame for frame in said if frame]


def test_sessions_come_pause_reset_and_end_without_touching_each_other() -> None:
    """Bit for bit, whatever the others do and send."""
    model = build("agent_only")
    codes = random_codes(model, 4, 2 * NUM_FRAMES)
    prompt = random_codes(model, 1, 3)
    engine = Engine(model, 4)
    watched = engine.admit(sampling_of(1))
    prompted = engine.admit(sampling_of(2), prompt=prompt)
    said: dict[int, list[Frame]] = {watched: [], prompted: []}
    others: list[int] = []
    heard = dict.fromkeys(said, 0)
    for tick in range(40):
        if tick % 3 == 0 and engine.num_free:
            others.append(engine.admit(sampling_of(tick), prompt=random_codes(model, 1, tick % 5)))
        if tick % 7 == 6:
            engine.end(others.pop(0))
        if tick % 5 == 4 and others:
            engine.reset(others[-1])
        given = {other: heard_of(model, codes, tick % NUM_FRAMES, 3) for other in others}
        for session, when in ((watched, tick % 2), (prompted, tick % 3 == 0)):
            if when and heard[session] < NUM_FRAMES:
                given[session] = heard_of(model, codes, heard[session], session)
                heard[session] += 1
        with pytest.raises(ValueError, match=r"Session \d+ is refused"):
            engine.step(given | {watched: {"user_semantic": [0], "user_acoustic": [0, 99]}})
        for session, frame in engine.step(given).items():
            if session in said:
                said[session].append(frame)
    assert heard == {watched: NUM_FRAMES, prompted: NUM_FRAMES}
    assert same(said[watched], alone(model, codes, sampling_of(1), watched))
    assert same(said[prompted], alone(model, codes, sampling_of(2), prompted, prompt))


def test_full_house_is_refused_until_one_ends() -> None:
    model = build("agent_only")
    codes = random_codes(model, 1, NUM_FRAMES)
    engine = Engine(model, 2)
    first, second = engine.admit(GREEDY), engine.admit(GREEDY)
    said = []
    for frame in range(NUM_FRAMES):
        with pytest.raises(FullHouseError, match="1 free rows: 0 of 2 are free. Try again"):
            engine.admit(sampling_of(frame))
        said.append(engine.step({second: heard_of(model, codes, frame)}).get(second))
    assert same([frame for frame in said if frame], alone(model, codes, GREEDY, 0))
    engine.end(first)
    assert (engine.num_free, engine.running) == (1, [second])
    with pytest.raises(FullHouseError, match="2 free rows: 1 of 2"):
        engine.admit(FrameSampling(guidance=2.0))
    assert engine.admit() == 2


def test_numbers_are_never_used_again_and_late_calls_touch_nobody() -> None:
    model = build("agent_only")
    codes = random_codes(model, 1, NUM_FRAMES)
    engine = Engine(model, 1)
    gone = engine.admit(sampling_of(3))
    engine.end(gone)
    session, said = engine.admit(sampling_of(3)), []
    assert session != gone
    for frame in range(NUM_FRAMES):
        heard = heard_of(model, codes, frame)
        for call in (engine.end, engine.reset, engine.opening, engine.__getitem__):
            with pytest.raises(ValueError, match="Session 0 must be running: it has ended. Admit"):
                call(gone)
        with pytest.raises(ValueError, match="Session 0 must be running"):
            engine.step({session: heard, gone: heard})
        with pytest.raises(ValueError, match="Session 7 must be running: it was never admitted"):
            engine.step({7: heard, session: heard})
        said.append(engine.step({session: heard}).get(session))
    sessions = Sessions(model, 1)
    sessions.start(0, sampling_of(3))
    steps = [sessions.step({0: heard_of(model, codes, f)}) for f in range(NUM_FRAMES)]
    assert same([frame for frame in said if frame], [frame[0] for frame in steps if frame])


def test_reset_begins_again_with_prompt_and_sampling() -> None:
    model = build("agent_only")
    codes = random_codes(model, 1, NUM_FRAMES)
    prompt = random_codes(model, 1, 4)
    engine, runs = Engine(model, 3), []
    engine.admit()
    session = engine.admit(sampling_of(5), prompt=prompt)
    for ids in prompt.values():
        ids.zero_()  # the engine has its own
    for _ in range(2):
        frames = [engine.step({session: heard_of(model, codes, f)}) for f in range(NUM_FRAMES)]
        runs.append([frame[session] for frame in frames if frame])
        engine.reset(session)
        assert engine[session].num_ticks == engine[session].num_prompt == 4
    assert same(*runs)


def test_model_without_delay_says_its_first_frame_at_once() -> None:
    engine = Engine(build("one_codebook"), 1)
    opening = engine.opening(engine.admit(GREEDY))
    assert opening is not None
    assert opening["text"].shape == (1,)
    engine = Engine(build("agent_only"), 1)
    assert engine.opening(engine.admit(GREEDY)) is None


def test_engine_finds_the_longest_shared_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("agent_only")
    codes, prompt = random_codes(model, 1, NUM_FRAMES), random_codes(model, 1, 9)
    engine, read = Engine(model, 4), []
    for length in (2, 6, 4):
        engine.share(f"first {length}", {name: ids[:, :length] for name, ids in prompt.items()})
    whole: Callable[..., Any] = model.read

    def counted(frames: Ticks, *rest: Any) -> Any:
        read.append(frames["text"].shape[1])
        return whole(frames, *rest)

    monkeypatch.setattr(model, "read", counted)
    session = engine.admit(sampling_of(1), prompt=prompt)
    other = engine.admit(prompt=random_codes(model, 1, 9))
    engine.admit()
    engine.unshare("first 6")
    engine.reset(session)
    assert read == [3, 10, 1, 5]  # frames behind the prefix; the initial one is in it
    monkeypatch.undo()
    engine.end(other)
    frames = [engine.step({session: heard_of(model, codes, f)}) for f in range(NUM_FRAMES)]
    expected = alone(model, codes, sampling_of(1), 0, prompt)
    assert same([frame[session] for frame in frames if frame], expected)
    with pytest.raises(ValueError, match="got 'first 6', have first 2, first 4"):
        engine.unshare("first 6")


@torch.no_grad()
def columns_read(engine: Engine, prompt: Ticks, count: int) -> list[Tensor]:
    """What the model makes of every frame behind a prompt; all of it is forced."""
    model, made = engine.system, list[Tensor]()
    assert isinstance(model, Moshi)
    torch.manual_seed(5)
    codes = random_codes(model, 1, count)
    session = engine.admit(GREEDY, prompt=prompt)
    whole: Callable[..., Any] = model.write

    def kept(z: Tensor, choose: Any, state: Any = None) -> Any:
        made.append(z)
        return whole(z, choose)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "write", kept)
        for frame in range(count):
            said = {name: ids[0, frame] for name, ids in codes.items()}
            engine.step({session: said})
    return made


def test_pinned_prompt_stays_and_another_falls_out_of_the_window() -> None:
    """Two prompts, the same conversation, all forced: do the states still differ at its end?"""
    model, num_prompt = build("agent_only"), 3
    prompts = [random_codes(model, 1, num_prompt) for _ in range(2)]
    # A state reads a window in each of the two layers, and the late codes of the prompt.
    gone = 2 * WINDOW + 2
    for pin in (0, num_prompt):
        one, other = (
            columns_read(Engine(model, 1, pinned_frames=pin), prompt, 4 * WINDOW)
            for prompt in prompts
        )
        apart = [float((a - b).abs().max()) for a, b in zip(one, other, strict=True)]
        assert min(apart[:WINDOW]) > 1e-3
        if pin:
            assert min(apart[gone:]) > 1e-3
        else:
            assert max(apart[gone:]) == 0


def test_pinning_changes_nothing_within_the_first_window() -> None:
    model, prompt = build("agent_only"), random_codes(build("agent_only"), 1, 2)
    plain, kept = (
        columns_read(Engine(model, 2, pinned_frames=pin), prompt, 4 * WINDOW) for pin in (0, 2)
    )
    num_same = WINDOW - 1 - 2  # behind the initial frame and the prompt
    for i, (ours, theirs) in enumerate(zip(plain, kept, strict=True)):
        if i < num_same:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        else:
            assert (ours - theirs).abs().max() > 1e-4, i


@torch.no_grad()
def test_shared_prefix_is_pinned_like_the_rest_of_a_prompt() -> None:
    model, prompt = build("agent_only"), random_codes(build("agent_only"), 1, 3)
    made = []
    for name, num_shared in (("none", 0), ("some", 2), ("all", 3)):
        engine = Engine(model, 2, pinned_frames=3)
        engine.share(name, {key: ids[:, :num_shared] for key, ids in prompt.items()})
        made.append(torch.cat(columns_read(engine, prompt, 3 * WINDOW)))
    for other in made[1:]:
        torch.testing.assert_close(other, made[0], rtol=0, atol=1e-5)


def test_pinned_model_shares_weights_and_leaves_the_other_alone() -> None:
    model = build("agent_only")
    other = model.pinned(2)
    assert (model.config.temporal.pinned_steps, other.config.temporal.pinned_steps) == (0, 3)
    mine = dict(model.named_parameters())
    assert all(weight is mine[name] for name, weight in other.named_parameters())
    for num_frames in (-1, WINDOW - 1):
        with pytest.raises(ValueError, match=f"must be 0 to {WINDOW - 2}, .*got {num_frames}"):
            model.pinned(num_frames)
    engine = Engine(model, 1, pinned_frames=2)
    with pytest.raises(ValueError, match="pinned whole: it has 3 frames, `pinned_frames` is 2"):
        engine.admit(prompt=random_codes(model, 1, 3))
    assert engine.num_free == 1
    engine.admit(prompt=random_codes(model, 1, 2))


def test_what_does_not_fit_is_refused_and_nothing_changes() -> None:
    model = build("agent_only")
    engine = Engine(model, 2)
    session = engine.admit(GREEDY)
    before = [cache.clone() for cache in engine._sessions.state.caches]
    prompts: list[Ticks] = [
        random_codes(model, 2, 3),
        {"text": torch.tensor([[99]])},
        {name: ids + AUDIO_VOCAB for name, ids in random_codes(model, 1, 3).items()},
        {"user_semantic": torch.zeros(1, 2, 1, dtype=torch.long)},
    ]
    for prompt in prompts:
        with pytest.raises(ValueError, match="must"):
            engine.admit(prompt=prompt)
    heard = heard_of(model, random_codes(model, 1, 1), 0)
    wrong: list[Codes] = [[-1], [AUDIO_VOCAB], [1, 1], [], torch.tensor([1.0]), torch.tensor(True)]
    frames: list[dict[str, Codes]] = [{}, {**heard, "agents": [0]}]
    for bad in [*frames, *({**heard, "user_semantic": ids} for ids in wrong)]:
        with pytest.raises(ValueError, match="Session 0 is refused. "):
            engine.step({session: bad})
    assert engine.step({}) == {}
    assert engine[session].num_ticks == 0
    assert engine.num_free == 1
    for ours, theirs in zip(engine._sessions.state.caches, before, strict=True):
        assert torch.equal(ours, theirs)


def reference_guided(
    model: Moshi, codes: Ticks, num_prompt: int, scale: float
) -> dict[str, Tensor]:
    """What the reference says behind a prompt, its null rows masked as long; greedy.

    It never hears the first frame that it is given, and is forced through the hooks.
    """
    # Skips the test where the reference is not installed.
    from tests.systems.reference_moshi import generator, reference_of

    said = [model.layout["text"], *model.predicted]
    heard = [s for s in model.layout.streams if s not in said]
    elements = [(s, k) for s in model.predicted for k in range(s.depth)]
    call = 0

    def force_text(ids: Tensor) -> None:
        late = call - model.layout["text"].delay_ticks
        if 0 <= late < num_prompt:
            ids[:] = codes["text"][0, late]

    def force_audio(ids: Tensor) -> None:
        for i, (stream, k) in enumerate(elements):
            late = call - stream.delay_ticks
            if 0 <= late < num_prompt:
                ids[:, i] = codes[stream.name][0, late, k]

    loop = generator(
        reference_of(model),
        use_sampling=False,
        cfg_coef=scale,
        cfg_is_masked_until=[num_prompt],
        on_text_hook=force_text,
        on_audio_hook=force_audio,
    )
    columns = torch.cat([torch.empty(1, NUM_FRAMES, 0).long(), *(codes[s.name] for s in heard)], 2)
    columns, frames = torch.cat((columns[:, :1], columns), 1), []
    with loop.streaming(1):
        for call, column in enumerate(columns.transpose(1, 2).split(1, 2)):  # noqa: B007 (hooks read it)
            if (found := loop.step(column)) is not None:
                frames.append(found[0, :, 0])
    pieces = torch.stack(frames).split([s.depth for s in said], 1)
    return {s.name: ids[num_prompt:] for s, ids in zip(said, pieces, strict=True)}


@pytest.mark.parametrize("name", ["agent_only", "own_delays"])
@pytest.mark.parametrize("scale", [0.0, 1.5, 4.0])
def test_guided_greedy_ids_are_those_of_the_reference(name: str, scale: float) -> None:
    model, num_prompt = build(name), 5
    codes = random_codes(model, 1, NUM_FRAMES)
    prompt = {name: ids[:, :num_prompt] for name, ids in codes.items()}
    sampling = FrameSampling(text=GREEDY.text, audio=GREEDY.audio, guidance=scale)
    engine, said = Engine(model, 4), []
    engine.admit()
    session = engine.admit(sampling, prompt=prompt)
    for frame in range(num_prompt, NUM_FRAMES):
        said.append(engine.step({session: heard_of(model, codes, frame)}).get(session))
    frames = [frame for frame in said if frame]
    theirs = reference_guided(model, codes, num_prompt, scale)
    for key, ids in theirs.items():
        ours = torch.stack([frame[key] for frame in frames])
        assert torch.equal(ours, ids[: len(ours)]), key
        assert len(ours) >= NUM_FRAMES - num_prompt - 4
    behind = {name: ids[:, num_prompt:] for name, ids in codes.items()}
    without = alone(model, behind, GREEDY, 0, prompt, NUM_FRAMES - num_prompt)
    assert not same(without, frames)


def test_guidance_of_one_session_leaves_the_others_alone_and_itself_restartable() -> None:
    """A guided session takes two rows; with the scores of the prompt alone it is as without."""
    model, codes = build("agent_only"), random_codes(build("agent_only"), 4, NUM_FRAMES)
    prompt = random_codes(model, 1, 3)
    guided = FrameSampling(text=sampling_of(2).text, audio=sampling_of(2).audio, guidance=3.0)
    engine = Engine(model, 4)
    free = engine.admit(sampling_of(1))
    session = engine.admit(guided, prompt=prompt)
    assert engine.num_free == 1
    runs: list[list[Frame]] = []
    quiet: list[Frame] = []
    for _ in range(2):
        runs.append([])
        for frame in range(NUM_FRAMES):
            given = {session: heard_of(model, codes, frame, 2)}
            if len(runs) == 1:
                given[free] = heard_of(model, codes, frame, 1)
            said = engine.step(given)
            runs[-1] += [said[session]] if session in said else []
            quiet += [said[free]] if free in said else []
        engine.reset(session)
        assert engine.num_free == 1
    assert same(*runs)
    assert same(quiet, alone(model, codes, sampling_of(1), 1))
    assert not same(runs[0], alone(model, codes, sampling_of(2), 2, prompt))
    engine.end(session)
    assert engine.num_free == 3


def test_guidance_needs_a_row_of_its_own() -> None:
    model = build("agent_only")
    sessions = Sessions(model, 3)
    guided = FrameSampling(guidance=2.0)
    with pytest.raises(ValueError, match="`guidance` must be >= 0 .1 is none.: got -1"):
        FrameSampling(guidance=-1.0)
    sessions.start(2)
    for twin in (None, 0, 2, 3):
        with pytest.raises(ValueError, match="`twin` must be a free row if `guidance` is not 1"):
            sessions.start(0, guided, twin=twin)
    with pytest.raises(ValueError, match="`twin` must be a free row"):
        sessions.start(0, twin=1)
    assert sessions.running == [2]
    sessions.start(0, guided, twin=1)
    assert (sessions.running, sessions.free) == ([0, 2], [])
    with pytest.raises(ValueError, match="Row 1 must have been started"):
        sessions.step({1: {}})
    with pytest.raises(ValueError, match="Row 1 must not be in use: it guides row 0"):
        sessions.start(1)
    sessions.start(0)
    assert sessions.free == [1]
