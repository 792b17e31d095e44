"""Scripts: what two speakers say, as text, before it is synthesised.

A file is JSONL, one script a line: ``{"name", "role", "turns": [{"speaker", "text", ...}]}``. The
other fields of a turn are those of `Turn`; a field with its default value is left out.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from counterpoint.errors import UserError, absent
from counterpoint.files import read_json_lines, write_json_lines
from counterpoint.literals import literals_checked

SpeakerName = Literal["agent", "user"]
TurnKind = Literal["turn", "backchannel", "interruption"]

_Number = TypeVar("_Number", int, float)
_MOST_S = 1e6
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One utterance.

    Attributes:
        speaker: The speaker.
        text: What is said; its words are separated by blanks.
        kind: A "turn" takes the floor after the turn before it. The other two kinds start during
            the other speaker's turn that has the floor: a "backchannel" leaves the floor there; an
            "interruption" takes it, and the other speaker stops.
        pauses: Pairs (word index, seconds): silence before that word, which is not the first one.
        breaths: Indices of words before which a breath is taken, not the first one. The phrases
            between them are synthesised separately, 0.2 s apart.
        gap_s: For a "turn", the silence between the turn before and this one in seconds, negative
            if they overlap; ``None`` draws it from human turn-taking.
        after_word: For the other kinds, the index of the word of the other's turn after whose end
            this one starts; ``None`` draws it.
        yield_s: For an "interruption", how many seconds the other speaker continues; ``None`` draws
            them.
    """

    speaker: SpeakerName
    text: str
    kind: TurnKind = "turn"
    pauses: tuple[tuple[int, float], ...] = ()
    breaths: tuple[int, ...] = ()
    gap_s: float | None = None
    after_word: int | None = None
    yield_s: float | None = None

    def __post_init__(self) -> None:
        if not any(map(str.isalnum, self.text)):
            raise UserError(f"`text` must have a letter or a digit: got {self.text!r}.")
        self._check_places("pauses", [index for index, _ in self.pauses])
        self._check_places("breaths", list(self.breaths))
        if mute := [said for said in self.phrases if not any(map(str.isalnum, said))]:
            raise UserError(
                f"`breaths` must leave a letter or a digit in every phrase: got {mute} in "
                f"{self.text!r}."
            )
        if any(not 0 < seconds < math.inf for _, seconds in self.pauses):
            raise UserError(f"`pauses` must be longer than 0 s: got {self.pauses}.")
        if not all(map(math.isfinite, (self.gap_s or 0.0, self.yield_s or 0.0))):
            raise UserError(
                f"`gap_s` and `yield_s` must be finite: got {self.gap_s}, {self.yield_s}."
            )
        self._check_kind("gap_s", self.gap_s, "turn")
        self._check_kind("after_word", self.after_word, "backchannel", "interruption")
        self._check_kind("yield_s", self.yield_s, "interruption")
        if (self.after_word or 0) < 0 or (self.yield_s or 0) < 0:
            raise UserError(
                f"`after_word` and `yield_s` must be >= 0: got {self.after_word}, {self.yield_s}."
            )

    def _check_places(self, name: str, places: list[int]) -> None:
        last = len(self.text.split()) - 1
        if places != sorted(set(places)) or any(not 0 < place <= last for place in places):
            raise UserError(
                f"`{name}` must be before different words 1 to {last}, in order: got {places} "
                f"in {self.text!r}."
            )

    def _check_kind(self, name: str, value: float | None, *kinds: TurnKind) -> None:
        if value is not None and self.kind not in kinds:
            raise UserError(f"`{name}` belongs to {' or '.join(kinds)}: got {self.kind!r}.")

    @property
    def words(self) -> list[str]:
        """The words of the text."""
        return self.text.split()

    @property
    def phrases(self) -> list[str]:
        """The phrases that are synthesised separately."""
        edges = [0, *self.breaths, len(self.words)]
        return [" ".join(self.words[start:stop]) for start, stop in pairwise(edges)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    """A dialogue in text.

    Attributes:
        name: Name of its files: letters and digits, and also ``. _ -`` after the first character.
        role: What the agent is told before the conversation; ``None`` for nothing.
        turns: Turns in the order in which they start.
    """

    name: str
    turns: tuple[Turn, ...]
    role: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(
                "`name` of a script must be letters, digits, and . _ - after the first: got "
                f"{self.name!r}."
            )
        if not self.turns:
            raise UserError(f"Script {self.name!r} must have at least one turn.")
        floor: Turn | None = None
        for index, turn in enumerate(self.turns):
            if turn.kind != "turn":
                if floor is None or floor.speaker == turn.speaker:
                    raise UserError(
                        f"Turn {index} of script {self.name!r} is of kind {turn.kind!r}: it must "
                        "come into a turn of the other speaker."
                    )
                if turn.after_word is not None and turn.after_word >= len(floor.words):
                    raise UserError(
                        f"Turn {index} of script {self.name!r} must come after a word 0 to "
                        f"{len(floor.words) - 1} of {floor.text!r}: got {turn.after_word}."
                    )
            if turn.kind != "backchannel":
                floor = turn

    def to_json(self) -> dict[str, Any]:
        """Return an object of a .jsonl file; `from_json` reads an equal script from it."""
        turns = [
            {
                field.name: value
                for field, value in zip(fields(turn), asdict(turn).values(), strict=True)
                if field.default is MISSING or value != field.default
            }
            for turn in self.turns
        ]
        role = {} if self.role is None else {"role": self.role}
        return {"name": self.name, **role, "turns": turns}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Script":
        """Read an object of a .jsonl file.

        Raises:
            UserError: A field is missing or has a wrong value.
        """
        try:
            turns = tuple(_turn(values) for values in record["turns"])
            name = record["name"]
            role = record.get("role")
        except (KeyError, TypeError) as error:
            raise UserError(
                'A script must be {"name", "role", "turns": [{"speaker", "text", ...}]}: got '
                f"{sorted(record)} ({error})."
            ) from error
        if not isinstance(name, str) or not isinstance(role, str | None):
            raise UserError(f"`name` and `role` must be text: got {name!r}, {role!r}.")
        return cls(name=name, role=role, turns=turns)


def read_scripts(path: str | Path) -> list[Script]:
    """Read the scripts of a .jsonl file.

    Raises:
        UserError: There is no such file, a line is no script, or a name occurs twice.
    """
    scripts = [_named(Script.from_json, record, place) for place, record in _records(Path(path))]
    counts = Counter(script.name for script in scripts)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise UserError(f"{path}: names of scripts must differ: {twice[0]!r} comes twice.")
    return scripts


def write_scripts(path: str | Path, scripts: Iterable[Script]) -> None:
    """Write a .jsonl file that `read_scripts` reads."""
    write_json_lines(Path(path), [script.to_json() for script in scripts])


def read_sgd(path: str | Path) -> list[Script]:
    """Read task dialogues of the Schema-Guided Dialogue corpus; the system becomes the agent.

    The role names the services and what they do. As information it gives what the agent will tell:
    the values of slots that the agent says before the user does.

    Args:
        path: A .jsonl file with a line ``{"id", "services", "turns": [{"speaker", "text", "frames":
            [{"service", "intent", "slots"}]}]}`` for each dialogue; or a folder with such files,
            which are read in the order of their names and give them to the scripts
            ("train-3_00075").

    Raises:
        UserError: There is no such file, or a line is no dialogue.
    """
    path = Path(path)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"A folder of dialogues must have .jsonl files: {str(path)!r} has none.")
    return [
        _named(lambda record, stem=file.stem: _sgd_script(record, stem), record, place)
        for file in files
        for place, record in _records(file)
    ]


