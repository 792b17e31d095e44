"""Workers that run the cells of a grid: processes of this machine, a GPU, or a Ray cluster."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from counterpoint.errors import UserError
from counterpoint.processes import work_in_processes
from counterpoint.ray_tasks import work_on_ray
from counterpoint.recipes.cells import WORK, Cell, CellOutcome, run_cell, run_cell_elsewhere
from counterpoint.recipes.grid import Grid
from counterpoint.recipes.stacks import BATCHES, recorded_run, run_stack, stacks
from counterpoint.systems import sketch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """The workers that run the cells of a grid.

    Attributes:
        count: Number of processes, each with one thread and one cell at a time; by default one, or
            on Ray one for each core of the cluster.
        ray: Address of a Ray cluster that runs the cells; see
            `counterpoint.ray_tasks.work_on_ray`. Only this process needs the folder of the grid.
        device: Device on which cells are trained. On a GPU a process takes all cells of an arm at
            once, as lanes of a stack (`counterpoint.recipes.stacks`).
    """

    count: int | None = None
    ray: str | None = None
    device: str = "cpu"

    @property
    def in_stacks(self) -> bool:
        """Whether cells of an arm are trained together, which is no faster on a CPU."""
        return self.ray is None and self.device != "cpu"

    def check(self, grid: Grid) -> None:
        """Refuse a grid that these workers cannot run, before any of its cells is begun.

        Raises:
            UserError: Cells are trained in stacks, and the model of an arm changes as it learns.
        """
        if not self.in_stacks:
            return
        for arm in grid.arms:
            num_stages = len(sketch(arm.system).stages(grid.train.num_steps))
            if num_stages > 1:
                raise UserError(
                    "On a GPU the cells of an arm are trained together, all steps alike: arm "
                    f"{arm.name!r} trains in {num_stages} stages, such as those of a `ramp`. Run "
                    "the grid with `--device cpu`, or leave the ramp out."
                )

    def work(
        self, work: Callable[[_Item], _Result], items: Sequence[_Item]
    ) -> Generator[_Result, None, None]:
        """Yield the results of some work on every item, in the order in which they are done."""
        if self.ray is not None:
            return work_on_ray(work, items, self.ray, num_workers=self.count)
        # A single worker is a separate process too: each has one thread, so that numbers do not
        # depend on how many workers there are.
        return work_in_processes(work, items, self.count or 1)


def worked(
    grid: Grid, folder: Path, cells: Sequence[Cell], workers: Workers
) -> Generator[CellOutcome, None, None]:
    """Yield the outcomes of cells, in the order in which they are done."""
    if workers.in_stacks:
        together = partial(
            run_stack, grid, partial(recorded_run, folder=folder / BATCHES), workers.device
        )
        with closing(workers.work(together, stacks(grid, cells))) as groups:
            for group in groups:
                yield from group.cells
        return
    if workers.ray is None:
        done = workers.work(partial(run_cell, grid, folder / WORK), cells)
    else:
        done = workers.work(partial(run_cell_elsewhere, grid), cells)
    with closing(done):
        yield from done
