"""A recording is heard with the features, chunks and clock of training, in pieces of any length."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from counterpoint.data.tasks.spoken_maths.bank import FRAME_HZ, BankConfig, make_bank, sound_frames
from counterpoint.data.tasks.spoken_maths.hearing import Heard, chunks, spoken_by
from counterpoint.data.tasks.spoken_maths.problems import SpokenMaths
from counterpoint.data.tasks.spoken_maths.source import PreparedMaths, SpokenMathsData
from counterpoint.errors import UserError
from counterpoint.evaluate.duplex.spoken_maths import converse
from counterpoint.runtime.listening import ThoughtData, listen_to, with_answer_words
from counterpoint.speech.ears import ChunkEar, HeardChunk, HeardWords
from counterpoint.speech.voices import Voice
from counterpoint.streams.rounds import HEARD
from counterpoint.streams.timeline import Timeline
from counterpoint.systems import shanks
from counterpoint.systems.shanks import Shanks
from tests.data.tasks.test_spoken_bank import Beeper
from tests.systems.tiny_models import tower

RATE = 16_000
VOICE = Voice(formant=1.0)
PROBLEM = SpokenMaths().problem(0, 0)
DATA = SpokenMathsData(bank=BankConfig(file="none", overlap_frames=6, transcribed=True))


def model(scale: float = 0.3) -> Shanks:
    torch.manual_seed(0)
    system = Shanks(replace(shanks.small_sound(), tower=tower(16, 1, 2, 512))).eval()
    torch.nn.init.normal_(system.get_parameter("head.weight"), std=scale)
    return system


def spoken() -> tuple[Tensor, Heard]:
    """The first 5.04 s of a problem, as sound and as the data source knows it."""
    audio, heard = spoken_by(PROBLEM, Beeper(), VOICE, RATE)
    audio = audio[:80_640]  # 63 frames; a sample less is a frame that is cut short
    frames = sound_frames(audio)
    return audio, heard._replace(frames=frames, frame_hz=FRAME_HZ, end_s=len(audio) / RATE)


def chunks_of(data: SpokenMathsData, *pieces: Tensor) -> list[HeardChunk]:
    ear = data.ear(model().layout, no_words)
    return [*(chunk for piece in pieces for chunk in ear.push(piece)), ear.finish()]


def no_words(how: HeardWords) -> ChunkEar:
    """A model that hears sound needs no recogniser."""
    raise AssertionError("a recogniser is asked for")


def hear(
    system: Shanks, data: SpokenMathsData, pieces: Iterable[Tensor], threshold: float | None = None
) -> Timeline:
    return listen_to(system, data, data.ear(system.layout, no_words), pieces, threshold)


def without_words(timeline: Timeline) -> list[object]:
    return [replace(event, text="" if event.kind == "chunk" else event.text) for event in timeline]


@pytest.mark.parametrize("chunk_s", [0.3, 1 / 3, 2.0, 4.0, 60.0])
@pytest.mark.parametrize("overlap", [0, 6])
def test_the_frames_and_borders_are_those_of_the_data_source(chunk_s: float, overlap: int) -> None:
    audio, heard = spoken()
    sound = replace(DATA.bank, overlap_frames=overlap)  # type: ignore[type-var]
    data = replace(DATA, bank=sound, chunk_s=chunk_s)
    cut = chunks(heard, chunk_s)
    found = chunks_of(data, audio)
    assert len(found) == len(cut)
    for one, chunk in zip(found, cut, strict=True):
        assert (one.start_s, one.end_s) == (chunk.start_s, chunk.end_s)
        torch.testing.assert_close(one.content, heard.frames_of(chunk, overlap), rtol=0, atol=0)


def test_the_rows_of_training_hold_these_frames(tmp_path: Path) -> None:
    audio, heard = spoken()
    file = tmp_path / "bank.safetensors"
    make_bank(Beeper(), [VOICE], [PROBLEM], 1).save(file)
    data = replace(DATA, bank=replace(DATA.bank, file=str(file)))  # type: ignore[type-var]
    rounds = PreparedMaths(data, model().layout, numbered=True).told(heard).rounds
    assert len(rounds) > 1
    for one, chunk in zip(rounds, chunks_of(data, audio), strict=False):
        torch.testing.assert_close(one[HEARD], chunk.content, rtol=0, atol=0)


def test_words_of_a_bank_are_what_is_heard_of_the_sentence_from_which_they_were_cut() -> None:
    bank = make_bank(Beeper(), [VOICE], [PROBLEM], 1)
    words = PROBLEM.clauses[0].words
    assert len(set(words)) == len(words)
    sentence = Beeper().speak(" ".join(words), VOICE, RATE).audio
    (heard,) = chunks_of(replace(DATA, chunk_s=60.0), sentence)
    places = [range(*bank.takes[VOICE.label][word][0]) for word in words]
    stored = bank.frames[[number for place in places for number in place]]
    torch.testing.assert_close(heard.content, stored, rtol=0, atol=0)


@pytest.mark.parametrize("interrupts", [False, True])
def test_thoughts_are_those_of_the_evaluation_and_pieces_change_nothing(
    *, interrupts: bool
) -> None:
    audio, heard = spoken()
    system = model()
    threshold = 2.0
    if interrupts:  # somewhere in the first two thoughts
        free = hear(system, DATA, [audio], threshold)
        first, second, _ = free.where(kind="thought")
        threshold = max(*first.payload["chances"], *second.payload["chances"])
    expected = without_words(converse(system, DATA, heard, threshold))
    for length in (len(audio), 1000, 32_001):
        timeline = hear(system, DATA, audio.split(length), threshold)
        assert without_words(timeline) == expected
        assert len(timeline.where(kind="interruption")) == interrupts


@pytest.mark.parametrize("num_samples", [32_000, 32_001, 70_000])
def test_a_thought_knows_nothing_that_sounds_after_its_chunk(num_samples: int) -> None:
    """Not even a sample, and not when the speech will end, before that has happened."""
    audio, _ = spoken()
    system = model()
    whole = hear(system, DATA, [audio], 2.0)
    cut = hear(system, DATA, [audio[:num_samples] + 0.0], 2.0)
    louder = torch.cat((audio[:num_samples], 0.5 - audio[num_samples:]))
    other = hear(system, DATA, [louder], 2.0)
    until_s = num_samples / RATE

    def known(timeline: Timeline) -> list[tuple[float, list[float]]]:
        """Return the thoughts until then, token by token."""
        found = []
        for one in timeline.where(kind="thought"):
            num_begun = max(math.ceil((until_s - one.start_s) * DATA.tokens_per_s - 1e-6), 0)
            found.append((one.start_s, one.payload["chances"][:num_begun]))
        return [(start_s, chances) for start_s, chances in found if chances]

    assert known(whole) == known(other) == known(cut)
    for timeline in (whole, cut, other):
        chunks_heard = timeline.where(kind="chunk").events
        for one in timeline.where(kind="thought"):
            assert one.start_s >= chunks_heard[one.payload["chunk"]].end_s


def test_no_more_sound_is_asked_for_after_an_interruption() -> None:
    audio, _ = spoken()
    taken = []

    def pieces() -> Iterator[Tensor]:
        for piece in audio.split(1000):
            taken.append(len(piece))
            yield piece

    timeline = hear(model(), DATA, pieces(), 0.0)
    assert sum(taken) == 65_000  # the first sample after the second chunk
    (made,) = timeline.where(kind="interruption")
    assert made.start_s == pytest.approx(2.0 + 1 / DATA.tokens_per_s)
    assert len(timeline.where(kind="chunk")) == 1


def test_one_sample_is_a_whole_recording() -> None:
    timeline = hear(model(), DATA, [torch.ones(1)], 0.0)
    (chunk,) = timeline.where(kind="chunk")
    assert (chunk.start_s, chunk.end_s, chunk.payload["last"]) == (0, 1 / RATE, True)
    assert not timeline.where(kind="interruption")  # nobody is left to be interrupted
    assert len(timeline.where(kind="answer")) == 1


def test_samples_that_are_no_sound_are_refused() -> None:
    with pytest.raises(UserError, match="NaN"):
        hear(model(), DATA, [torch.zeros(9), torch.full((9,), math.nan)])


def test_models_that_cannot_hear_a_recording_are_told_what_can() -> None:
    data = SpokenMathsData()
    assert isinstance(data, ThoughtData)
    with pytest.raises(UserError, match="shanks_small_sound"):
        hear(model(), data, [torch.zeros(9)])
    parallel = SpokenMathsData(arrangement="parallel")
    with pytest.raises(UserError, match="must think in chunks"):
        parallel.ear(Shanks(shanks.tiny()).layout, no_words)
    other = Shanks(replace(shanks.small_sound(), heard_width=40))
    with pytest.raises(UserError, match="must hear 320 features: got 40"):
        DATA.ear(other.layout, no_words)


def test_an_answer_is_what_the_agent_says() -> None:
    timeline = with_answer_words(hear(model(), DATA, [torch.zeros(9)]))
    (answer,) = timeline.where(kind="answer")
    (word,) = timeline.where(stream="agent", kind="word")
    assert answer.text == word.text
    assert (word.start_s, word.end_s) == (answer.start_s, answer.end_s)
