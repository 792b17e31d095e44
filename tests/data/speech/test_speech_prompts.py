import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.blocks.depth import DepthConfig
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.data.loader import Loader
from counterpoint.data.speech.dialogues import Example, encode_voice, read_dialogues
from counterpoint.data.speech.opening import Fillers, codec_fillers, hybrid_prompt
from counterpoint.data.speech.rows import RolePrompts, SpeechData, prepare_speech
from counterpoint.data.speech.text_rows import TextBatches
from counterpoint.data.speech.words import ByteWords
from counterpoint.data.text.corpus import Folder
from counterpoint.speech.audio import read_audio, write_audio
from counterpoint.speech.codec2 import Codec2
from counterpoint.speech.loudness import loudness_lufs, normalise_loudness
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems import sketch
from counterpoint.systems.moshi import AudioStream, Moshi, MoshiConfig, two_speakers

pytest.importorskip("soundfile")
pytest.importorskip("soxr")
pytest.importorskip("pycodec2")

ROLE = "You sell tea."
TAGGED = [ord(letter) for letter in f" <system> {ROLE} <system>"]
PAUSE = 12  # half a second of 40 ms frames


def sized(stream: AudioStream) -> AudioStream:
    return replace(stream, codebook_sizes=(512,) if stream.depth == 1 else (512, 16, 64))


CONFIG = MoshiConfig(
    temporal=TowerConfig(width=16, num_layers=1, num_heads=2, mlp_hidden=16, window=200),
    depth=DepthConfig(width=8, num_layers=1, num_heads=2, mlp_hidden=8),
    audio=tuple(sized(stream) for stream in two_speakers(3)),
    num_predicted=8,
    text_vocab_size=256,
    audio_vocab_size=512,
    tick_hz=25.0,
)


@pytest.fixture
def model() -> Moshi:
    return Moshi(CONFIG)


