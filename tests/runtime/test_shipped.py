"""The models that come with the package: they load, they fit, and they do what their cards say."""

from pathlib import Path

import pytest
import torch

from counterpoint.data.making.interrupted import InterruptedSpeech
from counterpoint.data.speech.user_words import read_user_words
from counterpoint.data.tasks.spoken_orders.source import SpokenOrdersData
from counterpoint.errors import UserError
from counterpoint.evaluate.duplex.spoken_orders import order_scores, serve
from counterpoint.evaluate.duplex.spoken_text import THRESHOLD, prepare_speaker, speak_text
from counterpoint.evaluate.report.conversation_lines import transcript_lines
from counterpoint.progress import Progress
from counterpoint.runtime.load import load
from counterpoint.runtime.shipped import CALLS, FOLDER, READS, TALKS, find_shipped
from counterpoint.runtime.talk import talk
from counterpoint.speech.audio import read_audio

MOST_BYTES = 16_000_000


def test_all_models_together_are_small_and_have_cards() -> None:
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < MOST_BYTES
    for folder in FOLDER.iterdir():
        card = (folder / "README.md").read_text()
        assert all(f"## {part}" in card for part in ("Data", "Results", "Limits", "Licence"))


def test_name_gives_the_shipped_model_unless_something_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_shipped(TALKS) == FOLDER / TALKS
    assert find_shipped(Path("nothing")) == Path("nothing")
    with pytest.raises(UserError, match="The nearest is 'duplex_small'."):
        find_shipped(Path("duplex_smal"))
    assert find_shipped(Path("x") / TALKS) == Path("x") / TALKS
    TALKS.mkdir()
    assert find_shipped(TALKS) == TALKS


def test_shipped_model_waits_and_answers_the_shipped_question() -> None:
    loaded = load(TALKS)
    rate = loaded.talker.codec.sample_rate
    question = read_audio(FOLDER / TALKS / "question.flac", rate, 1)[0]
    _, words = talk(loaded.talker, question[: 6 * rate], loaded.sampling)
    heard = read_user_words(FOLDER / TALKS / "question.json").cut(0, 6)
    assert transcript_lines(words.merge(heard)) == [
        "  1.0 s  user   what i need is number",
        "  4.3 s  user   two",
        "  5.2 s  agent  you said two",
    ]


def test_shipped_reader_ends_by_itself_in_silence_and_stops_for_its_keyword(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sentencepiece")
    monkeypatch.setenv("HOME", str(tmp_path))
    loaded = load(READS)
    data = loaded.trained_by.data
    assert isinstance(data, InterruptedSpeech)
    assert loaded.chosen_sampling is not None
    prepared = prepare_speaker(data, loaded.system, Progress(quiet=True))
    heard = read_audio(FOLDER / READS / "heard.flac", 16_000, 1)[0]
    text = "i think five is the result so the heater must be low"
    ends = {}
    for kind, sound in (("silence", torch.zeros_like(heard)), ("keyword", heard)):
        audio = loaded.chosen_sampling.audio
        said = speak_text(prepared, text, sound, THRESHOLD, audio)
        ends[kind] = (said.end, round(said.said_s, 1))
    assert ends["silence"][0] == "finished"
    assert 2.2 < ends["silence"][1] < 3.2
    assert ends["keyword"] == ("interrupted", 1.8)  # the word begins at 1.3 s


def test_shipped_caller_makes_held_out_orders_before_they_are_over() -> None:
    loaded = load(CALLS)
    data = loaded.trained_by.data
    assert isinstance(data, SpokenOrdersData)
    served = [serve(loaded.system, data, number) for number in range(6)]
    assert any(one.request.stale for one in served)
    scores = order_scores(served)
    assert scores["right"].value == scores["said"].value == 1.0
    assert scores["stale"].value == 0.0
    assert scores["early"].value >= 0.5
