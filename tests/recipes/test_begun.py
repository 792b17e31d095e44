"""A folder belongs to one study."""

from dataclasses import replace
from pathlib import Path

import pytest

from counterpoint.errors import UserError
from counterpoint.files import read_json, write_json
from counterpoint.recipes.begun import keep_or_check_begun, keep_or_check_study
from counterpoint.recipes.front_loading import front_loading


def test_a_record_older_than_a_field_belongs_to_the_study_with_its_default(tmp_path: Path) -> None:
    file = tmp_path / "study.json"
    study = front_loading()
    keep_or_check_study(file, study, ("seeds",))
    old = read_json(file)
    del old["train"]["optimizer"]["kind_lr_factors"]
    write_json(file, old)
    keep_or_check_study(file, replace(study, seeds=(7,)), ("seeds",))
    assert "kind_lr_factors" in read_json(file)["train"]["optimizer"]
    write_json(file, old)
    optimizer = replace(study.train.optimizer, kind_lr_factors=(("answer", 0.5),))
    other = replace(study, train=replace(study.train, optimizer=optimizer))
    with pytest.raises(UserError, match=r"begun with another study.train.optimizer"):
        keep_or_check_study(file, other, ("seeds",))


def test_a_record_with_an_unknown_field_belongs_to_another_study(tmp_path: Path) -> None:
    file = tmp_path / "study.json"
    keep_or_check_study(file, front_loading(), ())
    write_json(file, read_json(file) | {"pace": 2})
    with pytest.raises(UserError, match="begun with another study"):
        keep_or_check_study(file, front_loading(), ())


def test_a_field_that_the_record_does_not_know_has_its_default_and_not_that_of_the_call(
    tmp_path: Path,
) -> None:
    file = tmp_path / "study.json"
    study = front_loading()
    keep_or_check_study(file, study, ("seeds",))
    old = read_json(file)
    del old["num_samples"]
    write_json(file, old)
    with pytest.raises(UserError, match=r"begun with another study.num_samples"):
        keep_or_check_study(file, replace(study, num_samples=study.num_samples + 1), ("seeds",))
    keep_or_check_study(file, study, ("seeds",))


def test_a_broken_record_is_told_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "study.json"
    file.write_text("{")
    with pytest.raises(UserError, match="must say what its folder was begun with"):
        keep_or_check_study(file, front_loading(), ())


def test_a_folder_goes_on_with_what_it_began_with_and_with_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "new" / "begun.json"
    began = {"pack": {"phrases.safetensors": "ab"}, "misread": 0.1}
    keep_or_check_begun(file, began, "training")
    keep_or_check_begun(file, began, "training")
    assert read_json(file) == began
    for other, found in (
        ({**began, "misread": 0.2}, r"training.misread \(0.1, here 0.2\)"),
        ({**began, "pack": {"phrases.safetensors": "cd"}}, "training.pack.phrases.safetensors"),
        ({"pack": {}, "misread": 0.1}, "training.pack.phrases.safetensors"),
    ):
        with pytest.raises(UserError, match=found) as caught:
            keep_or_check_begun(file, other, "training")
        assert "\n" not in str(caught.value)
    assert read_json(file) == began
    with pytest.raises(UserError, match="it needs seed"):
        keep_or_check_begun(file, {"seed": 1}, "training")
