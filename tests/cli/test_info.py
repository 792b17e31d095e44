import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console

from counterpoint.cli.info import draw, load_preset, show
from counterpoint.cli.main import main
from counterpoint.recipes.study import build_system
from counterpoint.streams.spec import Layout, Role, Stream
from counterpoint.systems import two_stream


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
    assert draw(layout(delay_ticks)).splitlines()[:3] == [
        " whole  |0----|1----|2----",
        f"newest  {newest}",
        "  tick  012345678901234567",
    ]


def test_irregular_stream_shows_its_longest_steps(capsys: pytest.CaptureFixture[str]) -> None:
    def shown_with(boundary_ids: tuple[int, ...]) -> str:
        config = replace(two_stream.tiny(), boundary_ids=boundary_ids, lag_blocks=1)
        show(Console(file=sys.stdout, width=140), "early", build_system(config, seed=0), 64)
        return capsys.readouterr().out

    regular, shown = shown_with(()), shown_with((32,))
    row = next(line for line in shown.splitlines() if line.startswith("│ whole"))
    assert row.count("<= 8 ticks") == 2
    assert "whole: drawn with its longest steps; the content may end them early" in shown
    assert "<=" not in regular
    assert "longest" not in regular


@pytest.mark.parametrize("name", ["single_stream.tiny", "two_stream.tiny", "two_stream.base"])
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


def test_info_of_a_study_shows_every_arm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "first_run"]) == 0
    shown = capsys.readouterr().out
    assert "single_stream: SingleStream" in shown
    assert "two_stream: TwoStream" in shown
