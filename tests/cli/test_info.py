import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from counterpoint.cli.main import main
from counterpoint.evaluate.report.system_tables import draw_layout, show_system
from counterpoint.recipes.duplex_small import duplex_small
from counterpoint.streams.spec import Layout, Role, Stream
from counterpoint.systems import build_system, moshi, two_stream
from counterpoint.systems.personaplex import personaplex_7b
from counterpoint.systems.presets import load_preset
from tests.cli.talkers import write_published


def layout(delay_ticks: int) -> Layout:
    return Layout(
        streams=(
            Stream(name="part", role=Role.PART, vocab_size=9),
            Stream(name="whole", role=Role.WHOLE, width=3, period_ticks=6, delay_ticks=delay_ticks),
        )
    )


@pytest.mark.parametrize(
    ("delay_ticks", "newest"), [(0, "......000000111111"), (6, "............000000")]
)
def test_drawing_shows_blocks_above_ticks_and_what_may_be_read(
    delay_ticks: int, newest: str
) -> None:
    assert draw_layout(layout(delay_ticks)).splitlines()[:3] == [
        " whole  |0----|1----|2----",
        f"newest  {newest}",
        "  tick  012345678901234567",
    ]


def test_irregular_stream_shows_its_longest_steps(capsys: pytest.CaptureFixture[str]) -> None:
    def shown_with(boundary_ids: tuple[int, ...]) -> str:
        config = replace(two_stream.tiny(), boundary_ids=boundary_ids, lag_blocks=1)
        show_system(Console(file=sys.stdout, width=140), "early", build_system(config, seed=0), 64)
        return capsys.readouterr().out

    regular, shown = shown_with(()), shown_with((32,))
    row = next(line for line in shown.splitlines() if line.startswith("│ whole"))
    assert row.count("<= 8 ticks") == 2
    assert "whole: drawn with its longest steps; the content may end them early" in shown
    assert "<=" not in regular
    assert "longest" not in regular


@pytest.mark.parametrize(
    "name",
    [
        *("single_stream.tiny", "two_stream.tiny", "two_stream.base"),
        *("moshi.tiny", "moshi.moshi_7b", "personaplex.personaplex_7b"),
    ],
)
def test_info_prints_the_costs_that_the_system_states(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", name, "--num-ticks", "512"]) == 0
    shown = capsys.readouterr().out
    with torch.device("meta"):
        system: Any = build_system(load_preset(name), seed=0)
    for number in (
        sum(parameter.numel() for parameter in system.parameters()),
        system.flops_per_tick(512),
        system.flops_per_tick(512, training=True),
        system.state_bytes_per_tick(512),
    ):
        assert f" {number:,.0f} " in shown


def test_presets_are_the_functions_that_give_a_config() -> None:
    assert load_preset("moshi.moshi_7b") == moshi.moshi_7b()
    assert load_preset("personaplex.personaplex_7b") == personaplex_7b()
    assert load_preset("two_stream.small") == two_stream.small()
    for other in ("Moshi", "joint_loss", "two_speakers", "load_reference", "moshi_7c", ""):
        with pytest.raises(ValueError, match="must be one of moshi_7b, tiny: got"):
            load_preset(f"moshi.{other}")


def test_streams_of_codebooks_show_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "moshi.moshi_7b"]) == 0
    shown = capsys.readouterr().out
    assert "moshi.moshi_7b: Moshi, 12.5 ticks a second" in shown
    row = next(line for line in shown.splitlines() if "user_acoustic" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "user_acoustic", "heard", "1 tick", "1 tick", "7 x 2048 ids"
    ]  # fmt: skip
    assert "newest" not in shown  # there is no coarser stream to draw


def test_info_of_a_study_shows_every_arm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "first_run"]) == 0
    shown = capsys.readouterr().out
    assert "single_stream: SingleStream" in shown
    assert "two_stream: TwoStream" in shown


def test_info_of_a_study_of_dialogues_shows_every_stage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["info", "duplex_small", "--num-ticks", "64"]) == 0
    shown = capsys.readouterr().out
    for run in duplex_small().described_runs():
        assert f"{run.name}: Moshi, 25 ticks a second" in shown


@pytest.mark.parametrize(
    ("name", "system"), [("two_stream_bible", "TwoStream"), ("lslm_alexa", "LSLM")]
)
def test_models_that_come_with_the_package_are_described(
    name: str, system: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", name]) == 0
    assert f": {system}" in capsys.readouterr().out


def test_published_folder_is_described_without_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_published(tmp_path / "moshi")
    assert main(["info", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "agent_semantic" in shown
    assert "delay" in shown
