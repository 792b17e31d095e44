"""Passages of books: what was changed can be seen, and nothing else was."""

from collections import Counter
from pathlib import Path

import pytest

from counterpoint.data.tasks.books import (
    FOREIGN,
    KINDS,
    SHUFFLED,
    SWAPPED,
    BookLines,
    ShuffleChoice,
    TextChoice,
    recalled_names,
)
from counterpoint.data.tasks.shelf import held_out_titles, scored_books
from counterpoint.data.text.corpus import KJV_HELD_OUT
from counterpoint.errors import UserError


def book(folder: Path, title: str, author: str, word: str) -> None:
    paragraphs = [
        " ".join(f"The {word} {number} came {place} times." for place in range(6))
        for number in range(30)
    ]
    text = f"# {title}\n\n## Author: {author}\n\n## Chapter 1\n\n" + "\n\n".join(paragraphs)
    (folder / f"{title}.md").write_text(text + "\n")


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    folder = tmp_path / "books" / "valid"
    folder.mkdir(parents=True)
    book(folder, "One", "Anne", "cat")
    book(folder, "Two", "Anne", "dog")
    book(folder, "Three", "Bert", "cow")
    return folder.parent


def check(choice: TextChoice) -> None:
    right = "\n\n".join(choice.right)
    wrong = "\n\n".join(choice.wrong)
    assert right != wrong
    assert len(right) == len(wrong)
    assert Counter(right.split()) == Counter(wrong.split())
    pairs = list(zip(right.split("\n\n"), wrong.split("\n\n"), strict=True))
    changed = sum(one != other for one, other in pairs)
    assert changed == (1 if choice.kind == SHUFFLED else 2)
    assert pairs[0][0] == pairs[0][1]  # what is read first is true


@pytest.mark.parametrize("number", range(9))
def test_choices_differ_in_what_their_kind_says(number: int) -> None:
    task = ShuffleChoice()
    choice = task.item(3, number)
    assert choice == task.item(3, number)
    assert choice.kind == KINDS[number % 3]
    assert choice.document in KJV_HELD_OUT
    check(choice)
    assert all(1500 <= len(text) <= 3100 for text in choice.right)
    # One passage comes with every kind of change.
    assert choice.right[0] == task.item(3, number // 3 * 3).right[0]


def test_paragraphs_are_exchanged_between_authors(shelf: Path) -> None:
    task = ShuffleChoice(folder=str(shelf), passage_symbols=600)
    for number in range(30):
        choice = task.item(0, number)
        check(choice)
        if choice.kind != FOREIGN:
            continue
        own = {word for word in ("cat", "dog", "cow") if word in choice.right[0]}
        both = {word for word in ("cat", "dog", "cow") if word in choice.wrong[0]}
        assert len(own) == 1
        assert len(both) == 2
        assert "cow" in both


def test_no_kind_can_be_told_from_length_or_letters(shelf: Path) -> None:
    task = ShuffleChoice(folder=str(shelf), passage_symbols=600)
    kinds = [task.item(1, number).kind for number in range(60)]
    assert Counter(kinds) == {SWAPPED: 20, FOREIGN: 20, SHUFFLED: 20}


def test_a_text_stands_below_its_own_lines_and_those_of_another_author(shelf: Path) -> None:
    task = BookLines(folder=str(shelf), passage_symbols=300)
    for number in range(20):
        found = task.item(0, number)
        assert found.contexts["absent"] == ""
        assert found.contexts["own"].startswith(f"{found.document}\n\nAuthor: ")
        assert found.contexts["own"].endswith("Chapter 1\n\n")
        authors = [found.contexts[name].split("\n\n")[1] for name in ("own", "other")]
        assert len(set(authors)) == 2
        assert len(found.text) == 300
    bible = BookLines().item(0, 0)
    assert bible.contexts["own"].split("\n\n")[0] == bible.document


def test_names_are_recalled_from_before_the_window() -> None:
    text = "so Ruth went. " + "x" * 50 + " and then Ruth saw Ruth, who saw Boaz."
    found = [text[first:stop] for first, stop in recalled_names(text, 40)]
    assert found == ["Ruth"]  # the third stands near the second, and Boaz is new
    assert recalled_names(text, 200) == ()


def test_no_author_is_on_both_sides(tmp_path: Path) -> None:
    for number in range(40):
        book(tmp_path, f"Book {number}", f"Author {number // 2}", "cat")
    titles = held_out_titles(str(tmp_path))
    assert 0 < len(titles) < 20
    numbers = {int(title.split()[1]) for title in titles}
    assert {number ^ 1 for number in numbers} == numbers
    assert {one.title for one in scored_books(str(tmp_path))} == set(titles)


def test_books_of_one_author_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path / "one" / "valid", tmp_path / "two" / "valid"):
        folder.mkdir(parents=True)
        book(folder, "One", "Anne", "cat")
    with pytest.raises(UserError, match="at least two authors"):
        BookLines(folder=str(tmp_path / "one")).item(0, 0)
    book(tmp_path / "two" / "valid", "Two", "Bert", "cat")
    with pytest.raises(UserError, match="passages of four paragraphs"):
        ShuffleChoice(folder=str(tmp_path / "two"), passage_symbols=10).item(0, 0)


@pytest.mark.data
def test_the_books_of_the_data_folder_give_choices_and_texts(data_folder: Path) -> None:
    folder = str(data_folder / "books")
    for number in range(30):
        check(ShuffleChoice(folder=folder).item(0, number))
        assert len(BookLines(folder=folder).item(0, number).text) > 300
    assert len({one.author for one in scored_books(folder)}) == 6
