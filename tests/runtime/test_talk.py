"""A conversation with a model whose every sample is known, then with a real codec."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from counterpoint.data.speech.opening import TAG, Fillers, codec_fillers
from counterpoint.data.speech.words import ByteWords
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.talk import Conversation, Talker, converse, opening, talk
from counterpoint.speech.codec import Codec
from counterpoint.speech.codec2 import Codec2
from counterpoint.streams.spec import Role
from counterpoint.systems.moshi import AudioStream, Moshi, MoshiConfig
from tests.runtime.talking import LevelCodec, echo, echo_config, echo_speaker
from tests.systems.tiny_moshi import build, config

GREEDY = FrameSampling(text=Sampling(temperature=0), audio=Sampling(temperature=0))
FRAME = 8


def codec2_config(*, both: bool = False) -> MoshiConfig:
    sizes = Codec2.codebook_sizes
    streams = tuple(
        AudioStream(name=f"{who}_{kind}", role=role, depth=len(own), delay_ticks=late,
                    codebook_sizes=own)
        for who, role in (("agent", Role.SPOKEN), ("user", Role.HEARD))
        for kind, own, late in (("semantic", sizes[:1], 0), ("acoustic", sizes[1:], 1))
    )  # fmt: skip
    return config(streams, 8 if both else 4, text_vocab_size=256, audio_vocab_size=512,
                  tick_hz=25.0)  # fmt: skip


def codec2_speaker(*, both: bool = False) -> Talker:
    torch.manual_seed(0)
    return Talker(system=build(codec2_config(both=both)), codec=Codec2(), tokenizer=ByteWords())


def steps(levels: list[int]) -> Tensor:
    return torch.tensor(levels).repeat_interleave(FRAME) / 4


def moshi_of(talker: Talker) -> Moshi:
    assert isinstance(talker.system, Moshi)
    return talker.system


def test_test_codec_is_a_codec() -> None:
    assert isinstance(LevelCodec(), Codec)
    audio = steps([0, 3, 1, 4])[None]
    assert torch.equal(LevelCodec().decode(LevelCodec().encode(audio)), audio)


@pytest.mark.parametrize(("agent_delay", "user_delay"), [(0, 0), (1, 0), (1, 1), (3, 2), (0, 1)])
def test_answer_sounds_when_it_can_first_be_played(agent_delay: int, user_delay: int) -> None:
    """At once when the frame is complete, and a frame later for every frame the user is delayed."""
    levels = [0, 0, 4, 0, 2, 3, 0, 0, 1, 0]
    both, _ = talk(echo_speaker(agent_delay, user_delay), steps(levels), GREEDY)
    late = 1 + user_delay
    assert torch.equal(both[1], steps(levels))
    assert torch.equal(both[0], steps([0] * late + levels[:-late]))


@pytest.mark.parametrize("num_samples", [0, 1, FRAME - 1, FRAME, FRAME + 1, 5 * FRAME + 3])
def test_answer_is_as_long_as_the_recording(num_samples: int) -> None:
    both, words = talk(echo_speaker(), torch.ones(num_samples), GREEDY)
    assert both.shape == (2, num_samples)
    assert torch.equal(both[0], torch.cat((torch.zeros(FRAME), torch.ones(99)))[:num_samples])
    assert len(words) == 0


@settings(max_examples=8)
@given(st.lists(st.integers(0, 3 * FRAME), max_size=8), st.integers(0, 3))
def test_blocks_of_any_length_give_the_same(lengths: list[int], tail_frames: int) -> None:
    audio = torch.rand(sum(lengths))
    conversation = Conversation(echo_speaker(), GREEDY)
    tail_s = tail_frames / 25
    pieces = list(converse(conversation, [p[None] for p in audio.split(lengths)], tail_s))
    whole, _ = talk(echo_speaker(), torch.cat((audio, torch.zeros(tail_frames * FRAME))), GREEDY)
    assert torch.equal(torch.cat([torch.zeros(2, 0), *pieces], 1), whole)


def test_what_sounds_in_a_frame_depends_on_no_sample_of_it() -> None:
    speaker, audio = codec2_speaker(), 0.3 * torch.randn(320 * 9)
    heard = []
    for frame in (4, 9):
        conversation = Conversation(speaker, GREEDY)
        other = audio.clone()
        other[320 * frame :] = 0
        conversation.hear(other)
        heard.append(conversation.text_ids)
    assert heard[0][:4] == heard[1][:4]
    assert heard[0] != heard[1]


@pytest.mark.parametrize("agent_delay", [0, 1, 3])
def test_words_are_where_their_frames_sound(agent_delay: int) -> None:
    speaker = echo_speaker(agent_delay, letters="\x03 hi!")
    spoken = [0, 0, 1, 2, 3, 0, 0, 1, 4, 4, 1, 3, 0, 0, 0, 0, 0]
    _, words = talk(speaker, steps(spoken), GREEDY)
    # Heard in frame f, written into content frame f + 1, which sounds `agent_delay` frames later.
    late = 1 + agent_delay
    assert [(w.text, round(w.start_s * 25, 6), round(w.end_s * 25, 6)) for w in words] == [
        ("hi", 2 + late, 5 + late),
        ("!!", 7 + late, 10 + late),
        ("i", 10 + late, 12 + late),
    ]
    assert {word.stream for word in words} == {"agent"}


def test_ids_that_the_tokenizer_has_not_are_no_words() -> None:
    model = echo(replace(echo_config(), text_vocab_size=300), letters="\x03\u0120h")
    speaker = Talker(system=model, codec=LevelCodec(), tokenizer=ByteWords())
    _, words = talk(speaker, steps([0, 1, 2, 1, 0, 0, 0, 0]), GREEDY)
    assert [word.text for word in words] == ["h"]


def test_steps_are_timed_by_the_clock_that_is_given() -> None:
    ticks = iter(range(1000))
    conversation = Conversation(echo_speaker(), GREEDY, clock=lambda: float(next(ticks)))
    conversation.hear(torch.zeros(4 * FRAME + 3))
    assert conversation.step_s == [1.0] * 4
    assert conversation.delay_s == 1 / 25


def test_real_codec_and_random_model_give_valid_codes() -> None:
    """Codebooks of Codec2 have 512, 512, 16 and 64 ids: none beyond them is ever said."""
    audio = 0.2 * torch.randn(8000)
    both, words = talk(codec2_speaker(), audio, FrameSampling(audio=Sampling(temperature=5.0)))
    assert both.shape == (2, 8000)
    assert torch.equal(both[1], audio)
    assert both[0, :320].abs().max() == 0
    assert both[0, 320:].abs().max() > 0
    assert all(0.04 <= word.start_s < word.end_s for word in words)


def test_seed_decides() -> None:
    speaker, audio = codec2_speaker(), 0.2 * torch.randn(4000)

    def ids(seed: int) -> list[int]:
        sampling = FrameSampling(text=Sampling(seed=seed), audio=Sampling(seed=seed))
        conversation = Conversation(speaker, sampling)
        conversation.hear(audio)
        return conversation.text_ids

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


def test_model_of_both_speakers_says_its_own_part() -> None:
    both, audio = codec2_speaker(both=True), 0.2 * torch.randn(4000)
    alone = replace(both, system=moshi_of(both).trimmed(4))
    found = []
    for speaker in (both, alone):
        conversation = Conversation(speaker, GREEDY)
        conversation.hear(audio)
        found.append(conversation.text_ids)
    assert found[0] == found[1]
    assert alone.system.agent_alone() is alone.system


def test_samples_that_are_no_numbers_are_refused() -> None:
    conversation = Conversation(echo_speaker(), GREEDY)
    with pytest.raises(ValueError, match="finite numbers: got 1 that are NaN"):
        conversation.hear(torch.tensor([0.0, torch.nan]))


def test_refused_samples_do_not_move_the_conversation() -> None:
    conversation, audio = Conversation(echo_speaker(), GREEDY), steps([1, 4, 2, 3, 1, 2])
    sound = [conversation.hear(audio[:3])]
    broken = audio[3:].clone()
    broken[4 * FRAME] = torch.nan  # frames before it are whole
    with pytest.raises(ValueError, match="finite numbers"):
        conversation.hear(broken)
    assert conversation.text_ids == conversation.step_s == []
    sound.append(conversation.hear(audio[3:]))
    whole, _ = talk(echo_speaker(), audio, GREEDY)
    assert torch.equal(torch.cat(sound), whole[0])


def test_opening_is_voice_and_role() -> None:
    speaker = codec2_speaker()
    speaker = replace(speaker, system=build(replace(
        codec2_config(), temporal=replace(codec2_config().temporal, window=400)
    )))  # fmt: skip
    assert opening(speaker) is None
    assert opening(speaker, "  ") is None
    prompt = opening(speaker, "You sell tea.", 0.1 * torch.randn(8000))
    assert prompt is not None
    text = prompt["text"][0].tolist()
    role = f" {TAG} You sell tea. {TAG}".encode()
    assert text == [3] * (25 + 12) + list(role) + [3] * 12
    silent = torch.tensor(codec_fillers(Codec2()).agent)
    assert torch.equal(prompt["agent_semantic"][0, -1], silent[:1])
    assert torch.equal(prompt["agent_acoustic"][0, -1], silent[1:])
    conversation = Conversation(speaker, GREEDY, prompt=prompt)
    conversation.hear(torch.zeros(320 * 3))
    assert len(conversation.text_ids) == 3  # of the conversation alone
    with pytest.raises(ValueError, match="shorter than the model's window of 400 frames"):
        opening(speaker, "word " * 100)
    with pytest.raises(ValueError, match="got silence"):
        opening(speaker, voice=torch.zeros(8000))
    with pytest.raises(ValueError, match="window of 400 frames: got a voice of 400. Take"):
        opening(speaker, voice=torch.zeros(400 * 320))


def pinning_speaker(window: int) -> Talker:
    shape = echo_config()
    shape = replace(shape, temporal=replace(shape.temporal, window=window))
    torch.manual_seed(0)
    fillers = Fillers(agent=(0,), user=(0,), pause_s=0)
    return Talker(system=build(shape), codec=LevelCodec(), tokenizer=ByteWords(), fillers=fillers)


def test_pinned_prompt_changes_nothing_within_the_window() -> None:
    window, speaker = 30, pinning_speaker(30)
    prompt = opening(speaker, "tea")
    assert prompt is not None
    said = []
    for pin in (False, True):
        conversation = Conversation(speaker, prompt=prompt, pin=pin)
        conversation.hear(torch.rand(FRAME * 40, generator=torch.Generator().manual_seed(0)))
        said.append(conversation.text_ids)
    num_within = window - prompt["text"].shape[1] - 1
    assert 5 < num_within < 15
    assert said[0][:num_within] == said[1][:num_within]
    assert said[0] != said[1]
    with pytest.raises(ValueError, match="Pinned frames must be 0 to 28, .* got 29"):
        Conversation(speaker, prompt=opening(speaker, "ten letters"[:10]), pin=True)


@torch.no_grad()
def test_pinned_role_acts_behind_the_window() -> None:
    """Only two letters of the role are seen at all, and never said: nothing else tells of it."""
    speaker, letters = pinning_speaker(30), [ord("a"), ord("b")]
    model = moshi_of(speaker)
    text, audio = model.text_embedding.table, model.audio_embedding.table
    kept = text.weight[letters].clone()
    for weight in (text.weight, audio.weight):
        weight.zero_()
    text.weight[letters] = kept
    model.head.weight[letters] = 0
    far: dict[bool, list[list[int]]] = {False: [], True: []}
    for pin, said in far.items():
        for role in ("a a a", "b b b"):
            conversation = Conversation(speaker, GREEDY, prompt=opening(speaker, role), pin=pin)
            conversation.hear(torch.zeros(FRAME * 36))
            assert not set(letters) & set(conversation.text_ids)
            said.append(conversation.text_ids[-10:])
    assert far[False][0] == far[False][1]
    assert far[True][0] != far[True][1]


def test_prompt_does_not_move_what_sounds() -> None:
    """The first sample of the recording is time 0 behind a prompt, too."""
    speaker = echo_speaker()
    prompt = opening(speaker, "x")
    levels = [0, 4, 0, 0, 2, 0]
    both, _ = talk(speaker, steps(levels), GREEDY, prompt=prompt)
    # What the prompt leaves behind may sound in the first frame that the model says.
    assert torch.equal(both[0, 2 * FRAME :], steps(levels[1:-1]))


@pytest.mark.parametrize(
    ("audio", "num_predicted", "message"),
    [
        ([("a", Role.HEARD, 1), ("b", Role.SPOKEN, 1)], 2, "speaks, then streams that it hears"),
        ([("a", Role.SPOKEN, 1)], 1, "speaks, then streams that it hears: got a .spoken."),
        ([("a", Role.SPOKEN, 1), ("b", Role.SPOKEN, 1), ("c", Role.HEARD, 1)], 1, "predicts 1"),
        ([("a", Role.SPOKEN, 1), ("b", Role.HEARD, 2)], 1, "1 codebooks each: got 1 and 2"),
        ([("a", Role.SPOKEN, 2), ("b", Role.HEARD, 2)], 2, "codec's 1 codebooks each: got 2 and 2"),
    ],
)
def test_models_that_cannot_talk_are_refused(
    audio: list[tuple[str, Role, int]], num_predicted: int, message: str
) -> None:
    streams = tuple(AudioStream(name=name, role=role, depth=depth) for name, role, depth in audio)
    model = Moshi(replace(echo_config(), audio=streams, num_predicted=num_predicted))
    with pytest.raises(ValueError, match=message):
        Talker(system=model, codec=LevelCodec(), tokenizer=ByteWords())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio_vocab_size": 9}, r"agent's .* at most the codec's \(5,\) ids: got \(9,\)"),
        ({"audio_vocab_size": 4}, r"user's .* at least the codec's \(5,\) ids: got \(4,\)"),
        ({"tick_hz": 12.5}, r"model's 12.5 frames a second: it has 25.0"),
    ],
)
def test_model_of_another_codec_is_refused(changes: dict[str, Any], message: str) -> None:
    """Before it hears anything."""
    model = Moshi(replace(echo_config(), **changes))
    with pytest.raises(ValueError, match=message):
        Talker(system=model, codec=LevelCodec(), tokenizer=ByteWords())


def test_an_hour_is_answered_as_it_comes_in_the_memory_of_a_minute() -> None:
    """Frames of half a minute, so that an hour is quick; the input exists a block at a time."""
    model = echo(echo_config(tick_hz=1 / 30))
    speaker = Talker(system=model, codec=LevelCodec(6000), tokenizer=ByteWords())
    conversation, pulled, held = Conversation(speaker, GREEDY), 0, list[int]()

    def hour() -> Iterator[Tensor]:
        nonlocal pulled
        for number in range(120):
            pulled += 1
            yield torch.full((1, 6000), (number % 5) / 4)

    for number, piece in enumerate(converse(conversation, hour())):
        assert pulled == number + 1
        assert piece[0, 0] == ((number - 1) % 5) / 4 or number == 0
        if number in (2, 119):
            gc.collect()
            # Other tests may have left tensors of other layouts, which have no size in bytes.
            tensors = [found for found in gc.get_objects() if type(found) is Tensor]
            dense = [tensor for tensor in tensors if tensor.layout == torch.strided]
            held.append(sum(tensor.nbytes for tensor in dense))
    assert held[1] <= held[0] + 100_000  # the recording has 5.8 MB
