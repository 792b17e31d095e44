import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.data.speech.dialogues import (
    DialogueConfig,
    DialogueExamples,
    encode_dialogues,
    read_dialogues,
)
from counterpoint.data.speech.hearing import Hearing
from counterpoint.data.speech.monologue import Word
from counterpoint.errors import UserError
from counterpoint.speech.audio import read_audio, write_audio
from counterpoint.speech.augment import Augmentation
from counterpoint.speech.codec2 import Codec2
from counterpoint.streams.spec import UNSET_ID

pytest.importorskip("soundfile")
pytest.importorskip("soxr")
pytest.importorskip("pycodec2")

NAN = float("nan")
CHUNK = 10  # frames of 40 ms
SAMPLES = 320 * 23 + 40  # chunks of 10, 10 and 4 frames
ECHO = Augmentation(
    gain_probability=0,
    noise_probability=0,
    echo_probability=1,
    echo_gain=(0.5, 1.0),
    echo_delay_s=(0.02, 0.2),
)


class CountingCodec(Codec2):
    """Remembers how much it was asked to encode."""

    num_encoded = 0

    def encode(self, audio: Tensor) -> Tensor:
        self.num_encoded += 1
        return super().encode(audio)


def encode_word(text: str) -> list[int]:
    return [100 + ord(letter) for letter in text]


