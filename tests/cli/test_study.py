"""The verb ``study``."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from counterpoint.cli.main import main
from counterpoint.recipes import grid_report
from counterpoint.recipes import grid_workers as module

RECIPE = """
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.recipes.grid import Grid, GridArm
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.train.config import ScheduleConfig, TrainConfig


def small():
    tower = TowerConfig(width=4, num_layers=1, num_heads=1, mlp_hidden=4, window=2)
    return Grid(
        name="small",
        arms=(GridArm(name="a", system=SingleStreamConfig(tower=tower)),),
        tasks=("hierarchy",),
        train=TrainConfig(num_steps=1, batch_rows=1, schedule=ScheduleConfig(warmup_steps=1)),
        seeds=(0,),
        num_items=4,
    )
"""


def test_a_grid_is_run_and_its_tables_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(work: Any, items: Any, num_processes: int) -> Any:
        yield from map(work, items)

    monkeypatch.setattr(module, "work_in_processes", work)
    monkeypatch.setattr(grid_report, "work_in_processes", work)
    (tmp_path / "grid.py").write_text(RECIPE)
    words = ["study", f"{tmp_path}/grid.py:small", "--folder", f"{tmp_path}/out", "--quiet"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "best policy" in shown.out
    assert "oracle" in shown.out
    assert shown.out.endswith("results.parquet\n")
    assert (tmp_path / "out" / "report.md").read_text().startswith("# small")
    assert "counterpoint study" in (tmp_path / "out" / "report.html").read_text()
    assert main(["report", f"{tmp_path}/out"]) == 0
    assert capsys.readouterr().out == shown.out
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["arm"] == "a"


def test_some_arms_of_a_grid_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order in which they are named: the first is compared with the others."""

    def work(work: Any, items: Any, num_processes: int) -> Any:
        yield from map(work, items)

    for place in (module, grid_report):
        monkeypatch.setattr(place, "work_in_processes", work)
    system = "GridArm(name='a', system=SingleStreamConfig(tower=tower))"
    three = ", ".join(system.replace("'a'", f"'{name}'") for name in "abc")
    line = '(GridArm(name="a", system=SingleStreamConfig(tower=tower)),)'
    (tmp_path / "grid.py").write_text(RECIPE.replace(line, f"({three})"))
    words = ["study", f"{tmp_path}/grid.py:small", "--folder", f"{tmp_path}/out", "--quiet"]
    assert main([*words, "--json", "--arms", "c", "a"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["arm"] for row in rows if row["by_seed"]] == ["c", "a"]
    assert main([*words, "--arms", "d"]) == 2
    assert "`arms` must be some of a, b, c: got d." in capsys.readouterr().err
    assert main(words) == 2  # other arms in the same folder
    assert "Name another folder" in capsys.readouterr().err


def test_an_arm_whose_ticks_cannot_be_timed_does_not_cost_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(work: Any, items: Any, num_processes: int) -> Any:
        yield from map(work, items)

    def untimed(system: Any, num_ticks: int) -> None:
        raise RuntimeError("no initial frame:\n  it cannot begin")

    for place in (module, grid_report):
        monkeypatch.setattr(place, "work_in_processes", work)
    monkeypatch.setattr(grid_report, "decode_latency", untimed)
    (tmp_path / "grid.py").write_text(RECIPE)
    assert main(["study", f"{tmp_path}/grid.py:small", "--folder", f"{tmp_path}/out"]) == 0
    shown = capsys.readouterr()
    note = "The ticks of 'a' are not timed: RuntimeError: no initial frame: it cannot begin\n"
    assert note in shown.err
    assert shown.out.endswith("results.parquet\n")
    assert (tmp_path / "out" / "report.md").read_text().startswith("# small")
    assert main(["study", "partwhole", "--workers", "0"]) == 2  # another spelling of part_whole
    assert ">= 1" in capsys.readouterr().err


def test_what_is_no_grid_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "first_run"]) == 2
    told = capsys.readouterr().err
    assert "must be a recipe that returns a `Grid`" in told
    assert "`counterpoint train first_run` runs it" in told
    for name in ("part_whole", "front_loading"):
        assert main(["study", name, "--minutes", "0"]) == 2
        assert "`--minutes` must be above 0 and finite: got 0." in capsys.readouterr().err
    assert main(["study", "part_whole", "--workers", "0"]) == 2
    assert ">= 1" in capsys.readouterr().err
    assert main(["report", "/nowhere"]) == 2


def test_front_loading_is_declared_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "front_loading", "--declare", f"{tmp_path}/declared.json"]) == 0
    declared = json.loads((tmp_path / "declared.json").read_text())
    assert len(declared["chains"]) == 42
    assert len(declared["comparisons"]) == 22
    assert main(["study", "front_loading", "--report", "--folder", f"{tmp_path}/none"]) == 2
    assert "must have finished chains" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--list"], ["--help"], ["part_whole", "--help"]])
def test_what_there_is_is_said_in_forty_lines(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        main(["study", *words])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert any("part_whole" in line for line in lines)
