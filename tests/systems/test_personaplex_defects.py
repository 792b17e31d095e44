"""The defects of PersonaPlex's published code, one test for each: none of them is here.

Numbers are those of the list in `docs/concepts/engine.md`.
"""

import builtins
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.data.speech.opening import Fillers, hybrid_prompt, tagged_role
from counterpoint.formats.moshi.checkpoint import moshi_config
from counterpoint.formats.moshi.config import ReferenceConfig
from counterpoint.formats.moshi.parity import personaplex_window
from counterpoint.formats.moshi.voice import read_voice
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.engine import Engine
from counterpoint.runtime.given import Codes
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.session import Frame
from counterpoint.streams.spec import Ticks
from counterpoint.systems import moshi
from counterpoint.systems.moshi import Moshi, MoshiConfig
from tests.systems.tiny_models import randomised
from tests.systems.tiny_moshi_weights import tiny_keys

WINDOW, NUM_FRAMES, CODES = 20, 12, 64
FILLERS = Fillers(agent=(1, 2, 3, 4), user=(5, 6, 7, 8), pause_s=0.16)
GREEDY = FrameSampling(text=Sampling(temperature=0), audio=Sampling(temperature=0))


def seeded(text: int, audio: int) -> FrameSampling:
    return FrameSampling(text=Sampling(seed=text), audio=Sampling(seed=audio))


def both_speakers() -> Moshi:
    config = moshi.tiny()
    temporal = replace(config.temporal, window=WINDOW, num_layers=2)
    model = randomised(Moshi(replace(config, temporal=temporal)))
    assert isinstance(model, Moshi)
    with torch.no_grad():
        for head in (model.head, model.depth.head):
            head.weight.normal_(std=0.2)
    return model


def agent() -> Moshi:
    return both_speakers().trimmed(4)


def user(num_frames: int = NUM_FRAMES) -> Tensor:
    """Codes of a user, (T, 4)."""
    return torch.randint(0, CODES, (num_frames, 4))


def one(codes: Tensor) -> dict[str, Tensor]:
    return {"user_semantic": codes[:1], "user_acoustic": codes[1:]}


def role(ids: Sequence[int], voice: Tensor | None = None) -> Ticks:
    return hybrid_prompt(agent(), ids, voice, FILLERS)


def talk(engine: Engine, session: int, heard: Tensor) -> list[Frame]:
    said = [engine.step({session: one(codes)}).get(session) for codes in heard]
    return [frame for frame in said if frame is not None]


def same(ours: Sequence[Frame], theirs: Sequence[Frame]) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a[name], b[name]) for a, b in zip(ours, theirs, strict=True) for name in a
    )


def test_1_and_2_a_model_that_makes_up_the_user_is_refused() -> None:
    """Its given ids would be those of the next frame, and missing ones would be invented."""
    message = "must not predict what it hears: it predicts user_semantic, user_acoustic"
    with pytest.raises(ValueError, match=message):
        Engine(both_speakers(), 1)


def test_1_what_the_user_says_acts_in_the_same_call() -> None:
    """There it acts a call later, and the first frame comes a call later."""
    model, num_sessions, changed = agent(), 8, 6
    engine = Engine(model, 2 * num_sessions)
    sessions = [
        engine.admit(FrameSampling(audio=Sampling(seed=i))) for i in [*range(num_sessions)] * 2
    ]
    heard = torch.stack([user() for _ in range(num_sessions)] * 2)
    heard[num_sessions:, changed] = (heard[num_sessions:, changed] + 1) % CODES
    first: dict[str, int] = {}
    for call in range(NUM_FRAMES):
        said = engine.step({s: one(codes[call]) for s, codes in zip(sessions, heard, strict=True)})
        assert len(said) == len(sessions)  # also of the first call
        for a, b in zip(sessions[:num_sessions], sessions[num_sessions:], strict=True):
            for name, ids in said[a].items():
                if not torch.equal(ids, said[b][name]):
                    first.setdefault(name, call)
    assert first == {
        "agent_acoustic": changed, "agent_semantic": changed + 1, "text": changed + 1
    }  # fmt: skip