def write_dialogue(folder: Path, name: str, num_frames: int, beside: dict[str, Any]) -> str:
    generator = torch.Generator().manual_seed(num_frames)
    audio = 0.1 * torch.randn(2, 320 * num_frames, generator=generator).cumsum(1).sin()
    write_audio(folder / f"{name}.wav", audio, 8000)
    words = {"alignments": [["hi", [0.09, 0.2], "SPEAKER_MAIN"]]}
    (folder / f"{name}.json").write_text(json.dumps(words | beside))
    return json.dumps({"path": f"{name}.wav", "duration": num_frames / 25}) + "\n"


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A dialogue with a role (in two pieces), one with a voice too, one with neither."""
    lines = write_dialogue(tmp_path, "role", 30, {"text_conditions": {"description": ROLE}})
    lines += write_dialogue(tmp_path, "voice", 9, {"text_conditions": {"description": "Hum."}})
    lines += write_dialogue(tmp_path, "plain", 11, {"text_conditions": None})
    (tmp_path / "all.jsonl").write_text(lines)
    time_s = torch.arange(8000 // 5) / 8000
    write_audio(tmp_path / "voice.voice.wav", 0.05 * torch.sin(900 * time_s)[None], 8000)
    return tmp_path / "all.jsonl"


def rows_of(listed: Path, model: Moshi, **changes: Any) -> Any:
    values = {
        "train": str(listed),
        "row_s": 0.8,
        "role_prompts": True,
        "cache_folder": str(listed.parent / "cache"),
        **changes,
    }
    return prepare_speech(SpeechData(**values), model).train


def all_codes(batch: Any, part: str, speaker: str) -> Tensor:
    ticks = getattr(batch, part)
    return torch.cat((ticks[f"{speaker}_semantic"], ticks[f"{speaker}_acoustic"]), 2)


def test_roles_and_voices_are_read(listed: Path) -> None:
    role, voice, plain = read_dialogues(listed)
    assert (role.role, role.voice) == (ROLE, None)
    assert (voice.role, voice.voice) == ("Hum.", listed.parent / "voice.voice.wav")
    assert (plain.role, plain.voice) == ("", None)


def test_role_that_is_not_a_text_is_refused(tmp_path: Path) -> None:
    line = write_dialogue(tmp_path, "bad", 3, {"text_conditions": {"description": 7}})
    (tmp_path / "bad.jsonl").write_text(line)
    with pytest.raises(ValueError, match="`text_conditions` must be .*got {.description.: 7}"):
        read_dialogues(tmp_path / "bad.jsonl")


def test_prompt_that_is_too_long_names_its_recording(listed: Path) -> None:
    small = Moshi(replace(CONFIG, temporal=replace(CONFIG.temporal, window=50)))
    with pytest.raises(ValueError, match=r"role.wav: A prompt must be shorter than the model's"):
        rows_of(listed, small)


def test_fillers_are_what_the_codec_makes_of_silence_and_a_hum() -> None:
    codec, fillers = Codec2(), codec_fillers(Codec2())
    silence = codec.encode(torch.zeros(1, 8000))[0]
    hum = codec.encode(0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(8000) / 8000)[None])[0]
    assert fillers.agent in {tuple(frame) for frame in silence.tolist()}
    assert fillers.user in {tuple(frame) for frame in hum.tolist()}
    assert fillers.agent != fillers.user
    assert fillers.pause_s == Fillers().pause_s == 0.5


@pytest.mark.parametrize(("pause_s", "num_frames"), [(0.5, 12), (1.16, 29), (2.28, 57)])
def test_a_pause_has_every_frame_that_ends_in_it(
    model: Moshi, pause_s: float, num_frames: int
) -> None:
    """The float product of 1.16 s and 25 Hz is below 29."""
    fillers = replace(codec_fillers(Codec2()), pause_s=pause_s)
    prompt = hybrid_prompt(model, [5], fillers=fillers)
    assert prompt["text"].shape[1] == 2 * num_frames + 1


def test_loss_begins_at_the_first_frame_behind_the_prompt(listed: Path, model: Moshi) -> None:
    """Text and semantic ids at its tick, acoustic ones a tick later, when they come."""
    rows = rows_of(listed, model)
    batch, codec = rows.rows(torch.tensor([0]).numpy()), Codec2()
    prompt = 2 * PAUSE + len(TAGGED)
    piece = read_audio(listed.parent / "role.wav", 8000, 2)[:, : 20 * 320]
    agent, user = codec.encode(piece)
    written = batch.targets["text"][0]
    assert (written[:prompt] == UNSET_ID).all()
    assert written[prompt : prompt + 5].tolist() == [3, 0, ord(" "), ord("h"), ord("i")]
    for name, codes in (("agent", agent), ("user", user)):
        semantic, acoustic = (
            batch.targets[f"{name}_{kind}"][0] for kind in ("semantic", "acoustic")
        )
        assert (semantic[:prompt] == UNSET_ID).all()
        assert torch.equal(semantic[prompt : prompt + 20], codes[:, :1])
        # In the first tick the initial ids come, which carry no loss either.
        assert (acoustic[0] == CONFIG.audio_vocab_size).all()
        assert (acoustic[1 : prompt + 1] == UNSET_ID).all()
        assert torch.equal(acoustic[prompt + 1 : prompt + 20], codes[:19, 1:])
    assert (batch.size, batch.unit) == (20, "frame")


def test_prompt_is_read_and_what_follows_depends_on_it(listed: Path, model: Moshi) -> None:
    batch = rows_of(listed, model).rows(torch.tensor([0]).numpy())
    prompt, fillers = 2 * PAUSE + len(TAGGED), codec_fillers(Codec2())
    # A tick reads the frame before the one that it writes; the first reads the initial one.
    text = [3] * PAUSE + TAGGED + [3] * PAUSE
    assert batch.ticks["text"][0, 1 : prompt + 1].tolist() == text
    assert batch.elements["text"][0, :prompt].tolist() == text
    user = batch.ticks["user_semantic"][0, 1 : prompt + 1, 0]
    assert (user == fillers.user[0]).all()
    agent = batch.ticks["agent_acoustic"][0, 2 : prompt + 2]
    assert torch.equal(agent, torch.tensor(fillers.agent[1:]).expand(prompt, -1))


def test_rows_hold_whole_dialogues_and_plain_ones_have_no_prompt(
    listed: Path, model: Moshi
) -> None:
    rows = rows_of(listed, model, row_s=0.8)  # pieces of 20 frames
    longest = 2 * PAUSE + len(TAGGED)
    voice = encode_voice(listed.parent / "voice.voice.wav", Codec2(), str(listed.parent / "cache"))
    hum = len(voice) + 2 * PAUSE + len(" <system> Hum. <system>")
    assert hum < longest
    assert rows.row_ticks == 20 + longest
    batch = rows.rows(torch.arange(len(rows)).numpy())
    starts = [sorted(set(row)) for row in batch.document_start.tolist()]
    # Each piece of the first dialogue has its prompt: 20 and 10 frames, then 9, then 11 without.
    assert starts == [[0], [0, longest + 10], [0, hum + 9, hum + 9 + 11]]
    assert batch.size == 30 + 9 + 11
    plain = batch.targets["text"][2, hum + 9 : hum + 9 + 11]
    assert plain[:5].tolist() == [3, 0, ord(" "), ord("h"), ord("i")]
    assert (batch.targets["text"][2, hum + 9 + 11 :] == UNSET_ID).all()


def test_without_the_option_nothing_is_said_before(listed: Path, model: Moshi) -> None:
    rows = rows_of(listed, model, role_prompts=False, row_s=2.0)
    assert rows.row_ticks == 50
    assert rows.rows(torch.tensor([0]).numpy()).targets["text"][0, 0] == 3
    assert len(rows) == 1


def test_text_of_its_own_is_mixed_in(listed: Path, model: Moshi) -> None:
    (listed.parent / "texts").mkdir()
    (listed.parent / "texts" / "a.txt").write_text("Tea and more tea. " * 9)
    text = TextBatches(
        source=Folder(path=str(listed.parent / "texts")),
        share=0.5,
        row_ticks=32,
        cache_folder=str(listed.parent / "text"),
    )
    corpus = prepare_speech(
        SpeechData(train=str(listed), text=text, cache_folder=str(listed.parent / "cache")), model
    )
    batches = corpus.batches(2, seed=0)
    assert [batches.batch(step).kind for step in range(4)] == ["", "text", "", "text"]
    assert batches.batch(1).ticks["text"].shape == (2, 32)
    parts = [corpus.batches(2, 0, rank, 2).batch(3) for rank in (0, 1)]
    both = torch.cat([part.ticks["text"] for part in parts])
    assert torch.equal(both, batches.batch(3).ticks["text"])
    plain = prepare_speech(
        SpeechData(train=str(listed), cache_folder=str(listed.parent / "cache")), model
    )
    assert isinstance(plain.batches(2, seed=0), Loader)


def test_voice_is_brought_to_one_loudness_and_kept(listed: Path) -> None:
    path, cache = listed.parent / "voice.voice.wav", listed.parent / "cache"
    audio = read_audio(path, 8000, 1)
    expected = Codec2().encode(normalise_loudness(audio, 8000, -24.0))[0]
    assert loudness_lufs(audio, 8000) != pytest.approx(-24, abs=1)
    for _ in range(2):
        assert torch.equal(encode_voice(path, Codec2(), str(cache)), expected)
    (kept,) = cache.glob("voice-*.safetensors")
    kept.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="must hold the codes of a voice"):
        encode_voice(path, Codec2(), str(cache))


def test_voice_comes_first_and_needs_no_role(listed: Path) -> None:
    cache = str(listed.parent / "cache")
    prompts = RolePrompts(sketch(CONFIG), Codec2(), ByteWords(), cache)
    path = listed.parent / "voice.voice.wav"
    voice = encode_voice(path, Codec2(), cache)
    streams = {"text": torch.zeros(3, dtype=torch.long)}
    alone = prompts(Example(source="x", first_frame=0, streams=streams, voice=path))
    assert alone is not None
    assert alone["text"].tolist() == [[3] * (len(voice) + 2 * PAUSE)]
    agent = torch.cat((alone["agent_semantic"], alone["agent_acoustic"]), 2)[0]
    assert torch.equal(agent[: len(voice)], voice)
    assert prompts(Example(source="x", first_frame=0, streams=streams)) is None
    long = Example(source="x", first_frame=0, streams=streams, role="talk " * 40)
    with pytest.raises(ValueError, match="shorter than the model's window of 200 frames"):
        prompts(long)


def test_a_voice_that_is_too_long_is_not_encoded(tmp_path: Path) -> None:
    path, cache = tmp_path / "hour.wav", tmp_path / "cache"
    write_audio(path, torch.zeros(1, 8000 * 3600), 8000)
    prompts = RolePrompts(sketch(CONFIG), Codec2(), ByteWords(), str(cache))
    streams = {"text": torch.zeros(3, dtype=torch.long)}
    with pytest.raises(ValueError, match="window of 200 frames: got a voice of 90000"):
        prompts(Example(source="x", first_frame=0, streams=streams, voice=path))
    assert not cache.exists()


def test_a_prompt_gets_no_gradient_through_its_targets(listed: Path, model: Moshi) -> None:
    """Other ids in the prompt's targets change nothing; other ids behind it do."""
    batch = rows_of(listed, model).rows(torch.tensor([0]).numpy())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        before = float(model.loss(batch).total)
        prompt = 2 * PAUSE + len(TAGGED)
        for place, changes in ((prompt - 1, False), (prompt, True)):
            targets = {name: ids.clone() for name, ids in batch.targets.items()}
            text = targets["text"][0]
            text[place] = torch.where(text[place] >= 0, 65, text[place])
            after = float(model.loss(replace(batch, targets=targets)).total)
            assert (after != before) == changes
