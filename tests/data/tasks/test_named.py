"""Tasks by name: what is scored is never learned from, and the same data have the same digest."""

import shutil
from pathlib import Path

import pytest

from counterpoint.data.tasks.books import FOREIGN, SWAPPED, BookLines, Passages, ShuffleChoice
from counterpoint.data.tasks.items import (
    REPORTED_SEED,
    AnyTask,
    all_policies,
    draw,
    floors,
    scored_items,
)
from counterpoint.data.tasks.named import (
    REAL,
    REAL_SMALL,
    data_digest,
    learned_data,
    named_task,
    task_names,
)
from counterpoint.data.tasks.part_whole import FORMS
from counterpoint.data.tasks.shelf import learned_text, scored_books, tuned_books
from counterpoint.data.text.corpus import DataConfig, Folder, Kjv
from counterpoint.data.text.documents import kjv, read_folder
from counterpoint.errors import UserError
from tests.data.tasks.real_data import write_data

TUNED_SEED = REPORTED_SEED - 1
NAMES = [*REAL, *REAL_SMALL]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def learned_titles(config: DataConfig) -> set[str]:
    held_out = config.held_out_rule
    assert isinstance(held_out, tuple)
    documents = read_folder(config.source.path) if isinstance(config.source, Folder) else kjv()
    return {document.title for document in documents} - set(held_out)


@pytest.mark.parametrize("name", ["questions", "dialogues", "dialogues_small"])
def test_items_to_learn_from_to_choose_on_and_to_report_have_nothing_in_common(
    name: str, data: Path
) -> None:
    task = named_task(name, str(data))
    learned = {task.item(seed, number).text for seed in range(5) for number in range(200)}
    tuned = [item.text for item in scored_items(task, TUNED_SEED, 1000)]
    reported = [item.text for item in scored_items(task, REPORTED_SEED, 1000)]
    assert len(reported) == len(set(reported)) == (12 if name == "questions" else 8)
    assert len(learned) > len(tuned) > 0
    assert not learned & set(tuned)
    assert not learned & set(reported)
    assert not set(tuned) & set(reported)


@pytest.mark.parametrize("folder", ["", "books"])
def test_no_book_is_on_two_sides(folder: str, data: Path) -> None:
    place = str(data / folder) if folder else ""
    sides = [
        learned_titles(learned_text(place, 192)),
        {book.title for book in tuned_books(place)},
        {book.title for book in scored_books(place)},
    ]
    assert all(sides)
    assert len(set.union(*sides)) == sum(map(len, sides))


def test_a_book_to_learn_from_by_a_scored_author_is_left_out(tmp_path: Path) -> None:
    books = write_data(tmp_path) / "books"
    text = (books / "valid" / "Hugo.md").read_text().replace("A book by Hugo", "Another one")
    (books / "train" / "Another.md").write_text(text)
    titles = learned_titles(learned_text(str(books), 192))
    assert len(titles) == 4
    assert "Another one" not in titles


@pytest.mark.parametrize("name", ["shuffle", "book_lm", "paragraphs_small", "book_lm_small"])
def test_no_passage_is_scored_twice(name: str) -> None:
    task = named_task(name)
    assert isinstance(task, Passages)
    items = scored_items(task, REPORTED_SEED, 10_000)
    assert len({str(item) for item in items}) == len(items)
    titles = {book.title for book in scored_books()}
    assert {item.document for item in items} <= titles
    assert not {item.document for item in scored_items(task, TUNED_SEED, 100)} & titles


@pytest.mark.parametrize("name", NAMES)
def test_policies_of_real_tasks_are_floors_and_the_oracle_is_above_them(
    name: str, data: Path
) -> None:
    task = named_task(name, str(data))
    items = scored_items(task, REPORTED_SEED, 30)
    found = floors(task, len(items), REPORTED_SEED)
    assert "constant" in found
    oracle = found.pop("oracle", None)
    if oracle is not None:
        assert oracle[task.primary] == 1
        assert found["constant"][task.primary] < 1
    for policy in all_policies(task, items).values():
        given = [policy(item, draw(0, -1)) for item in items]
        above, below = map(sum, zip(*map(task.counts, items, given), strict=True))
        assert above / below == pytest.approx(task.score(items, given)[task.primary])


def test_passages_that_cost_the_same_are_a_tie() -> None:
    """Also where rounded sums differ, because the paragraphs stand in another order."""
    task = ShuffleChoice(kinds=(SWAPPED, FOREIGN))
    assert floors(task, 200, REPORTED_SEED)["constant"] == {"all": 0.5, SWAPPED: 0.5, FOREIGN: 0.5}
    assert floors(BookLines(), 5, REPORTED_SEED)["constant"]["saved"] == pytest.approx(0)
    with pytest.raises(UserError, match="`kinds` must be some of"):
        ShuffleChoice(kinds=("rhymes",))


@pytest.mark.parametrize("name", NAMES)
def test_a_digest_tells_other_texts_but_not_another_place(
    name: str, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "copy")
    digest = data_digest(named_task(name, str(data)))
    assert data_digest(named_task(name, str(tmp_path / "copy"))) == digest
    kind = {**REAL, **REAL_SMALL}[name]
    path = next(path for path in sorted((tmp_path / "copy" / kind.folder).rglob("*.*")))
    path.write_text(path.read_text().replace("a", "e", 1))
    assert data_digest(named_task(name, str(tmp_path / "copy"))) != digest


def test_digests_of_tasks_differ(data: Path) -> None:
    digests = {data_digest(named_task(name, str(data))) for name in task_names()}
    assert len(digests) == len(task_names())


def test_tasks_without_texts_are_refused_except_those_of_the_bible(tmp_path: Path) -> None:
    for name in ("questions", "dialogues"):
        with pytest.raises(UserError, match=r"must have a folder '.*'.*--data FOLDER"):
            named_task(name, str(tmp_path))
    with pytest.raises(UserError, match="nearest is 'questions'"):
        named_task("question")
    for name in ("shuffle", "questions"):  # passages are not those of the Bible by mistake
        with pytest.raises(UserError, match=r"folder of data must exist: '.*' does not"):
            named_task(name, str(tmp_path / "missing"))
    task = named_task("shuffle", str(tmp_path))
    assert learned_data(task, 0) == DataConfig(
        source=Kjv(), held_out=learned_text("", 192).held_out_rule, row_ticks=task.most_symbols
    )


def test_every_name_is_a_task(data: Path) -> None:
    for name in task_names():
        task = named_task(name, str(data))
        assert isinstance(task, AnyTask)
        assert (name in FORMS) or task.name in REAL