def test_2_steps_for_the_users_codebooks_are_left_out_and_nothing_else_changes() -> None:
    """There all sixteen are computed, and eight of them thrown away."""
    whole = both_speakers()
    model, heard = whole.trimmed(4), user()
    engine, steps = Engine(model, 1), 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1

    session = engine.admit(GREEDY)
    model.depth.register_forward_hook(count)
    said = talk(engine, session, heard)
    assert steps == 4 * NUM_FRAMES
    codes = {name: torch.stack([frame[name] for frame in said])[None] for name in said[0]}
    codes["text"] = codes["text"][..., 0]
    codes |= {"user_semantic": heard[None, :, :1], "user_acoustic": heard[None, :, 1:]}
    with torch.no_grad():
        logits = whole(whole.lay_out(codes))
    for name in said[0]:
        late = whole.layout[name].delay_ticks
        likeliest = logits[name].argmax(-1)[:, late:]
        assert torch.equal(codes[name][:, : NUM_FRAMES - late], likeliest)


def test_3_every_session_has_its_own_seeds_and_they_are_used() -> None:
    """There one in the request crashes, those of the page are ignored, and all share one."""
    model, heard = agent(), user()
    engine = Engine(model, 5)
    seeds = [(1, 1), (1, 1), (2, 1), (1, 2), (3, 3)]
    sessions = [engine.admit(seeded(*pair)) for pair in seeds]
    said: dict[int, list[Frame]] = {session: [] for session in sessions}
    for call, codes in enumerate(heard):
        torch.manual_seed(call)  # nor does the generator of the process matter
        for session, frame in engine.step({s: one(codes) for s in sessions}).items():
            said[session].append(frame)
    assert same(said[0], said[1])
    for other in (2, 3, 4):
        assert not same(said[0], said[other])
    alone = Engine(model, 5)
    assert same(said[4], talk(alone, alone.admit(seeded(3, 3)), heard))


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


def test_4_voices_are_codes_or_plain_tensors_never_code_or_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a name out of the request is joined to a path, and what it leads to unpickled."""
    monkeypatch.chdir(tmp_path)
    torch.save({"embeddings": Hostile(), "cache": torch.zeros(1)}, tmp_path / "voice.pt")
    with pytest.raises(ValueError, match="could run code and are refused"):
        read_voice(tmp_path / "voice.pt", moshi_config(ReferenceConfig.from_json(tiny_keys(16))))
    assert not (tmp_path / "owned").exists()

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a file was opened")

    engine = Engine(agent(), 1)
    monkeypatch.setattr(builtins, "open", refuse)
    engine.share("../voice.pt", role([], user(3)))  # a name is a name
    engine.admit(prompt=role([9], user(3)))


def test_5_prompts_of_sessions_that_come_together_do_not_mix() -> None:
    """There the second one overwrites the prompt of the first, which is still in its own."""
    model, heard = agent(), user()
    prompts = [role([20, 21, 22], user(4)), role([23, 24], user(2)), None]
    engine = Engine(model, 3)
    sessions = [engine.admit(seeded(7, 7), prompt=prompt) for prompt in prompts]
    said: dict[int, list[Frame]] = {session: [] for session in sessions}
    for codes in heard:
        for session, frame in engine.step({s: one(codes) for s in sessions}).items():
            said[session].append(frame)
    for session, prompt in zip(sessions, prompts, strict=True):
        alone = Engine(model, 3)
        assert same(said[session], talk(alone, alone.admit(seeded(7, 7), prompt=prompt), heard))
    assert not same(said[0], said[1])


@pytest.mark.parametrize("words", ["", "  ", "\n"])
@pytest.mark.parametrize("has_voice", [False, True])
def test_6_a_session_without_role_or_voice_goes_on(words: str, has_voice: bool) -> None:
    """There an empty role is iterated as None, and one that is missing a KeyError."""
    assert tagged_role(words) == ""
    engine, heard = Engine(agent(), 1), user()
    prompt = role([], user(3) if has_voice else None)
    session = engine.admit(GREEDY, prompt=prompt)
    assert engine[session].num_prompt == 2 * 2 + 3 * has_voice
    assert len(talk(engine, session, heard)) == NUM_FRAMES


def test_7_the_first_frames_behind_a_prompt_are_heard() -> None:
    """There what comes during the prompt is dropped; Kyutai's loop never hears its first frame."""
    model, heard = agent(), user()
    runs = []
    for change in (None, 0, 1):
        codes = heard.clone()
        if change is not None:
            codes[change] = (codes[change] + 1) % CODES
        engine = Engine(model, 1)
        session = engine.admit(seeded(1, 1), prompt=role([20, 21], user(1) * 0))
        runs.append(talk(engine, session, codes))
        assert engine[session].num_ticks - engine[session].num_prompt == NUM_FRAMES
        assert len(runs[-1]) == NUM_FRAMES
    assert not same(runs[0], runs[1])
    assert not same(runs[0], runs[2])
    assert same(runs[0][:1], runs[2][:1])


