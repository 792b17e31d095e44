"""Sessions behind voices as PersonaPlex keeps them, against its loop stated again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from counterpoint.data.speech.opening import Fillers, hybrid_prompt
from counterpoint.formats.moshi.voice import VoicePrompt, read_voice, record_voice, voice_prefix
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.engine import Engine
from counterpoint.runtime.prefix import behind
from counterpoint.runtime.sampler import Sampling
from counterpoint.systems.moshi import Moshi, two_speakers
from tests.systems.personaplex_loop import PublishedLoop
from tests.systems.tiny_moshi import AUDIO_VOCAB, TEXT_VOCAB, build, config, random_codes

NUM_FRAMES, ROLE = 12, [5, 6, 7, 8]
FILLERS = Fillers(agent=(1, 2, 3), user=(4, 5, 6))
GREEDY = FrameSampling(text=Sampling(temperature=0), audio=Sampling(temperature=0))


WINDOW = 30  # a prompt is shorter, a conversation goes on beyond it


def model_of(num_predicted: int) -> Moshi:
    shape = config(two_speakers(2), num_predicted)
    model = build(replace(shape, temporal=replace(shape.temporal, window=WINDOW)))
    with torch.no_grad():  # so that what is said depends on what was heard
        for head in (model.head, model.depth.head):
            head.weight.normal_(std=2.0)
    return model


def sample(num_frames: int) -> Tensor:
    return torch.randint(0, AUDIO_VOCAB, (num_frames, 3))


def voice_of(model: Moshi, codes: Tensor) -> VoicePrompt:
    still = Fillers(agent=FILLERS.agent, user=FILLERS.user, pause_s=0)
    return record_voice(model, hybrid_prompt(model, (), codes, still))


def said_by(engine: Engine, session: int, user: Tensor) -> list[list[int]]:
    said = []
    for codes in user:
        frame = engine.step({session: {"user_semantic": codes[:1], "user_acoustic": codes[1:]}})
        said.append(torch.cat(list(frame[session].values())).tolist())
    return said


@pytest.mark.parametrize(
    ("num_frames", "stored"),
    [(2, torch.float32), (3, torch.float32), (9, torch.float32), (4, torch.bfloat16)],
)
def test_a_saved_voice_goes_on_as_the_published_loop_does(
    tmp_path: Path, num_frames: int, stored: torch.dtype
) -> None:
    """It loses the first frame of a recording, and answers a call later."""
    both = model_of(6)
    codes, user = sample(num_frames), sample(NUM_FRAMES)
    recorder, loop = PublishedLoop(both), PublishedLoop(both)
    saved = recorder.hear_sample(codes, FILLERS.user)
    saved["embeddings"] = saved["embeddings"].to(stored)
    loop.replay(saved)
    runs = []
    for published in (recorder, loop):
        published.hear_role(ROLE, FILLERS.agent, FILLERS.user)
        runs.append(published.converse(user))

    torch.save(saved, tmp_path / "voice.pt")
    agent = both.trimmed(3)
    engine = Engine(agent, 2)
    engine.share("voice", *voice_prefix(read_voice(tmp_path / "voice.pt", agent.config), agent))
    behind = hybrid_prompt(agent, ROLE, None, FILLERS)
    whole = hybrid_prompt(agent, ROLE, codes[1:], FILLERS)
    runs += [
        said_by(engine, session, user)[:-1]
        for session in (
            engine.admit(GREEDY, prompt=behind, voice="voice"),
            engine.admit(GREEDY, prompt=whole),
        )
    ]
    if stored == torch.float32:
        assert runs[0] == runs[1] == runs[2] == runs[3]
    else:
        assert runs[1] == runs[2]  # what has been rounded is the same in both
    assert len({tuple(frame) for frame in runs[0]}) > NUM_FRAMES // 2


@pytest.mark.parametrize("num_frames", [1, 2, 9])
@pytest.mark.parametrize("pin", [0, 26])
def test_a_voice_is_as_the_recording_that_it_was_made_of(num_frames: int, pin: int) -> None:
    model, codes, user = model_of(3), sample(num_frames), sample(NUM_FRAMES)
    engine = Engine(model, 2, pinned_frames=pin)
    pinned = engine.system
    assert isinstance(pinned, Moshi)
    engine.share("voice", *voice_prefix(voice_of(model, codes), pinned))
    prompt = hybrid_prompt(model, ROLE, None, FILLERS)
    ours = engine.admit(GREEDY, prompt=prompt, voice="voice")
    theirs = engine.admit(GREEDY, prompt=hybrid_prompt(model, ROLE, codes, FILLERS))
    assert engine[ours] == engine[theirs]
    assert said_by(engine, ours, user) == said_by(engine, theirs, user)
    for ring in caches(engine):
        torch.testing.assert_close(*ring, rtol=0, atol=1e-5)


def caches(engine: Engine) -> list[Tensor]:
    """Keys and values of all rows, without the slot that is never read."""
    return [cache[..., :-1, :] for cache in engine._sessions.state.caches]


def test_voices_alike_in_what_their_ring_holds_are_not_mixed_up() -> None:
    """Two samples that differ early only have the same known codes: prompts name their voice."""
    model, codes = model_of(3), sample(9)
    early = codes.clone()
    early[2] = (early[2] + 1) % AUDIO_VOCAB
    voices = {"one": voice_of(model, codes), "other": voice_of(model, early)}
    known = [voice_prefix(voice, model)[0] for voice in voices.values()]
    assert all(torch.equal(ids, known[1][name]) for name, ids in known[0].items())
    engine = Engine(model, 4)
    for name, voice in voices.items():
        engine.share(name, *voice_prefix(voice, model))
    prompt = hybrid_prompt(model, ROLE, None, FILLERS)
    for name in ("one", "other", "other"):
        engine.admit(GREEDY, prompt=prompt, voice=name)
    engine.admit(GREEDY, prompt=behind(known[0], prompt))
    for ring in caches(engine):
        assert torch.equal(ring[1], ring[2])
        assert float((ring[0] - ring[1]).abs().max()) > 1e-3
        assert min(float((ring[3] - ring[row]).abs().max()) for row in (0, 1)) > 1e-3


def test_a_voice_can_be_dropped_while_its_sessions_go_on() -> None:
    model = model_of(3)
    codes, user = random_codes(model, 1, 4), sample(4)
    engine = Engine(model, 3)
    voice = voice_of(model, sample(5))
    engine.share("anna", *voice_prefix(voice, model))
    session = engine.admit(GREEDY, voice="anna")  # nothing behind the voice
    before = said_by(engine, session, user)
    engine.unshare("anna")
    engine.reset(session)
    assert said_by(engine, session, user) == before
    with pytest.raises(ValueError, match="A voice must be shared first: got 'anna', have none"):
        engine.admit(voice="anna")
    engine.share("anna", codes)
    with pytest.raises(ValueError, match="A voice must be shared first: got 'anna', have none"):
        engine.admit(voice="anna")
    engine.share("anna", *voice_prefix(voice, model))
    with pytest.raises(ValueError, match="must have all streams .text, agent_semantic.*got text"):
        engine.admit(prompt={"text": codes["text"]}, voice="anna")
    guided = FrameSampling(text=GREEDY.text, audio=GREEDY.audio, guidance=2.0)
    twin = engine.admit(guided, voice="anna")
    assert said_by(engine, twin, user) != before
    assert said_by(engine, session, user)


def test_voices_that_do_not_fit_are_refused_and_touch_nobody() -> None:
    model, other = model_of(3), model_of(3)
    voice = voice_of(model, sample(5))
    engine = Engine(other, 1)
    with pytest.raises(ValueError, match="must belong to the model that hears it: .* Use a voice"):
        engine.share("anna", *voice_prefix(voice, other))
    for element, slot in ((0, 5), (2, 6), (6, 6), (1, 4)):
        cache = voice.cache.clone()
        cache[0, element, slot % 4] = -2
        damaged = VoicePrompt(embeddings=voice.embeddings, cache=cache)
        with pytest.raises(ValueError, match="must hold the ids of its newest frames: some are"):
            voice_prefix(damaged, model)
    cache = voice.cache.clone()
    cache[0, 0, 5 % 4] = TEXT_VOCAB  # the initial id where the text has begun long ago
    damaged = VoicePrompt(embeddings=voice.embeddings, cache=cache)
    with pytest.raises(ValueError, match=r"Ids of 'text' must be -1 .unset. to 10: got -1 to 11"):
        voice_prefix(damaged, model)
    assert engine.num_free == 1