def is_sgd(path: str | Path) -> bool:
    """Return whether the first line of a file, or of a folder's first file, is an SGD dialogue."""
    path = Path(path)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    return bool(files) and "services" in _records(files[0])[0][1]


def _sgd_script(record: dict[str, Any], stem: str) -> Script:
    try:
        turns = record["turns"]
        said = tuple(
            Turn(
                speaker="user" if turn["speaker"].lower() == "user" else "agent", text=turn["text"]
            )
            for turn in turns
        )
        name = f"{stem}-{record['id']}"
        return Script(name=name, role=_sgd_role(record["services"], turns), turns=said)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"A dialogue of SGD must have id, services and turns ({error}).") from error


def _sgd_role(services: list[str], turns: list[dict[str, Any]]) -> str:
    """Return the role, worded like PersonaPlex's published roles."""
    frames = [frame for turn in turns for frame in turn["frames"]]
    intents = dict.fromkeys(
        " ".join(re.findall(r"[A-Z][a-z]*", frame["intent"])).lower()
        for frame in frames
        if frame["intent"] not in (None, "NONE")
    )
    slots = {(slot, value) for frame in frames for slot, value in frame["slots"].items()}
    known = [
        f"{slot.replace('_', ' ')}: {value}"
        for slot, value in sorted(slots)
        if _first_speaker(value, turns) != "user"
    ]
    names = " and ".join(re.sub(r"_\d+$", "", service) for service in services)
    role = f"You work for {names} which is a service to {_listed(list(intents) or ['help'])}."
    return f"{role} Information: {', '.join(known)}." if known else role