@torch.no_grad()
def test_8_the_role_is_still_read_when_the_window_has_passed_it() -> None:
    """There it is gone after 240 s. All that is said is forced, so that only the role differs."""
    model, num_frames = agent(), 4 * WINDOW
    made: list[list[Tensor]] = []
    heard, said = user(num_frames), user(num_frames)
    far: dict[int, float] = {}

    def keep(_: Any, __: Any, z: Tensor) -> None:
        made[-1].append(z[0, -1])

    for pinned_frames in (0, 10):
        made.clear()
        for ids in ([20, 21, 22, 23], [30, 31, 32, 33]):
            engine = Engine(model, 1, pinned_frames=pinned_frames)
            made.append([])
            pinned = engine.system
            assert isinstance(pinned, Moshi)
            hook = pinned.norm.register_forward_hook(keep)
            session = engine.admit(GREEDY, prompt=role(ids, user(2) * 0))
            for call in range(num_frames):
                forced: dict[str, Codes] = {"text": 9, "agent_semantic": said[call, :1]}
                forced |= {"agent_acoustic": said[call, 1:]}
                engine.step({session: one(heard[call]) | forced})
            hook.remove()
        pairs = zip(made[0][-WINDOW:], made[1][-WINDOW:], strict=True)
        far[pinned_frames] = max(float((a - b).abs().max()) for a, b in pairs)
    assert far[0] == 0
    assert far[10] > 1e-3


def hidden_changes(config: MoshiConfig, num_frames: int) -> list[bool]:
    """Whether another id in each frame changes what a model of one layer makes of the last."""
    model = randomised(Moshi(replace(config, temporal=replace(config.temporal, num_layers=1))))
    assert isinstance(model, Moshi)
    frames = {
        stream.name: torch.randint(0, CODES, (1, num_frames, stream.depth))
        for stream in model.layout.streams
    }
    frames["text"] = frames["text"][..., 0]

    def last(text: Tensor) -> Tensor:
        state, z = model.initial_state(1), torch.zeros(())
        for tick in range(num_frames):
            frame = {name: ids[:, tick : tick + 1] for name, ids in frames.items()}
            z, state = model.read({**frame, "text": text[:, tick : tick + 1]}, state)
        return z

    changes = []
    for frame in range(num_frames):
        other = frames["text"].clone()
        other[:, frame] = (other[:, frame] + 1) % CODES
        changes.append(not torch.equal(last(frames["text"]), last(other)))
    return changes


@torch.no_grad()
def test_9_the_window_has_all_its_frames() -> None:
    """There the ring takes its oldest entry for one that is yet to come, and the mask hides it."""
    window, num_written = 4, 6
    # Their positions of the four entries, which hold the frames 4, 5, 2 and 3.
    delta = torch.arange(window) - num_written % window
    positions = num_written + delta - window * (delta > 0)
    assert positions.tolist() == [4, 5, 6, 3]
    newest = num_written - 1
    seen = [int(frame) for frame in positions if frame <= newest]
    assert sorted(seen) == [3, 4, 5]

    config = moshi.tiny()
    config = replace(config, temporal=replace(config.temporal, window=window))
    assert hidden_changes(config, num_written) == [False, False, True, True, True, True]
    theirs = hidden_changes(personaplex_window(config), num_written)
    assert theirs == [frame in seen for frame in range(num_written)]
