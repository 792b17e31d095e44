"""Nothing that lies below a folder is left out in silence."""

import os
from pathlib import Path

import pytest

from counterpoint.data.text.documents import read_folder
from counterpoint.errors import UserError


def titles(folder: Path) -> list[str]:
    return [document.title for document in read_folder(folder)]


def test_links_are_followed(tmp_path: Path) -> None:
    corpus, other = tmp_path / "c", tmp_path / "x"
    for folder, name in ((corpus, "a"), (other, "b"), (other / "deep", "d")):
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.txt").write_text(name)
    (corpus / "x").symlink_to("../x")
    (corpus / "file.txt").symlink_to("../x/b.txt")
    assert titles(corpus) == ["a", "file", "b", "d"]


def test_circles_of_links_end_and_give_every_folder_once(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text(name)
        for other in "abc":
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
        (tmp_path / name / "up").symlink_to("..")
    assert titles(tmp_path) == ["a", "b", "c"]


def test_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"gone\.txt' is broken"):
        titles(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_folder_that_must_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(OSError, match="closed"):
        titles(tmp_path)
