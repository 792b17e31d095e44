import json
from pathlib import Path
from typing import Any

import pytest

from counterpoint.data.making.scripts import (
    Script,
    Turn,
    is_sgd,
    read_scripts,
    read_sgd,
    write_scripts,
)

SCRIPT = Script(
    name="a.1",
    role="You are wise.",
    turns=(
        Turn(speaker="user", text="So, hello there", pauses=((1, 0.5),)),
        Turn(speaker="agent", text="Hello to you too", gap_s=-0.25, breaths=(1, 3)),
        Turn(speaker="user", text="yeah", kind="backchannel", after_word=1),
        Turn(speaker="user", text="Stop", kind="interruption", after_word=2, yield_s=0.1),
    ),
)


def test_scripts_come_back_from_their_file(tmp_path: Path) -> None:
    plain = Script(name="b", turns=(Turn(speaker="agent", text="Grüße, 2 × 3"),))
    write_scripts(tmp_path / "s.jsonl", [SCRIPT, plain])
    assert read_scripts(tmp_path / "s.jsonl") == [SCRIPT, plain]
    assert plain.to_json() == {
        "name": "b",
        "turns": [{"speaker": "agent", "text": "Grüße, 2 × 3"}],
    }
    assert not is_sgd(tmp_path / "s.jsonl")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": " ... "}, "must have a letter or a digit"),
        ({"pauses": ((0, 1.0),)}, r"words 1 to 1, in order: got \[0\]"),
        ({"pauses": ((2, 1.0),)}, "words 1 to 1"),
        ({"breaths": (0,)}, r"`breaths` must be before different words 1 to 1, .* got \[0\]"),
        ({"breaths": (1, 1)}, r"`breaths` must be before different words"),
        (
            {"text": "so - yes", "breaths": (1, 2)},
            r"a letter or a digit in every phrase: got \['-'\] in 'so - yes",
        ),
        ({"pauses": ((1, 0.0),)}, "longer than 0 s"),
        ({"pauses": ((1, float("inf")),)}, "longer than 0 s"),
        ({"gap_s": float("nan")}, "must be finite: got nan"),
        ({"kind": "interruption", "yield_s": float("inf")}, "must be finite: got None, inf"),
        ({"after_word": 1}, "`after_word` belongs to backchannel or interruption: got 'turn'"),
        ({"kind": "backchannel", "gap_s": 0.1}, "`gap_s` belongs to turn"),
        ({"kind": "backchannel", "yield_s": 0.1}, "`yield_s` belongs to interruption"),
        ({"kind": "interruption", "after_word": -1}, "must be >= 0"),
    ],
)
def test_turn_refuses_what_cannot_be(fields: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"speaker": "user", "text": "two words", **fields}
    with pytest.raises(ValueError, match=message):
        Turn(**values)


def test_phrases_lie_between_breaths() -> None:
    assert SCRIPT.turns[1].phrases == ["Hello", "to you", "too"]
    assert SCRIPT.turns[0].phrases == ["So, hello there"]


def test_script_refuses_an_interruption_of_nobody() -> None:
    stop = Turn(speaker="user", text="stop", kind="interruption")
    talk = Turn(speaker="agent", text="one two")
    own = Turn(speaker="user", text="one two")
    for turns in ((stop,), (own, stop)):
        with pytest.raises(ValueError, match="must come into a turn of the other speaker"):
            Script(name="x", turns=turns)
    late = Turn(speaker="user", text="stop", kind="interruption", after_word=2)
    with pytest.raises(ValueError, match=r"after a word 0 to 1 of 'one two': got 2"):
        Script(name="x", turns=(talk, late))
    for name in ("", "../x", ".x", "a b"):
        with pytest.raises(ValueError, match="`name` of a script must be letters"):
            Script(name=name, turns=(talk,))
    with pytest.raises(ValueError, match="at least one turn"):
        Script(name="x", turns=())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 must be a JSON object"),
        ("[]", "line 2 must be a JSON object: it is a list"),
        ('{"name": "b"}', "line 2: A script must be"),
        ('{"name": 3, "turns": []}', "line 2: `name` and `role` must be text"),
        ('{"name": "b", "turns": [{"speaker": "user", "tekst": ""}]}', "got 'tekst'"),
        (
            '{"name": "b", "turns": [{"speaker": "system", "text": "x"}]}',
            "`speaker` must be one of agent, user: got 'system'",
        ),
        (
            '{"name": "b", "turns": [{"speaker": "user", "text": "x", "kind": "cough"}]}',
            "`kind` must be one of turn, backchannel, interruption",
        ),
        ('{"name": "b", "turns": [{"speaker": "user", "text": 3}]}', "`text` must be text: got 3"),
        ('{"name": "b", "turns": [3]}', "line 2: A turn must be an object: got 3"),
        ('{"name": "b", "turns": [{"speaker": "user"}]}', "A script must be"),
        ('{"name": "a.1", "turns": [{"speaker": "user", "text": "x"}]}', "'a.1' comes twice"),
    ],
)
def test_reading_names_the_place_of_a_mistake(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "s.jsonl"
    write_scripts(file, [SCRIPT])
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_scripts(file)


def test_reading_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="existing .jsonl file"):
        read_scripts(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        read_scripts(tmp_path / "empty.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="has none"):
        read_sgd(tmp_path / "folder")


def test_sgd_becomes_scripts_with_roles_of_what_the_agent_tells(tmp_path: Path) -> None:
    def turn(speaker: str, text: str, intent: str | None, **slots: str) -> dict[str, object]:
        frame = {"service": "Restaurants_1", "intent": intent, "slots": slots}
        return {"speaker": speaker, "text": text, "frames": [frame]}

    record = {
        "id": "7",
        "services": ["Restaurants_1"],
        "turns": [
            turn("user", "Food in Oakland please", "FindRestaurants", city="Oakland"),
            turn("system", "Try Blue Moon in Oakland.", None),
            turn(
                "user", "Book it", "ReserveRestaurant", city="Oakland", restaurant_name="Blue Moon"
            ),
        ],
    }
    (tmp_path / "dev.jsonl").write_text(json.dumps(record) + "\n")
    assert is_sgd(tmp_path)
    (script,) = read_sgd(tmp_path)
    assert script == read_sgd(tmp_path / "dev.jsonl")[0]
    assert script.name == "dev-7"
    assert [turn.speaker for turn in script.turns] == ["user", "agent", "user"]
    assert script.role == (
        "You work for Restaurants which is a service to find restaurants and reserve restaurant. "
        "Information: restaurant name: Blue Moon."
    )


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_bytes(b"{\xf0}")
    with pytest.raises(ValueError, match="must be UTF-8: .*s.jsonl, line 1 has the byte 0xf0"):
        read_scripts(tmp_path / "s.jsonl")
