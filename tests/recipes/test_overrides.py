import io
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest

from counterpoint.blocks.ramp import RampConfig
from counterpoint.cli.carry_out import Recipe
from counterpoint.cli.report import ReportOptions
from counterpoint.data.text.corpus import Folder
from counterpoint.errors import UserError
from counterpoint.recipes.first_run import first_run
from counterpoint.recipes.front_loading import FrontLoading
from counterpoint.recipes.grid import Grid
from counterpoint.recipes.loading import load_recipe, recipe_names
from counterpoint.recipes.options import REQUIRED
from counterpoint.recipes.overrides import parse, to_every_arm
from counterpoint.recipes.part_whole import part_whole
from counterpoint.recipes.study import Study
from counterpoint.systems.two_stream import TwoStreamConfig
from counterpoint.train.run import Run
from tests.cli import examples


def test_every_recipe_of_the_library_loads() -> None:
    assert "first_run" in recipe_names()
    assert "study" not in recipe_names()
    for name in recipe_names():
        assert isinstance(load_recipe(name), Recipe | Grid | FrontLoading)


def test_overrides_reach_every_depth_and_leave_the_rest(tmp_path: Path) -> None:
    examples.write(tmp_path)
    run = load_recipe(str(tmp_path / "small.py"))
    words = [
        "--train.optimizer.lr=0.5", "--train.clip_norm", "None", "--system.part.width", "32",
        "--data.source", "folder:other", "--train.compile", "--data.held-out", "a", "b",
        "--system.ramp.start-ticks", "2", "--system.ramp.share", "0.3",
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
    assert found.text_data.held_out == ("a", "b")
    assert (found.train.num_steps, found.system.whole) == (3, run.system.whole)
    assert found.system.ramp == RampConfig(start_ticks=2, share=0.3)


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


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--train.num-steps", "two"), "`--train.num-steps` must be a whole number: got 'two'"),
        (("--train.num-stepz", "2"), "got --train.num-stepz. The nearest is '--train.num-steps'."),
        (("--arms.1.train.seed", "x"), "`--arms.1.train.seed` must be a whole number: got 'x'"),
    ],
)
def test_a_mistake_in_an_option_of_all_arms_names_what_was_typed(
    words: tuple[str, ...], complaint: str
) -> None:
    study = first_run()
    with pytest.raises(UserError, match=re.escape(complaint)) as caught:
        parse([("recipe", Study, study)], words, "train x", "", num_arms=2)
    assert "--arms.0" not in str(caught.value)


@pytest.mark.parametrize("name", ["a/b", "..", "two\nlines"])
def test_names_in_a_grid_must_serve_as_file_names(name: str) -> None:
    grid = part_whole()
    with pytest.raises(UserError, match="`arms.name` must serve as the name of a file"):
        replace(grid.arms[0], name=name)
    with pytest.raises(UserError, match="`name` must serve as the name of a file"):
        replace(grid, name=name)
    with pytest.raises(UserError, match="`name` must serve as the name of a file"):
        replace(first_run(), name=name)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--num_items", "two"), "`--num-items` must be a whole number: got 'two'"),
        (("--limits.flops=x", "--num-items", "2"), "`--limits.flops` must be a number: got 'x'"),
        (("--seeds", "1", "a"), "`--seeds` must be whole numbers: got '1 a'"),
    ],
)
def test_a_word_where_a_number_belongs_is_refused_in_one_line(
    words: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(UserError, match=re.escape(complaint)):
        parse([("recipe", Grid, part_whole())], words, "study part_whole", "")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])  # tyro draws a box, or only rules
def test_a_missing_option_is_told_in_one_line(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with pytest.raises(UserError, match="^`counterpoint report` must be given RUN ") as caught:
        parse([("options", ReportOptions, REQUIRED)], [], "report", "")
    assert not re.search("--- |──", str(caught.value))
    assert str(caught.value).endswith("`counterpoint report --help` lists what there is.")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Words:
    """Words of a verb.

    Attributes:
        out: A file.
        kind: A kind.
    """

    out: Path
    kind: Literal["b", "a"] = "b"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "`counterpoint x` must be given --out PATH: nothing came. "),
        (("--out",), "`--out` must be followed by a value: nothing came. "),
        (("--out", "f", "--kind", "c"), "`--kind` must be one of b, a: got 'c'. "),
        (("--out", "f", "g"), "`counterpoint x` must have no other words: got g. "),
    ],
)
def test_a_mistake_says_what_must_hold_and_what_came(
    words: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(UserError, match=re.escape(complaint)):
        parse([("options", _Words, REQUIRED)], words, "x", "")
