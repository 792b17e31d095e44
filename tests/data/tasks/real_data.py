"""A small folder of data in the form of the real one: books, questions and dialogues."""

import json
from pathlib import Path

CLASSES = {"When": "NUM:date", "Who": "HUM:ind", "Where": "LOC:city"}
AUTHORS = ("Anne", "Bert", "Cleo", "Dora", "Emil", "Fred")


def write_data(folder: Path) -> Path:
    """Write the folder; one question to learn from is also scored."""
    write_questions(folder / "trec-qc")
    write_dialogues(folder / "sgd-mini")
    for place, authors in (("train", AUTHORS), ("valid", ("Gina", "Hugo"))):
        for author in authors:
            write_book(folder / "books" / place, f"A book by {author}", author)
    return folder


def write_questions(folder: Path) -> None:
    folder.mkdir(parents=True)
    lines = [
        f"{kind} {word} was thing {number} ?"
        for number in range(30)
        for word, kind in CLASSES.items()
    ]
    (folder / "test.txt").write_text("\n".join(lines[:12]) + "\n")
    (folder / "train.txt").write_text("\n".join(lines[11:]) + "\n")


def write_dialogues(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, first, count in (("train", 0, 40), ("dev", 40, 8)):
        lines = [json.dumps({"turns": dialogue(number)}) for number in range(first, first + count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def dialogue(number: int) -> list[dict[str, object]]:
    """A user who wants a bus, and says where to."""
    slots = {"to": f"town {number}"}
    return [
        turn("user", f"A bus to town {number}, please.", intent="FindBus", slots=slots),
        turn("system", "There is one.", acts=["OFFER"]),
    ]


def turn(speaker: str, text: str, **frame: object) -> dict[str, object]:
    empty: dict[str, object] = {"intent": None, "slots": {}, "acts": []}
    return {"speaker": speaker, "text": text, "frames": [empty | frame]}


def write_book(folder: Path, title: str, author: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    chapters = [
        f"## Chapter {chapter}\n\n" + "\n\n".join(_paragraph(author, chapter, n) for n in range(20))
        for chapter in range(3)
    ]
    text = f"# {title}\n\n## Author: {author}\n\n" + "\n\n".join(chapters)
    (folder / f"{author}.md").write_text(text + "\n")


def _paragraph(author: str, chapter: int, number: int) -> str:
    return " ".join(f"Then {author} went {place} times to {chapter}{number}." for place in range(3))
