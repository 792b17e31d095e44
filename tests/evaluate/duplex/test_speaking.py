"""Speaking while listening, live: scores of teacher forcing, echo, ends, and other rows."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from counterpoint.data.making.interrupted import InterruptedSpeech, PreparedUtterances
from counterpoint.data.making.sounds import SoundsConfig
from counterpoint.errors import UserError
from counterpoint.evaluate.duplex.speaking import Spoke, ToSpeak, TrialSpeaker, speak_and_listen
from counterpoint.progress import Progress
from counterpoint.speech.voices import Synthesizer, Voice
from counterpoint.systems import lslm
from counterpoint.systems.contract import System
from counterpoint.systems.lslm import LSLM
from tests.data.speech.tones import Tones
from tests.systems.tiny_models import randomised, tower

LONGEST_S = 1.0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedUtterances:
    pytest.importorskip("pycodec2")
    torch.manual_seed(0)
    config = replace(lslm.small(), tower=tower(24, 2, 2, 64))
    model = randomised(LSLM(config))
    cache = str(tmp_path_factory.mktemp("cache"))
    sounds = SoundsConfig(voices=(Voice(), Voice(formant=1.45)))
    data = InterruptedSpeech(sounds=sounds, num_phrases=20, num_held_out=0, cache_folder=cache)
    speaker = Synthesizer(engines={"piper": Tones})
    return PreparedUtterances(data, model, Progress(quiet=True), speaker)


def speaker_of(prepared: PreparedUtterances, system: System | None = None) -> TrialSpeaker:
    ends = prepared.ends
    own = system or prepared.system
    return TrialSpeaker(own, prepared.codec, prepared.mels, ends.end, ends.interrupted)


def row(prepared: PreparedUtterances, number: int, **changes: Any) -> ToSpeak:
    text = prepared.items("train").utterance(number).text
    torch.manual_seed(number)
    heard = 0.1 * torch.randn(16_000)
    return ToSpeak(prompt=prepared.prompt(text), heard=heard, seed=number)._replace(**changes)


def forced_scores(prepared: PreparedUtterances, spoken: ToSpeak, said: Spoke) -> torch.Tensor:
    """Probabilities of the stop in one pass over the whole row, the codes being given."""
    frames = len(said.codes)
    content = dict(spoken.prompt)
    num_text = content["text"].shape[1]
    codes = said.codes[None]
    heard = prepared.mels.encode(spoken.heard[None])[:, :frames]
    behind = {
        "semantic": codes[..., :1],
        "acoustic": codes[..., 1:],
        "text": torch.full((1, frames), 3),
        "heard": torch.nn.functional.pad(heard, (0, 0, 0, frames - heard.shape[1])),
    }
    content = {name: torch.cat((content[name], behind[name]), 1) for name in behind}
    with torch.no_grad():
        scores = prepared.system(prepared.system.lay_out(content))["semantic"][0, num_text:, 0]
    return torch.softmax(scores, -1)[:, prepared.ends.interrupted]


def test_live_stop_scores_equal_those_of_one_pass(prepared: PreparedUtterances) -> None:
    rows = [row(prepared, number) for number in range(3)]  # prompts of different lengths
    for spoken, said in zip(
        rows, speak_and_listen(speaker_of(prepared), rows, LONGEST_S), strict=True
    ):
        assert (said.codes[:, 0] < 512).all()  # no end inside, and never a stop
        expected = forced_scores(prepared, spoken, said)
        torch.testing.assert_close(said.stops.scores, expected, rtol=0, atol=1e-5)
        assert said.stops.times_s.tolist() == pytest.approx(
            [0.04 * n for n in range(len(said.codes))]
        )


def test_a_row_does_not_depend_on_the_others(prepared: PreparedUtterances) -> None:
    speaker = speaker_of(prepared)
    (alone,) = speak_and_listen(speaker, [row(prepared, 1)], LONGEST_S)
    _, beside = speak_and_listen(speaker, [row(prepared, 0), row(prepared, 1)], LONGEST_S)
    assert torch.equal(alone.codes, beside.codes)
    torch.testing.assert_close(alone.stops.scores, beside.stops.scores, rtol=0, atol=1e-5)


def test_the_own_voice_changes_what_is_heard_after_its_delay(prepared: PreparedUtterances) -> None:
    quiet = torch.zeros(16_000)
    speaker = speaker_of(prepared)
    plain, echoed = speak_and_listen(
        speaker,
        [
            row(prepared, 1, heard=quiet),
            row(prepared, 1, heard=quiet, echo_gain=0.9, echo_delay_s=0.2),
        ],
        LONGEST_S,
    )
    size = min(len(plain.stops.scores), len(echoed.stops.scores))  # either may end its speech
    # Rows of one batch may differ by the rounding of a processor.
    changed = (plain.stops.scores[:size] - echoed.stops.scores[:size]).abs() > 1e-6
    assert int(changed.nonzero()[0]) >= 6  # heard in frame 5, so it counts from frame 6 on


def test_features_take_the_place_of_a_sound_without_an_echo(prepared: PreparedUtterances) -> None:
    speaker = speaker_of(prepared)
    spoken = row(prepared, 1, heard=0.1 * torch.randn(9_000))  # it ends before the speech
    features = prepared.mels.encode(spoken.heard[None])[0]
    (by_sound,) = speak_and_listen(speaker, [spoken], LONGEST_S)
    (by_features,) = speak_and_listen(speaker, [spoken._replace(heard=features)], LONGEST_S)
    assert torch.equal(by_sound.codes, by_features.codes)
    assert torch.equal(by_sound.stops.scores, by_features.stops.scores)
    with pytest.raises(UserError, match="must be given what is heard as a sound"):
        speak_and_listen(speaker, [spoken._replace(heard=features, echo_gain=0.1)], LONGEST_S)


def test_the_end_of_a_sound_is_heard_alike_with_and_without_an_echo_beside_it(
    prepared: PreparedUtterances,
) -> None:
    """The window of the first silent frame still covers the end of a sound of whole frames."""
    speaker = speaker_of(prepared)
    whole = 14 * speaker.mels.frame_samples
    spoken = row(prepared, 1, heard=0.3 * torch.randn(whole))
    echoed = row(prepared, 2, echo_gain=0.3, echo_delay_s=0.1)
    (alone,) = speak_and_listen(speaker, [spoken], LONGEST_S)
    together = speak_and_listen(speaker, [spoken, echoed], LONGEST_S)[0]
    size = min(len(alone.stops.scores), len(together.stops.scores))
    assert size > 16
    assert torch.allclose(alone.stops.scores[:size], together.stops.scores[:size], atol=1e-6)


def test_speech_ends_with_the_end(prepared: PreparedUtterances) -> None:
    """With its head turned to the end, the model says nothing."""
    speaker = speaker_of(prepared)
    model = prepared.system

    class Ending(LSLM):
        def _first_scores(self, hidden: torch.Tensor) -> torch.Tensor:
            scores = super()._first_scores(hidden)
            scores[..., self.config.end_id] += 100
            return scores

    ending = Ending(model.config)
    ending.load_state_dict(model.state_dict())
    (said,) = speak_and_listen(speaker._replace(system=ending.eval()), [row(prepared, 0)], 1.0)
    assert said.ended
    assert said.codes.shape == (0, 4)


def test_streams_with_delays_are_refused(prepared: PreparedUtterances) -> None:
    from tests.systems.tiny_moshi import build

    with pytest.raises(UserError, match="must have streams without delays"):
        speak_and_listen(speaker_of(prepared, build("agent_only")), [row(prepared, 0)], 1.0)
