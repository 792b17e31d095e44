"""The smallest study of part and whole learns something, and learns it through its whole."""

from pathlib import Path

import pytest

from counterpoint.data.tasks.items import floors
from counterpoint.data.tasks.part_whole import SECONDS
from counterpoint.recipes.cells import Cell, run_cell
from counterpoint.recipes.grid import costs
from counterpoint.recipes.part_whole_seconds import TASK, part_whole_seconds


@pytest.mark.timeout(300)  # 20 s on an idle core
def test_two_stream_learns_what_it_does_not_with_the_whole_of_another_row(tmp_path: Path) -> None:
    """Scores far above and below what the last section tells: a broken whole or a leak fails."""
    grid = part_whole_seconds()
    costs(grid, TASK)  # refuses arms of unequal FLOPs
    known = floors(SECONDS[TASK], num_items=1000, seed=0)
    (learning_rate,) = grid.learning_rates
    found = {
        arm.name: run_cell(
            grid,
            tmp_path,
            Cell(task=TASK, arm=arm.name, learning_rate=learning_rate, seed=grid.seeds[0]),
        ).record["score"]
        for arm in grid.arms
    }
    assert found["two_stream"] > known["key only"]["joint"] + 0.3
    assert found["shuffled_whole"] < known["last section"]["joint"] - 0.1
    assert found["window"] < known["last section"]["joint"] - 0.1
