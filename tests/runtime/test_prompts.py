from inspect import unwrap

import pytest
import torch
from torch import Tensor

from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.given import check_prompt
from counterpoint.runtime.prefix import read_prefix
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.sessions import Sessions
from counterpoint.streams.spec import UNSET_ID, Ticks
from counterpoint.systems.contract import state_tensors
from counterpoint.systems.moshi import Moshi
from tests.systems.tiny_moshi import CONFIGS, MULTI_TOKEN, build, random_codes

NUM_FRAMES = 5
CPU = torch.device("cpu")


def sampling_of(seed: int) -> FrameSampling:
    return FrameSampling(text=Sampling(seed=seed), audio=Sampling(seed=seed, top_k=4))


def first(codes: Ticks, num_frames: int) -> dict[str, Tensor]:
    return {name: ids[:, :num_frames] for name, ids in codes.items()}


def heard_of(model: Moshi, codes: Ticks, frame: int) -> dict[str, Tensor]:
    said = {"text", *(stream.name for stream in model.predicted)}
    return {name: ids[0, frame] for name, ids in codes.items() if name not in said}


@pytest.mark.parametrize("name", [*CONFIGS, "multi_token"])
@pytest.mark.parametrize(("num_prefix", "num_prompt"), [(0, 2), (3, 3), (3, 4), (9, 20)])
def test_prefix_is_as_if_read_with_the_prompt(name: str, num_prefix: int, num_prompt: int) -> None:
    """Also longer than the window, and shared by two sessions that go on differently."""
    model = build(MULTI_TOKEN if name == "multi_token" else name)
    codes, prompt = random_codes(model, 1, NUM_FRAMES), random_codes(model, 1, num_prompt)
    more = random_codes(model, 1, 2)
    other = {n: torch.cat((i, more[n]), 1) for n, i in first(prompt, num_prefix).items()}
    prefix = read_prefix(model, first(prompt, num_prefix))
    runs = []
    for shared in (None, prefix):
        sessions, said = Sessions(model, 2), list[Tensor]()
        sessions.start(1, sampling_of(7), prompt=random_codes(model, 1, 5))  # leftovers
        for row, begin in ((0, prompt), (1, other)):
            started = sessions.start(row, sampling_of(row), prompt=begin, prefix=shared)
            said += (started.opening or {}).values()
        for cache in state_tensors(sessions.state.caches):
            assert cache.isfinite().all()
        for frame in range(NUM_FRAMES):
            heard = heard_of(model, codes, frame)
            for spoken in sessions.step({0: heard, 1: heard}).values():
                said += spoken.values()
        runs.append((torch.cat(said), state_tensors(sessions.state.caches)))
    (ids, caches), (their_ids, their_caches) = runs
    assert torch.equal(ids, their_ids)
    for ours, theirs in zip(caches, their_caches, strict=True):
        torch.testing.assert_close(ours[..., :-1, :], theirs[..., :-1, :], rtol=0, atol=1e-5)


def test_prompt_must_begin_with_its_prefix() -> None:
    model = build("agent_only")
    prompt = random_codes(model, 1, 4)
    prefix = read_prefix(model, first(prompt, 2))
    assert prefix.num_ticks == 2
    sessions = Sessions(model, 1)
    late = {name: ids.roll(1, 1) for name, ids in prompt.items()}
    for codes in (first(prompt, 1), late):
        with pytest.raises(ValueError, match="must begin with its prefix of 2 frames: its . fram"):
            sessions.start(0, prompt=codes, prefix=prefix)
    assert sessions.free == [0]


def test_columns_are_frames_in_order_of_arrival() -> None:
    model = build("agent_only")
    columns, num_frames = check_prompt(model.layout, {"text": torch.tensor([[5, 6]])}, CPU)
    assert num_frames == 2
    text, audio = model.config.text_vocab_size, model.config.audio_vocab_size
    assert columns["text"].tolist() == [[text, 5, 6, UNSET_ID]]
    late = columns["agent_acoustic"][0, :, 0].tolist()
    assert late == [audio, audio, UNSET_ID, UNSET_ID]
    empty, num_frames = check_prompt(model.layout, None, CPU)
    assert (num_frames, empty["text"].tolist()) == (0, [[text, UNSET_ID]])


def test_what_is_no_prompt_is_refused_also_without_type_checks() -> None:
    """As users run it: it would else end a session that was running."""
    model = build("agent_only")
    prompt = random_codes(model, 1, 3)
    for ids in (prompt["text"].double(), prompt["text"] > 0):
        with pytest.raises(ValueError, match=r"whole numbers: got torch\.\w+ for text"):
            unwrap(check_prompt)(model.layout, prompt | {"text": ids}, CPU)
    for ids in (prompt["text"][0], prompt["text"][0, :1], torch.tensor(3)):
        with pytest.raises(
            ValueError, match="must be one row, with text of shape .1, P.: got text"
        ):
            unwrap(check_prompt)(model.layout, prompt | {"text": ids}, CPU)