def _first_speaker(value: str, turns: list[dict[str, Any]]) -> str:
    """Return the speaker who says a value first; "user" if nobody says it."""
    said = (turn["speaker"].lower() for turn in turns if value.lower() in turn["text"].lower())
    return next(said, "user")


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _turn(values: Any) -> Turn:
    if not isinstance(values, dict):
        raise UserError(f"A turn must be an object: got {values!r}.")
    known = {field.name for field in fields(Turn)}
    if unknown := values.keys() - known:
        raise UserError(f"A turn has only {', '.join(sorted(known))}: got {sorted(unknown)[0]!r}.")
    _check_choice(values, "speaker", get_args(SpeakerName))
    _check_choice(values, "kind", get_args(TurnKind))
    if not isinstance(values["text"], str):
        raise UserError(f"`text` must be text: got {values['text']!r}.")
    return Turn(
        speaker=values["speaker"],
        text=values["text"],
        kind=values.get("kind", "turn"),
        pauses=tuple(
            (_index("pauses", place), _seconds("pauses", seconds))
            for place, seconds in values.get("pauses", ())
        ),
        breaths=tuple(_index("breaths", place) for place in values.get("breaths", ())),
        gap_s=_given(_seconds, values, "gap_s"),
        after_word=_given(_index, values, "after_word"),
        yield_s=_given(_seconds, values, "yield_s"),
    )


def _check_choice(values: dict[str, Any], name: str, choices: tuple[str, ...]) -> None:
    if name in values and values[name] not in choices:
        raise UserError(f"`{name}` must be one of {', '.join(choices)}: got {values[name]!r}.")


def _given(
    read: Callable[[str, Any], _Number], values: dict[str, Any], name: str
) -> _Number | None:
    return None if values.get(name) is None else read(name, values[name])


def _index(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"`{name}` must name words by whole numbers: got {value!r}.")
    return value


def _seconds(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > _MOST_S:
        raise UserError(f"`{name}` must be seconds, at most {_MOST_S:g}: got {value!r}.")
    return float(value)


def _named(read: Any, record: dict[str, Any], place: str) -> Script:
    try:
        script: Script = read(record)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from error
    return script


def _records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the place and object of each line."""
    if not path.is_file():
        raise UserError(absent("The file of dialogues", path, "an existing .jsonl file"))
    records = list(read_json_lines(path))
    if not records:
        raise UserError(f"Dialogues must have at least one line: {str(path)!r} is empty.")
    return records
