"""The verb `talk` on real files: what it writes, and what it says about files that do not fit."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from counterpoint.blocks.low_rank import LowRankConfig, add_low_rank
from counterpoint.cli import talk as verb
from counterpoint.cli.main import main as counterpoint
from counterpoint.cli.running import Running
from counterpoint.cli.talk import main
from counterpoint.data.speech.dialogues import VOICE_LUFS, read_dialogues
from counterpoint.data.speech.opening import codec_fillers, hybrid_prompt
from counterpoint.errors import UserError
from counterpoint.evaluate.report import answer
from counterpoint.evaluate.report.answer import answer_files
from counterpoint.formats.moshi.checkpoint import load_moshi, save_adapters
from counterpoint.formats.moshi.voice import record_voice, write_voice
from counterpoint.runtime import talk as conversation
from counterpoint.runtime.load import load
from counterpoint.runtime.talk import Conversation, Talker, converse
from counterpoint.speech.audio import read_audio, resample
from counterpoint.speech.loudness import normalise_loudness
from counterpoint.streams.timeline import Timeline
from counterpoint.systems.moshi import Moshi
from tests.cli import examples, talkers
from tests.cli.talkers import change_weights, codec2_config, write_published, write_run

GREEDY = ("--text-temperature", "0", "--audio-temperature", "0")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a model that talks."""
    folder = tmp_path_factory.mktemp("talker")
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("published"))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def talker_of(path: str) -> Talker:
    return load(Path(path)).talker


def moshi_of(talker: Talker) -> Moshi:
    assert isinstance(talker.system, Moshi)
    return talker.system


def write_voices_that_do_not_fit(run: Path) -> None:
    """Of the width, of the weights, or of the length of another model."""
    speaker = load(run).talker
    zero = {
        stream.name: torch.zeros(1, 1, *stream.element_shape, dtype=torch.long)
        for stream in speaker.system.layout.streams
    }
    embedding = moshi_of(speaker).embed(zero).detach()
    wide = torch.nn.functional.pad(embedding, (0, 1))
    for name, found in (
        ("other", wide.repeat(3, 1, 1, 1)),
        ("alien", embedding.expand(3, 1, 1, -1) + 1),
        ("long", embedding.repeat(290, 1, 1, 1)),
    ):
        cache = torch.zeros(1, 9, 4, dtype=torch.long)
        torch.save({"embeddings": found, "cache": cache}, f"{name}.pt")


def record(name: str, duration_s: float = 0.5, rate: int = 8000, channels: int = 1) -> np.ndarray:
    """Write bursts of noise, other ones in each channel."""
    time_s = np.arange(round(duration_s * rate)) / rate
    noise = 0.2 * np.random.default_rng(0).standard_normal((len(time_s), channels))
    samples = noise * (time_s % 1 < 0.6)[:, None]
    soundfile.write(name, samples, rate, subtype="FLOAT")
    return samples


def talk(checkpoint: Path, *more: str, source: str = "in.wav", output: str = "out.wav") -> None:
    assert main([str(checkpoint), "--input", source, "--output", output, *more]) == 0


