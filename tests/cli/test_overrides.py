from pathlib import Path

import pytest

from counterpoint.cli.overrides import (
    load_recipe,
    parse,
    parse_source,
    recipe_names,
    to_every_arm,
    write_source,
)
from counterpoint.data.text.corpus import Folder, HubDataset, Jsonl, Kjv, Parquet, Source
from counterpoint.recipes.duplex_study import DuplexStudy
from counterpoint.recipes.study import Study
from counterpoint.systems.two_stream import TwoStreamConfig
from counterpoint.train.run import Run
from tests.cli import examples


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("kjv", Kjv()),
        ("folder:a/b:c", Folder(path="a/b:c")),
        ("jsonl:a,b.jsonl,text_field=body", Jsonl(path="a,b.jsonl", text_field="body")),
        ("parquet:x", Parquet(path="x")),
        ("hub:me/it,split=test,subset=en", HubDataset(name="me/it", split="test", subset="en")),
    ],
)
def test_source_is_one_word(text: str, source: Source) -> None:
    assert parse_source(text) == source
    assert parse_source(write_source(source)) == source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kvj", "got 'kvj'. The nearest is 'kjv'."),
        ("folder", "needs its path: write folder:PATH."),
        ("folder:", "needs its path"),
        ("jsonl:a,txt=b", "has the fields path, text_field, title_field: got 'txt'"),
        ("kjv:x", "has the fields none"),
    ],
)
def test_wrong_source_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_source(text)


def test_every_recipe_of_the_library_loads() -> None:
    assert "first_run" in recipe_names()
    assert "study" not in recipe_names()
    for name in recipe_names():
        assert isinstance(load_recipe(name), Run | Study | DuplexStudy)


def test_overrides_reach_every_depth_and_leave_the_rest(tmp_path: Path) -> None:
    examples.write(tmp_path)
    run = load_recipe(str(tmp_path / "small.py"))
    words = [
        "--train.optimizer.lr=0.5", "--train.clip_norm", "None", "--system.part.width", "32",
        "--data.source", "folder:other", "--train.compile", "--data.held-out", "a", "b",
    ]  # fmt: skip
    found = parse([("recipe", Run, run)], words, "train small.py", "Help.").recipe
    assert isinstance(found, Run)
    assert (found.train.optimizer.lr, found.train.clip_norm, found.train.compile) == (
        0.5,
        None,
        True,
    )
    assert isinstance(found.system, TwoStreamConfig)
    assert (found.system.part.width, found.text_data.source) == (32, Folder(path="other"))
    assert found.data.held_out == ("a", "b")
    assert (found.train.num_steps, found.system.whole) == (3, run.system.whole)


def test_no_overrides_change_nothing(tmp_path: Path) -> None:
    examples.write(tmp_path)
    for name in ("small", "pair"):
        recipe = load_recipe(f"{tmp_path / 'small.py'}:{name}")
        assert parse([("recipe", type(recipe), recipe)], [], "train x", "Help.").recipe == recipe


def test_options_of_a_run_go_to_every_arm() -> None:
    words = ["--name", "x", "--train.optimizer.betas", "0.9", "0.8", "--arms.1.train.seed", "3"]
    assert to_every_arm(words, 2) == [
        "--name", "x",
        "--arms.0.train.optimizer.betas", "0.9", "0.8",
        "--arms.1.train.optimizer.betas", "0.9", "0.8",
        "--arms.1.train.seed", "3",
    ]  # fmt: skip
