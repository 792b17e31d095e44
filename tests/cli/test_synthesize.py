from pathlib import Path

import pytest

from counterpoint.cli.synthesize import main
from counterpoint.data.making.scripts import Script, Turn, write_scripts
from counterpoint.data.speech.dialogues import read_dialogues
from counterpoint.speech.voices import available_voices


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    turns = (
        Turn(speaker="user", text="Hello, can you help me?"),
        Turn(speaker="agent", text="Of course, what can I do for you on this fine day?"),
        Turn(speaker="user", text="Tell me the time."),
    )
    made = [Script(name=f"d{number}", role="You are kind.", turns=turns) for number in range(3)]
    write_scripts(tmp_path / "scripts.jsonl", made)
    return tmp_path / "scripts.jsonl"


def test_mistakes_are_told_before_anything_is_made(scripts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="existing .jsonl file"):
        main([str(tmp_path / "none.jsonl"), "--out", str(out)])
    with pytest.raises(ValueError, match="`--limit` must be >= 0: got -1"):
        main([str(scripts), "--out", str(out), "--limit", "-1"])
    with pytest.raises(ValueError, match="must be engine:name or engine:name:formant: got 'bob'"):
        main([str(scripts), "--out", str(out), "--agent", "bob"])
    with pytest.raises(ValueError, match="The nearest is '--out'"):
        main([str(scripts), "--outt", str(out)])
    assert not out.exists()


def test_help_has_a_line_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "counterpoint synthesize scripts.jsonl --out dialogues" in capsys.readouterr().out


@pytest.mark.slow
def test_the_verb_makes_a_set_and_says_what_it_is_like(
    scripts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voice = available_voices()[0]
    name = f"{voice.engine}:{voice.name}"
    words = [str(scripts), "--out", str(tmp_path / "out"), "--limit", "2", "--agent", name]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "2 dialogues" in printed
    assert "0.13 s" in printed
    assert printed.rstrip().endswith("dialogues.jsonl")
    dialogues = read_dialogues(tmp_path / "out" / "dialogues.jsonl")
    assert [dialogue.audio.name for dialogue in dialogues] == ["d0.wav", "d1.wav"]
    assert all(dialogue.words for dialogue in dialogues)