def test_all_files_are_written_and_fit_together(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record("in.wav", 1.5)
    Path("user.json").write_text(json.dumps({"alignments": [["hello", [0.1, 0.4], "A"]]}))
    talk(run, "--words", "user.json", "--text-temperature", "2")
    shown = capsys.readouterr().out
    for path in answer_files(Path("out.wav")).values():
        assert path.stat().st_size > 0
        assert path.name in shown
    assert "turns answered" in shown
    assert "of 40 ms" in shown
    said = json.loads(Path("out.json").read_text())
    assert Path("out.txt").read_text() == said["text"] + "\n"
    assert said["text"] == " ".join(chunk["text"] for chunk in said["chunks"])
    assert said["chunks"]
    for chunk, (text, times, speaker) in zip(said["chunks"], said["alignments"], strict=True):
        assert (chunk["text"], chunk["timestamp"], speaker) == (text, times, "SPEAKER_MAIN")
        assert 0.04 <= times[0] < times[1] <= 1.5
    timeline = Timeline.read(Path("out.timeline.jsonl"))
    assert timeline.header["options"]["text_temperature"] == 2
    assert [word.text for word in timeline.where(kind="word", stream="user")] == ["hello"]
    assert len(timeline.where(kind="word", stream="agent")) == len(said["chunks"])
    assert len(timeline.where(kind="turn")) >= 1
    assert "data:audio/wav;base64," in Path("out.html").read_text()


def test_answer_is_a_dialogue_to_train_on(run: Path) -> None:
    record("in.wav", 1.0)
    talk(run)
    Path("list.jsonl").write_text(json.dumps({"path": "out.wav", "duration": 1.0}))
    (dialogue,) = read_dialogues("list.jsonl")
    assert dialogue.words is not None
    assert " ".join(word.text for word in dialogue.words) == Path("out.txt").read_text().strip()


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44_100, 2), (16_000, 5), (6000, 1)])
def test_recordings_are_converted(run: Path, rate: int, channels: int) -> None:
    """The user's channel is what the model heard: the mean of all channels, at its own rate."""
    samples = record("in.wav", 0.5, rate, channels)
    talk(run, *GREEDY)
    heard = torch.from_numpy(samples.mean(1)).float()[None]
    both = read_audio("out.wav", 8000, 2)
    expected = resample(heard, rate, 8000)[0]
    assert abs(both.shape[1] - 4000) <= 1
    length = min(both.shape[1], len(expected))
    assert torch.allclose(both[1, :length], expected[:length], atol=1e-3)
    assert both[0, :320].abs().max() == 0
    assert both[0].abs().max() > 0


def test_one_channel_may_be_chosen(run: Path) -> None:
    samples = record("in.wav", channels=3)
    talk(run, "--channel", "2")
    both = read_audio("out.wav", 8000, 2)
    assert torch.allclose(both[1], torch.from_numpy(samples[:, 2]).float(), atol=1e-4)
    with pytest.raises(ValueError, match="`--channel` must be 0 to 2: got 3"):
        talk(run, "--channel", "3")


@pytest.mark.parametrize("num_samples", [1, 319, 320, 321])
def test_recordings_of_any_length_are_answered(run: Path, num_samples: int) -> None:
    soundfile.write("in.wav", np.full(num_samples, 0.1), 8000)
    talk(run)
    assert read_audio("out.wav", 8000, 2).shape == (2, num_samples)


