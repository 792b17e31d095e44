import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from counterpoint.data.speech.monologue import PAD_ID
from counterpoint.data.speech.rows import SpeechData
from counterpoint.evaluate.duplex.timing import Timing, TimingConfig
from counterpoint.speech.audio import write_audio
from counterpoint.streams.spec import Ticks
from counterpoint.systems.contract import Choose, State
from counterpoint.systems.moshi import Moshi
from tests.cli.talkers import codec2_config
from tests.systems.tiny_moshi import build

RATE = 8000
FRAME_S = 0.04


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    """The agent greets at 0.2 s; the user speaks from 0.8 to 1.6 s; the answer begins at 2.0 s."""
    channels = torch.zeros(2, 5 * RATE)
    for channel, start, stop in ((0, 0.2, 0.6), (1, 0.8, 1.6), (0, 2.0, 2.6)):
        part = slice(int(start * RATE), int(stop * RATE))
        channels[channel, part] = 0.3 * torch.randn(part.stop - part.start)
    write_audio(tmp_path / "a.wav", channels, RATE)
    words = [["hi", [0.2, 0.6], "SPEAKER_MAIN"], ["well", [2.0, 2.6], "SPEAKER_MAIN"]]
    (tmp_path / "a.json").write_text(json.dumps({"alignments": words}))
    (tmp_path / "list.jsonl").write_text('{"path": "a.wav", "duration": 5.0}\n')
    return tmp_path / "list.jsonl"


class Scripted(Moshi):
    """Says a word in its n-th frame behind a prompt, and nothing else."""

    word_frame = 0
    num_written = 0

    def initial_state(self, batch_size: int) -> State:
        self.num_written = -1
        return super().initial_state(batch_size)

    def write(
        self, hidden: Tensor, choose: Choose, state: State | None = None
    ) -> dict[str, Tensor]:
        self.num_written += 1
        says = self.num_written == self.word_frame

        def say(name: str, codebook: int, logits: Tensor) -> Tensor:
            ids = choose(name, codebook, logits)
            return ids.new_full(ids.shape, 104 if says else PAD_ID) if name == "text" else ids

        return super().write(hidden, say, state)


def scripted(word_frame: int) -> Scripted:
    model = Scripted(codec2_config())
    model.load_state_dict(build(codec2_config()).state_dict())
    model.word_frame = word_frame
    return model.eval()


def timing(held_out: Path, model: Moshi, **changes: int) -> Timing:
    data = SpeechData(
        train="", held_out=str(held_out), row_s=4.0, cache_folder=str(held_out.parent)
    )
    return Timing(data, model, TimingConfig(horizon_s=1.0, rows=1, **changes))


def numbers(measured: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in measured.items()}


def test_moments_are_the_beginning_and_the_ends_of_answered_turns(held_out: Path) -> None:
    found = timing(held_out, scripted(0)).moments
    assert [moment.due for moment in found] == ["greeting", "response"]
    assert found[0].frame == 0
    assert found[1].frame * FRAME_S == pytest.approx(1.6, abs=0.05)


@pytest.mark.parametrize("word_frame", [0, 3, 11])
def test_delay_is_the_frame_of_the_first_word(held_out: Path, word_frame: int) -> None:
    model = scripted(word_frame)
    measured = numbers(timing(held_out, model)(model))
    assert measured["greeting_s"] == measured["response_s"] == round(word_frame * FRAME_S, 3)
    assert measured["greeting_share"] == measured["response_share"] == 1.0
    assert measured["greeting_recorded_s"] == pytest.approx(0.2, abs=0.05)
    assert measured["response_recorded_s"] == pytest.approx(0.4, abs=0.1)


def test_who_never_speaks_has_a_share_and_no_delay(held_out: Path) -> None:
    model = scripted(10_000)
    measured = timing(held_out, model)(model)
    assert measured["response_share"] == measured["greeting_share"] == 0.0
    assert "response_s" not in measured
    assert "greeting_s" not in measured


def test_nothing_is_measured_where_words_are_not_known(held_out: Path) -> None:
    (held_out.parent / "a.json").write_text('{"alignments": null}')
    model = scripted(0)
    assert timing(held_out, model).moments == []
    assert timing(held_out, model)(model) == {}


def test_a_model_of_both_speakers_is_given_the_user(held_out: Path) -> None:
    from dataclasses import replace

    config = replace(codec2_config(), num_predicted=8)
    model = build(config).eval()
    heard: list[Ticks] = []
    read = model.read

    def watched(ticks: Ticks, *rest: object) -> object:
        heard.append(ticks)
        return read(ticks, *rest)  # type: ignore[arg-type]

    object.__setattr__(model, "read", watched)
    trial = timing(held_out, model)
    trial(model)
    recorded = trial.moments[0].example.streams["user"]
    semantic = [ticks["user_semantic"][0, 0, 0].item() for ticks in heard if ticks]
    assert semantic[2:20] == recorded[1:19, 0].tolist()
