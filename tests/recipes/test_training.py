"""A run goes on with the recordings that it began with."""

import json
import shutil
from pathlib import Path

import pytest

from counterpoint.config_json import decode, encode
from counterpoint.data.making.interrupted import InterruptedSpeech
from counterpoint.recipes.loading import load_recipe
from counterpoint.recipes.training import _keep_files, prepare_share, prepare_together, train_run
from counterpoint.speech.augment import Augmentation
from counterpoint.train.checkpoint import CheckpointError
from counterpoint.train.distributed import World
from counterpoint.train.run import Run
from tests.cli import examples

pytest.importorskip("soundfile")
pytest.importorskip("pycodec2")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two steps of a run are done, in ``run``."""
    folder = tmp_path_factory.mktemp("begun")
    examples.write(folder)
    examples.write_speech(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train_run(with_steps(recipe(), 2), Path("run"), World()).counters.step == 2
    return folder


@pytest.fixture
def run(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The run, in a copy of the folder."""
    shutil.copytree(begun, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return recipe()


def recipe() -> Run:
    found = load_recipe("small.py:speaking")
    assert isinstance(found, Run)
    return found


def with_steps(run: Run, num_steps: int, **data: object) -> Run:
    fields = encode(run)
    fields["train"]["num_steps"] = num_steps
    fields["data"] |= data
    changed = decode(Run, fields)
    assert isinstance(changed, Run)
    return changed


def change_words(name: str) -> None:
    file = Path("spoken") / f"{name}.json"
    record = json.loads(file.read_text())
    record["alignments"][0][0] = "other"
    file.write_text(json.dumps(record))


def drop_last() -> None:
    file = Path("spoken/train.jsonl")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


def swap() -> None:
    file = Path("spoken/train.jsonl")
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))


@pytest.mark.parametrize("content", ["[]", "{}"])
def test_a_foreign_record_is_refused(run: Run, content: str) -> None:
    Path("run/learned.json").write_text(content)
    with pytest.raises(CheckpointError, match="must say .*: it needs data, recordings"):
        train_run(with_steps(run, 3), Path("run"), World())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda: change_words("1"), r"spoken/train.jsonl.\d spoken/1.wav .'\w{16}', here '\w{16}'"),
        (lambda: shutil.copy("spoken/0.wav", "spoken/2.wav"), "spoken/train.jsonl.. spoken/2.wav"),
        (lambda: change_words("3"), "spoken/held_out.jsonl.1 spoken/3.wav"),
        (drop_last, r"spoken/train.jsonl.3 spoken/2.wav .'\w{16}', here None"),
        (swap, "spoken/train.jsonl.1 spoken/0.wav"),
    ],
)
def test_changed_recordings_are_refused_by_name(run: Run, change: object, named: str) -> None:
    kept = sorted(Path("run/checkpoints").iterdir())
    assert callable(change)
    change()
    with pytest.raises(
        CheckpointError, match=f"must be continued with the recordings.*{named}"
    ) as error:
        train_run(with_steps(run, 3), Path("run"), World())
    assert "\n" not in str(error.value)
    assert sorted(Path("run/checkpoints").iterdir()) == kept


def test_a_damaged_record_is_refused(run: Run) -> None:
    file = Path("run/learned.json")
    file.write_text(file.read_text()[:-9])
    with pytest.raises(CheckpointError, match=r"run/learned.json' must say .* Take another") as e:
        train_run(with_steps(run, 3), Path("run"), World())
    assert "\n" not in str(e.value)


def test_codes_that_processes_have_made_are_found(run: Run) -> None:
    """Of both copies and of what is held out; each process makes only what it does not find."""
    augmentation = encode(Augmentation(echo_probability=0.0))
    run = with_steps(run, 1, cache_folder="elsewhere", copies=2, augmentation=augmentation)
    prepare_together(run, 2)
    made = {file: file.stat().st_mtime_ns for file in Path("elsewhere").iterdir()}
    assert len(made) == 2 * 3 + 1
    prepare_share(run, 2, 1)
    train_run(run, Path("another"), World())
    assert {file: file.stat().st_mtime_ns for file in Path("elsewhere").iterdir()} == made


def test_what_is_not_learned_may_change(run: Run) -> None:
    """A role without prompts; another place of the cache, all codes of which are made again."""
    file = Path("spoken/1.json")
    role = {"text_conditions": {"description": "You sell tea."}}
    file.write_text(json.dumps(json.loads(file.read_text()) | role))
    again = with_steps(run, 3, cache_folder="elsewhere")
    assert train_run(again, Path("run"), World()).counters.step == 3


def test_a_folder_without_checkpoints_has_learned_nothing(run: Run) -> None:
    shutil.rmtree("run/checkpoints")
    change_words("1")
    assert train_run(with_steps(run, 1), Path("run"), World()).finished
    change_words("0")
    with pytest.raises(CheckpointError, match="spoken/0.wav"):
        train_run(with_steps(run, 2), Path("run"), World())


def test_roles_and_voices_count_where_prompts_are_made_of_them(run: Run) -> None:
    prompted = with_steps(run, 1, role_prompts=True)
    train_run(prompted, Path("prompted"), World())
    shutil.copy("spoken/1.wav", "spoken/1.voice.wav")
    with pytest.raises(CheckpointError, match="spoken/1.wav"):
        train_run(with_steps(run, 2, role_prompts=True), Path("prompted"), World())


def test_a_learned_tokeniser_is_kept_with_the_run(tmp_path: Path) -> None:
    """If the cache is lost, another version of its package might learn other ids."""
    pytest.importorskip("sentencepiece")
    data = InterruptedSpeech(num_phrases=20, cache_folder=str(tmp_path / "cache"))
    _keep_files(data, tmp_path, World())
    kept = tmp_path / data.file_names()["tokenizer"]
    assert kept.read_bytes() == data.tokenizer_file().read_bytes()
    kept.write_bytes(b"begun with")
    _keep_files(data, tmp_path, World())
    assert kept.read_bytes() == b"begun with"


def test_the_record_of_an_older_version_is_read(run: Run) -> None:
    Path("run/learned.json").rename("run/recordings.json")
    change_words("1")
    with pytest.raises(
        CheckpointError, match="must be continued with the recordings.*spoken/1.wav"
    ):
        train_run(with_steps(run, 3), Path("run"), World())