def test_silence_is_answered_without_turns(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write("in.wav", np.zeros(4000), 8000)
    talk(run)
    assert "0 of 0" in capsys.readouterr().out
    assert "The user does not speak" in Path("out.html").read_text()


def test_tail_is_heard_behind_the_recording(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record("in.wav", 0.6)
    talk(run, "--tail", "1.3")
    both = read_audio("out.wav", 8000, 2)
    assert both.shape == (2, 4800 + 10_400)
    assert both[1, 4800:].abs().max() == 0
    assert both[0, 4800:].abs().max() > 0
    talk(run)
    assert "`--tail 10` listens on" in capsys.readouterr().err


def test_answer_is_a_function_of_its_options(run: Path) -> None:
    record("in.wav", 0.3)

    def said(*more: str) -> str:
        talk(run, *more)
        return Path("out.json").read_text()

    usual = said()
    assert usual == said("--seed", "0", "--prompt", " ")
    assert usual != said("--seed", "1")
    assert said(*GREEDY) == said(*GREEDY, "--seed", "1") != usual
    assert usual != said("--prompt", "You sell tea.")
    record("voice.wav", 1.0, 16_000)
    assert usual != said("--voice", "voice.wav")


def test_large_recordings_stay_beside_their_page(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record("in.wav")
    monkeypatch.setattr(answer, "_EMBEDDED_BYTES", 100)
    talk(run, output="an answer.wav")
    page = Path("an answer.html").read_text()
    assert '<audio controls src="an%20answer.wav">' in page
    assert "data:audio" not in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--input none.wav", "must be an existing file: got 'none.wav'"),
        ("--input notes.txt", "must be an audio file"),
        ("--input empty.wav", "must hold at least one sample: 'empty.wav' is empty"),
        ("--input short.wav", "must last at least one sample of the codec, 0.000125 s: got 0.0000"),
        ("--input nan.wav", "'nan.wav': Audio must hold finite numbers: got 1 that are NaN"),
        ("--voice nan.wav", "'nan.wav': Audio must hold finite numbers"),
        ("--input cut.flac", "'cut.flac' must be an audio file, and complete"),
        ("--voice cut.flac", "'cut.flac' must be an audio file, and complete"),
        ("--pin", "`--pin` must have what it keeps: got none. Give `--prompt` or `--voice`"),
        ("--output out.mp3", "must end in .wav: got 'out.mp3'"),
        ("--output none/out.wav", "The folder of `--output` must exist: 'none'"),
        ("--output in.wav", "must not overwrite an input: in.wav is both"),
        ("--words words.json --output words.wav", "words.json is both"),
        ("--voice none.wav", "must be an existing file: got 'none.wav'"),
        ("--voice none.pt", "`--voice` must be an existing file: got 'none.pt'"),
        ("--voice text.pt", "text.pt must be a complete file of plain tensors"),
        ("--voice other.pt", "other.pt must have the shapes .* Use a voice made for this model"),
        ("--voice alien.pt", "must belong to the model that hears it"),
        ("--voice long.pt", "window of 300 frames: got 314, of which 290 are the voice. Take a"),
        ("--voice silent.wav", "louder than -70.0 LUFS"),
        ("--words none.json", "`--words` must be an existing file: got 'none.json'"),
        ("--output folder.wav", "`--output` must be a file: 'folder.wav' is a folder"),
        ("--words folder.wav", "`--words` must be an existing file: got 'folder.wav'"),
        ("--device meta", "`--device` must be auto, cpu, cuda, mps, .*: got 'meta'"),
        ("--words words.json", "must be a JSON object with the field `alignments` .or `chunks`."),
        ("--tail -1", "`--tail` must be 0 to 600 seconds: got -1"),
        ("--tail nan", "`--tail` must be 0 to 600 seconds: got nan"),
        ("--audio-temperature -1", "`temperature` must be >= 0"),
        ("--device abacus", "`--device` must be auto, cpu, cuda, mps, .*: got 'abacus'"),
        ("--prompt " + 400 * "x", "shorter than the model's window of 300 frames"),
        ("--temperature 1", "The nearest is"),
    ],
)
def test_mistakes_are_told_in_one_line(run: Path, words: str, message: str) -> None:
    record("in.wav")
    Path("folder.wav").mkdir()
    for name in ("notes.txt", "text.pt"):
        Path(name).write_text("no sound")
    Path("words.json").write_text("[]")
    if ".pt" in words:
        write_voices_that_do_not_fit(run)
    soundfile.write("cut.flac", record("cut.wav", 3.0), 8000)
    whole = Path("cut.flac").read_bytes()
    Path("cut.flac").write_bytes(whole[: len(whole) // 2])
    soundfile.write("empty.wav", np.zeros(0), 8000)
    soundfile.write("short.wav", np.zeros(1), 48_000)
    soundfile.write("silent.wav", np.zeros(8000), 8000)
    broken = np.zeros(20_000)
    broken[15_000] = np.nan
    soundfile.write("nan.wav", broken, 8000, subtype="FLOAT")
    before = set(Path().iterdir())
    with pytest.raises(ValueError, match=message) as caught:
        main([str(run), "--input", "in.wav", "--output", "out.wav", *words.split()])
    assert "\n" not in str(caught.value)
    assert set(Path().iterdir()) == before  # nothing half written


def test_voice_beyond_the_window_is_refused_before_it_is_read(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record("in.wav")
    soundfile.write("hour.wav", np.zeros(3_600_000), 1000)
    monkeypatch.setattr(conversation, "read_audio", lambda *_: pytest.fail("it was read"))
    with pytest.raises(ValueError, match="window of 300 frames: got a voice of 90000"):
        talk(run, "--voice", "hour.wav")


def test_place_that_cannot_be_written_is_told_in_one_line(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record("in.wav")
    assert counterpoint(["talk", str(run), "--input", "in.wav", "--output", "/proc/o.wav"]) == 2
    complaint = capsys.readouterr().err
    assert "'/proc/o.wav' must be writable" in complaint
    assert complaint.count("\n") == 1


def test_prompt_may_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing changes until the prompt of 46 frames would leave the window of 60."""
    monkeypatch.setattr(talkers, "codec2_config", lambda: codec2_config(window=60))
    write_run(Path("short"))
    record("in.wav", 1.2)
    held: list[Conversation] = []

    def keep(conversation: Conversation, *more: Any) -> Any:
        held.append(conversation)
        return converse(conversation, *more)

    monkeypatch.setattr(verb, "converse", keep)
    for pin in ((), ("--pin",)):
        talk(Path("short"), "--prompt", "tea", "--text-temperature", "2", *pin)
    assert Timeline.read(Path("out.timeline.jsonl")).header["options"]["pin"] is True
    said = [conversation.text_ids for conversation in held]
    assert said[0][: 60 - 46 - 1] == said[1][: 60 - 46 - 1]
    assert said[0] != said[1]


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        (r"cost $\frac{ $", "utf-8"),
        ("[red]a :smile: %s{0}", "utf-8"),
        ("é\N{GRINNING FACE}", "ascii"),
        ("a\udcff", "utf-8"),
    ],
)
def test_any_name_of_a_file_can_be_told(
    run: Path, name: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is no text, on a terminal that cannot show it."""
    record("in.wav", 0.3)
    Path("in.wav").rename(f"{name}.wav")
    Path("words.json").write_text(json.dumps({"alignments": [[name[:1], [0.1, 0.4], "A"]]}))
    Path("words.json").rename(f"{name}.json")
    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, encoding=encoding))
    names = ["--input", f"{name}.wav", "--words", f"{name}.json", "--output", f"out {name}.wav"]
    assert counterpoint(["talk", str(run), *names]) == 0
    assert printed.getvalue().decode(encoding).count(".html") == 1
    for path in answer_files(Path(f"out {name}.wav")).values():
        assert path.stat().st_size > 0


def test_what_is_wrong_at_the_end_is_told_at_the_start(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversation would be lost: nothing is loaded before the whole input was read."""
    monkeypatch.setattr(Running, "load", lambda *_, **__: pytest.fail("it was loaded"))
    soundfile.write("in.flac", record("in.wav", 3.0), 8000)
    content = bytearray(Path("in.flac").read_bytes())
    content[25] += 1  # one sample more than there are
    Path("in.flac").write_bytes(content)
    with pytest.raises(UserError, match="its header declares 24001 samples, and 24000 came"):
        talk(run, source="in.flac")


def test_samples_beyond_full_scale_are_counted(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = record("in.wav", 0.5)
    talk(run, *GREEDY)
    assert "clipped" not in capsys.readouterr().err
    soundfile.write("in.wav", samples * 4, 8000, subtype="FLOAT")
    num_loud = int((np.abs(samples.astype("f4") * 4) > 1).sum())
    talk(run, *GREEDY)
    assert f"{num_loud:,} samples of out.wav are beyond full scale" in capsys.readouterr().err
    soundfile.write("in.wav", samples * 14_492, 8000, subtype="FLOAT")
    with pytest.raises(UserError, match="'in.wav': Samples must have full scale at 1"):
        talk(run, *GREEDY)


def test_input_and_output_must_be_given(run: Path) -> None:
    with pytest.raises(ValueError, match="--output"):
        main([str(run), "--input", "in.wav"])


def test_system_for_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from counterpoint.cli.train import main as train

    examples.write(tmp_path)
    assert train(["small.py"]) == 0
    with pytest.raises(
        ValueError, match="that talks, trained on speech: got TwoStream, trained on te"
    ):
        talker_of("runs/small")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": "norm.weight"}, "Missing key.* norm.weight"),
        ({"add": "norm.bias"}, "Unexpected key.* norm.bias"),
    ],
)
def test_checkpoint_with_other_weights_is_refused(
    run: Path, change: dict[str, str], message: str
) -> None:
    shutil.copytree(run, "copy")
    (checkpoint,) = Path("copy/checkpoints").iterdir()
    change_weights(checkpoint, **change)
    with pytest.raises(ValueError, match=message.replace(" ", r".*")):
        talker_of("copy")
    with pytest.raises(ValueError, match="a checkpoint or a run folder"):
        talker_of("nowhere")


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_published_folder_talks(published: Path, name: str) -> None:
    record("in.wav", 0.4, 24_000)
    talk(published / name, "--prompt", "you are a kind teacher", "--text-temperature", "2")
    both = read_audio("out.wav", 24_000, 2)
    assert both.shape == (2, 9600)
    assert both[0, : 2 * 1920 - 1920].abs().max() == 0
    assert both[0].abs().max() > 0


@pytest.mark.parametrize("name", ["voice.pt", "voice.safetensors"])
@pytest.mark.parametrize("role", ["", "you are a kind teacher"])
def test_cached_voice_is_as_its_recording(published: Path, name: str, role: str) -> None:
    record("in.wav", 1.0, 24_000)
    record("voice.wav", 1.3, 24_000)
    speaker = load(published).talker
    heard = normalise_loudness(read_audio("voice.wav", 24_000, 1), 24_000, VOICE_LUFS)
    fillers = replace(codec_fillers(speaker.codec), pause_s=0)
    prompt = hybrid_prompt(speaker.system, (), speaker.codec.encode(heard)[0], fillers)
    voice = record_voice(moshi_of(speaker), prompt)
    write_voice(voice, speaker.system.config, Path(name))
    said = []
    for given in (name, "voice.wav"):
        talk(published, *GREEDY, "--voice", given, "--prompt", role)
        said.append(read_audio("out.wav", 24_000, 2))
    assert torch.equal(*said)
    talk(published, *GREEDY, "--prompt", role)
    assert not torch.equal(read_audio("out.wav", 24_000, 2), said[0])


@pytest.mark.parametrize(
    "name", ["tokenizer-e351c8d8-checkpoint125.safetensors", "tokenizer_spm_32k_3.model"]
)
def test_published_folder_must_be_whole(published: Path, name: str) -> None:
    shutil.copytree(published, "copy")
    (Path("copy") / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        talker_of("copy")
    (Path("copy") / name).write_bytes(b"neither")
    with pytest.raises(ValueError, match="must be|must hold"):
        talker_of("copy")


@pytest.mark.parametrize("content", ["{", "[]", '{"mimi_name": "other"}'])
def test_config_of_a_published_folder_is_read(published: Path, content: str) -> None:
    shutil.copytree(published, "copy")
    Path("copy/config.json").write_text(content)
    with pytest.raises(ValueError, match="it is not JSON|an object: got list|other is miss"):
        talker_of("copy")


def test_published_model_of_both_speakers_is_trimmed_to_its_own(published: Path) -> None:
    assert load_moshi(published).config.num_predicted == 16
    speaker = load(published).talker
    assert speaker.system.config.num_predicted == 8
    assert speaker.codec.codebook_sizes == (32,) * 8
    assert speaker.fillers is None  # those of PersonaPlex are of another Mimi


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_weights_may_be_stored_in_another_type(published: Path, run: Path, dtype: str) -> None:
    record("in.wav")
    for model in (published, run):
        talk(model, "--dtype", dtype, *GREEDY)
    talker = load(published, dtype="int8").talker
    kinds = {type(part).__name__ for part in talker.system.modules()}
    assert {"Int8Linear", "Int8StepLinear"} <= kinds
    assert moshi_of(load(published, dtype="float32").talker).head.weight.dtype == torch.float32


def test_adapters_are_heard(published: Path) -> None:
    record("in.wav")
    model = load_moshi(published, dtype=torch.float32)
    low_rank = LowRankConfig(rank=2)
    add_low_rank(model, low_rank, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    save_adapters(model, Path("adapters"), low_rank)
    talk(published, *GREEDY, output="plain.wav")
    talk(published, "--lora", "adapters", *GREEDY, output="folder.wav")
    talk(published, "--lora", "adapters/lora.safetensors", *GREEDY, output="file.wav")
    plain, folder, file = (Path(f"{name}.wav").read_bytes() for name in ("plain", "folder", "file"))
    assert folder == file
    assert folder != plain


def test_adapters_belong_to_a_published_model(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record("in.wav")
    words = ["talk", str(run), "--input", "in.wav", "--output", "o.wav", "--lora", "adapters"]
    assert counterpoint(words) == 2
    assert "Adapters can be used with a published model only" in capsys.readouterr().err