def talk(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(2, SAMPLES, generator=generator).cumsum(1).sin()


def write_dialogue(
    folder: Path, name: str, audio: Tensor, alignments: Any, rate: int = 8000
) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    write_audio(folder / name, audio, rate)
    (folder / name).with_suffix(".json").write_text(json.dumps({"alignments": alignments}))
    return json.dumps({"path": name, "duration": audio.shape[1] / rate}) + "\n"


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Three recordings: with words, with unknown words, and at another sample rate."""
    alignments = [
        ["hi", [0.1, 0.2], "SPEAKER_MAIN"],  # frame 2
        ["user", [0.1, 0.3], "SPEAKER_00"],
        ["long", [0.36, 0.6], "SPEAKER_MAIN"],  # frame 9: the first chunk holds only its first id
        ["b", [0.44, 0.5], "SPEAKER_MAIN"],  # frame 11, frame 1 of the second chunk
    ]
    lines = write_dialogue(tmp_path, "wav/one.wav", talk(1), alignments)
    lines += "\n" + write_dialogue(tmp_path, "wav/two.wav", talk(2), None)
    lines += write_dialogue(tmp_path, "wav/three.wav", talk(3)[:, :4000], [], rate=16000)
    (tmp_path / "all.jsonl").write_text(lines)
    return tmp_path / "all.jsonl"


def config(folder: Path, **changes: Any) -> DialogueConfig:
    return DialogueConfig(**{"chunk_s": 0.4, "cache_folder": str(folder / "cache"), **changes})


def test_list_and_words_are_read(listed: Path) -> None:
    one, two, three = read_dialogues(listed)
    assert one.audio == listed.parent / "wav" / "one.wav"
    assert one.duration_s == SAMPLES / 8000
    assert one.words == (Word("hi", 0.1, 0.2), Word("long", 0.36, 0.6), Word("b", 0.44, 0.5))
    assert (two.words, three.words) == (None, ())


def test_examples_hold_the_codes_of_their_chunk(listed: Path) -> None:
    dialogues, codec = read_dialogues(listed), Codec2()
    files = encode_dialogues(dialogues, codec, config(listed.parent))
    examples = DialogueExamples(dialogues, files, encode_word)
    # 7400 samples are 10 + 10 + 4 frames; 4000 at 16 kHz are 2000 at 8 kHz, 7 frames.
    assert [len(e.streams["text"]) for e in examples] == [10, 10, 4, 10, 10, 4, 7]
    assert [e.first_frame for e in examples] == [0, 10, 20, 0, 10, 20, 0]
    assert [Path(e.source).stem for e in examples] == ["one"] * 3 + ["two"] * 3 + ["three"]
    audio = read_audio(dialogues[0].audio, 8000, 2)
    for example, chunk in zip(examples[:3], audio.split(CHUNK * 320, 1), strict=True):
        left, right = codec.encode(chunk)
        assert torch.equal(example.streams["agent"], left)
        assert torch.equal(example.streams["user"], right)
        assert example.streams["user"].dtype == torch.long
    assert not torch.equal(examples[0].streams["agent"], examples[0].streams["user"])


def test_text_is_the_monologue_of_the_chunk(listed: Path) -> None:
    dialogues = read_dialogues(listed)
    files = encode_dialogues(dialogues, Codec2(), config(listed.parent))
    examples = DialogueExamples(dialogues, files, encode_word, pad_id=7, epad_id=8)
    h, i, first, b = (encode_word(letter)[0] for letter in "hilb")
    assert examples[0].streams["text"].tolist() == [7, 8, h, i, 7, 7, 7, 7, 8, first]
    assert examples[1].streams["text"].tolist() == [8, b, *[7] * 8]
    assert examples[2].streams["text"].tolist() == [7] * 4
    assert examples[3].streams["text"].tolist() == [UNSET_ID] * 10  # words are not known
    assert examples[-1].streams["text"].tolist() == [7] * 7
    assert DialogueExamples(dialogues, files, encode_word)[2].streams["text"].tolist() == [3] * 4


def test_encoding_is_done_once(listed: Path) -> None:
    dialogues, codec = read_dialogues(listed), CountingCodec()
    progress: list[tuple[float, float]] = []
    files = encode_dialogues(
        dialogues, codec, config(listed.parent), lambda *seconds: progress.append(seconds)
    )
    assert codec.num_encoded == 7
    total_s = 2 * SAMPLES / 8000 + 4000 / 16000
    assert progress[0] == pytest.approx((SAMPLES / 8000, total_s))
    assert progress[-1] == pytest.approx((total_s, total_s))
    assert encode_dialogues(dialogues, codec, config(listed.parent)) == files
    # Another name or place of the same audio makes no difference.
    moved = dialogues[0].audio.rename(listed.parent / "moved.wav")
    dialogues[0].audio.with_suffix(".json").rename(moved.with_suffix(".json"))
    listed.write_text(json.dumps({"path": "moved.wav", "duration": 1}))
    assert encode_dialogues(read_dialogues(listed), codec, config(listed.parent)) == files[:1]
    assert codec.num_encoded == 7


@pytest.mark.parametrize(
    "changes", [{"chunk_s": 0.2}, {"augmentation": ECHO}, {"augmentation": ECHO, "seed": 1}]
)
def test_other_settings_are_other_codes(listed: Path, changes: dict[str, Any]) -> None:
    dialogues, codec = read_dialogues(listed)[:1], Codec2()
    plain = encode_dialogues(dialogues, codec, config(listed.parent))
    assert encode_dialogues(dialogues, codec, config(listed.parent, seed=9)) == plain
    other = encode_dialogues(dialogues, codec, config(listed.parent, **changes))
    assert other != plain
    folder = listed.parent / "cache"
    assert sorted(folder.iterdir()) == sorted([*plain, *other])


def test_stopped_encoding_goes_on(listed: Path) -> None:
    dialogues, codec = read_dialogues(listed), CountingCodec()

    def stop(done_s: float, total_s: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_dialogues(dialogues, codec, config(listed.parent), stop)
    assert codec.num_encoded == 3
    encode_dialogues(dialogues, codec, config(listed.parent))
    assert codec.num_encoded == 7


def test_processes_that_begin_elsewhere_share_the_work(listed: Path) -> None:
    """Each goes on where another one has been, and all get the same files."""
    dialogues, codec = read_dialogues(listed), CountingCodec()
    expected = encode_dialogues(
        dialogues, Codec2(), config(listed.parent, cache_folder=str(listed.parent / "other"))
    )
    order: list[float] = []
    for first in (1, 0, 2, 3):
        files = encode_dialogues(
            dialogues, codec, config(listed.parent), lambda done, of: order.append(done), first
        )
        assert [file.name for file in files] == [file.name for file in expected]
    assert codec.num_encoded == 7
    assert order[0] == dialogues[1].duration_s


def test_bytes_that_are_no_text_are_named(listed: Path) -> None:
    (listed.parent / "wav" / "one.json").write_bytes(b"\xff{}")
    with pytest.raises(ValueError, match="must be UTF-8: .*one.json has the byte 0xff"):
        read_dialogues(listed)
    listed.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="must be UTF-8"):
        read_dialogues(listed)


def test_only_the_user_is_augmented(listed: Path) -> None:
    dialogues, codec = read_dialogues(listed)[:1], Codec2()
    found = []
    for seed in (None, 0, 1):
        changes = {} if seed is None else {"augmentation": ECHO, "seed": seed}
        files = encode_dialogues(dialogues, codec, config(listed.parent, **changes))
        found.append(DialogueExamples(dialogues, files, encode_word)[0].streams)
    plain, echo, other = found
    assert torch.equal(plain["agent"], echo["agent"])
    assert torch.equal(plain["agent"], other["agent"])
    assert not torch.equal(plain["user"], echo["user"])
    assert not torch.equal(echo["user"], other["user"])


def test_mono_is_refused(listed: Path) -> None:
    write_audio(listed.parent / "wav" / "two.wav", talk(1)[:1], 8000)
    with pytest.raises(ValueError, match=r"two channels, the agent left.*two.wav' has 1"):
        encode_dialogues(read_dialogues(listed), Codec2(), config(listed.parent))


@pytest.mark.parametrize("chunk_s", [0.0, 0.05, -0.4, float("nan"), float("inf")])
def test_chunks_are_whole_frames(chunk_s: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`chunk_s` must be a whole number of frames of 0.04 s"):
        encode_dialogues([], Codec2(), config(tmp_path, chunk_s=chunk_s))


@pytest.mark.parametrize("content", [b"", b"no tensors here, only text"])
def test_damaged_codes_are_named(listed: Path, content: bytes) -> None:
    dialogues = read_dialogues(listed)[:1]
    (file,) = encode_dialogues(dialogues, Codec2(), config(listed.parent))
    file.write_bytes(content)
    with pytest.raises(ValueError, match="Delete it and encode again"):
        DialogueExamples(dialogues, [file], encode_word)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "line 1 must be a JSON object: it is not JSON"),
        ("[1]", "line 1 must be a JSON object: it is a list"),
        ('{"path": "a.wav"}', "must have a text `path` and a number `duration`"),
        ('{"path": "a.wav", "duration": NaN}', "must have a text `path` and a number `duration`"),
        ('{"path": "a.wav", "duration": -1}', "must have a text `path` and a number `duration`"),
        ('{"path": "a.wav", "duration": 1}', "a.json' is missing"),
        ("", "must name at least one"),
    ],
)
def test_wrong_lists_are_named(tmp_path: Path, line: str, fault: str) -> None:
    (tmp_path / "all.jsonl").write_text(line)
    with pytest.raises(ValueError, match=fault):
        read_dialogues(tmp_path / "all.jsonl")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ({}, "must be a JSON object with the field `alignments`"),
        ([], "must be a JSON object with the field `alignments` .*got list"),
        ({"alignments": [["a", [0.1], "SPEAKER_MAIN"]]}, "each alignment must have .start, end"),
        ({"alignments": [["a", [0.1, None], "SPEAKER_MAIN"]]}, "each alignment must have .start"),
        ({"alignments": [["a", ["0", 1], "SPEAKER_MAIN"]]}, "each alignment must have .start"),
        ({"alignments": [["a", [True, 1], "SPEAKER_MAIN"]]}, "each alignment must have .start"),
        ({"alignments": [["a", [0, 1]]]}, "each alignment must be"),
        ({"alignments": [["a", [0, 1], None]]}, "each alignment must be .*the speaker of 'a' is"),
        ({"alignments": [[None, [0, 1], "SPEAKER_MAIN"]]}, "a word that is text: got None"),
        ({"alignments": [[3, [0, 1], "SPEAKER_MAIN"]]}, "a word that is text: got 3"),
        ({"alignments": [["\ud800", [0, 1], "SPEAKER_MAIN"]]}, "half of a surrogate pair"),
        ({"alignments": [["Hi", [0.5, 0.9], "SPEAKER_00"]]}, "words of 'SPEAKER_00' alone"),
        ({"alignments": 3}, "each alignment must be"),
        ({"alignments": [["a", [NAN, 1], "SPEAKER_MAIN"]]}, r"a.json: times must be finite"),
        ({"alignments": [], "text_conditions": "kind"}, "`text_conditions` must be .* got 'kind'"),
        ({"alignments": [], "text_conditions": {"description": 3}}, "`text_conditions` must be"),
    ],
)
def test_wrong_words_are_named(tmp_path: Path, words: Any, fault: str) -> None:
    (tmp_path / "all.jsonl").write_text('{"path": "a.wav", "duration": 1}')
    (tmp_path / "a.json").write_text(json.dumps(words))
    with pytest.raises(ValueError, match=fault):
        read_dialogues(tmp_path / "all.jsonl")


def test_a_missing_recording_is_named(listed: Path) -> None:
    dialogues = read_dialogues(listed)
    dialogues[1].audio.unlink()
    with pytest.raises(ValueError, match=r"must be an existing file: got .*two.wav"):
        encode_dialogues(dialogues, Codec2(), config(listed.parent))
    with pytest.raises(ValueError, match="must be an existing file"):
        read_dialogues(listed.with_name("other.jsonl"))


def test_words_that_are_left_out_or_cut_short_are_counted(listed: Path) -> None:
    """Of ten: three have no place, two share one, two lose ids to the next or to the chunk."""
    alignments = [
        ["no length", [0.05, 0.05], "SPEAKER_MAIN"],
        ["behind", [50, 51], "SPEAKER_MAIN"],
        ["before", [-1, 0.1], "SPEAKER_MAIN"],
        ["I", [0.2, 0.24], "SPEAKER_MAIN"],
        ["am", [0.21, 0.3], "SPEAKER_MAIN"],
        ["long", [0.28, 0.4], "SPEAKER_MAIN"],
        ["b", [0.32, 0.5], "SPEAKER_MAIN"],
        ["longer", [0.36, 0.6], "SPEAKER_MAIN"],
        ["c", [0.44, 0.5], "SPEAKER_MAIN"],
        ["c", [0.6, 0.7], "SPEAKER_MAIN"],
        ["", [0.64, 0.7], "SPEAKER_MAIN"],
    ]
    words = listed.parent / "wav" / "one.json"
    words.write_text(json.dumps({"alignments": alignments}))
    dialogues = read_dialogues(listed)
    files = encode_dialogues(dialogues, Codec2(), config(listed.parent))
    note = DialogueExamples(dialogues, files, encode_word).note()
    assert note.startswith("of 10 words 4 are left out")
    assert note.endswith("and 2 are cut short")
    words.write_text(json.dumps({"alignments": alignments[-2:]}))
    assert DialogueExamples(read_dialogues(listed), files, encode_word).note() == ""


def test_a_user_who_speaks_alone_is_named(listed: Path) -> None:
    words = listed.parent / "wav" / "one.json"
    words.write_text(json.dumps({"alignments": [["a", [0, 1], "SPEAKER_OTHER"]]}))
    assert read_dialogues(listed)[0].words == ()
    words.write_text(json.dumps({"alignments": [["a", [0, 1], "SPEAKER_01"]]}))
    with pytest.raises(UserError, match="must name the agent 'SPEAKER_MAIN'.* of 'SPEAKER_01'"):
        read_dialogues(listed)
    heard = read_dialogues(listed, Hearing(after_s=0.1))[0].words
    assert heard is not None
    assert [word.text for word in heard] == ["a"]
