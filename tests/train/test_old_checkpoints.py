from pathlib import Path

from counterpoint.train.checkpoint import checkpoint_paths, remove_old_checkpoints


def test_a_refused_newer_checkpoint_does_not_outlive_the_good_one(tmp_path: Path) -> None:
    for step in (1, 2, 3, 7):
        (tmp_path / "checkpoints" / f"step_{step:08}").mkdir(parents=True)
    # Left behind by a deletion that was cut short.
    (tmp_path / "checkpoints" / ".step_00000007.old" / "remains").mkdir(parents=True)
    remove_old_checkpoints(tmp_path, 1, tmp_path / "checkpoints" / "step_00000003")
    assert [path.name for path in checkpoint_paths(tmp_path)] == ["step_00000003"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]
